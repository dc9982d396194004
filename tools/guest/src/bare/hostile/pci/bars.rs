//! G28: registers of functions moved onto memory, onto one another, out of their window, and away from under requests.

use super::{ONES, collect, function, live, still_works, submit_many};
use crate::block::{Block, Options, request};
use crate::bring_up::{feature, reset};
use crate::cpu;
use crate::hostile::{Case, Lab, Outcome, refused_start};
use crate::mmio::{Window, kind, reg, status as bit};
use crate::pci::{self, BAR, BAR_LEN, COMMAND, COMMAND_ON, ECAM, HOST_BRIDGE, NOTIFY, SLOT};
use crate::second::Second;
use crate::tables::FAR_DEVICES;
use crate::virtqueue::Piece;

pub const CASES: &[Case] = &[
    ("g28-bar-on-ram", bar_on_ram),
    ("g28-bar-on-another", bar_on_another),
    ("g28-bar-on-platform", |lab| bar_where_it_cannot_be(lab, &[ECAM, 0xfec0_0000, 0xfee0_0000, 0xc000_0000, 0])),
    ("g28-bar-outside", |lab| bar_where_it_cannot_be(lab, OUTSIDE)),
    ("g28-bar-misaligned", bar_misaligned),
    ("g28-bar-moves-in-flight", bar_moves_in_flight),
    ("g28-bar-sizing", bar_sizing),
    ("g28-decode-off", decode_off),
];

pub const RACES: &[Case] = &[("g28-bar-race", bar_race)];

/// Right before the window that functions have, right behind it, and at the end of everything.
const OUTSIDE: &[u64] = &[FAR_DEVICES.0 - BAR_LEN, FAR_DEVICES.0 + FAR_DEVICES.1, 0xffff_ffff_fff8_0000];
/// Two places in it where nobody is.
const FREE: [u64; 2] = [FAR_DEVICES.0 + 0x3000_0000, FAR_DEVICES.0 + 0x3ff8_0000];
/// Looks at the board from one change of the race to the next, and how long the race may take at most.
const SPOIL_STEP: u64 = 1 << 18;
const RACE_MS: u64 = 15_000;
/// The status of a running device.
const UP: u32 = bit::ACKNOWLEDGE | bit::DRIVER | bit::FEATURES_OK | bit::DRIVER_OK;

/// Whether a function answers at its old place.
fn answers(window: Window) -> bool {
    cpu::read16(window.address + 0x12) != 0xffff
}

/// Registers over the guest's own memory: memory stays memory.
fn bar_on_ram(lab: &mut Lab<'_>) -> Outcome {
    let (mut block, space) = attempt!(live(lab));
    let home = block.window.address;
    let memory = lab.machine.arena.take(BAR_LEN, BAR_LEN);
    pci::place(space, memory.address());
    let elsewhere = answers(block.window);
    memory.write8(0x14, 0x5a);
    memory.write32(NOTIFY, 0x1234_5678);
    let same = (memory.read8(0x14), memory.read32(NOTIFY)) == (0x5a, 0x1234_5678);
    pci::place(space, home);
    match (same, elsewhere) {
        (true, false) => still_works(lab, &mut block),
        (false, _) => "lost",
        _ => "accepted",
    }
}

/// Registers over those of another drive, which goes on with its work.
fn bar_on_another(lab: &mut Lab<'_>) -> Outcome {
    let (mut block, space) = attempt!(live(lab));
    let Some(other) = lab.machine.bus.find(kind::BLOCK, 1) else { return "skipped-no-second-drive" };
    let home = block.window.address;
    let Ok(mut second) = Block::start(lab.machine, other, Options::PLAIN) else { return "start-refused" };
    let mut failed = 0;
    for base in [other.address, FREE[0], other.address, other.address] {
        pci::place(space, base);
        failed += u64::from(base == FREE[0] && !answers(Window { address: base, ..block.window }));
        failed += u64::from(!lab.read_ok(&mut second));
    }
    // And the other one over this one, whose place is free meanwhile.
    pci::place(pci::space(other), home);
    pci::place(space, home);
    failed += u64::from(cpu::read8(home + 0x14) == 0xff);
    pci::place(pci::space(other), other.address);
    pci::place(space, home);
    failed += u64::from(!lab.read_ok(&mut second));
    let quiet = reset(other, lab.machine.clock).is_ok();
    lab.facts[0] = ("failed", failed);
    if failed == 0 && quiet { still_works(lab, &mut block) } else { "read-failed" }
}

/// Registers where other things are, or nothing may be.
fn bar_where_it_cannot_be(lab: &mut Lab<'_>, places: &[u64]) -> Outcome {
    let (mut block, space) = attempt!(live(lab));
    let home = block.window.address;
    let mut wrong = 0;
    for place in places {
        pci::place(space, *place);
        wrong += u64::from(answers(block.window));
        let what_is_there = cpu::read32(ECAM) == HOST_BRIDGE;
        wrong += u64::from(!what_is_there);
        // A doorbell at the old place is heard by nobody.
        cpu::write16(home + NOTIFY, 0);
        pci::place(space, home);
        wrong += u64::from(!answers(block.window));
    }
    lab.facts[0] = ("wrong", wrong);
    if wrong == 0 { still_works(lab, &mut block) } else { "accepted" }
}

/// Bits below the registers' length do not exist.
fn bar_misaligned(lab: &mut Lab<'_>) -> Outcome {
    let (mut block, space) = attempt!(live(lab));
    let home = block.window.address;
    let mut odd = 0;
    for low in [0x10, 0x1000, 0x4_0000, 0x7_ffff] {
        pci::place(space, home | low);
        odd += u64::from(!answers(block.window));
        odd += u64::from(u64::from(cpu::read32(space + BAR)) != home & 0xffff_ffff | 4);
    }
    pci::place(space, home);
    if odd == 0 { still_works(lab, &mut block) } else { "accepted" }
}

/// Registers that move while requests are under way; the doorbell is where they are.
fn bar_moves_in_flight(lab: &mut Lab<'_>) -> Outcome {
    let rounds = lab.machine.command_line.number("rounds", 20);
    let (mut block, space) = attempt!(live(lab));
    let home = block.window;
    let (mut done, mut heard) = (0, 0);
    for round in 0..rounds {
        let mark = lab.machine.arena.mark();
        let old = block.window;
        let new = Window { address: FREE[round as usize % 2], ..home };
        submit_many(lab, &mut block);
        block.queue.kick();
        pci::place(space, new.address);
        block.window = new;
        block.queue.move_to(new);
        done += collect(lab, &mut block);
        // The old doorbell rings for nobody.
        submit_many(lab, &mut block);
        block.queue.avail.write16(2, block.queue.next_avail);
        cpu::write16(old.address + NOTIFY, 0);
        heard += u64::from(block.wait(lab.machine.clock, 2).is_some());
        block.queue.ring();
        done += collect(lab, &mut block);
        block.queue.kick();
        lab.machine.arena.rewind(mark);
    }
    let up = refused_start(block.window).is_none();
    pci::place(space, home.address);
    lab.facts = [("done", done), ("heard", heard)];
    match (up && done == 2 * rounds * u64::from(block.depth), heard) {
        (true, 0) => "moved",
        (false, _) => "lost",
        _ => "followed",
    }
}

/// How a kernel asks for the length of a BAR, but without switching it off, and with requests under way.
fn bar_sizing(lab: &mut Lab<'_>) -> Outcome {
    let (mut block, space) = attempt!(live(lab));
    let home = block.window.address;
    submit_many(lab, &mut block);
    block.queue.kick();
    cpu::write32(space + BAR, ONES);
    cpu::write32(space + BAR + 4, ONES);
    let mask = u64::from(cpu::read32(space + BAR + 4)) << 32 | u64::from(cpu::read32(space + BAR) & !0xf);
    for other in (BAR + 8..0x28).step_by(4).chain([0x30]) {
        cpu::write32(space + other, ONES);
        if cpu::read32(space + other) != 0 {
            return "accepted";
        }
    }
    cpu::write32(space + BAR, home as u32);
    cpu::write32(space + BAR + 4, (home >> 32) as u32);
    let done = collect(lab, &mut block);
    lab.facts = [("len", !mask + 1), ("done", done)];
    if !mask + 1 == BAR_LEN && done == u64::from(block.depth) { still_works(lab, &mut block) } else { "lost" }
}

/// A function that does not answer hears no doorbell; one that answers again does.
fn decode_off(lab: &mut Lab<'_>) -> Outcome {
    let (mut block, space) = attempt!(live(lab));
    cpu::write16(space + COMMAND, 0);
    let answered = answers(block.window);
    submit_many(lab, &mut block);
    block.queue.kick();
    for _ in 0..100 {
        block.queue.ring();
    }
    let early = block.wait(lab.machine.clock, 20).is_some();
    cpu::write16(space + COMMAND, COMMAND_ON);
    block.queue.ring();
    let done = collect(lab, &mut block);
    lab.facts[0] = ("done", done);
    match (answered || early, done == u64::from(block.depth)) {
        (false, true) => still_works(lab, &mut block),
        (true, _) => "processed-early",
        _ => "lost",
    }
}

/// One processor moves the registers, switches them off and masks interrupts, while the other one starts the drive, reads and resets.
fn bar_race(lab: &mut Lab<'_>) -> Outcome {
    let (window, space) = attempt!(function(lab));
    let mut block = attempt!(lab.block());
    let data = lab.buffer(512);
    let Some(second) = Second::start(lab.machine, spoil, space) else { return "skipped-one-processor" };
    let before = second.rounds();
    let (deadline, enough) = (lab.machine.clock.deadline_ms(RACE_MS), lab.machine.command_line.number("rounds", 3));
    let mut starts = 0;
    // Until both have had their turns, however the host shares its processors.
    while (starts < enough || second.rounds() - before < enough * 8 * SPOIL_STEP) && !deadline.passed() {
        starts += u64::from(one_life(&mut block, Piece::writable(data)));
    }
    lab.facts = [("starts", starts), ("spoils", (second.rounds() - before) / SPOIL_STEP)];
    drop(second);
    pci::place(space, window.address);
    if reset(window, lab.machine.clock).is_err() {
        return "reset-hangs";
    }
    if cpu::read32(ECAM) == HOST_BRIDGE { "alive" } else { "lost" }
}

/// Starts the drive and has it read something, waiting for nothing: registers may be away at any moment. Whether it came up.
fn one_life(block: &mut Block, data: Piece) -> bool {
    let window = block.window;
    window.write(reg::STATUS, 0);
    block.queue.next_avail = 0;
    block.queue.avail.write16(2, 0);
    for status in [bit::ACKNOWLEDGE, bit::ACKNOWLEDGE | bit::DRIVER] {
        window.write(reg::STATUS, status);
    }
    window.want(feature::VERSION_1);
    window.write(reg::STATUS, UP & !bit::DRIVER_OK);
    block.queue.announce();
    window.write(reg::STATUS, UP);
    let started = window.status() == UP;
    block.submit(0, request::IN, 0, &[data]);
    block.queue.avail.write16(2, block.queue.next_avail);
    block.queue.ring();
    started
}

/// One change at a time to a function's configuration space, which is at `space`.
fn spoil(space: u64, round: u64) {
    // About as often as the other one starts the device, so that some starts succeed.
    if round % SPOIL_STEP != 0 {
        return;
    }
    let home = FAR_DEVICES.0 + (space - ECAM) / SLOT * BAR_LEN;
    match round / SPOIL_STEP % 8 {
        0 => pci::place(space, FREE[0]),
        2 => pci::mask_interrupts(space, pci::MSIX_OPEN),
        3 => pci::mask_interrupts(space, 0),
        4 => cpu::write16(space + COMMAND, 0),
        6 => cpu::write32(space + BAR, ONES),
        _ => pci::place(space, home),
    }
}
