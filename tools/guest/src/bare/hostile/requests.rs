//! G9: block requests that are well linked but wrong.

use super::{Case, Lab, Outcome};
use crate::block::{Block, RO, request};
use crate::bring_up::{self, feature};
use crate::virtqueue::Piece;

pub const CASES: &[Case] = &[
    ("g9-write-read-only", |lab| to_read_only(lab, request::OUT)),
    ("g9-discard-read-only", |lab| to_read_only(lab, request::DISCARD)),
    ("g9-sector-overflow", |lab| read_at(lab, |_| u64::MAX, 512)),
    ("g9-sector-byte-overflow", |lab| read_at(lab, |_| u64::MAX / 512 + 1, 512)),
    ("g9-beyond-capacity", |lab| read_at(lab, |capacity| capacity, 512)),
    ("g9-straddles-end", |lab| read_at(lab, |capacity| capacity.wrapping_sub(1), 1024)),
    ("g9-write-straddles-end", write_straddles_end),
    ("g9-unaligned-length", |lab| read_at(lab, |_| 0, 511)),
    ("g9-zero-length", |lab| read_at(lab, |_| 0, 0)),
    ("g9-no-data", |lab| shaped(lab, |h, _, s| [Some(h), None, Some(s)])),
    ("g9-unknown-type", unknown_type),
    ("g9-status-not-writable", |lab| shaped(lab, |h, d, s| [Some(h), Some(d), Some(Piece { writable: false, ..s })])),
    ("g9-status-empty", |lab| shaped(lab, |h, d, s| [Some(h), Some(d), Some(Piece { len: 0, ..s })])),
    ("g9-direction-swapped", |lab| shaped(lab, |h, d, s| [Some(h), Some(Piece { writable: false, ..d }), Some(s)])),
    ("g9-header-writable", |lab| shaped(lab, |h, d, s| [Some(Piece { writable: true, ..h }), Some(d), Some(s)])),
    ("g9-header-short", |lab| shaped(lab, |h, d, s| [Some(Piece { len: 8, ..h }), Some(d), Some(s)])),
    ("g9-header-only", |lab| shaped(lab, |h, _, _| [Some(h), None, None])),
    ("g9-status-only", |lab| shaped(lab, |_, _, s| [None, None, Some(s)])),
    ("g9-write-from-writable", write_from_writable),
];

/// A write or discard to a read-only drive, with the RO feature not
/// acknowledged. Nothing is done to a drive that is not read-only.
fn to_read_only(lab: &mut Lab<'_>, kind: u32) -> Outcome {
    let Some(window) = lab.drive() else {
        return "skipped-no-drive";
    };
    if window.offered() & RO == 0 {
        return "skipped-drive-is-writable";
    }
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    // Negotiate again, without RO this time; the queue stays where it is.
    let agreed = bring_up::negotiate(window, feature::VERSION_1, lab.machine.clock);
    if agreed.is_err() {
        return "features-refused";
    }
    block.queue = crate::virtqueue::Queue::allocate(window, 0, block.queue.size, false, &mut lab.machine.arena);
    block.queue.announce();
    if let Err(refusal) = bring_up::start(window) {
        return super::refusal(refusal);
    }
    let data = lab.buffer(512);
    data.fill(0x66);
    let len = if kind == request::DISCARD {
        data.write64(0, 0);
        data.write64(8, 1);
        16
    } else {
        512
    };
    run(lab, &mut block, kind, 0, Piece::readable(data.part(0, len)))
}

/// A read of `len` bytes at a sector chosen from the capacity.
fn read_at(lab: &mut Lab<'_>, choose: fn(u64) -> u64, len: u64) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let data = lab.buffer(4096).part(0, len);
    let sector = choose(block.capacity);
    run(lab, &mut block, request::IN, sector, Piece::writable(data))
}

/// A write that begins in the last sector and ends behind it. The host checks
/// that not even the part that fits was written: its bytes are 0x66.
fn write_straddles_end(lab: &mut Lab<'_>) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let data = lab.buffer(1024);
    data.fill(0x66);
    let last = block.capacity.wrapping_sub(1);
    run(lab, &mut block, request::OUT, last, Piece::readable(data))
}

fn unknown_type(lab: &mut Lab<'_>) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let data = lab.buffer(512);
    run(lab, &mut block, u32::MAX, 0, Piece::writable(data))
}

/// A write whose data the device may only write.
fn write_from_writable(lab: &mut Lab<'_>) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let data = lab.buffer(512);
    data.fill(0x66);
    run(lab, &mut block, request::OUT, 0, Piece::writable(data))
}

/// A read of sector 0 made of header, data and status as the case shapes them.
fn shaped(lab: &mut Lab<'_>, shape: fn(Piece, Piece, Piece) -> [Option<Piece>; 3]) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let data = lab.buffer(512);
    let (header, status) = (block.header(0), block.status_byte(0));
    header.write32(0, request::IN);
    header.write64(8, 0);
    let shaped = shape(Piece::readable(header), Piece::writable(data), Piece::writable(status));
    let mut pieces = [Piece::readable(header); 3];
    let mut count = 0;
    for piece in shaped.into_iter().flatten() {
        pieces[count] = piece;
        count += 1;
    }
    lab.try_chain(&mut block, &pieces[..count])
}

fn run(lab: &mut Lab<'_>, block: &mut Block, kind: u32, sector: u64, data: Piece) -> Outcome {
    block.submit(0, kind, sector, &[data]);
    block.queue.kick();
    let status = block.status_byte(0);
    lab.observe(block, status)
}
