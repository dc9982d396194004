//! `mode=balloon`: a memory balloon (virtio 1.3 §5.5) that follows what the host asks for: pages of a pool go into it and come back,
//! free ones are reported and hinted at, and statistics are told when the host wants them.

use crate::block_mode::word;
use crate::bring_up::{self, PATIENCE_MS, Refusal, feature};
use crate::clock::Clock;
use crate::dma::Dma;
use crate::mmio::{CONFIG_CHANGED, Window, kind, reg};
use crate::virtqueue::{Piece, Queue};
use crate::{Machine, cpu, say};

/// Bytes of a page as the balloon counts them.
pub const PAGE: u64 = 4096;
/// Page numbers in a request, as many as Linux sends.
const NUMBERS: u64 = 256;
/// Bytes of a buffer that is reported or hinted at, and buffers in a request.
const RANGE: u64 = 256 << 10;
const RANGES: usize = 32;
/// Bytes of a statistics entry: a tag of 16 bits, then a value of 64.
const ENTRY: usize = 10;

/// Queues, by their numbers.
pub mod queue {
    pub const INFLATE: usize = 0;
    pub const DEFLATE: usize = 1;
    pub const STATS: usize = 2;
    pub const HINT: usize = 3;
    pub const REPORT: usize = 4;
}

/// The feature each queue comes with.
const COMES_WITH: [u64; 5] = [0, 0, 1 << 1, 1 << 3, 1 << 5];
const DEFLATE_ON_OOM: u64 = 1 << 2;

/// Offsets in the configuration space.
pub mod field {
    pub const NUM_PAGES: u64 = 0;
    pub const ACTUAL: u64 = 4;
    pub const COMMAND: u64 = 8;
}

/// Commands of hinting; from [`command::FIRST`] on they are numbers of runs.
pub mod command {
    pub const STOP: u32 = 0;
    pub const DONE: u32 = 1;
    pub const FIRST: u32 = 2;
}

/// A started balloon.
pub struct Balloon {
    pub window: Window,
    /// Features in force.
    pub features: u64,
    queues: [Option<Queue>; 5],
    /// Page numbers of the request at hand.
    pub numbers: Dma,
    command: Dma,
    stats: Dma,
}

/// The window of the device.
pub fn chosen_window(machine: &Machine) -> Option<Window> {
    machine.bus.find(kind::BALLOON, 0)
}

impl Balloon {
    /// Starts the device with everything it offers.
    pub fn start(machine: &mut Machine, window: Window) -> Result<Self, Refusal> {
        let wanted = COMES_WITH.iter().fold(DEFLATE_ON_OOM | feature::EVENT_IDX, |all, feature| all | feature);
        let features = bring_up::negotiate(window, wanted, machine.clock)?;
        let event_idx = features & feature::EVENT_IDX != 0;
        let mut index = 0;
        let queues = COMES_WITH.map(|needs| {
            let queue = (features & needs == needs).then(|| {
                let size = window.queue_max(index).min(256) as u16;
                Queue::allocate(window, index, size, event_idx, &mut machine.arena)
            });
            index += 1;
            queue
        });
        queues.iter().flatten().for_each(Queue::announce);
        bring_up::start(window)?;
        let numbers = machine.arena.take(NUMBERS * 4, PAGE);
        let (command, stats) = (machine.arena.take(4, 64), machine.arena.take(PAGE, 64));
        Ok(Self { window, features, queues, numbers, command, stats })
    }

    /// A queue; `None` if the device does not have it.
    pub fn queue(&mut self, index: usize) -> Option<&mut Queue> {
        self.queues[index].as_mut()
    }

    /// A word of the configuration space.
    pub fn config(&self, field: u64) -> u32 {
        self.window.read(reg::CONFIG + field)
    }

    /// Offers a chain to a queue and rings.
    pub fn offer(&mut self, index: usize, pieces: &[Piece]) -> bool {
        let Some(queue) = self.queue(index) else { return false };
        queue.chain(0, pieces);
        queue.offer(0);
        queue.kick();
        true
    }

    /// Offers a chain to a queue and waits until it is back. `false` if that does not happen.
    pub fn send(&mut self, clock: Clock, index: usize, pieces: &[Piece]) -> bool {
        let offered = self.offer(index, pieces);
        let Some(queue) = self.queue(index) else { return false };
        let deadline = clock.deadline_ms(PATIENCE_MS);
        while offered {
            if queue.poll().is_some() {
                return true;
            }
            if deadline.passed() {
                return false;
            }
            cpu::pause();
        }
        false
    }

    /// Names the pages of `memory` to the inflate or the deflate queue.
    pub fn pages(&mut self, clock: Clock, index: usize, memory: Dma) -> bool {
        let (mut page, end) = (memory.address() / PAGE, (memory.address() + memory.len()) / PAGE);
        while page < end {
            let count = (end - page).min(NUMBERS);
            (0..count).for_each(|i| self.numbers.write32(4 * i, (page + i) as u32));
            let list = Piece::readable(self.numbers.part(0, 4 * count));
            if !self.send(clock, index, &[list]) {
                return false;
            }
            page += count;
        }
        true
    }

    /// Names `memory` to the hinting or the reporting queue.
    pub fn ranges(&mut self, clock: Clock, index: usize, memory: Dma) -> bool {
        let mut pieces = [Piece::writable(memory); RANGES];
        let mut at = 0;
        while at < memory.len() {
            let mut count = 0;
            while count < RANGES && at < memory.len() {
                let len = RANGE.min(memory.len() - at);
                pieces[count] = Piece::writable(memory.part(at, len));
                (count, at) = (count + 1, at + len);
            }
            if !self.send(clock, index, &pieces[..count]) {
                return false;
            }
        }
        true
    }

    /// Sends a command of hinting.
    pub fn say_command(&mut self, clock: Clock, number: u32) -> bool {
        self.command.write32(0, number);
        self.send(clock, queue::HINT, &[Piece::readable(self.command)])
    }

    /// Tells statistics: 16 numbers of which each says which it is and how often they were told.
    pub fn tell(&mut self, round: u64) {
        for tag in 0..16u16 {
            let mut entry = [0; ENTRY];
            entry[..2].copy_from_slice(&tag.to_le_bytes());
            entry[2..].copy_from_slice(&(u64::from(tag) << 32 | round).to_le_bytes());
            self.stats.put(u64::from(tag) * ENTRY as u64, &entry);
        }
        self.offer(queue::STATS, &[Piece::readable(self.stats.part(0, 16 * ENTRY as u64))]);
    }

    /// Whether the host asks for statistics.
    fn is_asked(&mut self) -> bool {
        self.queue(queue::STATS).is_some_and(|queue| queue.poll().is_some())
    }
}

/// What pages hold.
#[derive(Default)]
pub struct Seen {
    pub zero: u64,
    pub old: u64,
    pub odd: u64,
}

/// What is stored at an address.
pub fn mark(address: u64) -> u64 {
    address ^ 0x5a5a_5a5a_5a5a_5a5a
}

/// Stores a word in each page.
pub fn fill(memory: Dma) {
    for at in (0..memory.len()).step_by(PAGE as usize) {
        memory.write64(at, mark(memory.address() + at));
    }
}

/// Looks at the word in each page.
pub fn look(memory: Dma) -> Seen {
    let mut seen = Seen::default();
    for at in (0..memory.len()).step_by(PAGE as usize) {
        match memory.read64(at) {
            0 => seen.zero += 1,
            word if word == mark(memory.address() + at) => seen.old += 1,
            _ => seen.odd += 1,
        }
    }
    seen
}

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let Some(window) = chosen_window(machine) else {
        say!("error=no-balloon");
        return;
    };
    let mut balloon = match Balloon::start(machine, window) {
        Ok(balloon) => balloon,
        Err(refusal) => {
            say!("error={}", word(refusal));
            return;
        }
    };
    let (line, clock) = (machine.command_line, machine.clock);
    let pool = machine.arena.take(line.number("pool_mib", 32) << 20, 2 << 20);
    fill(pool);
    say!("balloon=started features={:#x} pages={}", balloon.features, pool.len() / PAGE);
    if line.switch("report", false) {
        let answered = balloon.ranges(clock, queue::REPORT, pool);
        let Seen { zero, old, odd } = look(pool);
        say!("report={} zero={zero} old={old} odd={odd}", u8::from(answered));
        fill(pool);
    }
    let (mut told, mut have, mut run, mut step) = (0, 0, command::STOP, 0);
    if balloon.queue(queue::STATS).is_some() {
        balloon.tell(told);
    }
    let mut changed = true;
    let steps = line.number("steps", 1);
    let deadline = clock.deadline_ms(line.number("ms", 60_000));
    while step < steps {
        if deadline.passed() {
            say!("error=no-change");
            return;
        }
        if balloon.is_asked() {
            told += 1;
            balloon.tell(told);
        }
        if !changed {
            changed = window.read(reg::INTERRUPT_STATUS) & CONFIG_CHANGED != 0;
            continue;
        }
        // In this order: what changes after the acknowledgement is announced again.
        window.write(reg::INTERRUPT_ACK, CONFIG_CHANGED);
        changed = false;
        let free = |have: u64| pool.part(have, pool.len() - have);
        let wanted = (u64::from(balloon.config(field::NUM_PAGES)) * PAGE).min(pool.len());
        if wanted != have {
            let between = pool.part(wanted.min(have), wanted.abs_diff(have));
            let way = if wanted > have { queue::INFLATE } else { queue::DEFLATE };
            let answered = balloon.pages(clock, way, between);
            let mut seen = Seen::default();
            if wanted < have {
                seen = look(between);
                fill(between);
            }
            have = wanted;
            window.write(reg::CONFIG + field::ACTUAL, (have / PAGE) as u32);
            step += 1;
            let lost = look(free(have));
            let Seen { zero, old, odd } = seen;
            say!(
                "step={step} actual={} answered={} zero={zero} old={old} odd={odd} lost={}",
                have / PAGE,
                u8::from(answered),
                lost.zero + lost.odd
            );
        }
        match balloon.config(field::COMMAND) {
            number if number >= command::FIRST && number != run => {
                run = number;
                let answered = balloon.say_command(clock, number)
                    && balloon.ranges(clock, queue::HINT, free(have))
                    && balloon.say_command(clock, command::STOP);
                say!("hint={number} answered={}", u8::from(answered));
            }
            command::DONE if run != command::STOP => {
                let Seen { zero, old, odd } = look(free(have));
                step += 1;
                say!("hint=over step={step} zero={zero} old={old} odd={odd}");
                fill(free(have));
                run = command::STOP;
            }
            _ => {}
        }
    }
    say!("told={told}");
}
