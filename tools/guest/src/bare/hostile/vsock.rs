//! G15 to G18: packets that lie, more connections than there are seats, ports that nobody listens on, answers that nobody takes.
//!
//! A host program listens on port 60 and accepts everybody; nobody listens on port 61.

use super::{Case, Lab, Outcome};
use crate::cpu;
use crate::mmio::status as bit;
use crate::virtqueue::Piece;
use crate::vsock::{self, HEADER, Packet, Vsock, op};

const LISTENER: u32 = 60;
const NOBODY: u32 = 61;
const OWN: u32 = 1000;
/// Connections of a machine at a time.
const SEATS: u64 = 1023;
const ROOM: u32 = 1 << 16;

pub const CASES: &[Case] = &[
    ("g15-len-over-buffers", |lab| lie(lab, |p| Packet { op: op::RW, len: 100, ..p })),
    ("g15-len-4g", |lab| lie(lab, |p| Packet { op: op::RW, len: u32::MAX, ..p })),
    ("g15-unknown-op", |lab| lie(lab, |p| Packet { op: 99, ..p })),
    ("g15-op-zero", |lab| lie(lab, |p| Packet { op: 0, ..p })),
    ("g15-twice", |lab| lie(lab, |p| Packet { op: op::REQUEST, ..p })),
    ("g15-unasked-response", |lab| lie(lab, |p| Packet { op: op::RESPONSE, ..p })),
    ("g15-unknown-type", |lab| lie(lab, |p| Packet { op: op::RW, kind: 7, ..p })),
    ("g15-to-nowhere", |lab| lie(lab, |p| Packet { op: op::REQUEST, dst_cid: 9, ..p })),
    ("g15-to-any", |lab| lie(lab, |p| Packet { op: op::REQUEST, dst_cid: u32::MAX.into(), ..p })),
    ("g15-to-64-bits", |lab| lie(lab, |p| Packet { op: op::REQUEST, dst_cid: u64::MAX - 1, ..p })),
    ("g15-from-somebody", |lab| dropped(lab, |p| Packet { op: op::RST, src_cid: 77, ..p })),
    ("g15-from-host", |lab| dropped(lab, |p| Packet { op: op::RST, src_cid: vsock::HOST, ..p })),
    ("g15-no-room", |lab| dropped(lab, |p| Packet { op: op::CREDIT_UPDATE, buf_alloc: 0, ..p })),
    ("g15-all-room", |lab| dropped(lab, |p| Packet { op: op::CREDIT_UPDATE, buf_alloc: u32::MAX, ..p })),
    ("g15-read-more-than-sent", |lab| dropped(lab, |p| Packet { op: op::CREDIT_UPDATE, fwd_cnt: 1 << 31, ..p })),
    ("g15-over-credit", over_credit),
    ("g15-header-short", |lab| odd_chain(lab, |whole| Piece { len: 20, ..whole })),
    ("g15-header-missing", |lab| odd_chain(lab, |whole| Piece { len: 0, ..whole })),
    ("g15-header-writable", |lab| odd_chain(lab, |whole| Piece { writable: true, ..whole })),
    ("g16-many-connections", many_connections),
    ("g16-reset-storm", reset_storm),
    ("g17-ports", ports),
    ("g17-nobody-storm", nobody_storm),
    ("g18-no-buffers", no_buffers),
];

impl Lab<'_> {
    /// A freshly started socket device.
    fn sockets(&mut self, posts: bool) -> Result<Vsock, Outcome> {
        let window = vsock::chosen_window(self.machine).ok_or("skipped-no-socket-device")?;
        Vsock::start(self.machine, window, posts).map_err(super::refusal)
    }

    /// The next packet for this port of ours, and what it is.
    fn hear(&self, vsock: &mut Vsock, port: u32) -> Result<u16, Outcome> {
        let deadline = self.machine.clock.deadline_ms(self.machine.command_line.number("patience_ms", 500));
        loop {
            for _ in 0..2000 {
                if let Some((packet, _, slot)) = vsock.receive() {
                    vsock.done_with(slot);
                    vsock.kick();
                    if packet.dst_port == port {
                        return Ok(packet.op);
                    }
                }
                cpu::pause();
            }
            if vsock.window.status() & bit::NEEDS_RESET != 0 {
                return Err("needs-reset");
            }
            if deadline.passed() {
                return Err("silent");
            }
        }
    }

    /// Asks the host's port for a connection.
    fn dial(&self, vsock: &mut Vsock, from: u32, to: u32) -> Result<u16, Outcome> {
        vsock.send(proper(vsock, from, to, op::REQUEST));
        vsock.kick();
        self.hear(vsock, from)
    }
}

fn proper(vsock: &Vsock, from: u32, to: u32, op: u16) -> Packet {
    Packet { buf_alloc: ROOM, ..Packet::to_host(vsock.cid, from, to, op) }
}

/// Whether a freshly started device makes a connection.
pub fn works(lab: &mut Lab<'_>) -> bool {
    lab.sockets(true).is_ok_and(|mut vsock| lab.dial(&mut vsock, OWN, LISTENER) == Ok(op::RESPONSE))
}

/// A device with an open connection.
fn connected(lab: &mut Lab<'_>) -> Result<Vsock, Outcome> {
    let mut vsock = lab.sockets(true)?;
    match lab.dial(&mut vsock, OWN, LISTENER)? {
        op::RESPONSE => Ok(vsock),
        _ => Err("skipped-no-listener"),
    }
}

/// Sends a packet of the open connection that the case spoils, and observes what becomes of the connection.
fn lie(lab: &mut Lab<'_>, spoil: fn(Packet) -> Packet) -> Outcome {
    let mut vsock = match connected(lab) {
        Ok(vsock) => vsock,
        Err(outcome) => return outcome,
    };
    let packet = spoil(proper(&vsock, OWN, LISTENER, op::RW));
    let Some((slot, _)) = vsock.slot() else { return "silent" };
    // Only the header is there, whatever it says.
    vsock.send_header(slot, packet);
    vsock.kick();
    match lab.hear(&mut vsock, OWN) {
        Ok(op::RST) => "reset",
        Ok(_) => "answered",
        Err(outcome) => outcome,
    }
}

/// The same for what must do nothing to the connection: it still answers.
fn dropped(lab: &mut Lab<'_>, spoil: fn(Packet) -> Packet) -> Outcome {
    let mut vsock = match connected(lab) {
        Ok(vsock) => vsock,
        Err(outcome) => return outcome,
    };
    let packet = spoil(proper(&vsock, OWN, LISTENER, op::RW));
    vsock.send(packet);
    still_there(lab, &mut vsock)
}

/// A connection that is there tells its credit.
fn still_there(lab: &mut Lab<'_>, vsock: &mut Vsock) -> Outcome {
    vsock.send(proper(vsock, OWN, LISTENER, op::CREDIT_REQUEST));
    vsock.kick();
    loop {
        match lab.hear(vsock, OWN) {
            Ok(op::CREDIT_UPDATE) => return "ignored",
            Ok(op::RST) => return "reset",
            Ok(_) => {}
            Err(outcome) => return outcome,
        }
    }
}

/// More data than the host has room for. It does not read.
fn over_credit(lab: &mut Lab<'_>) -> Outcome {
    let mut vsock = match connected(lab) {
        Ok(vsock) => vsock,
        Err(outcome) => return outcome,
    };
    for _ in 0..64 {
        let packet = Packet { len: vsock::DATA_MAX as u32, ..proper(&vsock, OWN, LISTENER, op::RW) };
        let Some((slot, _)) = vsock.slot() else { break };
        vsock.send_slot(slot, packet);
    }
    vsock.kick();
    loop {
        match lab.hear(&mut vsock, OWN) {
            Ok(op::RST) => return "reset",
            Ok(_) => {}
            Err(outcome) => return outcome,
        }
    }
}

/// A chain that holds no packet. The connection goes on.
fn odd_chain(lab: &mut Lab<'_>, spoil: fn(Piece) -> Piece) -> Outcome {
    let mut vsock = match connected(lab) {
        Ok(vsock) => vsock,
        Err(outcome) => return outcome,
    };
    let buffer = lab.buffer(HEADER);
    proper(&vsock, OWN, LISTENER, op::RST).write(buffer);
    // Behind the slots that the driver itself uses.
    vsock.tx.chain(100, &[spoil(Piece::readable(buffer))]);
    vsock.tx.offer(100);
    vsock.kick();
    still_there(lab, &mut vsock)
}

/// Far more connections than there are seats.
fn many_connections(lab: &mut Lab<'_>) -> Outcome {
    let mut vsock = match lab.sockets(true) {
        Ok(vsock) => vsock,
        Err(outcome) => return outcome,
    };
    let (mut made, mut refused) = (0u64, 0u64);
    let requests = lab.machine.command_line.number("connections", 100_000) as u32;
    for port in 0..requests {
        match lab.dial(&mut vsock, OWN + port, LISTENER) {
            Ok(op::RESPONSE) => made += 1,
            Ok(op::RST) => refused += 1,
            Ok(_) => return "answered",
            Err(outcome) => return outcome,
        }
    }
    lab.facts = [("made", made), ("refused", refused)];
    if made > SEATS { "too-much" } else { "capped" }
}

/// Resets of connections that never were. Nobody answers a reset.
fn reset_storm(lab: &mut Lab<'_>) -> Outcome {
    let mut vsock = match connected(lab) {
        Ok(vsock) => vsock,
        Err(outcome) => return outcome,
    };
    let before = vsock.received;
    for port in 0..100_000 {
        vsock.send(proper(&vsock, OWN + 1 + port, LISTENER, op::RST));
        if port % 32 == 0 {
            vsock.kick();
        }
    }
    let outcome = still_there(lab, &mut vsock);
    lab.facts[0] = ("answers", vsock.received - before - 1);
    outcome
}

/// Ports that no path should be made of.
fn ports(lab: &mut Lab<'_>) -> Outcome {
    let mut vsock = match lab.sockets(true) {
        Ok(vsock) => vsock,
        Err(outcome) => return outcome,
    };
    for port in [0, u32::MAX, 0x2f2e_2e2f, 0x2f2f_2f2f, NOBODY] {
        match lab.dial(&mut vsock, OWN, port) {
            Ok(op::RST) => {}
            Ok(_) => return "answered",
            Err(outcome) => return outcome,
        }
    }
    "reset"
}

/// Very many requests to where nobody listens.
fn nobody_storm(lab: &mut Lab<'_>) -> Outcome {
    let mut vsock = match lab.sockets(true) {
        Ok(vsock) => vsock,
        Err(outcome) => return outcome,
    };
    for port in 0..20_000 {
        match lab.dial(&mut vsock, OWN + port, NOBODY) {
            Ok(op::RST) => {}
            Ok(_) => return "answered",
            Err(outcome) => return outcome,
        }
    }
    "reset"
}

/// Requests whose answers nobody takes. The device must wait, and with it the requests.
fn no_buffers(lab: &mut Lab<'_>) -> Outcome {
    let mut vsock = match lab.sockets(false) {
        Ok(vsock) => vsock,
        Err(outcome) => return outcome,
    };
    let mut sent = 0u64;
    let deadline = lab.machine.clock.deadline_ms(300);
    while !deadline.passed() {
        if let Some((slot, _)) = vsock.slot() {
            vsock.send_slot(slot, proper(&vsock, OWN + sent as u32, NOBODY, op::REQUEST));
            vsock.kick();
            sent += 1;
        }
    }
    lab.facts[0] = ("sent", sent);
    // As many as refusals are kept for, and those on the ring.
    if sent > 1000 { "too-much" } else { "alive" }
}
