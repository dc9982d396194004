//! G13: transmitted frames that are too big, too small, or whose offload
//! fields lie.

use super::{Case, Lab, Outcome};
use crate::dma::Dma;
use crate::mmio::status as bit;
use crate::net::{HEADER, Net};
use crate::virtqueue::Piece;

pub const CASES: &[Case] = &[
    ("g13-total-4g", |lab| pieces(lab, 16, |data| Piece { len: 0x1000_0000, ..Piece::readable(data) })),
    ("g13-many-64k", |lab| pieces(lab, 255, |data| Piece { len: 0x1_0000, ..Piece::readable(data) })),
    ("g13-one-byte", |lab| single(lab, |data| Piece::readable(data.part(0, 1)))),
    ("g13-header-only", |lab| single(lab, |data| Piece::readable(data.part(0, HEADER)))),
    ("g13-empty", |lab| single(lab, |data| Piece::readable(data.part(0, 0)))),
    ("g13-writable", |lab| single(lab, |data| Piece::writable(data.part(0, HEADER + 60)))),
    ("g13-header-split", header_split),
    ("g13-gso-hdr-len", |lab| offload(lab, |h| h.write16(2, u16::MAX))),
    ("g13-gso-size-zero", |lab| offload(lab, |h| h.write8(1, 1))),
    ("g13-gso-unknown", |lab| {
        offload(lab, |h| {
            h.write8(1, 0x7f);
            h.write16(4, 1);
        })
    }),
    ("g13-csum-past-end", |lab| {
        offload(lab, |h| {
            h.write8(0, 1);
            h.write16(6, u16::MAX);
            h.write16(8, u16::MAX);
        })
    }),
];

/// Whether a proper frame is taken by a freshly started device.
pub fn works(lab: &mut Lab<'_>) -> bool {
    lab.net().is_ok_and(|mut net| {
        put_frame(net.frame(0));
        send(lab, &mut net, |net| net.transmit(0, 60)) == "completed"
    })
}

/// A broadcast frame of the experimental ethertype, 60 bytes.
fn put_frame(at: Dma) {
    at.put(0, &[0xff; 6]);
    at.put(6, &[2, 0, 0, 0, 0, 2, 0x88, 0xb5]);
}

/// Offers something with `offer`, kicks, and waits for it to come back.
fn send(lab: &mut Lab<'_>, net: &mut Net, offer: impl FnOnce(&mut Net)) -> Outcome {
    offer(net);
    net.tx.kick();
    let deadline = lab.machine.clock.deadline_ms(lab.machine.command_line.number("patience_ms", 500));
    loop {
        for _ in 0..2000 {
            if let Some(used) = net.tx.poll() {
                lab.facts[0] = ("used_len", used.len.into());
                return "completed";
            }
            crate::cpu::pause();
        }
        if net.window.status() & bit::NEEDS_RESET != 0 {
            return "needs-reset";
        }
        if deadline.passed() {
            return "silent";
        }
    }
}

/// One descriptor as the case makes it.
fn single(lab: &mut Lab<'_>, shape: fn(Dma) -> Piece) -> Outcome {
    pieces(lab, 1, shape)
}

/// A chain of `count` descriptors as the case makes them.
fn pieces(lab: &mut Lab<'_>, count: usize, shape: fn(Dma) -> Piece) -> Outcome {
    let mut net = match lab.net() {
        Ok(net) => net,
        Err(outcome) => return outcome,
    };
    let data = lab.buffer(0x1_0000);
    put_frame(data.part(HEADER, 60));
    let list = [shape(data); 256];
    let count = count.min(net.tx.size.into());
    send(lab, &mut net, |net| {
        net.tx.chain(0, &list[..count]);
        net.tx.offer(0);
    })
}

/// A proper frame in 72 descriptors of one byte: legal, and must be sent.
fn header_split(lab: &mut Lab<'_>) -> Outcome {
    let mut net = match lab.net() {
        Ok(net) => net,
        Err(outcome) => return outcome,
    };
    let data = lab.buffer(HEADER + 60);
    put_frame(data.part(HEADER, 60));
    let list: [Piece; 72] = core::array::from_fn(|i| Piece::readable(data.part(i as u64, 1)));
    send(lab, &mut net, |net| {
        net.tx.chain(0, &list);
        net.tx.offer(0);
    })
}

/// A proper frame behind a header the case spoils.
fn offload(lab: &mut Lab<'_>, spoil: fn(Dma)) -> Outcome {
    let mut net = match lab.net() {
        Ok(net) => net,
        Err(outcome) => return outcome,
    };
    let data = lab.buffer(HEADER + 60);
    put_frame(data.part(HEADER, 60));
    spoil(data.part(0, HEADER));
    send(lab, &mut net, |net| {
        net.tx.chain(0, &[Piece::readable(data)]);
        net.tx.offer(0);
    })
}
