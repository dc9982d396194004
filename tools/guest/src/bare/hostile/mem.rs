//! G22: memory that is plugged and unplugged against the rules. The host asks for
//! some of the region while these cases run.

use super::{Case, Lab, Outcome};
use crate::block::request as block_request;
use crate::bring_up::{self, feature};
use crate::dma::Dma;
use crate::mem::{self, Mem, UNPLUGGED_INACCESSIBLE, request};
use crate::virtqueue::Piece;

pub const CASES: &[Case] = &[
    ("g22-without-feature", without_feature),
    ("g22-unaligned", |lab| refused(lab, |mem| (mem.start + mem.block / 2, 1))),
    ("g22-no-blocks", |lab| refused(lab, |mem| (mem.start, 0))),
    ("g22-below-region", |lab| refused(lab, |mem| (mem.start - mem.block, 1))),
    ("g22-behind-region", |lab| refused(lab, |mem| (mem.start + mem.len, 1))),
    ("g22-straddles-end", |lab| refused(lab, |mem| (mem.start + mem.len - mem.block, 2))),
    ("g22-address-wraps", |lab| refused(lab, |_| (u64::MAX, u16::MAX))),
    ("g22-boot-memory", |lab| refused(lab, |_| (0, 1))),
    ("g22-more-than-requested", more_than_requested),
    ("g22-plug-twice", |lab| twice(lab, request::PLUG)),
    ("g22-unplug-twice", |lab| twice(lab, request::UNPLUG)),
    ("g22-overlap", overlap),
    ("g22-unknown-request", unknown_request),
    ("g22-no-answer", |lab| shaped(lab, |request, _| [Some(request), None])),
    ("g22-short-answer", |lab| shaped(lab, |request, answer| [Some(request), Some(answer.part(0, 9))])),
    ("g22-never-plugged", never_plugged),
    ("g22-after-unplug", after_unplug),
    ("g22-device-writes-unplugged", device_writes_unplugged),
    ("g22-storm", storm),
    ("g22-reset-keeps", reset_keeps),
];

/// A word that no page starts with by chance.
const MARK: u64 = 0x6666_6666_6666_6666;

impl Lab<'_> {
    /// The device, freshly started with nothing plugged, once the host asks for
    /// two blocks at least.
    pub(super) fn mem(&mut self) -> Result<Mem, Outcome> {
        let window = mem::chosen_window(self.machine).ok_or("skipped-no-mem")?;
        let mut mem = Mem::start(self.machine, window).map_err(super::refusal)?;
        let deadline = self.machine.clock.deadline_ms(bring_up::PATIENCE_MS);
        while mem.requested() < 2 * mem.block {
            if deadline.passed() {
                return Err("skipped-nothing-requested");
            }
        }
        match self.ask(&mut mem, request::UNPLUG_ALL, 0, 0) {
            "ok" => Ok(mem),
            _ => Err("unplug-all-failed"),
        }
    }

    /// The word for the answer to a request.
    pub(super) fn ask(&self, mem: &mut Mem, kind: u16, addr: u64, blocks: u16) -> Outcome {
        match mem.ask(self.machine.clock, kind, addr, blocks) {
            None => "silent",
            Some((0, _)) => "ok",
            Some((1, _)) => "nack",
            Some((2, _)) => "busy",
            Some((3, _)) => "error",
            Some(_) => "odd-status",
        }
    }
}

/// Whether a block can be plugged, used and unplugged.
pub fn works(lab: &mut Lab<'_>) -> bool {
    let Ok(mut mem) = lab.mem() else {
        return false;
    };
    let start = mem.start;
    if lab.ask(&mut mem, request::PLUG, start, 1) != "ok" {
        return false;
    }
    let word = mem.memory(0, 8);
    word.write64(0, MARK);
    word.read64(0) == MARK && lab.ask(&mut mem, request::UNPLUG, start, 1) == "ok" && mem.plugged() == 0
}

/// A driver that thinks it may read unplugged memory.
fn without_feature(lab: &mut Lab<'_>) -> Outcome {
    let Some(window) = mem::chosen_window(lab.machine) else {
        return "skipped-no-mem";
    };
    if window.offered() & UNPLUGGED_INACCESSIBLE == 0 {
        return "not-offered";
    }
    match bring_up::negotiate(window, feature::VERSION_1, lab.machine.clock) {
        Ok(_) => "features-accepted",
        Err(refusal) => super::refusal(refusal),
    }
}

/// Blocks that cannot be plugged, unplugged or asked about.
fn refused(lab: &mut Lab<'_>, choose: fn(&Mem) -> (u64, u16)) -> Outcome {
    let mut mem = match lab.mem() {
        Ok(mem) => mem,
        Err(outcome) => return outcome,
    };
    let (addr, blocks) = choose(&mem);
    for kind in [request::PLUG, request::UNPLUG, request::STATE] {
        let outcome = lab.ask(&mut mem, kind, addr, blocks);
        if outcome != "error" {
            lab.facts[0] = ("kind", kind.into());
            return outcome;
        }
    }
    if mem.plugged() == 0 { "error" } else { "plugged" }
}

/// One block more than the host wants.
fn more_than_requested(lab: &mut Lab<'_>) -> Outcome {
    let mut mem = match lab.mem() {
        Ok(mem) => mem,
        Err(outcome) => return outcome,
    };
    let start = mem.start;
    let most = mem.requested() / mem.block;
    if most * mem.block == mem.len {
        return "skipped-all-requested";
    }
    if lab.ask(&mut mem, request::PLUG, start, most as u16) != "ok" {
        return "plug-failed";
    }
    let addr = start + most * mem.block;
    lab.ask(&mut mem, request::PLUG, addr, 1)
}

/// The same request twice.
fn twice(lab: &mut Lab<'_>, kind: u16) -> Outcome {
    let mut mem = match lab.mem() {
        Ok(mem) => mem,
        Err(outcome) => return outcome,
    };
    let start = mem.start;
    let mut outcome = lab.ask(&mut mem, request::PLUG, start, 1);
    if kind == request::UNPLUG && outcome == "ok" {
        outcome = lab.ask(&mut mem, request::UNPLUG, start, 1);
    }
    if outcome != "ok" {
        return "plug-failed";
    }
    lab.ask(&mut mem, kind, start, 1)
}

/// Two blocks of which one is plugged already.
fn overlap(lab: &mut Lab<'_>) -> Outcome {
    let mut mem = match lab.mem() {
        Ok(mem) => mem,
        Err(outcome) => return outcome,
    };
    let (start, second) = (mem.start, mem.start + mem.block);
    if lab.ask(&mut mem, request::PLUG, second, 1) != "ok" {
        return "plug-failed";
    }
    lab.ask(&mut mem, request::PLUG, start, 2)
}

fn unknown_request(lab: &mut Lab<'_>) -> Outcome {
    let mut mem = match lab.mem() {
        Ok(mem) => mem,
        Err(outcome) => return outcome,
    };
    let start = mem.start;
    for kind in [4, 0x100, u16::MAX] {
        let outcome = lab.ask(&mut mem, kind, start, 1);
        if outcome != "error" {
            return outcome;
        }
    }
    "error"
}

/// A request to plug a block whose answer has no room.
fn shaped(lab: &mut Lab<'_>, shape: fn(Dma, Dma) -> [Option<Dma>; 2]) -> Outcome {
    let mut mem = match lab.mem() {
        Ok(mem) => mem,
        Err(outcome) => return outcome,
    };
    let answer = lab.buffer(16);
    let request = mem.request();
    request.write16(0, request::PLUG);
    request.write64(8, mem.start);
    request.write16(16, 1);
    let [readable, writable] = shape(request, answer);
    let mut pieces = [Piece::readable(request); 2];
    let mut count = 0;
    for piece in [readable.map(Piece::readable), writable.map(Piece::writable)].into_iter().flatten() {
        pieces[count] = piece;
        count += 1;
    }
    match (mem.offer(lab.machine.clock, &pieces[..count]), mem.plugged()) {
        (None, _) => "silent",
        (Some(0), 0) => "len0",
        (Some(_), 0) => "odd-status",
        (Some(_), _) => "plugged",
    }
}

/// Stores to and loads from memory that was never plugged.
fn never_plugged(lab: &mut Lab<'_>) -> Outcome {
    let mem = match lab.mem() {
        Ok(mem) => mem,
        Err(outcome) => return outcome,
    };
    for offset in [0, 8, mem.block, mem.len / 2, mem.len - 8] {
        let word = mem.memory(offset, 8);
        word.write64(0, MARK);
        if word.read64(0) != u64::MAX {
            return "written";
        }
    }
    "ignored"
}

/// FC #5793: memory that was plugged, used and unplugged. Blocks of one slot go
/// one after the other.
fn after_unplug(lab: &mut Lab<'_>) -> Outcome {
    let mut mem = match lab.mem() {
        Ok(mem) => mem,
        Err(outcome) => return outcome,
    };
    let (start, block) = (mem.start, mem.block);
    if lab.ask(&mut mem, request::PLUG, start, 2) != "ok" {
        return "plug-failed";
    }
    let [first, second] = [0, block].map(|offset| mem.memory(offset, block));
    for at in (0..block).step_by(4096) {
        first.write64(at, MARK);
        second.write64(at, MARK);
    }
    if lab.ask(&mut mem, request::UNPLUG, start, 1) != "ok" {
        return "unplug-failed";
    }
    let old = |memory: Dma| (0..block).step_by(4096).filter(|at| memory.read64(*at) == MARK).count() as u64;
    lab.facts[0] = ("old", old(first));
    if old(second) != block / 4096 {
        return "lost";
    }
    // Used although unplugged: that must not come back either.
    first.write64(0, MARK);
    if lab.ask(&mut mem, request::UNPLUG, start + block, 1) != "ok" {
        return "unplug-failed";
    }
    lab.facts[1] = ("old_at_the_end", old(first) + old(second));
    let gone = [first, second].into_iter().all(|memory| memory.read64(0) == u64::MAX);
    if lab.ask(&mut mem, request::PLUG, start, 2) != "ok" {
        return "plug-failed";
    }
    match lab.facts {
        [(_, 0), (_, 0)] if gone && old(first) + old(second) == 0 => "gone",
        _ => "old-memory",
    }
}

/// A drive reads into memory that is not plugged: whatever comes of it, vCPUs see
/// nothing of it.
fn device_writes_unplugged(lab: &mut Lab<'_>) -> Outcome {
    let mem = match lab.mem() {
        Ok(mem) => mem,
        Err(outcome) => return outcome,
    };
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let memory = mem.memory(0, 512);
    block.submit(0, block_request::IN, 0, &[Piece::writable(memory)]);
    block.queue.kick();
    let status = block.status_byte(0);
    let outcome = lab.observe(&mut block, status);
    if memory.read64(0) == u64::MAX { outcome } else { "written" }
}

/// Plugging and unplugging without end.
fn storm(lab: &mut Lab<'_>) -> Outcome {
    let mut mem = match lab.mem() {
        Ok(mem) => mem,
        Err(outcome) => return outcome,
    };
    let start = mem.start;
    let rounds = lab.machine.command_line.number("rounds", 100);
    for round in 0..rounds {
        for kind in [request::PLUG, request::STATE, request::UNPLUG] {
            if lab.ask(&mut mem, kind, start, 2) != "ok" {
                lab.facts[0] = ("round", round);
                return "plug-failed";
            }
        }
    }
    lab.facts[0] = ("rounds", rounds);
    "alive"
}

/// A device reset takes no memory away.
fn reset_keeps(lab: &mut Lab<'_>) -> Outcome {
    let mut mem = match lab.mem() {
        Ok(mem) => mem,
        Err(outcome) => return outcome,
    };
    let start = mem.start;
    if lab.ask(&mut mem, request::PLUG, start, 2) != "ok" {
        return "plug-failed";
    }
    let word = mem.memory(mem.block, 8);
    word.write64(0, MARK);
    if bring_up::reset(mem.window, lab.machine.clock).is_err() {
        return "reset-hangs";
    }
    if word.read64(0) == MARK && mem.plugged() == 2 * mem.block { "kept" } else { "lost" }
}
