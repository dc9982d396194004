//! `mode=net`: a host on the network that answers ARP, ping and UDP echo.
//!
//! Ends after `packets` answers, after `ms` milliseconds, or when a UDP
//! datagram to port 9 says `stop`. With `reading=1` a read of a drive is in flight
//! meanwhile: `read=asked` and, once it is there, `read=done`.

use crate::block::{self, Block, Options, request};
use crate::block_mode::word;
use crate::checksum;
use crate::net::{self, Net};
use crate::virtqueue::Piece;
use crate::{Machine, say};

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_UDP: u8 = 17;
const PORT_ECHO: u16 = 7;
const PORT_STOP: u16 = 9;
const MAC_LEN: usize = 6;
/// Where the IPv4 header and its payload start (options are not handled).
const IP: usize = 14;
const PAYLOAD: usize = 34;

/// What was answered.
#[derive(Default)]
struct Counts {
    arp: u64,
    echo: u64,
    udp: u64,
    other: u64,
    stopped: bool,
}

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let line = machine.command_line;
    let ip = line.ipv4("ip").unwrap_or([198, 51, 100, 2]);
    let limit = line.number("packets", u64::MAX);
    let Some(window) = net::chosen_window(machine) else {
        say!("error=no-interface");
        return;
    };
    let mut net = match Net::start(machine, window) {
        Ok(net) => net,
        Err(refusal) => {
            say!("error={}", word(refusal));
            return;
        }
    };
    let [a, b, c, d, e, f] = net.mac;
    say!("mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} features={:#x}", net.features);
    let mut reading = Reading::start(machine);
    say!("net=listening");

    let deadline = machine.clock.deadline_ms(line.number("ms", 60_000));
    let mut counts = Counts::default();
    while counts.arp + counts.echo + counts.udp < limit && !counts.stopped && !deadline.passed() {
        net.reclaim();
        reading.look();
        let Some(frame) = net.receive() else {
            crate::cpu::pause();
            continue;
        };
        if let Some(slot) = net.claim() {
            let out = net.frame(slot);
            let len = frame.bytes.len();
            out.put(0, frame.bytes);
            let mut reply = out.part(0, len as u64);
            if answer(reply.bytes_mut(), net.mac, ip, &mut counts) {
                net.transmit(slot, len.max(60) as u64);
                net.tx.kick();
            } else {
                net.unclaim(slot);
            }
        }
        net.recycle(frame.slot);
        net.rx.kick();
    }
    while net.in_flight() != 0 && !deadline.passed() {
        net.reclaim();
    }
    say!(
        "arp={} echo={} udp={} other={} stopped={}",
        counts.arp,
        counts.echo,
        counts.udp,
        counts.other,
        u8::from(counts.stopped)
    );
}

/// A read of a drive's first sectors that nobody waits for.
pub struct Reading(Option<Block>);

impl Reading {
    /// Asks, with `reading=1` and if there is a drive.
    pub fn start(machine: &mut Machine) -> Self {
        Self(machine.command_line.switch("reading", false).then(|| Self::ask(machine)).flatten())
    }

    fn ask(machine: &mut Machine) -> Option<Block> {
        let window = block::chosen_window(machine)?;
        let mut block = Block::start(machine, window, Options::PLAIN).ok()?;
        let data = machine.arena.take(4096, 4096);
        block.submit(0, request::IN, 0, &[Piece::writable(data)]);
        block.queue.kick();
        say!("read=asked");
        Some(block)
    }

    /// Tells of the answer, if it is there.
    pub fn look(&mut self) {
        if self.0.as_mut().is_some_and(|block| block.poll().is_some()) {
            self.0 = None;
            say!("read=done");
        }
    }
}

/// Turns a copy of a received frame into its answer, in place. False: no answer.
fn answer(frame: &mut [u8], mac: [u8; MAC_LEN], ip: [u8; 4], counts: &mut Counts) -> bool {
    let answered = match frame.get(12..14) {
        Some(t) if t == ETHERTYPE_ARP => answer_arp(frame, mac, ip, counts),
        Some(t) if t == ETHERTYPE_IPV4 => answer_ipv4(frame, ip, counts),
        _ => false,
    };
    if answered {
        frame.copy_within(6..12, 0);
        frame[6..12].copy_from_slice(&mac);
    } else {
        counts.other += 1;
    }
    answered
}

/// RFC 826: who has our address? We do.
fn answer_arp(frame: &mut [u8], mac: [u8; MAC_LEN], ip: [u8; 4], counts: &mut Counts) -> bool {
    if frame.len() < 42 || frame[20..22] != [0, 1] || frame[38..42] != ip {
        return false;
    }
    frame[21] = 2;
    frame.copy_within(22..32, 32);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&ip);
    counts.arp += 1;
    true
}

fn answer_ipv4(frame: &mut [u8], ip: [u8; 4], counts: &mut Counts) -> bool {
    // Version 4, five words of header, not a fragment, for us.
    if frame.len() < PAYLOAD + 8 || frame[IP] != 0x45 || frame[30..34] != ip {
        return false;
    }
    if frame[20] & 0x3f != 0 || frame[21] != 0 {
        return false;
    }
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    if total < 28 || IP + total > frame.len() {
        return false;
    }
    let answered = match frame[23] {
        PROTOCOL_ICMP if frame[PAYLOAD] == 8 => {
            frame[PAYLOAD] = 0;
            frame[PAYLOAD + 2..PAYLOAD + 4].fill(0);
            let sum = checksum::of(&frame[PAYLOAD..IP + total]);
            frame[PAYLOAD + 2..PAYLOAD + 4].copy_from_slice(&sum.to_be_bytes());
            counts.echo += 1;
            true
        }
        PROTOCOL_UDP => answer_udp(&mut frame[PAYLOAD..IP + total], counts),
        _ => false,
    };
    if answered {
        // Swapped addresses leave the header's checksum as it is.
        frame.copy_within(26..30, 30);
        frame[26..30].copy_from_slice(&ip);
    }
    answered
}

/// Echoes a datagram to port 7; notices `stop` on port 9.
fn answer_udp(datagram: &mut [u8], counts: &mut Counts) -> bool {
    match u16::from_be_bytes([datagram[2], datagram[3]]) {
        PORT_ECHO => {
            let (from, to) = datagram.split_at_mut(2);
            from.swap_with_slice(&mut to[..2]);
            // No checksum, which IPv4 allows: the swap leaves it right, but the
            // sender may have left it to be filled in by its interface.
            datagram[6..8].fill(0);
            counts.udp += 1;
            true
        }
        PORT_STOP => {
            counts.stopped |= datagram[8..].starts_with(b"stop");
            false
        }
        _ => false,
    }
}
