//! G25: segments, requests and ARP that no client of the metadata service would send. With `mayfly.service=1` there is one.

use super::{Case, Lab, Outcome};
use crate::cpu;
use crate::mmds_mode::{Link, is_whole, parse};
use crate::net::Net;
use crate::tcp::{self, ACK, Connection, DATA, Ends, FIN, IP, PUSH, RST, SEGMENT, SYN, TCP, Trouble};

pub const CASES: &[Case] = &[
    // Not spoiled: that the others are silent is their own doing.
    ("g25-proper", |lab| bad_syn(lab, |_| {}, true)),
    ("g25-ihl-short", |lab| bad_syn(lab, |frame| frame[IP] = 0x44, true)),
    ("g25-ihl-long", |lab| bad_syn(lab, |frame| frame[IP] = 0x4f, true)),
    ("g25-version", |lab| bad_syn(lab, |frame| frame[IP] = 0x65, true)),
    ("g25-total-long", |lab| bad_syn(lab, |frame| frame[IP + 2..IP + 4].fill(0xff), true)),
    ("g25-total-short", |lab| bad_syn(lab, |frame| frame[IP + 2..IP + 4].copy_from_slice(&[0, 21]), true)),
    ("g25-fragment", |lab| bad_syn(lab, |frame| frame[IP + 6] = 0x20, true)),
    ("g25-offset-short", |lab| bad_syn(lab, |frame| frame[TCP + 12] = 0x10, true)),
    ("g25-offset-long", |lab| bad_syn(lab, |frame| frame[TCP + 12] = 0xf0, true)),
    ("g25-ip-checksum", |lab| bad_syn(lab, |frame| frame[IP + 10] ^= 0x55, false)),
    ("g25-tcp-checksum", |lab| bad_syn(lab, |frame| frame[TCP + 16] ^= 0x55, false)),
    ("g25-source-broadcast", |lab| bad_syn(lab, |frame| frame[IP + 12..IP + 16].fill(0xff), true)),
    ("g25-all-flags", |lab| bad_syn(lab, |frame| frame[TCP + 13] = 0xff, true)),
    ("g25-options-proper", |lab| options(lab, &[[1, 1, 2, 4, 5, 0x78, 1, 0]])),
    ("g25-options", |lab| options(lab, ODD_OPTIONS)),
    ("g25-truncated", truncated),
    ("g25-overlap", overlap),
    ("g25-far-ahead", far_ahead),
    ("g25-syn-flood", syn_flood),
    ("g25-reset-storm", reset_storm),
    ("g25-long-head", long_head),
    ("g25-pipelined", pipelined),
    ("g25-nonsense", nonsense),
    ("g25-arp-spoof", arp_spoof),
];

const REQUEST: &[u8] = b"GET /nothing HTTP/1.1\r\n\r\n";
/// Status of its answer: it has no token.
const ANSWER: u64 = 401;
/// Status of the answer to a head that is too long.
const TOO_LARGE: u64 = 413;

/// TCP options (RFC 9293 §3.1) whose lengths make no sense.
const ODD_OPTIONS: &[[u8; 8]] = &[
    [2, 0, 5, 0x78, 1, 1, 1, 1],
    [2, 1, 5, 0x78, 1, 1, 1, 1],
    [2, 3, 5, 0x78, 1, 1, 1, 1],
    [2, 255, 5, 0x78, 1, 1, 1, 1],
    [1, 1, 1, 1, 1, 1, 1, 2],
    [1, 1, 1, 1, 1, 1, 2, 4],
    [3, 3, 255, 1, 3, 0, 1, 1],
    [4, 200, 1, 1, 1, 1, 1, 1],
    [5, 2, 5, 3, 5, 4, 5, 5],
    [8, 10, 0, 0, 0, 0, 0, 0],
    [77, 0, 77, 0, 77, 0, 77, 0],
];

impl Lab<'_> {
    /// Whether the service is there.
    pub fn has_service(&self) -> bool {
        self.machine.command_line.switch("service", false)
    }

    /// A fresh card and the way to the service.
    fn link(&mut self) -> Result<Link, Outcome> {
        if !self.has_service() {
            return Err("skipped-no-service");
        }
        let window = crate::net::chosen_window(self.machine).ok_or("skipped-no-interface")?;
        let net = Net::start(self.machine, window).map_err(super::refusal)?;
        Link::up(self.machine, net).ok_or("silent")
    }
}

/// Whether a proper request is answered, whatever the answer.
pub fn works(lab: &mut Lab<'_>) -> bool {
    let Ok(mut link) = lab.link() else { return false };
    let answer = link.ask(lab.machine, REQUEST);
    link.hang_up();
    answer.is_ok_and(|answer| answer.status >= 200)
}

/// Whether anything comes back for a port within a while.
fn hear(lab: &Lab<'_>, link: &mut Link, port: u16) -> Outcome {
    let deadline = lab.machine.clock.deadline_ms(100);
    while !deadline.passed() {
        let Some(frame) = link.net.receive() else {
            cpu::pause();
            continue;
        };
        let segment = link.ends.read(frame.bytes);
        link.net.recycle(frame.slot);
        link.net.rx.kick();
        match segment {
            Some(segment) if segment.port == port && segment.flags & RST != 0 => return "reset",
            Some(segment) if segment.port == port => return "answered",
            _ => {}
        }
    }
    "silent"
}

/// An opening segment that the case spoils; with right checksums afterwards, if `sums`.
fn bad_syn(lab: &mut Lab<'_>, spoil: fn(&mut [u8]), sums: bool) -> Outcome {
    let mut link = match lab.link() {
        Ok(link) => link,
        Err(outcome) => return outcome,
    };
    let port = link.port();
    let mut frame = [0; DATA + 8];
    link.ends.segment(port, 7, 0, SYN, &[0; 8], &mut frame);
    spoil(&mut frame);
    if sums {
        let end = frame.len();
        tcp::finish(&mut frame, end);
    }
    tcp::send_frame(&mut link.net, &frame);
    hear(lab, &mut link, port)
}

/// Opening segments with these options, one after the other. Whether they are answered is the service's affair.
fn options(lab: &mut Lab<'_>, all: &[[u8; 8]]) -> Outcome {
    let mut link = match lab.link() {
        Ok(link) => link,
        Err(outcome) => return outcome,
    };
    let mut outcome = "silent";
    for options in all {
        let port = link.port();
        let mut frame = [0; DATA + 8];
        link.ends.segment(port, 7, 0, SYN, options, &mut frame);
        // Seven words of header: what was written as data is options.
        frame[TCP + 12] = 0x70;
        let end = frame.len();
        tcp::finish(&mut frame, end);
        tcp::send_frame(&mut link.net, &frame);
        outcome = hear(lab, &mut link, port);
    }
    outcome
}

/// An opening segment, cut at every length.
fn truncated(lab: &mut Lab<'_>) -> Outcome {
    let mut link = match lab.link() {
        Ok(link) => link,
        Err(outcome) => return outcome,
    };
    let port = link.port();
    let mut frame = [0; DATA];
    link.ends.segment(port, 7, 0, SYN, &[], &mut frame);
    for len in 1..DATA {
        while !tcp::send_frame(&mut link.net, &frame[..len]) {
            cpu::pause();
        }
    }
    hear(lab, &mut link, port)
}

/// A connection on which the case says what it likes.
fn opened(lab: &mut Lab<'_>) -> Result<(Link, Connection), Outcome> {
    let mut link = lab.link()?;
    let port = link.port();
    match Connection::open(&mut link.net, lab.machine.clock, link.ends, port) {
        Ok(connection) => Ok((link, connection)),
        Err(_) => Err("silent"),
    }
}

fn say(link: &mut Link, connection: &Connection, offset: u32, flags: u8, data: &[u8]) {
    let mut frame = [0; DATA + SEGMENT];
    let seq = connection.seq.wrapping_add(offset);
    let len = connection.ends.segment(connection.port, seq, connection.ack, flags, data, &mut frame);
    while !tcp::send_frame(&mut link.net, &frame[..len]) {
        cpu::pause();
    }
}

/// A request in pieces that overlap, the last one first.
fn overlap(lab: &mut Lab<'_>) -> Outcome {
    let (mut link, mut connection) = match opened(lab) {
        Ok(opened) => opened,
        Err(outcome) => return outcome,
    };
    for start in (0..REQUEST.len()).rev() {
        let end = (start + 9).min(REQUEST.len());
        say(&mut link, &connection, start as u32, ACK | PUSH, &REQUEST[start..end]);
    }
    connection.seq = connection.seq.wrapping_add(REQUEST.len() as u32);
    match status_of_next(lab, &mut link, &mut connection) {
        Ok(ANSWER) => "answered",
        Ok(_) => "odd-status",
        Err(_) => "silent",
    }
}

/// The status of the answer to what was sent before.
fn status_of_next(lab: &Lab<'_>, link: &mut Link, connection: &mut Connection) -> Result<u64, Trouble> {
    let len = connection.ask(&mut link.net, lab.machine.clock, &[], link.answer, is_whole)?;
    Ok(parse(link.answer.part(0, len as u64).bytes()).status)
}

/// Data far outside of the window, and before it.
fn far_ahead(lab: &mut Lab<'_>) -> Outcome {
    let (mut link, connection) = match opened(lab) {
        Ok(opened) => opened,
        Err(outcome) => return outcome,
    };
    for offset in [1 << 20, 1 << 30, 1 << 31, u32::MAX, u32::MAX - 5000] {
        say(&mut link, &connection, offset, ACK | PUSH, REQUEST);
    }
    still_answers(lab, link, connection)
}

/// Whether a connection that was abused serves a proper request.
fn still_answers(lab: &Lab<'_>, mut link: Link, mut connection: Connection) -> Outcome {
    match connection.ask(&mut link.net, lab.machine.clock, REQUEST, link.answer, is_whole) {
        Ok(len) if len > 12 => "answered",
        _ => "reset",
    }
}

fn syn_flood(lab: &mut Lab<'_>) -> Outcome {
    flood(lab, SYN)
}

fn reset_storm(lab: &mut Lab<'_>) -> Outcome {
    flood(lab, RST | ACK | FIN)
}

/// Segments from ever other ports; nobody looks at the answers.
fn flood(lab: &mut Lab<'_>, flags: u8) -> Outcome {
    let mut link = match lab.link() {
        Ok(link) => link,
        Err(outcome) => return outcome,
    };
    let mut frame = [0; DATA];
    for n in 0..20_000u32 {
        let port = link.port();
        link.ends.segment(port, n, n, flags, &[], &mut frame);
        while !tcp::send_frame(&mut link.net, &frame) {
            cpu::pause();
        }
        while let Some(frame) = link.net.receive() {
            link.net.recycle(frame.slot);
            link.net.rx.kick();
        }
    }
    "alive"
}

/// A head of a megabyte.
fn long_head(lab: &mut Lab<'_>) -> Outcome {
    let (mut link, mut connection) = match opened(lab) {
        Ok(opened) => opened,
        Err(outcome) => return outcome,
    };
    let filler = [b'a'; SEGMENT];
    say(&mut link, &connection, 0, ACK | PUSH, b"GET / HTTP/1.1\r\nA: ");
    connection.seq = connection.seq.wrapping_add(19);
    for _ in 0..750 {
        say(&mut link, &connection, 0, ACK | PUSH, &filler);
        connection.seq = connection.seq.wrapping_add(SEGMENT as u32);
    }
    match status_of_next(lab, &mut link, &mut connection) {
        Ok(TOO_LARGE) => "answered",
        Ok(_) => "odd-status",
        Err(Trouble::Reset) => "reset",
        Err(Trouble::Silence) => "silent",
    }
}

/// A thousand requests at once; the answers are not acknowledged.
fn pipelined(lab: &mut Lab<'_>) -> Outcome {
    let (mut link, mut connection) = match opened(lab) {
        Ok(opened) => opened,
        Err(outcome) => return outcome,
    };
    for _ in 0..1000 {
        say(&mut link, &connection, 0, ACK | PUSH, REQUEST);
        connection.seq = connection.seq.wrapping_add(REQUEST.len() as u32);
        while let Some(frame) = link.net.receive() {
            link.net.recycle(frame.slot);
            link.net.rx.kick();
        }
    }
    "alive"
}

/// What is no request.
fn nonsense(lab: &mut Lab<'_>) -> Outcome {
    for request in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
    ] {
        let (mut link, mut connection) = match opened(lab) {
            Ok(opened) => opened,
            Err(outcome) => return outcome,
        };
        let len = connection.ask(&mut link.net, lab.machine.clock, request, link.answer, is_whole).unwrap_or(0);
        if !(400..600).contains(&parse(link.answer.part(0, len as u64).bytes()).status) {
            return "accepted";
        }
    }
    "answered"
}

/// Somebody says that the service's address is his.
fn arp_spoof(lab: &mut Lab<'_>) -> Outcome {
    let mut link = match lab.link() {
        Ok(link) => link,
        Err(outcome) => return outcome,
    };
    let mut frame = [0; 42];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    frame[22..28].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame[28..32].copy_from_slice(&link.ends.server);
    frame[32..38].copy_from_slice(&link.ends.mac);
    frame[38..42].copy_from_slice(&link.ends.server);
    for _ in 0..100 {
        while !tcp::send_frame(&mut link.net, &frame) {
            cpu::pause();
        }
    }
    if link.ask(lab.machine, REQUEST).is_err() {
        return "silent";
    }
    // Who asks again is not told what the spoofer said.
    let Ends { mac, server_mac, ip, server } = link.ends;
    match tcp::resolve(&mut link.net, lab.machine.clock, ip, server) {
        Some(now) if now == server_mac && now != mac => "answered",
        Some(_) => "accepted",
        None => "silent",
    }
}
