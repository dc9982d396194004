//! Entry points for fuzzing: a guest that sends the service whatever the input says, and bytes that may be a request.
//!
//! They panic where a promise is broken: more connections, frames or answers kept than allowed, a frame that is none, a service that does
//! not serve afterwards.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "it is a test"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::http::{self, Reading};
use super::test_frames::{GUEST, Tcp, arp, hear};
use super::{Checksum, DEFAULT_ADDRESS, Manner, Mmds, Protocol, Stack, answer};
use crate::fuzz_input::Input;

const LONG: usize = 70_000;
const PORTS: u16 = 40;

impl Input<'_> {
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.byte()).collect()
    }

    /// A number near zero more often than not.
    fn offset(&mut self) -> u32 {
        match self.byte() {
            0..=180 => 0,
            181..=220 => u32::from(self.byte()),
            221..=235 => u32::from(self.byte()).wrapping_neg(),
            _ => self.u32(),
        }
    }
}

fn service(long: usize) -> Arc<Mmds> {
    let mmds = Arc::new(Mmds::new([9; 32], 1 << 20, Instant::now()));
    let mut object = Map::new();
    object.insert("a".to_owned(), "b".into());
    object.insert("long".to_owned(), "x".repeat(long).into());
    object.insert("n".to_owned(), Value::from(1));
    mmds.store().put(object.into()).expect("it fits");
    mmds
}

fn manner(how: u8) -> Manner {
    Manner { protocol: if how & 1 == 0 { Protocol::V1 } else { Protocol::V2 }, imds_compat: how & 2 != 0 }
}

/// A guest's end of a connection.
#[derive(Debug, Clone, Copy, Default)]
struct End {
    seq: u32,
    ack: u32,
}

struct Guest {
    stack: Stack,
    mmds: Arc<Mmds>,
    now: Instant,
    ends: [End; PORTS as usize],
    port: u16,
    answers: u64,
}

impl Guest {
    fn fetch(&mut self) -> bool {
        let Some(frame) = self.stack.front().map(<[u8]>::to_vec) else { return false };
        self.stack.pop(true, self.now);
        if frame[12..14] == [8, 0] {
            let heard = hear(&frame);
            self.answers += u64::from(heard.data.starts_with(b"HTTP/1."));
            if let Some(end) = self.ends.get_mut(usize::from(heard.port.wrapping_sub(1000))) {
                let len = heard.data.len() as u32 + u32::from(heard.flags & 3 != 0);
                *end = End { seq: heard.ack, ack: heard.seq.wrapping_add(len) };
            }
        } else {
            assert_eq!((frame.len(), &frame[12..14], &frame[20..22]), (42, &[8, 6][..], &[0, 2][..]));
        }
        true
    }

    fn fetch_all(&mut self) {
        while self.fetch() {}
    }

    fn give(&mut self, frame: &[u8], checksum: Checksum) {
        let metrics = self.mmds.metrics();
        self.stack.take(frame, checksum, self.now);
        assert!(self.stack.connections() <= 30 && self.stack.waiting() <= 64);
        assert!(self.stack.kept() <= (1 << 20) + LONG + 30 * 4096, "{} bytes kept", self.stack.kept());
        let living = metrics.connections_created.get() - metrics.connections_destroyed.get();
        assert_eq!(living, self.stack.connections() as u64);
    }

    fn segment(&mut self, input: &mut Input<'_>) -> Tcp {
        // Mostly the one that was opened last.
        let port = if input.byte() > 200 { u16::from(input.byte()) % PORTS } else { self.port };
        let End { seq, ack } = self.ends[usize::from(port)];
        let mut tcp = Tcp {
            seq: seq.wrapping_add(input.offset()),
            ack: ack.wrapping_add(input.offset()),
            flags: match input.byte() {
                0..=210 => 24,
                211..=220 => 2,
                221..=230 => 17,
                231..=235 => 4,
                _ => input.byte(),
            },
            ..Tcp::syn(1000 + port)
        };
        if input.byte() > 200 {
            tcp.window = u16::from(input.byte()) << (input.byte() % 9);
        }
        if input.byte() > 220 {
            let len = usize::from(input.byte() % 41);
            tcp.options = input.bytes(len);
        }
        if input.byte() > 250 {
            tcp.ihl = input.byte() % 16;
        }
        if input.byte() > 250 {
            tcp.offset = Some(input.byte() % 16);
        }
        if input.byte() > 250 {
            tcp.to = u16::from(input.byte());
        }
        if tcp.flags & 2 == 0 {
            tcp.data = self.data(input);
        }
        tcp
    }

    fn data(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let text: &[u8] = match input.byte() % 14 {
            0..=2 => b"",
            3 => b"GET /a HTTP/1.1\r\n\r\n",
            4 => b"GET /long HTTP/1.1\r\n\r\n",
            5 => b"GET / HTTP/1.0\r\nAccept: application/json\r\n\r\n",
            6 => b"PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n",
            7 => b"GET /a",
            8 => b" HTTP/1.1\r\n",
            9 => b"\r\n\r\n",
            10 => b"Connection: close\r\n\r\n",
            11 => {
                let len = usize::from(input.byte()) * 10;
                return vec![b'a'; len];
            }
            12 => {
                let count = usize::from(input.byte());
                return b"GET /n HTTP/1.1\r\n\r\n".repeat(count);
            }
            _ => {
                let len = usize::from(input.byte());
                return input.bytes(len);
            }
        };
        // A part of it, now and then.
        let end = if input.byte() > 220 { usize::from(input.byte()).min(text.len()) } else { text.len() };
        text[..end].to_vec()
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0 => {
                let len = usize::from(input.byte());
                let mut frame = input.bytes(len);
                for (at, bytes) in [(12, &[8, 0][..]), (14, &[0x45]), (23, &[6]), (30, &DEFAULT_ADDRESS.octets())] {
                    if let Some(part) = frame.get_mut(at..at + bytes.len()) {
                        part.copy_from_slice(bytes);
                    }
                }
                self.give(&frame, if input.byte() > 100 { Checksum::Partial } else { Checksum::Whole });
            }
            1 => {
                let mut frame = arp(GUEST, DEFAULT_ADDRESS);
                if input.byte() > 150 {
                    let at = usize::from(input.byte()) % frame.len();
                    frame[at] = input.byte();
                }
                self.give(&frame, Checksum::Whole);
            }
            2 | 3 => {
                let count = input.byte() % 8;
                for _ in 0..count {
                    self.fetch();
                }
            }
            4 | 5 => self.fetch_all(),
            6 => {
                self.now += Duration::from_millis(u64::from(input.byte()) << (input.byte() % 9));
                if self.stack.wake_at(self.now).is_some_and(|at| at <= self.now) {
                    self.stack.wake(self.now);
                }
            }
            7 if input.byte() > 240 => self.stack.reset(),
            7 => {
                let mut frame = self.segment(input).frame();
                let at = usize::from(input.byte()) % frame.len();
                frame[at] ^= input.byte();
                self.give(&frame, Checksum::Partial);
            }
            // A whole handshake, so that the rest is not wasted on a service that knows nobody.
            8 | 9 => {
                let port = u16::from(input.byte()) % PORTS;
                self.port = port;
                self.fetch_all();
                self.give(&Tcp::syn(1000 + port).frame(), Checksum::Whole);
                self.fetch_all();
                let End { seq, ack } = self.ends[usize::from(port)];
                self.give(&Tcp { seq, ack, flags: 16, ..Tcp::syn(1000 + port) }.frame(), Checksum::Whole);
            }
            _ => {
                let frame = self.segment(input).frame();
                self.give(&frame, Checksum::Whole);
            }
        }
    }
}

/// Frames for the service, as `data` says. Returns how many of its frames began an answer.
pub fn frames(data: &[u8]) -> u64 {
    let mut input = Input(data);
    let mmds = service(LONG);
    let now = Instant::now();
    let stack = Stack::new(mmds.clone(), manner(input.byte()), DEFAULT_ADDRESS, 5, now);
    let mut guest = Guest { stack, mmds, now, ends: [End::default(); PORTS as usize], port: 0, answers: 0 };
    while !input.0.is_empty() {
        guest.step(&mut input);
    }
    // Nobody stays who does nothing, whatever came before, and a new client is served.
    let started = guest.now;
    guest.fetch_all();
    while let Some(at) = guest.stack.wake_at(guest.now) {
        assert!(at > guest.now && at < started + Duration::from_secs(200), "it does not come to rest");
        guest.now = at;
        guest.stack.wake(at);
        guest.fetch_all();
    }
    assert_eq!(guest.stack.kept(), 0);
    // Those that only keep their connection have to make room.
    guest.now += Duration::from_secs(10);
    let port = 60_000;
    guest.give(&Tcp::syn(port).frame(), Checksum::Whole);
    let answer = loop {
        let frame = guest.stack.front().expect("an answer to a new client").to_vec();
        guest.stack.pop(true, guest.now);
        match hear(&frame) {
            heard if heard.port == port => break heard,
            _ => {}
        }
    };
    assert_eq!(answer.flags, 18, "a new client is not let in");
    let next = Tcp { seq: 1001, ack: answer.seq.wrapping_add(1), flags: 24, ..Tcp::syn(port) };
    guest.give(&Tcp { data: b"GET /a HTTP/1.1\r\n\r\n".to_vec(), ..next }.frame(), Checksum::Whole);
    let said = std::iter::from_fn(|| {
        let frame = guest.stack.front()?.to_vec();
        guest.stack.pop(true, guest.now);
        Some(hear(&frame))
    });
    assert!(said.into_iter().any(|heard| heard.data.starts_with(b"HTTP/1.1 ")), "a new client is not answered");
    guest.answers
}

/// Bytes that may be a request. Returns the status of the answer, or 0 if it takes more bytes.
pub fn request(data: &[u8]) -> u16 {
    let Some((how, bytes)) = data.split_first() else { return 0 };
    let bytes = &bytes[..bytes.len().min(http::MAX_REQUEST)];
    let mmds = service(10);
    let now = Instant::now();
    let answer = match http::read(bytes) {
        Reading::Incomplete => {
            assert!(bytes.len() < http::MAX_REQUEST);
            return 0;
        }
        Reading::Whole(request, len) => {
            assert_eq!(http::read(&bytes[..len]), Reading::Whole(request, len));
            assert!(!matches!(http::read(&bytes[..len - 1]), Reading::Whole(..)), "it was whole before");
            answer::answer(&mmds, manner(*how), &request, now)
        }
        Reading::Bad(bad) => answer::refuse(bad),
    };
    let head = std::str::from_utf8(&answer.head).expect("a head is text");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("its length");
    assert_eq!(length.parse(), Ok(answer.body.len()));
    assert!(head.ends_with("\r\n\r\n") && head.matches("\r\n\r\n").count() == 1 && head.lines().count() <= 8, "{head}");
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
}
