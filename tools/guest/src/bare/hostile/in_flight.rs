//! G11: what becomes of the memory that reads in flight go to, when something else happens to it.

use super::{Case, Lab, Outcome};
use crate::balloon::queue;
use crate::block::{Block, Options, request as block_request};
use crate::bring_up::reset;
use crate::dma::Dma;
use crate::mem::request;
use crate::virtqueue::Piece;

pub const CASES: &[Case] =
    &[("g11-reset", reset_in_flight), ("g11-inflate", inflate_targets), ("g11-unplug", unplug_targets)];

/// Reads in flight, and bytes of each.
const DEPTH: u16 = 256;
const LEN: u64 = 4096;
/// What the drive holds.
const DATA: u64 = 0x1111_1111_1111_1111;
const OTHER: u8 = 0x77;

/// A drive that takes as many reads at a time as it has descriptors.
fn drive(lab: &mut Lab<'_>) -> Result<Block, Outcome> {
    lab.block_with(Options { depth: DEPTH, data_pieces: 1, indirect: true, event_idx: false })
}

/// All reads there is room for, each to a page of its own.
fn read_all(block: &mut Block, targets: Dma) {
    for slot in 0..block.depth {
        let target = targets.part(u64::from(slot) * LEN, LEN);
        let sector = u64::from(slot) * LEN / 512 % block.capacity;
        block.submit(slot, block_request::IN, sector, &[Piece::writable(target)]);
    }
    block.queue.kick();
}

/// Waits for all of them; how many had an error, or `None` if one does not come back.
fn wait_all(lab: &Lab<'_>, block: &mut Block) -> Option<u64> {
    let mut errors = 0;
    for _ in 0..block.depth {
        let (_, answer) = block.wait(lab.machine.clock, 5000)?;
        errors += u64::from(answer.status != 0);
    }
    Some(errors)
}

/// Words that are neither zero nor the drive's.
fn foreign(memory: Dma) -> u64 {
    (0..memory.len()).step_by(8).filter(|at| !matches!(memory.read64(*at), 0 | DATA)).count() as u64
}

/// When the reset has returned, memory is the guest's.
fn reset_in_flight(lab: &mut Lab<'_>) -> Outcome {
    let rounds = lab.machine.command_line.number("rounds", 30);
    for round in 0..rounds {
        let mark = lab.machine.arena.mark();
        let mut block = match drive(lab) {
            Ok(block) => block,
            Err(outcome) => return outcome,
        };
        let targets = lab.buffer(u64::from(block.depth) * LEN);
        read_all(&mut block, targets);
        if reset(block.window, lab.machine.clock).is_err() {
            return "reset-hangs";
        }
        targets.fill(OTHER);
        let used = block.queue.used_index();
        for _ in 0..20_000 {
            crate::cpu::pause();
        }
        if block.queue.used_index() != used || targets.bytes().iter().any(|byte| *byte != OTHER) {
            lab.facts[0] = ("round", round);
            return "late-completion";
        }
        lab.facts = [("rounds", round + 1), ("in_flight", block.depth.into())];
        lab.machine.arena.rewind(mark);
    }
    "quiet"
}

/// The pages are handed to the balloon meanwhile. Each read is answered, with data or with what remained of it.
fn inflate_targets(lab: &mut Lab<'_>) -> Outcome {
    let mut balloon = match lab.balloon() {
        Ok(balloon) => balloon,
        Err(outcome) => return outcome,
    };
    let mut block = match drive(lab) {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let clock = lab.machine.clock;
    let targets = lab.buffer(u64::from(block.depth) * LEN);
    let rounds = lab.machine.command_line.number("rounds", 30);
    for round in 0..rounds {
        lab.facts = [("rounds", round), ("in_flight", block.depth.into())];
        read_all(&mut block, targets);
        if !balloon.pages(clock, queue::INFLATE, targets) {
            return "silent";
        }
        match wait_all(lab, &mut block) {
            None => return "silent",
            Some(0) => {}
            Some(_) => return "ioerr",
        }
        if foreign(targets) != 0 {
            return "foreign-data";
        }
    }
    // Nothing of this lasts.
    read_all(&mut block, targets);
    match wait_all(lab, &mut block) {
        Some(0) if targets.bytes().iter().all(|byte| *byte == 0x11) => "zeroed",
        _ => "read-failed",
    }
}

/// The blocks are unplugged meanwhile.
fn unplug_targets(lab: &mut Lab<'_>) -> Outcome {
    let mut mem = match lab.mem() {
        Ok(mem) => mem,
        Err(outcome) => return outcome,
    };
    let mut block = match drive(lab) {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let start = mem.start;
    let rounds = lab.machine.command_line.number("rounds", 30);
    for round in 0..rounds {
        lab.facts = [("rounds", round + 1), ("in_flight", block.depth.into())];
        if lab.ask(&mut mem, request::PLUG, start, 1) != "ok" {
            return "plug-failed";
        }
        let targets = mem.memory(0, u64::from(block.depth) * LEN);
        // Left from the round before, at most.
        if foreign(targets) != 0 {
            return "foreign-data";
        }
        read_all(&mut block, targets);
        if lab.ask(&mut mem, request::UNPLUG, start, 1) != "ok" {
            return "unplug-failed";
        }
        if wait_all(lab, &mut block).is_none() {
            return "silent";
        }
        if targets.read64(0) != u64::MAX {
            return "old-memory";
        }
    }
    // What reads left in unplugged memory is the guest's own cost; this gives it back.
    for kind in [request::PLUG, request::UNPLUG] {
        if lab.ask(&mut mem, kind, start, 1) != "ok" {
            return "plug-failed";
        }
    }
    "alive"
}
