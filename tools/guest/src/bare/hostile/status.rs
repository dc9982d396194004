//! G5: the device status written out of order, and resets under load.

use super::{Case, Lab, Outcome, refused_start};
use crate::block::{Block, Options, request};
use crate::bring_up::{self, feature, reset};
use crate::mmio::{Window, reg, status as bit};
use crate::virtqueue::Piece;

/// The status of a running device.
const UP: u32 = bit::ACKNOWLEDGE | bit::DRIVER | bit::FEATURES_OK | bit::DRIVER_OK;

pub const CASES: &[Case] = &[
    ("g5-no-features-ok", no_features_ok),
    ("g5-no-acknowledge", no_acknowledge),
    ("g5-no-version-1", |lab| negotiate_exactly(lab, |_| 0)),
    ("g5-feature-not-offered", |lab| negotiate_exactly(lab, |offered| feature::VERSION_1 | (1 << 50 & !offered))),
    ("g5-features-late", features_late),
    ("g5-clear-bits", clear_bits),
    ("g5-kick-before-driver-ok", kick_early),
    ("g5-reset-storm", reset_storm),
];

/// DRIVER_OK without FEATURES_OK.
fn no_features_ok(lab: &mut Lab<'_>) -> Outcome {
    start_by(lab, &[bit::ACKNOWLEDGE, bit::ACKNOWLEDGE | bit::DRIVER, UP & !bit::FEATURES_OK])
}

/// Everything without ACKNOWLEDGE.
fn no_acknowledge(lab: &mut Lab<'_>) -> Outcome {
    start_by(lab, &[bit::DRIVER, bit::DRIVER | bit::FEATURES_OK, UP & !bit::ACKNOWLEDGE])
}

/// Prepares a drive, resets it, and starts it with these status writes.
fn start_by(lab: &mut Lab<'_>, steps: &[u32]) -> Outcome {
    let Some(window) = lab.drive() else {
        return "skipped-no-drive";
    };
    let mut block = match Block::prepare(lab.machine, window, Options::PLAIN) {
        Ok(block) => block,
        Err(refusal) => return super::refusal(refusal),
    };
    if reset(window, lab.machine.clock).is_err() {
        return "reset-hangs";
    }
    window.want(feature::VERSION_1);
    for (i, step) in steps.iter().enumerate() {
        if i + 1 == steps.len() {
            block.queue.announce();
        }
        window.write(reg::STATUS, *step);
    }
    refused_start(window).unwrap_or_else(|| try_read(lab, &mut block))
}

/// Acknowledges exactly these features.
fn negotiate_exactly(lab: &mut Lab<'_>, choose: fn(u64) -> u64) -> Outcome {
    let Some(window) = lab.drive() else {
        return "skipped-no-drive";
    };
    if reset(window, lab.machine.clock).is_err() {
        return "reset-hangs";
    }
    window.write(reg::STATUS, bit::ACKNOWLEDGE);
    window.write(reg::STATUS, bit::ACKNOWLEDGE | bit::DRIVER);
    window.want(choose(window.offered()));
    window.write(reg::STATUS, bit::ACKNOWLEDGE | bit::DRIVER | bit::FEATURES_OK);
    features_word(window)
}

fn features_word(window: Window) -> Outcome {
    match window.status() {
        s if s & bit::NEEDS_RESET != 0 => "needs-reset",
        s if s & bit::FEATURES_OK == 0 => "features-refused",
        _ => "features-accepted",
    }
}

/// Drops all features after FEATURES_OK; VERSION_1 must stay in force.
fn features_late(lab: &mut Lab<'_>) -> Outcome {
    let Some(window) = lab.drive() else {
        return "skipped-no-drive";
    };
    let mut block = match Block::prepare(lab.machine, window, Options::PLAIN) {
        Ok(block) => block,
        Err(refusal) => return super::refusal(refusal),
    };
    window.want(0);
    let _ = bring_up::start(window);
    still_works(lab, &mut block)
}

/// Takes FEATURES_OK back from a running device.
fn clear_bits(lab: &mut Lab<'_>) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    block.window.write(reg::STATUS, UP & !bit::FEATURES_OK);
    still_works(lab, &mut block)
}

/// Rings the doorbell before DRIVER_OK: nothing may be processed yet; after
/// DRIVER_OK and one more kick it is.
fn kick_early(lab: &mut Lab<'_>) -> Outcome {
    let Some(window) = lab.drive() else {
        return "skipped-no-drive";
    };
    let mut block = match Block::prepare(lab.machine, window, Options::PLAIN) {
        Ok(block) => block,
        Err(refusal) => return super::refusal(refusal),
    };
    let data = lab.buffer(512);
    block.submit(0, request::IN, 0, &[Piece::writable(data)]);
    block.queue.kick();
    if block.wait(lab.machine.clock, 20).is_some() {
        return "processed-early";
    }
    let _ = bring_up::start(window);
    block.queue.ring();
    let status = block.status_byte(0);
    match lab.observe(&mut block, status) {
        "ok" => "ignored",
        other => other,
    }
}

/// Resets with requests in flight, many times: after the status reads zero,
/// nothing may complete any more.
fn reset_storm(lab: &mut Lab<'_>) -> Outcome {
    let rounds = lab.machine.command_line.number("rounds", 50);
    let mut late = 0;
    for round in 0..rounds {
        let mark = lab.machine.arena.mark();
        let mut block = match lab.block_with(Options { depth: 64, ..Options::PLAIN }) {
            Ok(block) => block,
            Err(outcome) => {
                lab.facts[1] = ("round", round);
                return outcome;
            }
        };
        let data = lab.buffer(4096);
        for slot in 0..block.depth {
            block.submit(slot, request::IN, 0, &[Piece::writable(data)]);
        }
        block.queue.kick();
        if reset(block.window, lab.machine.clock).is_err() {
            return "reset-hangs";
        }
        let after_reset = block.queue.used_index();
        for _ in 0..2000 {
            crate::cpu::pause();
        }
        late += u64::from(block.queue.used_index() != after_reset);
        lab.machine.arena.rewind(mark);
    }
    lab.facts = [("rounds", rounds), ("late", late)];
    if late == 0 { "alive" } else { "late-completion" }
}

/// `ignored` if an ordinary read still works.
fn still_works(lab: &mut Lab<'_>, block: &mut Block) -> Outcome {
    match refused_start(block.window) {
        Some(outcome) => outcome,
        None => match try_read(lab, block) {
            "ok" => "ignored",
            other => other,
        },
    }
}

fn try_read(lab: &mut Lab<'_>, block: &mut Block) -> Outcome {
    let data = lab.buffer(512);
    block.submit(0, request::IN, 0, &[Piece::writable(data)]);
    block.queue.kick();
    let status = block.status_byte(0);
    lab.observe(block, status)
}
