//! G1 to G3: queue sizes and addresses that make no sense, and changing them
//! while the device runs.

use super::{Case, Lab, Outcome, refused_start};
use crate::block::{Block, Options, UNTOUCHED, request};
use crate::mmio::{Window, reg};
use crate::virtqueue::Piece;

pub const CASES: &[Case] = &[
    ("g1-size-zero", |lab| bring_up_with(lab, |g| g.size = 0)),
    ("g1-size-three", |lab| bring_up_with(lab, |g| g.size = 3)),
    ("g1-size-over-max", |lab| bring_up_with(lab, |g| g.size *= 2)),
    ("g1-size-65535", |lab| bring_up_with(lab, |g| g.size = 65535)),
    ("g2-rewrite-size", |lab| rewrite(lab, |w, _| w.write(reg::QUEUE_NUM, 2))),
    ("g2-rewrite-desc", |lab| rewrite(lab, |w, elsewhere| w.write_address(reg::QUEUE_DESC, elsewhere))),
    ("g2-rewrite-avail", |lab| rewrite(lab, |w, elsewhere| w.write_address(reg::QUEUE_DRIVER, elsewhere))),
    ("g2-rewrite-used", |lab| rewrite(lab, |w, elsewhere| w.write_address(reg::QUEUE_DEVICE, elsewhere))),
    ("g2-rewrite-ready", |lab| rewrite(lab, |w, _| w.write(reg::QUEUE_READY, 0))),
    ("g3-desc-misaligned", |lab| bring_up_with(lab, |g| g.desc += 8)),
    ("g3-avail-misaligned", |lab| bring_up_with(lab, |g| g.avail += 1)),
    ("g3-used-misaligned", |lab| bring_up_with(lab, |g| g.used += 2)),
    ("g3-overlap", |lab| {
        bring_up_with(lab, |g| {
            g.avail = g.desc;
            g.used = g.desc;
        })
    }),
    ("g3-past-ram", |lab| bring_up_with(lab, |g| g.desc = g.ram_end - 16)),
    ("g3-used-past-ram", |lab| bring_up_with(lab, |g| g.used = g.ram_end - 16)),
    ("g3-wrap", |lab| bring_up_with(lab, |g| g.desc = 0xffff_ffff_ffff_f000)),
    ("g3-used-wrap", |lab| bring_up_with(lab, |g| g.used = 0xffff_ffff_ffff_f000)),
    ("g3-device-window", |lab| bring_up_with(lab, |g| g.avail = 0xc000_1000)),
    ("g3-hole", |lab| bring_up_with(lab, |g| g.used = 0xd000_0000)),
];

/// What is written to the queue registers.
struct Geometry {
    size: u32,
    desc: u64,
    avail: u64,
    used: u64,
    ram_end: u64,
}

/// Starts the drive with a spoiled geometry; if it comes up, tries a request.
fn bring_up_with(lab: &mut Lab<'_>, spoil: fn(&mut Geometry)) -> Outcome {
    let Some(window) = lab.drive() else {
        return "skipped-no-drive";
    };
    let ram_end = lab.machine.boot.ram_end_above(crate::IMAGE);
    let mut block = match Block::lay_out(lab.machine, window, Options::PLAIN) {
        Ok(block) => block,
        Err(refusal) => return super::refusal(refusal),
    };
    let queue = &block.queue;
    let mut geometry = Geometry {
        size: queue.size.into(),
        desc: queue.descriptors.address(),
        avail: queue.avail.address(),
        used: queue.used.address(),
        ram_end,
    };
    spoil(&mut geometry);
    window.write(reg::QUEUE_SEL, queue.index);
    window.write(reg::QUEUE_NUM, geometry.size);
    window.write_address(reg::QUEUE_DESC, geometry.desc);
    window.write_address(reg::QUEUE_DRIVER, geometry.avail);
    window.write_address(reg::QUEUE_DEVICE, geometry.used);
    window.write(reg::QUEUE_READY, 1);
    let _ = crate::bring_up::start(window);
    if let Some(outcome) = refused_start(window) {
        return outcome;
    }
    let data = lab.buffer(512);
    block.submit(0, request::IN, 0, &[Piece::writable(data)]);
    block.queue.kick();
    let status = block.status_byte(0);
    lab.observe(&mut block, status)
}

/// Changes a queue register of a running device, then does I/O by the old
/// geometry: `ignored` if that works. Enough requests to go around a ring of
/// the size the register was rewritten to.
pub(super) fn rewrite(lab: &mut Lab<'_>, spoil: fn(Window, u64)) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let (data, elsewhere) = (lab.buffer(512), lab.buffer(8192));
    block.window.write(reg::QUEUE_SEL, block.queue.index);
    spoil(block.window, elsewhere.address());
    for round in 0..6 {
        let status = block.status_byte(0);
        status.write8(0, UNTOUCHED);
        block.submit(0, request::IN, 0, &[Piece::writable(data)]);
        block.queue.kick();
        let outcome = lab.observe(&mut block, status);
        if outcome != "ok" {
            lab.facts[1] = ("round", round);
            return outcome;
        }
    }
    let touched = elsewhere.bytes().iter().any(|b| *b != 0);
    if touched { "followed" } else { "ignored" }
}
