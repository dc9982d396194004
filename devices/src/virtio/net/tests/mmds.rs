//! The metadata service behind a card.

use std::net::Ipv4Addr;
use std::time::Instant;

use super::*;
use crate::mmds::test_frames::{GUEST, Tcp, arp, hear};
use crate::mmds::{DEFAULT_ADDRESS, Manner, Mmds, Protocol};
use crate::rate_limit::BucketSpec;
use crate::sys::nonblocking;

const ACK: u8 = 16;
const PSH: u8 = 8;
const NEEDS_CSUM: [u8; HEADER_LEN] = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];

fn service() -> (Arc<Mmds>, Stack) {
    let now = Instant::now();
    let mmds = Arc::new(Mmds::new([1; 32], 1 << 20, now));
    let mut object = serde_json::Map::new();
    object.insert("a".to_owned(), "b".into());
    object.insert("long".to_owned(), "x".repeat(20_000).into());
    mmds.store().put(object.into()).unwrap();
    let manner = Manner { protocol: Protocol::V1, imds_compat: false };
    let stack = Stack::new(mmds.clone(), manner, DEFAULT_ADDRESS, 1, now);
    (mmds, stack)
}

fn bench_with(accepted: u64, rx: RateLimits, tx: RateLimits) -> (Bench, Arc<Mmds>) {
    let (mmds, stack) = service();
    (Bench::of(open_with(rx, tx, Some(stack)), accepted, 256, false), mmds)
}

fn bench() -> (Bench, Arc<Mmds>) {
    let (mut bench, mmds) = bench_with(MERGEABLE | CSUM, RateLimits::default(), RateLimits::default());
    for _ in 0..100 {
        bench.offer(BUFFER_LEN);
    }
    (bench, mmds)
}

impl Bench {
    /// The next frame and that its header says nothing about it.
    fn whole(&mut self) -> Option<Vec<u8>> {
        let (header, frame) = self.received()?;
        assert_eq!(header[..10], [0; 10]);
        Some(frame)
    }

    /// A connection from `port`, and the next segment on it.
    fn connect(&mut self, port: u16) -> Tcp {
        self.send([0; 12], &Tcp::syn(port).frame(), &[]);
        let answer = hear(&self.whole().expect("an answer in the same visit"));
        let tcp = Tcp { seq: 1001, ack: answer.seq.wrapping_add(1), flags: ACK, ..Tcp::syn(port) };
        self.send([0; 12], &tcp.frame(), &[]);
        tcp
    }
}

fn get(tcp: &Tcp, path: &str) -> Tcp {
    Tcp { flags: ACK | PSH, data: format!("GET {path} HTTP/1.1\r\n\r\n").into_bytes(), ..tcp.clone() }
}

#[test]
fn frames_for_the_service_are_answered_and_do_not_reach_the_tap() {
    let (mut bench, mmds) = bench();
    bench.send([0; 12], &arp(GUEST, DEFAULT_ADDRESS), &[12]);
    assert_eq!(bench.whole().unwrap()[6..12], crate::mmds::MAC);
    let tcp = bench.connect(1000);
    // In crumbs, so that neither address nor ports lie in one piece.
    bench.send([0; 12], &get(&tcp, "/a").frame(), &[5, 20, 9, 3, 1, 1, 2, 40]);
    assert!(hear(&bench.whole().unwrap()).data.ends_with(b"\r\n\r\nb"));
    // A driver that leaves checksums to the device.
    let again = Tcp { seq: tcp.seq + 19, ..get(&tcp, "/a") };
    let mut frame = again.frame();
    frame[14 + 20 + 16..][..2].copy_from_slice(&[0x12, 0x34]);
    bench.send(NEEDS_CSUM, &frame, &[]);
    assert!(hear(&bench.whole().unwrap()).data.ends_with(b"\r\n\r\nb"));
    // Without the flag it counts, and this one is wrong.
    let mut wrong = Tcp { seq: again.seq + 19, ..again }.frame();
    wrong[50] ^= 1;
    bench.send([0; 12], &wrong, &[]);
    assert_eq!(bench.whole(), None);
    // Longer than anything that could be a request, and nonsense.
    let long = Tcp { data: vec![b'a'; 5000], flags: ACK, ..tcp };
    bench.send([0; 12], &long.frame(), &[]);
    bench.send([0; 12], &Tcp::syn(1).frame()[..40], &[]);
    assert_eq!(bench.peer.receive(), None, "a frame for the service reached the tap");
    let metrics = mmds.metrics();
    assert_eq!((metrics.rx_accepted.get(), metrics.rx_accepted_err.get(), metrics.tx_frames.get()), (8, 3, 4));
    let metrics = bench.net.metrics();
    assert_eq!((metrics.tx_packets_count.get(), metrics.rx_packets_count.get()), (0, 4));
}

#[test]
fn other_frames_go_their_way() {
    let (mut bench, mmds) = bench();
    let other = Ipv4Addr::new(169, 254, 169, 253);
    for sent in [arp(GUEST, other), frame(60, 1), frame(14, 0), frame(1514, 2)] {
        bench.send([0; 12], &sent, &[]);
        assert_eq!(bench.peer.receive().unwrap().1, sent);
        bench.peer.send(PLAIN, &sent).unwrap();
        bench.tap_event();
        assert_eq!(bench.received().unwrap().1, sent);
    }
    assert_eq!(mmds.metrics().rx_accepted.get(), 0);
    // And a card without the service knows nothing of its address.
    let mut without = Bench::new(MERGEABLE);
    without.send([0; 12], &Tcp::syn(1).frame(), &[]);
    assert_eq!(without.peer.receive().unwrap().1, Tcp::syn(1).frame());
}

#[test]
fn answers_wait_for_buffers_and_take_turns_with_the_tap() {
    let (mut bench, _mmds) = bench_with(MERGEABLE, RateLimits::default(), RateLimits::default());
    bench.offer(BUFFER_LEN);
    let tcp = bench.connect(1000);
    bench.send([0; 12], &get(&tcp, "/long").frame(), &[]);
    assert_eq!(bench.whole(), None, "there is no buffer");
    for n in 0..10 {
        bench.peer.send(PLAIN, &frame(200, n)).unwrap();
    }
    bench.tap_event();
    for _ in 0..40 {
        bench.offer(BUFFER_LEN);
    }
    bench.rx_doorbell();
    let from_service: Vec<bool> =
        std::iter::from_fn(|| bench.received()).map(|(_, frame)| frame[6..12] == crate::mmds::MAC).collect();
    // 20 kB in segments of 1460 bytes, or 536 as the client did not say; as many as fit the send buffer.
    assert!(from_service.len() > 20, "{from_service:?}");
    assert_eq!(from_service.iter().filter(|service| !**service).count(), 10);
    assert!(from_service[..20].windows(2).all(|pair| pair[0] != pair[1]), "{from_service:?}");
}

#[test]
fn what_is_not_acknowledged_is_sent_again_by_the_cards_own_timer() {
    let (mut bench, _mmds) = bench();
    let timer = bench.net.sources().into_iter().find(|source| source.token == PORT).unwrap();
    assert!(!nonblocking::wait(timer.fd, libc::POLLIN, 0).unwrap());
    bench.send([0; 12], &Tcp::syn(1000).frame(), &[]);
    let first = bench.whole().unwrap();
    assert!(nonblocking::wait(timer.fd, libc::POLLIN, 10_000).unwrap(), "the timer is silent");
    bench.net.on_source(PORT, &mut bench.rings).unwrap();
    let again = bench.whole().expect("the answer again");
    assert_eq!((hear(&again).seq, hear(&again).flags), (hear(&first).seq, hear(&first).flags));
}

#[test]
fn a_buffer_that_is_too_small_loses_the_answer() {
    // Not mergeable: a frame has one chain.
    let (mut bench, mmds) = bench_with(F_VERSION_1, RateLimits::default(), RateLimits::default());
    bench.offer(40);
    bench.send([0; 12], &arp(GUEST, DEFAULT_ADDRESS), &[]);
    assert_eq!((bench.whole(), mmds.metrics().tx_errors.get()), (None, 1));
    bench.send([0; 12], &arp(GUEST, DEFAULT_ADDRESS), &[]);
    assert_eq!(mmds.metrics().tx_errors.get(), 2, "the buffer was kept for the next frame");
    bench.peer.send(PLAIN, &frame(20, 1)).unwrap();
    bench.tap_event();
    assert_eq!(bench.received().unwrap().1, frame(20, 1));
}

#[test]
fn the_service_does_not_use_up_what_the_network_may_send() {
    let once = |size| Some(BucketSpec { size, one_time_burst: 0, refill_ms: 3_600_000 });
    let tx = RateLimits { bandwidth: once(1000), ops: once(2) };
    let (mut bench, _mmds) = bench_with(MERGEABLE, RateLimits::default(), tx);
    for _ in 0..20 {
        bench.offer(BUFFER_LEN);
    }
    for _ in 0..10 {
        bench.send([0; 12], &arp(GUEST, DEFAULT_ADDRESS), &[]);
        assert!(bench.whole().is_some());
    }
    bench.send([0; 12], &frame(500, 1), &[]);
    bench.send([0; 12], &frame(500, 2), &[]);
    assert!(bench.peer.receive().is_some() && bench.peer.receive().is_some());
}

#[test]
fn a_reset_leaves_no_answers_for_the_next_driver() {
    let (mut bench, mmds) = bench_with(MERGEABLE, RateLimits::default(), RateLimits::default());
    bench.send([0; 12], &Tcp::syn(1).frame(), &[]);
    bench.net.reset();
    assert_eq!(mmds.metrics().connections_destroyed.get(), 1);
    bench.driver = TestDriver::new(2, 256);
    bench.rings = bench.driver.rings(false, true);
    bench.net.activate(MERGEABLE, &mut bench.rings).unwrap();
    bench.offer(BUFFER_LEN);
    bench.rx_doorbell();
    assert_eq!(bench.whole(), None);
}
