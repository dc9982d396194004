//! G6 to G8: descriptor chains that loop, lie about their length, or come from
//! an available ring that jumps.

use super::{Case, Lab, Outcome};
use crate::block::{Block, Options, UNTOUCHED, request};
use crate::bring_up::feature;
use crate::dma::Dma;
use crate::virtqueue::{self, DESCRIPTOR, INDIRECT, NEXT, Piece};

pub const CASES: &[Case] = &[
    ("g6-self-loop", |lab| link(lab, |b, data| b.queue.describe(1, data, NEXT, 1))),
    ("g6-two-cycle", |lab| {
        link(lab, |b, data| {
            b.queue.describe(1, data, NEXT, 2);
            b.queue.describe(2, data, NEXT, 1);
        })
    }),
    ("g6-full-cycle", |lab| {
        link(lab, |b, data| {
            for slot in 1..b.queue.size {
                b.queue.describe(slot, data, NEXT, (slot + 1) % b.queue.size);
            }
        })
    }),
    ("g6-next-out-of-range", |lab| link(lab, |b, data| b.queue.describe(1, data, NEXT, b.queue.size))),
    ("g6-next-65535", |lab| link(lab, |b, data| b.queue.describe(1, data, NEXT, u16::MAX))),
    ("g7-nested", |lab| {
        indirect(lab, |table, inner| {
            let nested = Piece::readable(inner.part(0, 2 * DESCRIPTOR));
            virtqueue::describe(table, 1, nested, INDIRECT, 0);
            Piece::readable(table.part(0, 2 * DESCRIPTOR))
        })
    }),
    ("g7-len-not-16", |lab| indirect(lab, |table, _| Piece::readable(table.part(0, 3 * DESCRIPTOR - 5)))),
    ("g7-len-zero", |lab| indirect(lab, |table, _| Piece::readable(table.part(0, 0)))),
    ("g7-len-4g", |lab| indirect(lab, |table, _| Piece { len: 0xffff_fff0, ..Piece::readable(table) })),
    ("g7-loop", |lab| {
        indirect(lab, |table, data| {
            virtqueue::describe(table, 1, Piece::writable(data), NEXT, 1);
            Piece::readable(table.part(0, 3 * DESCRIPTOR))
        })
    }),
    ("g7-longer-than-queue", |lab| {
        indirect(lab, |table, data| {
            // The status descriptor moves from slot 2 to the very end.
            let status = Piece { address: table.read64(2 * DESCRIPTOR), len: 1, writable: true };
            let last = (table.len() / DESCRIPTOR) as u16 - 1;
            for slot in 1..last {
                virtqueue::describe(table, slot, Piece::writable(data), NEXT, slot + 1);
            }
            virtqueue::describe(table, last, status, 0, 0);
            Piece::readable(table)
        })
    }),
    ("g7-table-in-device-window", |lab| indirect(lab, |_, _| Piece { address: 0xc000_1000, len: 48, writable: false })),
    ("g7-table-in-hole", |lab| indirect(lab, |_, _| Piece { address: 0xd000_0000, len: 48, writable: false })),
    ("g7-not-negotiated", not_negotiated),
    ("g8-avail-ahead", |lab| jump(lab, |b| b.queue.size + 1)),
    ("g8-avail-backwards", |lab| jump(lab, |_| u16::MAX)),
    ("g8-head-out-of-range", |lab| head(lab, |b| b.queue.size)),
    ("g8-head-65535", |lab| head(lab, |_| u16::MAX)),
    ("g8-same-head-twice", same_head_twice),
    ("g8-buffer-in-device-window", |lab| buffer_at(lab, 0xc000_1000)),
    ("g8-buffer-past-ram", |lab| {
        let end = lab.machine.boot.ram_end_above(crate::IMAGE);
        buffer_at(lab, end - 256)
    }),
    ("g8-buffer-wraps", |lab| buffer_at(lab, 0xffff_ffff_ffff_ff00)),
];

/// A read request whose second descriptor the case links its own way; the
/// header in descriptor 0 is proper.
fn link(lab: &mut Lab<'_>, spoil: fn(&Block, Piece)) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let data = Piece::writable(lab.buffer(512));
    read_header(&block);
    block.queue.describe(0, Piece::readable(block.header(0)), NEXT, 1);
    spoil(&block, data);
    offer_and_observe(lab, &mut block, 0)
}

/// A read request in an indirect table that the case spoils; it returns what
/// descriptor 0 says about the table.
fn indirect(lab: &mut Lab<'_>, spoil: fn(Dma, Dma) -> Piece) -> Outcome {
    let mut block = match lab.block_with(Options { indirect: true, ..Options::PLAIN }) {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    if block.features & feature::INDIRECT_DESC == 0 {
        return "skipped-not-offered";
    }
    indirect_request(lab, &mut block, spoil)
}

/// The same without the feature, with a proper table.
fn not_negotiated(lab: &mut Lab<'_>) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    indirect_request(lab, &mut block, |table, _| Piece::readable(table.part(0, 3 * DESCRIPTOR)))
}

fn indirect_request(lab: &mut Lab<'_>, block: &mut Block, spoil: fn(Dma, Dma) -> Piece) -> Outcome {
    let slots = u64::from(block.queue.size) + 8;
    let (table, data) = (lab.buffer(slots * DESCRIPTOR), lab.buffer(512));
    let status = block.status_byte(0);
    read_header(block);
    let pieces = [Piece::readable(block.header(0)), Piece::writable(data), Piece::writable(status)];
    virtqueue::chain(table, 0, &pieces);
    let whole = spoil(table, data);
    block.queue.describe(0, whole, INDIRECT, 0);
    offer_and_observe(lab, block, 0)
}

/// A proper request, but the available index is moved by the case's amount.
fn jump(lab: &mut Lab<'_>, by: fn(&Block) -> u16) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    // A proper request first, so that the device has a place to jump from.
    if !lab.read_ok(&mut block) {
        return "first-read-failed";
    }
    let data = lab.buffer(512);
    block.submit(0, request::IN, 0, &[Piece::writable(data)]);
    let proper = block.queue.next_avail.wrapping_sub(1);
    block.queue.next_avail = proper.wrapping_add(by(&block));
    block.queue.kick();
    let status = block.status_byte(0);
    lab.observe(&mut block, status)
}

/// A head that is not a descriptor.
fn head(lab: &mut Lab<'_>, choose: fn(&Block) -> u16) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let head = choose(&block);
    offer_and_observe(lab, &mut block, head)
}

/// The same chain twice in one batch: two answers, or a refusal.
fn same_head_twice(lab: &mut Lab<'_>) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let data = lab.buffer(512);
    block.submit(0, request::IN, 0, &[Piece::writable(data)]);
    block.queue.offer(0);
    block.queue.kick();
    let status = block.status_byte(0);
    match lab.observe(&mut block, status) {
        "ok" => lab.observe(&mut block, status),
        other => other,
    }
}

/// A read into memory that is not RAM, or not all of it.
fn buffer_at(lab: &mut Lab<'_>, address: u64) -> Outcome {
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    block.submit(0, request::IN, 0, &[Piece { address, len: 512, writable: true }]);
    block.queue.kick();
    let status = block.status_byte(0);
    lab.observe(&mut block, status)
}

/// Fills slot 0's header with a read of sector 0.
fn read_header(block: &Block) {
    let header = block.header(0);
    header.write32(0, request::IN);
    header.write64(8, 0);
    block.status_byte(0).write8(0, UNTOUCHED);
}

fn offer_and_observe(lab: &mut Lab<'_>, block: &mut Block, head: u16) -> Outcome {
    block.status_byte(0).write8(0, UNTOUCHED);
    block.queue.offer(head);
    block.queue.kick();
    let status = block.status_byte(0);
    lab.observe(block, status)
}
