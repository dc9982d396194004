//! G20 and G21: pages that cannot be given away, numbers without end, and a second processor that writes to what is given away.

use super::{Case, Lab, Outcome};
use crate::balloon::{self, Balloon, PAGE, command, field, fill, look, mark, queue};
use crate::bring_up;
use crate::clock::Clock;
use crate::cpu;
use crate::dma::Dma;
use crate::mmio::{reg, status as bit};
use crate::second::Second;
use crate::tables;
use crate::virtqueue::Piece;

pub const CASES: &[Case] = &[
    ("g20-named-twice", |lab| inflate(lab, |page| page / 128 * 2, |page| matches!(page, 0 | 2))),
    ("g20-out-of-ram", out_of_ram),
    ("g20-split-numbers", |lab| cut(lab, 7, 1024)),
    ("g20-ragged-count", |lab| cut(lab, 1024, 1022)),
    ("g20-numbers-writable", numbers_writable),
    ("g20-numbers-4g", numbers_4g),
    ("g20-own-numbers", own_numbers),
    ("g20-own-rings", own_rings),
    ("g20-all-then-touch", all_then_touch),
    ("g20-deflate-nonsense", deflate_nonsense),
    ("g20-statistics-4g", statistics_4g),
    ("g20-statistics-past-ram", |lab| past_ram(lab, queue::STATS)),
    ("g20-statistics-storm", statistics_storm),
    ("g20-hints-unasked", hints_unasked),
    ("g20-hint-command-long", hint_command_long),
    ("g20-report-of-nothing", report_of_nothing),
    ("g20-report-past-ram", |lab| past_ram(lab, queue::REPORT)),
    ("g20-configuration-writes", configuration_writes),
    ("g20-inflate-storm", inflate_storm),
];

/// These need a second processor.
pub const RACES: &[Case] = &[
    ("g21-inflate", |lab| race(lab, |balloon, clock, memory| balloon.pages(clock, queue::INFLATE, memory))),
    ("g21-report", |lab| race(lab, |balloon, clock, memory| balloon.ranges(clock, queue::REPORT, memory))),
    ("g21-hint", |lab| race(lab, hint)),
];

/// These may end the machine.
pub const ENDINGS: &[Case] = &[("g20-page-tables", page_tables)];

/// Pages of a buffer that is looked at.
const PAGES: u64 = 256;
/// Bytes of RAM that stay out of the balloon, for what comes after.
const LEFT_OVER: u64 = 4 << 20;
/// Bytes that 255 descriptors claim together: nearly 4 GiB.
const CLAIM: u32 = 0x100_0000;

impl Lab<'_> {
    /// A freshly started balloon.
    pub(super) fn balloon(&mut self) -> Result<Balloon, Outcome> {
        let window = balloon::chosen_window(self.machine).ok_or("skipped-no-balloon")?;
        Balloon::start(self.machine, window).map_err(super::refusal)
    }

    /// The same, and a buffer with a word in each page.
    fn balloon_and_pages(&mut self) -> Result<(Balloon, Dma), Outcome> {
        let balloon = self.balloon()?;
        let memory = self.buffer(PAGES * PAGE);
        fill(memory);
        Ok((balloon, memory))
    }

    /// Offers a chain, and what the device makes of it.
    fn try_balloon(&mut self, balloon: &mut Balloon, index: usize, pieces: &[Piece]) -> Outcome {
        if !balloon.offer(index, pieces) {
            return "skipped-no-queue";
        }
        let deadline = self.machine.clock.deadline_ms(self.machine.command_line.number("patience_ms", 500));
        loop {
            for _ in 0..2000 {
                match balloon.queue(index).and_then(|queue| queue.poll()) {
                    Some(used) if used.len == 0 => return "len0",
                    Some(_) => return "written",
                    None => cpu::pause(),
                }
            }
            if balloon.window.status() & bit::NEEDS_RESET != 0 {
                return "needs-reset";
            }
            if deadline.passed() {
                return "silent";
            }
        }
    }
}

/// Whether a page goes into a freshly started balloon, and no other.
pub fn works(lab: &mut Lab<'_>) -> bool {
    let Ok((mut balloon, memory)) = lab.balloon_and_pages() else { return false };
    balloon.pages(lab.machine.clock, queue::INFLATE, memory.part(PAGE, PAGE))
        && check(memory, |page| page == 1) == "zeroed"
}

/// Whether exactly the pages that `gone` names read zero.
fn check(memory: Dma, gone: impl Fn(u64) -> bool) -> Outcome {
    for page in 0..memory.len() / PAGE {
        match (memory.read64(page * PAGE), gone(page)) {
            (0, true) => {}
            (0, false) => return "lost",
            (word, gone) if word == mark(memory.address() + page * PAGE) => {
                if gone {
                    return "kept-all";
                }
            }
            _ => return "foreign-data",
        }
    }
    "zeroed"
}

/// [`check`] after an answer without a byte written; else what came instead.
fn check_after(answer: Outcome, memory: Dma, gone: impl Fn(u64) -> bool) -> Outcome {
    if answer == "len0" { check(memory, gone) } else { answer }
}

/// The same where nothing may change.
fn unchanged_after(answer: Outcome, memory: Dma) -> Outcome {
    match check_after(answer, memory, |_| false) {
        "zeroed" => "ignored",
        other => other,
    }
}

/// One request of 256 numbers, each the page of the buffer that `choose` names.
fn inflate(lab: &mut Lab<'_>, choose: fn(u64) -> u64, gone: fn(u64) -> bool) -> Outcome {
    let (mut balloon, memory) = match lab.balloon_and_pages() {
        Ok(both) => both,
        Err(outcome) => return outcome,
    };
    number(balloon.numbers, memory, choose);
    let list = Piece::readable(balloon.numbers);
    let answer = lab.try_balloon(&mut balloon, queue::INFLATE, &[list]);
    check_after(answer, memory, gone)
}

/// Writes 256 numbers of the buffer's pages.
fn number(list: Dma, memory: Dma, choose: fn(u64) -> u64) {
    let first = memory.address() / PAGE;
    (0..list.len() / 4).for_each(|i| list.write32(4 * i, (first + choose(i)) as u32));
}

/// Pages behind RAM, in device windows, in holes, and the highest there can be.
fn out_of_ram(lab: &mut Lab<'_>) -> Outcome {
    let (mut balloon, memory) = match lab.balloon_and_pages() {
        Ok(both) => both,
        Err(outcome) => return outcome,
    };
    let end = lab.machine.boot.ram_end_above(crate::IMAGE);
    let starts = [end, 0xc000_0000, 0xd000_0000, 0xfee0_0000, 1 << 32, 255 << 30, 1 << 40, u64::from(u32::MAX) * PAGE];
    let numbers = balloon.numbers;
    (0..PAGES).for_each(|i| numbers.write32(4 * i, (starts[(i % 8) as usize] / PAGE).saturating_sub(i / 8) as u32));
    // Counting down from the end of RAM would hit RAM.
    (0..PAGES).step_by(8).for_each(|i| numbers.write32(4 * i, (end / PAGE + i) as u32));
    let answer = lab.try_balloon(&mut balloon, queue::INFLATE, &[Piece::readable(numbers)]);
    unchanged_after(answer, memory)
}

/// The first `len` bytes of 256 numbers, in pieces of `piece` bytes.
fn cut(lab: &mut Lab<'_>, piece: u64, len: u64) -> Outcome {
    let (mut balloon, memory) = match lab.balloon_and_pages() {
        Ok(both) => both,
        Err(outcome) => return outcome,
    };
    number(balloon.numbers, memory, |page| page);
    let mut pieces = [Piece::readable(balloon.numbers); 256];
    let mut count = 0;
    for at in (0..len).step_by(piece as usize) {
        pieces[count] = Piece::readable(balloon.numbers.part(at, piece.min(len - at)));
        count += 1;
    }
    let answer = lab.try_balloon(&mut balloon, queue::INFLATE, &pieces[..count]);
    check_after(answer, memory, |page| if len == 1024 { true } else { page < len / 4 })
}

/// Numbers where the device would write.
fn numbers_writable(lab: &mut Lab<'_>) -> Outcome {
    let (mut balloon, memory) = match lab.balloon_and_pages() {
        Ok(both) => both,
        Err(outcome) => return outcome,
    };
    number(balloon.numbers, memory, |page| page);
    let list = Piece::writable(balloon.numbers);
    let answer = lab.try_balloon(&mut balloon, queue::INFLATE, &[list]);
    unchanged_after(answer, memory)
}

/// A billion numbers in one request, each second page of the buffer over and over: minutes of work, of which a reset must be rid at once.
fn numbers_4g(lab: &mut Lab<'_>) -> Outcome {
    let (mut balloon, memory) = match lab.balloon_and_pages() {
        Ok(both) => both,
        Err(outcome) => return outcome,
    };
    let list = lab.buffer(CLAIM.into());
    number(list, memory, |i| i * 2 % PAGES);
    let answer = lab.try_balloon(&mut balloon, queue::INFLATE, &[Piece::readable(list); 255]);
    lab.facts[0] = ("unanswered", u64::from(answer == "silent"));
    let before = cpu::cycles();
    let quick = bring_up::reset(balloon.window, lab.machine.clock).is_ok();
    lab.facts[1] = ("reset_cycles", cpu::cycles() - before);
    if quick { "alive" } else { "reset-hangs" }
}

/// The page with the numbers is one of them.
fn own_numbers(lab: &mut Lab<'_>) -> Outcome {
    let (mut balloon, memory) = match lab.balloon_and_pages() {
        Ok(both) => both,
        Err(outcome) => return outcome,
    };
    number(balloon.numbers, memory, |page| page);
    balloon.numbers.write32(0, (balloon.numbers.address() / PAGE) as u32);
    let list = Piece::readable(balloon.numbers);
    let answer = lab.try_balloon(&mut balloon, queue::INFLATE, &[list]);
    if balloon.numbers.read32(4) == 0 { check_after(answer, memory, |page| page != 0) } else { "kept-all" }
}

/// The queue's own descriptors and rings.
fn own_rings(lab: &mut Lab<'_>) -> Outcome {
    let mut balloon = match lab.balloon() {
        Ok(balloon) => balloon,
        Err(outcome) => return outcome,
    };
    let numbers = balloon.numbers;
    let Some(queue) = balloon.queue(queue::INFLATE) else { return "skipped-no-queue" };
    let areas = [queue.descriptors, queue.avail, queue.used];
    (0u64..).zip(areas).for_each(|(i, area)| numbers.write32(4 * i, (area.address() / PAGE) as u32));
    let answer = lab.try_balloon(&mut balloon, queue::INFLATE, &[Piece::readable(numbers.part(0, 12))]);
    lab.facts[0] = ("answered", u64::from(answer == "len0"));
    "alive"
}

/// All memory but this program's own, twice.
fn all_then_touch(lab: &mut Lab<'_>) -> Outcome {
    let mut balloon = match lab.balloon() {
        Ok(balloon) => balloon,
        Err(outcome) => return outcome,
    };
    let end = lab.machine.boot.ram_end_above(crate::IMAGE);
    let memory = lab.buffer((end - lab.machine.arena.mark() - LEFT_OVER) & !(PAGE - 1));
    for _ in 0..2 {
        fill(memory);
        if look(memory).old != memory.len() / PAGE {
            return "lost";
        }
        if !balloon.pages(lab.machine.clock, queue::INFLATE, memory) {
            return "silent";
        }
        if look(memory).zero != memory.len() / PAGE {
            return "kept-all";
        }
    }
    lab.facts[0] = ("pages", memory.len() / PAGE);
    "zeroed"
}

/// Pages leave that never were in the balloon, and some that do not exist.
fn deflate_nonsense(lab: &mut Lab<'_>) -> Outcome {
    let (mut balloon, memory) = match lab.balloon_and_pages() {
        Ok(both) => both,
        Err(outcome) => return outcome,
    };
    number(balloon.numbers, memory, |page| if page % 2 == 0 { page } else { page << 24 });
    let list = Piece::readable(balloon.numbers);
    for pieces in [[list; 1], [Piece { len: 3, ..list }], [Piece { writable: true, ..list }]] {
        let answer = lab.try_balloon(&mut balloon, queue::DEFLATE, &pieces);
        let outcome = unchanged_after(answer, memory);
        if outcome != "ignored" {
            return outcome;
        }
    }
    "ignored"
}

/// Statistics of nearly 4 GiB; then proper ones, for which the first buffer must come back.
fn statistics_4g(lab: &mut Lab<'_>) -> Outcome {
    let mut balloon = match lab.balloon() {
        Ok(balloon) => balloon,
        Err(outcome) => return outcome,
    };
    let list = lab.buffer(CLAIM.into());
    balloon.offer(queue::STATS, &[Piece::readable(list); 255]);
    let Some(queue) = balloon.queue(queue::STATS) else { return "skipped-no-queue" };
    queue.chain(255, &[Piece::readable(list.part(0, 10))]);
    queue.offer(255);
    queue.kick();
    let deadline = lab.machine.clock.deadline_ms(500);
    while !deadline.passed() {
        if let Some(used) = queue.poll() {
            return if (used.head, used.len) == (0, 0) { "alive" } else { "written" };
        }
        cpu::pause();
    }
    "silent"
}

/// A buffer longer than RAM.
fn past_ram(lab: &mut Lab<'_>, index: usize) -> Outcome {
    let (mut balloon, memory) = match lab.balloon_and_pages() {
        Ok(both) => both,
        Err(outcome) => return outcome,
    };
    let piece = if index == queue::STATS { Piece::readable(memory) } else { Piece::writable(memory) };
    lab.try_balloon(&mut balloon, index, &[Piece { len: 0xffff_f000, ..piece }])
}

/// Statistics all the time, each before the last ones were asked for.
fn statistics_storm(lab: &mut Lab<'_>) -> Outcome {
    let mut balloon = match lab.balloon() {
        Ok(balloon) => balloon,
        Err(outcome) => return outcome,
    };
    let entry = lab.buffer(640);
    let Some(queue) = balloon.queue(queue::STATS) else { return "skipped-no-queue" };
    let (rounds, mut back) = (lab.machine.command_line.number("rounds", 20_000), 0);
    for slot in 0..2 {
        queue.chain(slot, &[Piece::readable(entry)]);
        queue.offer(slot);
    }
    let mut deadline = lab.machine.clock.deadline_ms(5000);
    while back < rounds {
        queue.kick();
        while let Some(used) = queue.poll() {
            back += 1;
            queue.offer(used.head);
            deadline = lab.machine.clock.deadline_ms(5000);
        }
        if deadline.passed() {
            return "silent";
        }
    }
    lab.facts[0] = ("told", back);
    "alive"
}

/// Pages named when the host did not ask for any.
fn hints_unasked(lab: &mut Lab<'_>) -> Outcome {
    let (mut balloon, memory) = match lab.balloon_and_pages() {
        Ok(both) => both,
        Err(outcome) => return outcome,
    };
    let clock = lab.machine.clock;
    if balloon.config(field::COMMAND) != command::STOP {
        return "skipped-hinting-runs";
    }
    for number in [7, command::STOP, command::DONE, u32::MAX] {
        if !balloon.ranges(clock, queue::HINT, memory) || !balloon.say_command(clock, number) {
            return "silent";
        }
    }
    if balloon.ranges(clock, queue::HINT, memory) { unchanged_after("len0", memory) } else { "silent" }
}

/// Commands of a length that no command has, with pages behind them.
fn hint_command_long(lab: &mut Lab<'_>) -> Outcome {
    let (mut balloon, memory) = match lab.balloon_and_pages() {
        Ok(both) => both,
        Err(outcome) => return outcome,
    };
    let list = Piece::readable(balloon.numbers);
    for len in [1, 3, 5, 8, CLAIM] {
        let answer = lab.try_balloon(&mut balloon, queue::HINT, &[Piece { len, ..list }, Piece::writable(memory)]);
        let outcome = unchanged_after(answer, memory);
        if outcome != "ignored" {
            return outcome;
        }
    }
    "ignored"
}

/// Reports of memory that the device may only read, and of less than a page.
fn report_of_nothing(lab: &mut Lab<'_>) -> Outcome {
    let (mut balloon, memory) = match lab.balloon_and_pages() {
        Ok(both) => both,
        Err(outcome) => return outcome,
    };
    let ragged = Piece { address: memory.address() + 1, len: 2 * PAGE as u32 - 2, writable: true };
    for piece in [Piece::readable(memory), ragged] {
        let answer = lab.try_balloon(&mut balloon, queue::REPORT, &[piece]);
        let outcome = unchanged_after(answer, memory);
        if outcome != "ignored" {
            return outcome;
        }
    }
    "ignored"
}

/// Writes to what only the host writes, and beside it.
fn configuration_writes(lab: &mut Lab<'_>) -> Outcome {
    let (balloon, memory) = match lab.balloon_and_pages() {
        Ok(both) => both,
        Err(outcome) => return outcome,
    };
    let host = [field::NUM_PAGES, field::COMMAND].map(|field| balloon.config(field));
    let space = balloon.window.config_space();
    for offset in (0..64).chain([0x100, 0xdf8, 0xef8]) {
        cpu::write8(space + offset, 0xff);
        cpu::write16(space + offset, u16::MAX);
        cpu::write32(space + offset, u32::MAX);
        cpu::write64(space + offset, u64::MAX);
    }
    if [field::NUM_PAGES, field::COMMAND].map(|field| balloon.config(field)) != host {
        return "written";
    }
    balloon.window.write(reg::CONFIG + field::ACTUAL, 0);
    unchanged_after("len0", memory)
}

/// The same pages again and again.
fn inflate_storm(lab: &mut Lab<'_>) -> Outcome {
    let (mut balloon, memory) = match lab.balloon_and_pages() {
        Ok(both) => both,
        Err(outcome) => return outcome,
    };
    let rounds = lab.machine.command_line.number("rounds", 5000);
    for _ in 0..rounds {
        if !balloon.pages(lab.machine.clock, queue::INFLATE, memory) {
            return "silent";
        }
    }
    lab.facts[0] = ("rounds", rounds);
    check(memory, |_| true)
}

/// A run of hints. The host's run goes on until it ends it.
fn hint(balloon: &mut Balloon, clock: Clock, memory: Dma) -> bool {
    let number = balloon.config(field::COMMAND);
    balloon.say_command(clock, number)
        && balloon.ranges(clock, queue::HINT, memory)
        && balloon.say_command(clock, command::STOP)
}

/// Gives pages away while the other processor stores to them: each holds what was stored or nothing, and none holds anything else.
fn race(lab: &mut Lab<'_>, give: fn(&mut Balloon, Clock, Dma) -> bool) -> Outcome {
    let (mut balloon, memory) = match lab.balloon_and_pages() {
        Ok(both) => both,
        Err(outcome) => return outcome,
    };
    let clock = lab.machine.clock;
    if give as usize == hint as usize {
        crate::say!("waiting=for-a-run");
        let deadline = clock.deadline_ms(bring_up::PATIENCE_MS);
        while balloon.config(field::COMMAND) < command::FIRST {
            if deadline.passed() {
                return "skipped-no-run";
            }
        }
    }
    let Some(second) = Second::start(lab.machine, store, memory.address()) else { return "skipped-one-processor" };
    let (mut zero, mut old) = (0, 0);
    for _ in 0..lab.machine.command_line.number("rounds", 500) {
        if !give(&mut balloon, clock, memory) {
            return "silent";
        }
        let seen = look(memory);
        if seen.odd > 0 {
            return "foreign-data";
        }
        (zero, old) = (zero + seen.zero, old + seen.old);
    }
    drop(second);
    lab.facts = [("zero", zero), ("old", old)];
    if zero == 0 {
        return "kept-all";
    }
    fill(memory);
    if look(memory).old == PAGES { "zeroed" } else { "lost" }
}

fn store(memory: u64, round: u64) {
    let address = memory + round % PAGES * PAGE;
    Dma::left_by_loader(address, 8).write64(0, mark(address));
}

/// The page tables this program runs on. What the processor has of them it may use for a while.
fn page_tables(lab: &mut Lab<'_>) -> Outcome {
    let mut balloon = match lab.balloon() {
        Ok(balloon) => balloon,
        Err(outcome) => return outcome,
    };
    let (first, count) = tables::pages();
    let list = balloon.numbers.part(0, 4 * count);
    (0..count).for_each(|i| list.write32(4 * i, (first / PAGE + i) as u32));
    let answer = lab.try_balloon(&mut balloon, queue::INFLATE, &[Piece::readable(list)]);
    // Pages that no translation is at hand for.
    let memory = lab.buffer(16 << 20);
    fill(memory);
    lab.facts[0] = ("answered", u64::from(answer == "len0"));
    "survived"
}
