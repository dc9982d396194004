//! `mode=vsock`: services that host programs connect to, and a program that connects to one on the host.
//!
//! Ends after `ms` milliseconds, or when a host program connects to port 9. With `withhold_ms`, what comes after the first connection is
//! left where it is for so long, and no receive buffer comes back; a sink then has `sink_room` bytes of room. With `reading=1` a read of a drive is in flight meanwhile, as in
//! `mode=net`.

use crate::block_mode::word;
use crate::dma::Dma;
use crate::net_mode::Reading;
use crate::pattern;
use crate::vsock::{self, DATA_MAX, NO_RECEIVE, NO_SEND, Packet, Vsock, op};
use crate::{Machine, cpu, say};

/// What comes in goes back.
const ECHO: u32 = 1;
/// What comes in is compared with the stream pattern and counted.
const SINK: u32 = 2;
/// The stream pattern goes out.
const SOURCE: u32 = 3;
/// Accepts and then reads nothing.
const DEAF: u32 = 4;
/// What comes in is counted.
const DRAIN: u32 = 5;
/// As many bytes as of the pattern go out, whatever they are.
const SPRING: u32 = 6;
/// Ends the mode.
const STOP: u32 = 9;
/// Our port when we connect.
const OWN: u32 = 1000;

const CONNECTIONS: usize = 1100;
/// Room for data from the host: of an echo, what it keeps until it is sent back; of a sink, nothing is ever kept.
const ECHO_ROOM: u32 = 4096;
const SINK_ROOM: u64 = 1 << 20;

/// A connection, from our side.
#[derive(Clone, Copy)]
struct Talk {
    host_port: u32,
    guest_port: u32,
    /// [`ECHO`] and so on; zero for a free place.
    service: u32,
    /// Accepted by both sides.
    open: bool,
    /// Our room for data.
    own_room: u32,
    /// The host's room, what it has read of it, and what we sent.
    room: u32,
    read: u32,
    sent: u32,
    /// What we read, and what the host knows of that.
    forwarded: u32,
    told: u32,
    /// Bytes received, and still to be sent.
    received: u64,
    left: u64,
    /// What either side has closed.
    host_shut: u32,
    shut: u32,
    /// Bytes that were not as they should be.
    bad: u64,
}

const FREE: Talk = Talk {
    host_port: 0,
    guest_port: 0,
    service: 0,
    open: false,
    own_room: ECHO_ROOM,
    room: 0,
    read: 0,
    sent: 0,
    forwarded: 0,
    told: 0,
    received: 0,
    left: 0,
    host_shut: 0,
    shut: 0,
    bad: 0,
};

impl Talk {
    fn packet(&mut self, cid: u64, op: u16) -> Packet {
        self.told = self.forwarded;
        let packet = Packet::to_host(cid, self.guest_port, self.host_port, op);
        Packet { buf_alloc: self.own_room, fwd_cnt: self.forwarded, ..packet }
    }

    /// How much the host can take.
    fn credit(&self) -> u64 {
        let in_flight = self.sent.wrapping_sub(self.read);
        if self.open && self.shut & NO_SEND == 0 && self.host_shut & NO_RECEIVE == 0 {
            self.room.saturating_sub(in_flight).into()
        } else {
            0
        }
    }
}

/// What happened in all.
#[derive(Default)]
struct Counts {
    accepted: u64,
    refused: u64,
    /// Ended by the host's RST.
    resets: u64,
    open: u64,
    most_open: u64,
    stopped: bool,
}

struct Services {
    vsock: Vsock,
    talks: [Talk; CONNECTIONS],
    /// All places from here on were never taken.
    used: usize,
    /// What echoes keep, one stretch for each connection.
    kept: Dma,
    /// What a source sends.
    bytes: u64,
    /// What a sink has room for.
    sink_room: u32,
    counts: Counts,
    /// Connections were gone once: what still comes for another context id is for the one before.
    moved: bool,
}

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let line = machine.command_line;
    let Some(window) = vsock::chosen_window(machine) else {
        say!("error=no-socket-device");
        return;
    };
    let vsock = match Vsock::start(machine, window, true) {
        Ok(vsock) => vsock,
        Err(refusal) => {
            say!("error={}", word(refusal));
            return;
        }
    };
    let kept = machine.arena.take(CONNECTIONS as u64 * u64::from(ECHO_ROOM), 4096);
    let bytes = line.number("bytes", 0) & !7;
    let sink_room = line.number("sink_room", SINK_ROOM) as u32;
    let talks = [FREE; CONNECTIONS];
    let mut services =
        Services { vsock, talks, used: 1, kept, bytes, sink_room, counts: Counts::default(), moved: false };
    let mut reading = Reading::start(machine);
    say!("vsock=started cid={}", services.vsock.cid);
    if let Some(port) = Some(line.number("connect", 0)).filter(|port| *port != 0) {
        services.connect(port as u32);
    }
    let mut withhold_ms = line.number("withhold_ms", 0);
    let deadline = machine.clock.deadline_ms(line.number("ms", 60_000));
    while !services.counts.stopped && !deadline.passed() {
        if services.vsock.was_reset() {
            services.forget();
        }
        if !services.step() {
            cpu::pause();
        }
        reading.look();
        if withhold_ms != 0 && services.counts.accepted != 0 {
            say!("vsock=withholding");
            let until = machine.clock.deadline_ms(withhold_ms);
            while !until.passed() {
                cpu::pause();
            }
            say!("vsock=taking");
            withhold_ms = 0;
        }
    }
    let Counts { accepted, refused, resets, open, most_open, stopped } = services.counts;
    say!("accepted={accepted} refused={refused} resets={resets} open={open} most_open={most_open}");
    say!(
        "packets={} rx_kicks={} tx_kicks={} stopped={}",
        services.vsock.received,
        services.vsock.rx.kicks,
        services.vsock.tx.kicks,
        u8::from(stopped)
    );
}

impl Services {
    /// All connections are gone; those that listen go on listening.
    fn forget(&mut self) {
        let open = self.counts.open;
        self.talks[..self.used].fill(FREE);
        self.counts.open = 0;
        self.moved = true;
        say!("vsock=reset open={open} cid={}", self.vsock.cid);
    }

    fn connect(&mut self, port: u32) {
        let talk = Talk { host_port: port, guest_port: OWN, service: SOURCE, left: self.bytes, ..FREE };
        self.talks[0] = talk;
        self.counts.open += 1;
        let packet = self.talks[0].packet(self.vsock.cid, op::REQUEST);
        self.vsock.send(packet);
        self.vsock.kick();
    }

    /// Looks at what came, and sends what can be sent. Whether anything happened.
    fn step(&mut self) -> bool {
        let mut busy = false;
        for _ in 0..256 {
            let Some((packet, data, slot)) = self.vsock.receive() else { break };
            busy = true;
            // What the device says after it has told that connections are gone is about what comes after.
            if self.vsock.was_reset() {
                self.forget();
            }
            self.hear(packet, data);
            self.vsock.done_with(slot);
        }
        for index in 0..self.used {
            if self.talks[index].service != 0 {
                busy |= self.push(index);
            }
        }
        self.vsock.kick();
        busy
    }

    fn find(&self, packet: &Packet) -> Option<usize> {
        let is =
            |talk: &Talk| talk.service != 0 && talk.host_port == packet.src_port && talk.guest_port == packet.dst_port;
        self.talks[..self.used].iter().position(is)
    }

    fn hear(&mut self, packet: Packet, data: Dma) {
        let cid = self.vsock.cid;
        if packet.dst_cid != cid && self.moved {
            // For who we were.
            return;
        }
        assert!(packet.src_cid == vsock::HOST && packet.dst_cid == cid, "a packet for somebody else");
        let Some(index) = self.find(&packet) else {
            match packet.op {
                op::REQUEST => self.accept(packet),
                op::RST => {}
                _ => self.vsock.send(Packet::to_host(cid, packet.dst_port, packet.src_port, op::RST)),
            }
            return;
        };
        let talk = &mut self.talks[index];
        (talk.room, talk.read) = (packet.buf_alloc, packet.fwd_cnt);
        match packet.op {
            op::RESPONSE => {
                talk.open = true;
                say!("connected={}", talk.host_port);
            }
            op::RW => self.take(index, data),
            op::CREDIT_REQUEST => {
                let update = talk.packet(cid, op::CREDIT_UPDATE);
                self.vsock.send(update);
            }
            op::SHUTDOWN => talk.host_shut |= packet.flags,
            op::RST => {
                self.counts.resets += 1;
                self.end(index);
            }
            _ => {}
        }
    }

    fn accept(&mut self, packet: Packet) {
        let service = packet.dst_port;
        let free = self.talks.iter().position(|talk| talk.service == 0);
        let Some(index) = free.filter(|_| matches!(service, ECHO..=SPRING)) else {
            self.counts.refused += 1;
            self.counts.stopped |= service == STOP;
            self.vsock.send(Packet::to_host(self.vsock.cid, packet.dst_port, packet.src_port, op::RST));
            return;
        };
        let left = if matches!(service, SOURCE | SPRING) { self.bytes } else { 0 };
        self.talks[index] = Talk {
            host_port: packet.src_port,
            guest_port: packet.dst_port,
            service,
            open: true,
            own_room: if matches!(service, SINK | DRAIN) { self.sink_room } else { ECHO_ROOM },
            room: packet.buf_alloc,
            read: packet.fwd_cnt,
            left,
            ..FREE
        };
        self.used = self.used.max(index + 1);
        self.counts.accepted += 1;
        self.counts.open += 1;
        self.counts.most_open = self.counts.most_open.max(self.counts.open);
        let answer = self.talks[index].packet(self.vsock.cid, op::RESPONSE);
        self.vsock.send(answer);
    }

    /// Data came.
    fn take(&mut self, index: usize, data: Dma) {
        let kept = self.kept_of(index);
        let talk = &mut self.talks[index];
        match talk.service {
            SINK | DRAIN => {
                if talk.service == SINK {
                    talk.bad += pattern::strays(talk.received, data.bytes());
                }
                talk.forwarded = talk.forwarded.wrapping_add(data.len() as u32);
                if talk.forwarded.wrapping_sub(talk.told) >= talk.own_room / 4 {
                    let update = talk.packet(self.vsock.cid, op::CREDIT_UPDATE);
                    self.vsock.send(update);
                }
            }
            ECHO => {
                for (offset, byte) in (0..).zip(data.bytes()) {
                    kept.write8((talk.received + offset) % u64::from(ECHO_ROOM), *byte);
                }
                talk.left += data.len();
                assert!(talk.left <= ECHO_ROOM.into(), "more than there was credit for");
            }
            _ => {}
        }
        let talk = &mut self.talks[index];
        talk.received += data.len();
    }

    fn kept_of(&self, index: usize) -> Dma {
        self.kept.part(index as u64 * u64::from(ECHO_ROOM), ECHO_ROOM.into())
    }

    /// Sends what a connection has to send, as far as the host has room. Whether that was anything.
    fn push(&mut self, index: usize) -> bool {
        let mut busy = false;
        loop {
            let kept = self.kept_of(index);
            let talk = &mut self.talks[index];
            let whole_words = if talk.service == SOURCE { !7 } else { u64::MAX };
            let len = talk.left.min(talk.credit()).min(DATA_MAX) & whole_words;
            if len == 0 {
                break;
            }
            let Some((slot, data)) = self.vsock.slot() else { break };
            let talk = &mut self.talks[index];
            if talk.service == SOURCE {
                let mut data = data.part(0, len);
                pattern::stream(self.bytes - talk.left, data.bytes_mut());
            } else if talk.service == ECHO {
                let from = talk.received - talk.left;
                for offset in 0..len {
                    data.write8(offset, kept.read8((from + offset) % u64::from(ECHO_ROOM)));
                }
                talk.forwarded = talk.forwarded.wrapping_add(len as u32);
            }
            talk.left -= len;
            talk.sent = talk.sent.wrapping_add(len as u32);
            let packet = Packet { len: len as u32, ..talk.packet(self.vsock.cid, op::RW) };
            self.vsock.send_slot(slot, packet);
            busy = true;
        }
        self.close(index);
        busy
    }

    /// Closes what is over.
    fn close(&mut self, index: usize) {
        let cid = self.vsock.cid;
        let talk = &mut self.talks[index];
        if !talk.open || talk.left > 0 && talk.host_shut & NO_RECEIVE == 0 {
            return;
        }
        if talk.host_shut == NO_RECEIVE | NO_SEND {
            let over = talk.packet(cid, op::RST);
            self.vsock.send(over);
            self.end(index);
        } else if talk.host_shut & NO_SEND != 0 && talk.shut == 0 {
            talk.shut = NO_RECEIVE | NO_SEND;
            let shut = talk.shut;
            let packet = Packet { flags: shut, ..talk.packet(cid, op::SHUTDOWN) };
            self.vsock.send(packet);
        } else if matches!(talk.service, SOURCE | SPRING) && talk.shut == 0 {
            talk.shut = NO_SEND;
            let packet = Packet { flags: NO_SEND, ..talk.packet(cid, op::SHUTDOWN) };
            self.vsock.send(packet);
        }
    }

    /// Frees a place and says what became of it, if that is of interest.
    fn end(&mut self, index: usize) {
        let talk = self.talks[index];
        self.talks[index] = FREE;
        self.counts.open -= 1;
        match talk.service {
            SINK => say!("sunk={} bad={}", talk.received, talk.bad),
            SOURCE => say!("sourced={} open={}", self.bytes - talk.left, u8::from(talk.open)),
            _ => {}
        }
    }
}
