use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::super::serial_sink::BUFFER_LEN;
use super::*;
use crate::rate_limit::BucketSpec;
use crate::sys::nonblocking;

struct Edges(Arc<AtomicU32>);

impl IrqLine for Edges {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Bench {
    com1: Com1,
    edges: Arc<AtomicU32>,
    screen: PipeReader,
    keyboard: PipeWriter,
}

fn file_of(fd: BorrowedFd<'_>) -> File {
    fd.try_clone_to_owned().unwrap().into()
}

impl Bench {
    fn new() -> Self {
        let (screen, out) = io::pipe().unwrap();
        let (input, keyboard) = io::pipe().unwrap();
        let edges = Arc::new(AtomicU32::new(0));
        let com1 = Com1::new(
            Edges(edges.clone()),
            SerialSink::file(&file_of(out.as_fd())).unwrap(),
            SerialInput::new(input.as_fd()).unwrap(),
        )
        .unwrap();
        assert!(com1.input.is_some());
        Self { com1, edges, screen, keyboard }
    }

    fn get(&self, register: u64) -> u8 {
        let mut byte = [0xcc];
        self.com1.read(register, &mut byte);
        byte[0]
    }

    fn say(&self, bytes: &[u8]) {
        for byte in bytes {
            self.com1.write(0, &[*byte]);
        }
    }

    fn seen(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.screen.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn room_rang(&self) -> bool {
        self.com1.room.read().is_ok()
    }
}

#[test]
fn lines_are_written_whole_and_prompts_by_the_timer() {
    let mut bench = Bench::new();
    bench.say(b"hello\n");
    assert_eq!(bench.seen(6), b"hello\n");
    assert_eq!(bench.com1.metrics.flush_count.get(), 1);
    bench.say(b"login: ");
    assert_eq!(bench.com1.metrics.flush_count.get(), 1);
    let timer = bench.com1.sources().into_iter().find(|s| s.token == LINE_TIMER).unwrap();
    assert!(nonblocking::wait(timer.fd, libc::POLLIN, 5000).unwrap());
    bench.com1.ready(LINE_TIMER);
    assert_eq!(bench.seen(7), b"login: ");
}

#[test]
fn a_reader_that_does_not_read_costs_a_bounded_buffer() {
    let mut bench = Bench::new();
    let started = Instant::now();
    let flood = 1 << 20;
    for _ in 0..flood / 64 {
        bench.say(&[b'x'; 64]);
    }
    assert!(started.elapsed() < Duration::from_secs(20), "a vCPU was held up");
    let dropped = bench.com1.metrics.dropped_bytes.get() as usize;
    let kept = flood - dropped;
    assert!(dropped > 0 && kept >= BUFFER_LEN, "{dropped} bytes dropped");
    // The pipe held the rest; once it is read, writability brings the buffer.
    let in_pipe = kept - BUFFER_LEN;
    bench.seen(in_pipe);
    bench.com1.ready(OUTPUT);
    bench.seen(BUFFER_LEN);
    bench.say(b"again\n");
    assert_eq!(bench.seen(6), b"again\n");
    assert_eq!(bench.com1.metrics.dropped_bytes.get() as usize, dropped);
}

#[test]
fn a_closed_or_full_output_is_counted() {
    let mut bench = Bench::new();
    drop(std::mem::replace(&mut bench.screen, io::pipe().unwrap().0));
    bench.say(b"lost\n");
    bench.say(b"too\n");
    assert_eq!(bench.com1.metrics.dropped_bytes.get(), 9);

    let full = File::options().write(true).open("/dev/full").unwrap();
    let com1 = Com1::new(Edges(Arc::default()), SerialSink::file(&full).unwrap(), None).unwrap();
    com1.write(0, b"abc\n");
    assert_eq!(com1.metrics.dropped_bytes.get(), 4);
}

#[test]
fn what_a_rate_limit_refuses_is_dropped_and_counted() {
    let (mut screen, out) = io::pipe().unwrap();
    let limit = BucketSpec { size: 10, one_time_burst: 5, refill_ms: 3_600_000 };
    let sink = SerialSink::file(&file_of(out.as_fd())).unwrap().limited(Some(limit));
    let com1 = Com1::new(Edges(Arc::default()), sink, None).unwrap();
    for byte in b"0123456789abcdefghij" {
        com1.write(0, &[*byte]);
    }
    com1.finish();
    drop(out);
    let metrics = com1.metrics();
    drop(com1);
    let mut seen = String::new();
    screen.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "0123456789abcde");
    assert_eq!(metrics.rate_limiter_dropped_bytes.get(), 5);
    assert_eq!((metrics.dropped_bytes.get(), metrics.error_count.get()), (0, 0), "that is no error");
}

#[test]
fn a_rate_limit_lets_through_what_trickles_in() {
    let (mut screen, out) = io::pipe().unwrap();
    let limit = BucketSpec { size: 4, one_time_burst: 0, refill_ms: 20 };
    let sink = SerialSink::file(&file_of(out.as_fd())).unwrap().limited(Some(limit));
    let com1 = Com1::new(Edges(Arc::default()), sink, None).unwrap();
    let started = Instant::now();
    let mut said = 0u64;
    while started.elapsed() < Duration::from_millis(100) {
        com1.write(0, b"x");
        said += 1;
    }
    let most = 4 + started.elapsed().as_millis() as u64 * 4 / 20 + 1;
    com1.finish();
    let dropped = com1.metrics.rate_limiter_dropped_bytes.get();
    drop((com1, out));
    let mut seen = String::new();
    screen.read_to_string(&mut seen).unwrap();
    let passed = seen.len() as u64;
    assert_eq!(passed + dropped, said);
    // The first four, and what came in meanwhile.
    assert!((5..=most).contains(&passed), "{passed} of {said} bytes, at most {most}");
}

#[test]
fn finish_writes_half_a_line() {
    let mut bench = Bench::new();
    bench.say(b"bye");
    bench.com1.finish();
    assert_eq!(bench.seen(3), b"bye");
}

#[test]
fn input_waits_for_room() {
    let mut bench = Bench::new();
    let typed: Vec<u8> = (0..150u8).collect();
    bench.keyboard.write_all(&typed).unwrap();
    bench.com1.write(1, &[1]);
    bench.com1.ready(INPUT);
    assert_eq!(bench.edges.load(Ordering::Relaxed), 1);
    let mut got = Vec::new();
    assert!(!bench.room_rang());
    while got.len() < typed.len() {
        assert_eq!(bench.get(5) & 1, 1, "after {} bytes", got.len());
        got.push(bench.get(0));
        if bench.room_rang() {
            bench.com1.ready(ROOM);
        }
    }
    assert_eq!(got, typed);
    assert_eq!(bench.get(5) & 1, 0);
    // The end of input is no busy loop and no error.
    drop(std::mem::replace(&mut bench.keyboard, io::pipe().unwrap().1));
    bench.com1.ready(INPUT);
    assert_eq!(bench.com1.metrics.error_count.get(), 0);
}

#[test]
fn loopback_keeps_input_outside() {
    let mut bench = Bench::new();
    bench.com1.write(4, &[0x10]);
    bench.keyboard.write_all(b"k").unwrap();
    bench.com1.ready(INPUT);
    bench.say(b"l");
    assert_eq!(bench.get(0), b'l');
    assert_eq!(bench.get(5) & 1, 0);
    bench.com1.write(4, &[0x08]);
    assert!(bench.room_rang());
    bench.com1.ready(ROOM);
    assert_eq!(bench.get(0), b'k');
}

#[test]
fn a_masked_line_is_made_good_for() {
    let mut bench = Bench::new();
    bench.com1.repeat();
    assert_eq!(bench.edges.load(Ordering::Relaxed), 0);
    bench.com1.write(1, &[1]);
    bench.keyboard.write_all(b"k").unwrap();
    bench.com1.ready(INPUT);
    bench.com1.repeat();
    assert_eq!(bench.edges.load(Ordering::Relaxed), 2);
    bench.get(2);
    bench.com1.repeat();
    assert_eq!(bench.edges.load(Ordering::Relaxed), 2);
}

#[test]
fn only_terminals_and_fifos_are_keyboards() {
    for path in ["/dev/null", "/proc/self/stat"] {
        let file = File::open(path).unwrap();
        assert!(SerialInput::new(file.as_fd()).unwrap().is_none(), "{path}");
    }
}

#[test]
fn odd_accesses_do_no_harm() {
    let bench = Bench::new();
    let mut bytes = [0; 8];
    for offset in (0..16).chain([255, 256, u64::MAX]) {
        for len in 0..=8 {
            bench.com1.write(offset, &[0xff; 8][..len]);
            bench.com1.read(offset, &mut bytes[..len]);
        }
    }
    assert!(bench.com1.metrics.missed_read_count.get() > 0);
}
