//! A card on a real tap, in a network namespace of the test's own, with a driver made by hand and the host as its peer.

use vm_memory::{Bytes, GuestAddress};

mod limits;
mod mmds;
mod pairs;

use super::features::{CSUM, GUEST_CSUM, HOST_TSO4, MRG_RXBUF};
use super::*;
use crate::sys::test_net::{self, PEER_HEADER_LEN, Peer};
use crate::virtio::registers::F_VERSION_1;
use crate::virtio::test_driver::{Buffer, TestDriver};

const NAME: &str = "tap0";
const MAC: [u8; 6] = [6, 0, 0, 0, 0, 1];
const PLAIN: [u8; PEER_HEADER_LEN] = [0; PEER_HEADER_LEN];
const GUEST_TSO4: u64 = 1 << 7;
const MERGEABLE: u64 = F_VERSION_1 | MRG_RXBUF;
/// Length of a receive buffer unless a test wants another.
const BUFFER_LEN: u32 = 2048;
/// Guest address of what a test sends.
const OUT: u64 = TestDriver::FREE + (4 << 20);

struct Bench {
    driver: TestDriver,
    rings: Rings,
    net: Net,
    peer: Peer,
    /// Chains that are with the device: head, and address and length of the buffer.
    offered: Vec<(u16, u64, u32)>,
    next_slot: u64,
}

fn open() -> (Net, Peer) {
    open_limited(RateLimits::default(), RateLimits::default())
}

fn open_limited(rx_limits: RateLimits, tx_limits: RateLimits) -> (Net, Peer) {
    open_with(rx_limits, tx_limits, None)
}

fn open_with(rx_limits: RateLimits, tx_limits: RateLimits, mmds: Option<Stack>) -> (Net, Peer) {
    test_net::own_network();
    let tap = Tap::open(NAME).expect("network tests need root and the tun module");
    test_net::set_link(NAME, true);
    (
        Net::new(NetSpec { tap, more_taps: Vec::new(), mac: Some(MAC), mtu: None, rx_limits, tx_limits, mmds })
            .unwrap(),
        Peer::new(NAME),
    )
}

impl Bench {
    fn new(accepted: u64) -> Self {
        Self::with(accepted, 256, false)
    }

    fn with(accepted: u64, queue_size: u16, event_idx: bool) -> Self {
        Self::of(open(), accepted, queue_size, event_idx)
    }

    fn of((net, peer): (Net, Peer), accepted: u64, queue_size: u16, event_idx: bool) -> Self {
        let driver = TestDriver::new(2, queue_size);
        let rings = driver.rings(event_idx, true);
        let mut bench = Self { driver, rings, net, peer, offered: Vec::new(), next_slot: 0 };
        assert_eq!(accepted & !bench.net.features(), 0, "features this kernel's tap does not have");
        bench.net.activate(accepted, &mut bench.rings).unwrap();
        bench
    }

    /// Offers one receive buffer in an address of its own.
    fn offer(&mut self, len: u32) {
        let addr = TestDriver::FREE + self.next_slot * 0x2000;
        self.next_slot = (self.next_slot + 1) % 256;
        let head = self.driver.offer(0, &[Buffer { addr, len, writable: true }]);
        self.offered.push((head, addr, len));
    }

    fn rx_doorbell(&mut self) -> Visit {
        self.net.on_doorbell(RX, &mut self.rings).unwrap()
    }

    fn tap_event(&mut self) {
        self.net.on_source(TAP, &mut self.rings).unwrap();
    }

    /// The next received header and frame, from one or more buffers.
    fn received(&mut self) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut bytes = Vec::new();
        let mut buffers = 1;
        let mut seen = 0;
        while seen < buffers {
            let Some((head, len)) = self.driver.take_used(0) else {
                assert_eq!(seen, 0, "a frame came in part");
                return None;
            };
            let at = self.offered.iter().position(|(h, ..)| *h == head).expect("a buffer that was not offered");
            let (_, addr, room) = self.offered.remove(at);
            assert!(len <= room);
            let mut part = vec![0; len as usize];
            self.driver.ram.read_slice(&mut part, GuestAddress(addr)).unwrap();
            bytes.extend(part);
            if seen == 0 {
                buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
            }
            seen += 1;
        }
        let frame = bytes.split_off(HEADER_LEN);
        Some((bytes, frame))
    }

    /// Offers `header` and `frame` in pieces of these lengths (the last one is as long as needed) and rings.
    fn send(&mut self, header: [u8; HEADER_LEN], frame: &[u8], pieces: &[u32]) {
        let bytes = [&header[..], frame].concat();
        self.driver.ram.write_slice(&bytes, GuestAddress(OUT)).unwrap();
        let mut buffers = Vec::new();
        let mut at = 0;
        for piece in pieces {
            buffers.push(Buffer { addr: OUT + u64::from(at), len: *piece, writable: false });
            at += piece;
        }
        buffers.push(Buffer { addr: OUT + u64::from(at), len: bytes.len() as u32 - at, writable: false });
        let head = self.driver.offer(1, &buffers);
        self.tx_doorbell();
        assert_eq!(self.driver.take_used(1), Some((head, 0)));
    }

    fn tx_doorbell(&mut self) {
        while self.net.on_doorbell(TX, &mut self.rings).unwrap() == Visit::More {}
    }
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    // An experimental type: the host's stack leaves it alone.
    frame.extend([0x88, 0xb5]);
    frame.extend((frame.len()..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)));
    frame
}

/// A TCP/IPv4 segment of `payload` bytes whose checksum is to be filled in, and a header that asks for segments of `gso_size`.
fn large_segment(payload: usize, gso_size: u16) -> ([u8; HEADER_LEN], Vec<u8>) {
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend([0x08, 0x00]);
    let total = (20 + 20 + payload) as u16;
    let mut ip = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    let mut sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    frame.extend(ip);
    // Ports, sequence, acknowledgement, data offset 5 and ACK, window, checksum, urgent.
    frame.extend([0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend((0..payload).map(|i| (i / 7) as u8));
    let [gso_low, gso_high] = gso_size.to_le_bytes();
    ([1, 1, 54, 0, gso_low, gso_high, 34, 0, 16, 0, 0, 0], frame)
}

fn peer_header(header: [u8; HEADER_LEN]) -> [u8; PEER_HEADER_LEN] {
    *header.first_chunk().unwrap()
}

#[test]
fn a_sent_frame_reaches_the_host() {
    let mut bench = Bench::new(F_VERSION_1);
    let sent = frame(100, 1);
    bench.send([0; 12], &sent, &[12]);
    assert_eq!(bench.peer.receive().unwrap().1, sent);
    assert_eq!(bench.driver.interrupts(), 1);
    let metrics = bench.net.metrics();
    assert_eq!((metrics.tx_packets_count.get(), metrics.tx_bytes_count.get()), (1, 100));
    assert_eq!(metrics.tx_spoofed_mac_count.get(), 0);
    let mut spoofed = frame(100, 2);
    spoofed[6] = 2;
    bench.send([0; 12], &spoofed, &[]);
    assert_eq!(bench.peer.receive().unwrap().1, spoofed);
    assert_eq!(metrics.tx_spoofed_mac_count.get(), 1);
}

#[test]
fn a_header_in_single_bytes() {
    let mut bench = Bench::new(F_VERSION_1);
    let sent = frame(1514, 3);
    bench.send([0; 12], &sent, &[1; 12]);
    assert_eq!(bench.peer.receive().unwrap().1, sent);
    // Header and frame share a buffer, and the rest is in crumbs.
    bench.send([0; 12], &sent, &[5, 20, 1, 1, 1, 700]);
    assert_eq!(bench.peer.receive().unwrap().1, sent);
    // The other direction: twelve single bytes, then the rest.
    for pieces in [13u64, 2] {
        let mut buffers: Vec<Buffer> =
            (0..pieces - 1).map(|i| Buffer { addr: TestDriver::FREE + i, len: 1, writable: true }).collect();
        buffers.push(Buffer { addr: TestDriver::FREE + pieces - 1, len: BUFFER_LEN, writable: true });
        bench.driver.offer(0, &buffers);
        bench.peer.send(PLAIN, &sent).unwrap();
        bench.rx_doorbell();
        let (_, len) = bench.driver.take_used(0).unwrap();
        assert_eq!(len as usize, HEADER_LEN + sent.len());
        let mut got = vec![0; len as usize];
        bench.driver.ram.read_slice(&mut got, GuestAddress(TestDriver::FREE)).unwrap();
        assert_eq!(got[10..12], [1, 0]);
        assert_eq!(got[12..], sent);
    }
}

#[test]
fn frames_fill_as_many_buffers_as_they_need() {
    for (len, buffers) in [(BUFFER_LEN, 1), (256, 6), (1526, 1), (1525, 2), (12, 128)] {
        let mut bench = Bench::new(MERGEABLE);
        for _ in 0..200 {
            bench.offer(len);
        }
        bench.rx_doorbell();
        let sent = frame(1514, 4);
        bench.peer.send(PLAIN, &sent).unwrap();
        bench.tap_event();
        let (header, got) = bench.received().unwrap();
        assert_eq!(got, sent, "buffers of {len}");
        assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, buffers, 0]);
        assert_eq!(bench.driver.interrupts(), 1);
        assert!(bench.received().is_none());
    }
}

#[test]
fn without_merging_one_chain_holds_a_frame() {
    let mut bench = Bench::new(F_VERSION_1);
    let exact = frame(1514, 5);
    bench.offer(1526);
    bench.rx_doorbell();
    bench.peer.send(PLAIN, &exact).unwrap();
    bench.tap_event();
    let (header, got) = bench.received().unwrap();
    assert_eq!((got, header[10], header[11]), (exact.clone(), 1, 0));

    // Too large a frame is lost, its buffer is not.
    bench.offer(1525);
    bench.peer.send(PLAIN, &exact).unwrap();
    let small = frame(60, 6);
    bench.peer.send(PLAIN, &small).unwrap();
    bench.rx_doorbell();
    assert_eq!(bench.received().unwrap().1, small);
    assert!(bench.received().is_none());
    assert_eq!(bench.net.metrics().rx_fails.get(), 1);
}

#[test]
fn a_small_ring_gets_small_frames() {
    // Never room for 64 KiB, though the driver takes segments of that size.
    let mut bench = Bench::with(MERGEABLE | GUEST_CSUM | GUEST_TSO4, 16, false);
    for _ in 0..16 {
        bench.offer(BUFFER_LEN);
    }
    let (header, large) = large_segment(50_000, 1448);
    bench.peer.send(peer_header(header), &large).unwrap();
    for i in 0..16 {
        bench.peer.send(PLAIN, &frame(1000, i)).unwrap();
    }
    bench.rx_doorbell();
    for i in 0..16 {
        let Some((_, got)) = bench.received() else { panic!("frame {i} is missing: {:?}", bench.net) };
        assert_eq!(got, frame(1000, i));
    }
    assert_eq!(bench.net.metrics().rx_fails.get(), 1);
}

#[test]
fn jumbo_frames_are_learnt() {
    let mut bench = Bench::new(MERGEABLE);
    test_net::set_mtu(NAME, 9000);
    for _ in 0..20 {
        bench.offer(1600);
    }
    for seed in 0..3 {
        bench.peer.send(PLAIN, &frame(9014, seed)).unwrap();
    }
    bench.rx_doorbell();
    // The first one shows that frames are larger than thought; it is the only one lost.
    assert_eq!(bench.received().unwrap().1, frame(9014, 1));
    assert_eq!(bench.received().unwrap().1, frame(9014, 2));
    assert_eq!(bench.net.metrics().rx_fails.get(), 1);
}

#[test]
fn large_segments_arrive_whole_or_not_as_negotiated() {
    let mut bench = Bench::new(MERGEABLE | GUEST_CSUM | GUEST_TSO4);
    for _ in 0..200 {
        bench.offer(1536);
    }
    bench.rx_doorbell();
    let (header, large) = large_segment(60_000, 1448);
    bench.peer.send(peer_header(header), &large).unwrap();
    bench.tap_event();
    let (got_header, got) = bench.received().unwrap();
    assert_eq!(got, large);
    assert_eq!(got_header[..2], [1, 1]);
    assert_eq!(got_header[4..6], 1448u16.to_le_bytes());
    assert_eq!(usize::from(got_header[10]), (HEADER_LEN + large.len()).div_ceil(1536));

    // A driver that cannot do it takes over; what the tap still holds for the first one is not for it.
    bench.peer.send(peer_header(header), &large).unwrap();
    bench.net.reset();
    bench.offered.clear();
    bench.driver = TestDriver::new(2, 256);
    bench.rings = bench.driver.rings(false, true);
    bench.net.activate(MERGEABLE, &mut bench.rings).unwrap();
    for _ in 0..200 {
        bench.offer(1536);
    }
    bench.rx_doorbell();
    assert!(bench.received().is_none());
    bench.peer.send(peer_header(header), &large).unwrap();
    while bench.rx_doorbell() == Visit::More {}
    let mut payload = 0;
    while let Some((header, segment)) = bench.received() {
        assert!(segment.len() <= 1514);
        assert_eq!(header[..2], [0, 0]);
        payload += segment.len() - 54;
    }
    assert_eq!(payload, 60_000);
}

#[test]
fn a_large_segment_is_sent_in_one_piece() {
    let mut bench = Bench::new(F_VERSION_1 | CSUM | HOST_TSO4);
    let (header, large) = large_segment(65_000, 1448);
    bench.send(header, &large, &[12, 54, 4096, 4096, 32768]);
    let (got_header, got) = bench.peer.receive().unwrap();
    assert_eq!(got, large);
    assert_eq!(got_header[1], 1);
    assert_eq!(bench.net.metrics().tx_packets_count.get(), 1);
}

#[test]
fn a_thousand_frames_in_bursts_keep_their_order() {
    for (accepted, event_idx) in [(MERGEABLE, false), (MERGEABLE, true), (F_VERSION_1, true)] {
        let mut bench = Bench::with(accepted, 256, event_idx);
        for _ in 0..256 {
            bench.offer(BUFFER_LEN);
        }
        bench.rx_doorbell();
        let len = |i: usize| 60 + (i * 37) % 1400;
        let mut got = 0;
        for burst in 0..10 {
            for i in burst * 100..(burst + 1) * 100 {
                bench.peer.send(PLAIN, &frame(len(i), i as u8)).unwrap();
            }
            bench.tap_event();
            while let Some((_, received)) = bench.received() {
                assert_eq!(received, frame(len(got), got as u8));
                got += 1;
                bench.offer(BUFFER_LEN);
            }
            bench.rx_doorbell();
        }
        assert_eq!(got, 1000);
        assert!(bench.driver.interrupts() <= 20, "{} interrupts", bench.driver.interrupts());

        for burst in 0..10 {
            for i in burst * 100..(burst + 1) * 100 {
                let bytes = [vec![0; 12], frame(len(i), i as u8)].concat();
                let addr = OUT + (i as u64 % 256) * 0x800;
                bench.driver.ram.write_slice(&bytes, GuestAddress(addr)).unwrap();
                bench.driver.offer(1, &[Buffer { addr, len: bytes.len() as u32, writable: false }]);
            }
            bench.tx_doorbell();
            for i in burst * 100..(burst + 1) * 100 {
                assert_eq!(bench.driver.take_used(1).unwrap().1, 0);
                assert_eq!(bench.peer.receive().unwrap().1, frame(len(i), i as u8));
            }
        }
        assert!(bench.peer.receive().is_none());
    }
}

#[test]
fn long_work_is_done_in_several_visits() {
    let mut bench = Bench::new(MERGEABLE);
    for _ in 0..256 {
        bench.offer(BUFFER_LEN);
    }
    for i in 0..200 {
        bench.peer.send(PLAIN, &frame(60, i)).unwrap();
    }
    bench.tap_event();
    assert_eq!(std::iter::from_fn(|| bench.received()).count(), MAX_FRAMES_PER_VISIT as usize);
    // The rest is announced to the event loop, once.
    bench.net.again.read().unwrap();
    bench.net.on_source(AGAIN, &mut bench.rings).unwrap();
    assert_eq!(std::iter::from_fn(|| bench.received()).count(), 200 - MAX_FRAMES_PER_VISIT as usize);
    assert!(bench.net.again.read().is_err());
}

#[test]
fn a_flood_without_buffers_costs_little_and_ends() {
    for accepted in [F_VERSION_1, MERGEABLE, MERGEABLE | GUEST_CSUM | GUEST_TSO4] {
        let mut bench = Bench::new(accepted);
        let metrics = bench.net.metrics();
        for i in 0..3000 {
            // The tap's own queue fills up and then loses frames.
            let _ = bench.peer.send(PLAIN, &frame(60, i as u8));
            bench.tap_event();
        }
        assert!(bench.net.again.read().is_err(), "no work is left for later");
        assert_eq!((metrics.rx_count.get(), bench.driver.interrupts()), (0, 0));
        assert!(metrics.no_rx_avail_buffer.get() > 0);
        for _ in 0..100 {
            bench.offer(BUFFER_LEN);
        }
        while bench.rx_doorbell() == Visit::More {}
        let got: Vec<_> = std::iter::from_fn(|| bench.received()).collect();
        // Drivers of large segments have buffers for one left over.
        assert!(got.len() >= 60, "{} frames", got.len());
        for (i, (_, got)) in got.iter().enumerate() {
            assert_eq!(*got, frame(60, i as u8));
        }
    }
}

#[test]
fn hostile_transmit_chains_are_dropped() {
    let mut bench = Bench::new(F_VERSION_1 | CSUM | HOST_TSO4);
    let metrics = bench.net.metrics();
    let free = TestDriver::FREE;
    let out = |addr, len| Buffer { addr, len, writable: false };
    let hostile: Vec<Vec<Buffer>> = vec![
        vec![out(free, 1)],
        vec![out(free, 12)],
        vec![out(free, 25)],
        vec![out(free, 0)],
        vec![out(free, MAX_FRAME_LEN as u32 + 1)],
        vec![out(free, 65536); 128],
        vec![out(free, 12), out(u64::MAX - 4, 100)],
        vec![out(0, TestDriver::RAM_LEN as u32 + 1)],
        vec![out(free, u32::MAX); 2],
        vec![out(free, 100), Buffer { addr: free, len: 100, writable: true }],
        vec![Buffer { addr: free, len: 100, writable: true }],
    ];
    let count = hostile.len();
    for buffers in hostile {
        let head = bench.driver.offer(1, &buffers);
        bench.tx_doorbell();
        assert_eq!(bench.driver.take_used(1), Some((head, 0)), "{buffers:?}");
    }
    let bad_chains = bench.rings.queues[1].bad_chains();
    assert_eq!(metrics.tx_malformed_frames.get() + bad_chains, count as u64);

    for garbage in [[0xff; 12], [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0xff, 0xff, 16, 0, 0, 0]] {
        bench.send(garbage, &frame(100, 0), &[12]);
    }
    assert_eq!(metrics.tx_malformed_frames.get() + bad_chains, count as u64 + 3);
    assert!(bench.peer.receive().is_none());
    let sent = frame(100, 9);
    bench.send([0; 12], &sent, &[12]);
    assert_eq!(bench.peer.receive().unwrap().1, sent);
}

#[test]
fn hostile_receive_chains_are_given_back() {
    let mut bench = Bench::new(MERGEABLE);
    let free = TestDriver::FREE;
    let hostile = [
        vec![Buffer { addr: free, len: 11, writable: true }],
        vec![Buffer { addr: free, len: 2048, writable: false }],
        vec![Buffer { addr: free, len: 12, writable: false }, Buffer { addr: free, len: 2048, writable: true }],
        vec![Buffer { addr: u64::MAX - 100, len: 2048, writable: true }],
        vec![Buffer { addr: free, len: 0, writable: true }],
    ];
    for buffers in &hostile {
        let head = bench.driver.offer(0, buffers);
        bench.rx_doorbell();
        assert_eq!(bench.driver.take_used(0), Some((head, 0)), "{buffers:?}");
    }
    bench.offer(BUFFER_LEN);
    bench.peer.send(PLAIN, &frame(60, 1)).unwrap();
    bench.rx_doorbell();
    assert_eq!(bench.received().unwrap().1, frame(60, 1));
}

#[test]
fn quiescing_gives_every_buffer_back() {
    let mut bench = Bench::new(MERGEABLE | GUEST_CSUM | GUEST_TSO4);
    for _ in 0..100 {
        bench.offer(BUFFER_LEN);
    }
    for round in 0..3u8 {
        bench.peer.send(PLAIN, &frame(60, round)).unwrap();
        bench.tap_event();
        bench.net.quiesce(&mut bench.rings).unwrap();
        assert_eq!(bench.net.rx.holds(), (0, 0));
        assert_eq!(bench.received().unwrap().1, frame(60, round));
    }
    // A malformed chain between held ones: those before it cannot go back and come out empty.
    let mut bench = Bench::new(MERGEABLE | GUEST_CSUM | GUEST_TSO4);
    for _ in 0..3 {
        bench.offer(BUFFER_LEN);
    }
    let bad = bench.driver.offer(0, &[Buffer { addr: u64::MAX, len: 1, writable: true }]);
    for _ in 0..2 {
        bench.offer(BUFFER_LEN);
    }
    bench.rx_doorbell();
    assert_eq!(bench.driver.take_used(0), Some((bad, 0)));
    bench.net.quiesce(&mut bench.rings).unwrap();
    for head in 0..3 {
        assert_eq!(bench.driver.take_used(0), Some((head, 0)));
    }
    assert_eq!(bench.driver.take_used(0), None);
    for seed in 0..2 {
        bench.peer.send(PLAIN, &frame(60, seed)).unwrap();
    }
    bench.rx_doorbell();
    for seed in 0..2 {
        assert_eq!(bench.received().unwrap().1, frame(60, seed));
    }
}

#[test]
fn a_merged_frame_interrupts_if_any_of_its_buffers_should() {
    let mut bench = Bench::with(MERGEABLE, 256, true);
    for _ in 0..100 {
        bench.offer(256);
    }
    bench.rx_doorbell();
    let available = bench.driver.queues[0].geometry.available;
    let ask = |bench: &Bench, used_event: u16| {
        bench.driver.ram.write_obj(used_event, GuestAddress(available + 4 + 2 * 256)).unwrap();
    };
    // Six buffers a frame: used indices 0 to 5, then 6 to 11.
    for (used_event, expected) in [(2, 1), (12, 1), (12, 2)] {
        ask(&bench, used_event);
        bench.peer.send(PLAIN, &frame(1514, 1)).unwrap();
        bench.tap_event();
        assert_eq!(bench.driver.interrupts(), expected);
    }
}

#[test]
fn the_cable_may_be_pulled() {
    let mut bench = Bench::new(MERGEABLE);
    let metrics = bench.net.metrics();
    for _ in 0..50 {
        bench.offer(BUFFER_LEN);
    }
    bench.rx_doorbell();
    test_net::set_link(NAME, false);
    bench.send([0; 12], &frame(60, 1), &[12]);
    assert_eq!(metrics.tap_write_fails.get(), 1);
    bench.tap_event();
    test_net::set_link(NAME, true);
    while bench.peer.receive().is_some() {}
    bench.send([0; 12], &frame(60, 2), &[12]);
    assert_eq!(bench.peer.receive().unwrap().1, frame(60, 2));
    bench.peer.send(PLAIN, &frame(60, 3)).unwrap();
    bench.tap_event();
    assert_eq!(bench.received().unwrap().1, frame(60, 3));

    test_net::delete_link(NAME);
    for seed in 0..3 {
        bench.send([0; 12], &frame(60, seed), &[12]);
        bench.tap_event();
    }
    assert_eq!(metrics.tap_write_fails.get(), 4);
    assert_eq!(metrics.tap_read_fails.get(), 3);
    // A reset does not need the tap; setting up a new driver does, and says so.
    bench.net.reset();
    let why = bench.net.activate(MERGEABLE, &mut bench.rings).unwrap_err();
    assert!(why.contains(NAME), "{why}");
}

#[test]
fn random_chains_do_no_harm() {
    // xorshift64*, seeded.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u64| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) % below
    };
    for accepted in [F_VERSION_1, MERGEABLE | CSUM | GUEST_CSUM | GUEST_TSO4 | HOST_TSO4] {
        let mut bench = Bench::with(accepted, 32, false);
        for _ in 0..3000 {
            let queue = random(2) as usize;
            let table = bench.driver.queues[queue].geometry.descriptors;
            for index in 0..4 {
                let (addr, len) = match random(4) {
                    0 => (random(u64::MAX), random(1 << 32) as u32),
                    _ => (TestDriver::FREE + random(1 << 20), random(70_000) as u32),
                };
                let flags = random(8) as u16;
                bench.driver.write_descriptor(table, index, addr, len, flags, random(5) as u16);
            }
            bench.driver.offer_head(queue, random(4) as u16);
            let _ = bench.peer.send(PLAIN, &frame(60 + random(1400) as usize, 0));
            bench.net.on_doorbell(queue as u16, &mut bench.rings).unwrap();
            bench.tap_event();
            if random(50) == 0 {
                bench.net.quiesce(&mut bench.rings).unwrap();
            }
            while bench.driver.take_used(queue).is_some() {}
            while bench.peer.receive().is_some() {}
            let (held, pieces) = bench.net.rx.holds();
            assert!(pieces < 2 * crate::sys::tap::MAX_PIECES);
            // A ring that is full cannot take more heads.
            if held > 8 {
                bench.net.reset();
                bench.driver = TestDriver::new(2, 32);
                bench.rings = bench.driver.rings(false, true);
                bench.net.activate(accepted, &mut bench.rings).unwrap();
            }
        }
    }
}

#[test]
fn the_configuration_space_has_an_end() {
    let (net, _peer) = open();
    let mut bytes = [0xee; 8];
    net.read_config(4, &mut bytes);
    assert_eq!(bytes, [0, 1, 0, 0, 0, 0, 0, 0]);
    for offset in [12, 13, 0xeff, u64::MAX] {
        bytes.fill(0xee);
        net.read_config(offset, &mut bytes);
        assert_eq!(bytes, [0; 8]);
    }
}
