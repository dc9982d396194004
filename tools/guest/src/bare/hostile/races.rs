//! G4 and G26: one processor changes what the device looks at while the other makes it look.
//!
//! Nothing but survival can be expected of such a request; the device must work again after a reset.

use super::{Case, Lab, Outcome};
use crate::block::{Block, Options, request};
use crate::bring_up;
use crate::dma::Dma;
use crate::mmio::{Window, reg};
use crate::second::Second;
use crate::virtqueue::{DESCRIPTOR, Piece};

pub const CASES: &[Case] = &[
    ("g4-registers-while-starting", registers_while_starting),
    ("g26-descriptors", |lab| race_requests(lab, spoil_descriptors, |block| block.queue.descriptors)),
    ("g26-block-header", |lab| race_requests(lab, spoil_header, |block| block.header(0))),
    ("g26-available-ring", |lab| race_requests(lab, spoil_ring, |block| block.queue.avail)),
    ("g26-net-header", net_header),
];

/// Rounds, unless `rounds=` says otherwise.
const ROUNDS: u64 = 20_000;
const NO_SECOND: Outcome = "skipped-one-processor";

/// The queue registers change while status goes to DRIVER_OK, again and again.
fn registers_while_starting(lab: &mut Lab<'_>) -> Outcome {
    let Some(window) = lab.drive() else { return "skipped-no-drive" };
    let Some(second) = Second::start(lab.machine, spoil_registers, window.address) else { return NO_SECOND };
    let mut starts = 0;
    // Each round is a dozen exits, so fewer of them.
    for _ in 0..lab.machine.command_line.number("rounds", ROUNDS) / 40 {
        let mark = lab.machine.arena.mark();
        if let Ok(mut block) = Block::start(lab.machine, window, Options::PLAIN) {
            let data = lab.buffer(512);
            block.submit(0, request::IN, 0, &[Piece::writable(data)]);
            block.queue.ring();
            starts += 1;
        }
        // Complete when it returns: nothing of this round is touched in the next.
        if bring_up::reset(window, lab.machine.clock).is_err() {
            return "reset-hangs";
        }
        lab.machine.arena.rewind(mark);
    }
    lab.facts = [("starts", starts), ("spoils", second.rounds())];
    "alive"
}

fn spoil_registers(window: u64, round: u64) {
    // About as often as the other one starts the device, so that some starts succeed.
    if round % 8192 != 0 {
        return;
    }
    let round = round / 8192;
    let window = Window { address: window, kind: 0 };
    match round % 4 {
        0 => window.write(reg::QUEUE_NUM, 1 << (round / 4 % 10)),
        1 => window.write_address(reg::QUEUE_DESC, round << 12),
        2 => window.write(reg::QUEUE_READY, (round / 4 % 2) as u32),
        _ => window.write_address(reg::QUEUE_DEVICE, 0xffff_ffff_ffff_f000),
    }
}

/// Reads while `spoil` changes the memory that `target` names. Starts the device again when it is stuck or asks for a reset, which is fair:
/// what counts is that a reset mends it.
fn race_requests(lab: &mut Lab<'_>, spoil: fn(u64, u64), target: fn(&Block) -> Dma) -> Outcome {
    let mark = lab.machine.arena.mark();
    let (mut answers, mut starts) = (0, 0);
    let mut second = None;
    let mut left = lab.machine.command_line.number("rounds", ROUNDS);
    while left > 0 {
        // The same memory each time, so that what is spoiled stays in its place.
        lab.machine.arena.rewind(mark);
        let mut block = match lab.block() {
            Ok(block) => block,
            // The other processor may be quicker.
            Err(_) if second.is_some() => {
                left -= 1;
                continue;
            }
            Err(outcome) => return outcome,
        };
        starts += 1;
        let data = lab.buffer(4096);
        if second.is_none() {
            second = Second::start(lab.machine, spoil, target(&block).address());
            if second.is_none() {
                return NO_SECOND;
            }
        }
        let mut silent = 0;
        while left > 0 && silent < 64 {
            left -= 1;
            silent += 1;
            block.submit(0, request::IN, 0, &[Piece::writable(data)]);
            block.queue.kick();
            // Not waiting for each answer is part of the race. Heads are not looked at: the available ring may have named any descriptor,
            // and what the device gives back is then no slot of this driver.
            while block.queue.poll().is_some() {
                answers += 1;
                silent = 0;
            }
        }
        if bring_up::reset(block.window, lab.machine.clock).is_err() {
            return "reset-hangs";
        }
    }
    lab.facts = [("answers", answers), ("starts", starts)];
    "alive"
}

/// Address, length, flags and link of the first three descriptors.
fn spoil_descriptors(table: u64, round: u64) {
    let entry = Dma::left_by_loader(table + DESCRIPTOR * (round % 3), DESCRIPTOR);
    match round / 3 % 8 {
        0 => entry.write32(8, 0xffff_ffff),
        1 => entry.write32(8, 16),
        2 => entry.write16(12, (round / 24) as u16 & 7),
        3 => entry.write16(14, (round / 24) as u16),
        4 => entry.write64(0, 0xffff_ffff_ffff_f000),
        5 => entry.write64(0, 0xc000_1000),
        6 => entry.write32(8, 0),
        // Somewhere harmless: the table itself.
        _ => entry.write64(0, table),
    }
}

/// Type and sector of the request. Reads and flushes only: the drive's content belongs to other cases too.
fn spoil_header(header: u64, round: u64) {
    let header = Dma::left_by_loader(header, 16);
    match round % 6 {
        0 => header.write32(0, request::IN),
        1 => header.write32(0, request::FLUSH),
        2 => header.write32(0, u32::MAX),
        3 => header.write64(8, 0),
        4 => header.write64(8, u64::MAX),
        _ => header.write64(8, u64::MAX / 512 + 1),
    }
}

/// Index and entries of the available ring.
fn spoil_ring(ring: u64, round: u64) {
    let ring = Dma::left_by_loader(ring, 64);
    match round % 3 {
        0 => ring.write16(2, (round / 3) as u16),
        1 => ring.write16(4 + 2 * (round / 3 % 16), (round / 48) as u16),
        _ => ring.write16(0, (round / 3) as u16 & 1),
    }
}

/// The virtio-net header of a frame that is being sent.
fn net_header(lab: &mut Lab<'_>) -> Outcome {
    let mut net = match lab.net() {
        Ok(net) => net,
        Err(outcome) => return outcome,
    };
    let Some(slot) = net.claim() else { return "no-slot" };
    // The header lies right before the frame; slots are claimed last in, first out, so mostly this one again.
    let header = net.frame(slot).address() - 12;
    let Some(second) = Second::start(lab.machine, spoil_net_header, header) else { return NO_SECOND };
    net.unclaim(slot);
    let mut sent = 0;
    for _ in 0..lab.machine.command_line.number("rounds", ROUNDS) {
        net.reclaim();
        if let Some(slot) = net.claim() {
            let frame = net.frame(slot);
            frame.part(0, 14).fill(0xff);
            net.transmit(slot, 64);
            net.tx.kick();
            sent += 1;
        }
    }
    lab.facts = [("sent", sent), ("spoils", second.rounds())];
    "alive"
}

fn spoil_net_header(header: u64, round: u64) {
    let header = Dma::left_by_loader(header, 12);
    match round % 5 {
        0 => header.write8(0, (round / 5) as u8),
        1 => header.write8(1, (round / 5) as u8),
        2 => header.write16(2, (round / 5) as u16),
        3 => header.write16(4, (round / 5) as u16),
        _ => header.write16(6, (round / 5) as u16),
    }
}
