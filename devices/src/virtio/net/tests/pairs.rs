//! Several pairs of queues, on a tap with several.

use std::sync::Arc;

use super::*;
use crate::rate_limit::BucketSpec;
use crate::virtio::any::AnyDevice;
use crate::virtio::block::tests::rig::{Loop, NoBinder};
use crate::virtio::cell::VirtioCell;
use crate::virtio::net::features::{CTRL_VQ, MQ};
use crate::virtio::registers::Area;
use crate::virtio::state::DeviceState;

const PAIRS: u16 = 2;
/// Of a driver that knows of pairs.
const CTRL: usize = 4;
const BOTH: u64 = MERGEABLE | CTRL_VQ | MQ;

struct Card {
    driver: TestDriver,
    cell: Arc<VirtioCell>,
    events: Loop,
    peer: Peer,
    metrics: Arc<NetMetrics>,
    /// Receive buffers by queue and head.
    buffers: Vec<[u64; 256]>,
    next: u64,
}

impl Card {
    /// In this thread's network. The control queue is the one with this index.
    fn up(limits: RateLimits, accept: u64) -> Self {
        test_net::own_network();
        let mut card = Self::idle(limits);
        card.bring_up(accept);
        card
    }

    fn idle(limits: RateLimits) -> Self {
        let mut more_taps = Tap::open_queues(NAME, PAIRS as u8).expect("network tests need root and the tun module");
        test_net::set_link(NAME, true);
        let tap = more_taps.remove(0);
        let spec =
            NetSpec { tap, more_taps, mac: Some(MAC), mtu: None, rx_limits: limits, tx_limits: limits, mmds: None };
        let first = Net::new(spec).unwrap();
        let metrics = first.metrics();
        let other = AnyDevice::Net(Box::new(first.lane(1).unwrap()));
        let driver = TestDriver::new(5, 64);
        let (ram, irq) = (driver.ram.clone(), driver.irq.clone());
        let first = AnyDevice::Net(Box::new(first));
        let cell = VirtioCell::with_lanes("card".to_owned(), first, vec![other], ram, irq, Arc::new(NoBinder));
        let cell = Arc::new(cell.unwrap());
        let mut events = Loop::new();
        events.add(cell.clone());
        Self { driver, cell, events, peer: Peer::new(NAME), metrics, buffers: vec![[0; 256]; 5], next: 0 }
    }

    fn bring_up(&mut self, accept: u64) {
        let cell = &self.cell;
        cell.write_status(0);
        self.driver.queues = TestDriver::new(5, 64).queues;
        for queue in &self.driver.queues {
            for area in [queue.geometry.available, queue.geometry.used] {
                self.driver.ram.write_slice(&[0; 4096], GuestAddress(area)).unwrap();
            }
        }
        cell.write_status(1);
        cell.write_status(3);
        cell.registers(|r| {
            for page in 0..2 {
                r.select_driver_features(page);
                r.accept_features((accept >> (32 * page)) as u32);
            }
        });
        cell.write_status(11);
        cell.registers(|r| {
            for (index, queue) in (0..).zip(&self.driver.queues) {
                r.select_queue(index);
                r.set_queue_size(64);
                r.set_queue_address(Area::Descriptors, false, queue.geometry.descriptors as u32);
                r.set_queue_address(Area::Available, false, queue.geometry.available as u32);
                r.set_queue_address(Area::Used, false, queue.geometry.used as u32);
                r.set_queue_ready(1);
            }
        });
        cell.write_status(15);
        self.events.settle();
        assert_eq!(cell.registers(|r| r.status().bits()), 15);
        for pair in 0..if accept & MQ != 0 { 2 } else { 1 } {
            (0..16).for_each(|_| self.offer(2 * pair));
        }
    }

    fn place(&mut self) -> u64 {
        let place = TestDriver::FREE + 0x2000 * (self.next % 500);
        self.next += 1;
        place
    }

    fn offer(&mut self, queue: usize) {
        let addr = self.place();
        let head = self.driver.offer(queue, &[Buffer { addr, len: BUFFER_LEN, writable: true }]);
        self.buffers[queue][usize::from(head)] = addr;
        self.cell.ring_doorbell(queue as u32);
    }

    /// Says something on a control queue; the answer.
    fn say(&mut self, queue: usize, words: &[u8]) -> u8 {
        let at = self.place();
        self.driver.ram.write_slice(words, GuestAddress(at)).unwrap();
        self.driver.ram.write_obj(0xeeu8, GuestAddress(at + 64)).unwrap();
        let buffers = [
            Buffer { addr: at, len: 2, writable: false },
            Buffer { addr: at + 2, len: words.len() as u32 - 2, writable: false },
            Buffer { addr: at + 64, len: 1, writable: true },
        ];
        self.driver.offer(queue, &buffers);
        self.cell.ring_doorbell(queue as u32);
        let (events, driver) = (&self.events, &mut self.driver);
        events.until("an answer", || driver.take_used(queue).is_some());
        self.driver.ram.read_obj(GuestAddress(at + 64)).unwrap()
    }

    fn set_pairs(&mut self, count: u16) -> u8 {
        let [low, high] = count.to_le_bytes();
        self.say(CTRL, &[4, 0, low, high])
    }

    /// Sends a frame on a pair; the peer has it.
    fn send(&mut self, pair: usize, frame: &[u8]) {
        let at = self.place();
        self.driver.ram.write_slice(&[&[0; HEADER_LEN], frame].concat(), GuestAddress(at)).unwrap();
        let len = (HEADER_LEN + frame.len()) as u32;
        self.driver.offer(2 * pair + 1, &[Buffer { addr: at, len, writable: false }]);
        self.cell.ring_doorbell(2 * pair as u32 + 1);
        let (events, driver) = (&self.events, &mut self.driver);
        events.until("a sent frame", || driver.take_used(2 * pair + 1).is_some());
        assert_eq!(self.peer.receive().expect("the frame").1, frame);
    }

    /// The pair on which what the peer sends arrives.
    fn arrives(&mut self, frame: &[u8]) -> usize {
        self.peer.send(PLAIN, frame).unwrap();
        let (events, driver) = (&self.events, &mut self.driver);
        let mut found = None;
        events.until("a frame", || {
            found = found.or_else(|| [0, 1].into_iter().find_map(|pair| Some((pair, driver.take_used(2 * pair)?.0))));
            found.is_some()
        });
        let (pair, head) = found.unwrap();
        let mut bytes = vec![0; HEADER_LEN + frame.len()];
        self.driver.ram.read_slice(&mut bytes, GuestAddress(self.buffers[2 * pair][usize::from(head)])).unwrap();
        assert_eq!(bytes[HEADER_LEN..], *frame);
        self.offer(2 * pair);
        pair
    }
}

/// A datagram of a flow, from the guest or to it.
fn datagram(flow: u16, to_guest: bool) -> Vec<u8> {
    let (guest, host) = (([10, 0, 0, 2], 1000 + flow), ([10, 0, 0, 1], 53));
    let (from, to) = if to_guest { (host, guest) } else { (guest, host) };
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend([8, 0, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend(from.0);
    frame.extend(to.0);
    frame.extend(from.1.to_be_bytes());
    frame.extend(to.1.to_be_bytes());
    frame.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    frame
}

#[test]
fn frames_of_a_flow_come_back_on_the_pair_it_was_sent_on() {
    let mut card = Card::up(RateLimits::default(), BOTH);
    let mut max_pairs = [0; 2];
    card.cell.read_config(8, &mut max_pairs);
    assert_eq!((max_pairs, card.cell.registers(|r| r.queues().count())), ([2, 0], 5));
    // Until the driver says otherwise there is one.
    for flow in 0..8 {
        assert_eq!(card.arrives(&datagram(flow, true)), 0);
    }
    assert_eq!(card.set_pairs(2), 0);
    for flow in 0..16 {
        let pair = usize::from(flow % 2);
        card.send(pair, &datagram(flow, false));
        assert_eq!(card.arrives(&datagram(flow, true)), pair, "flow {flow}");
    }
    assert_eq!(card.set_pairs(1), 0);
    for flow in 0..8 {
        assert_eq!(card.arrives(&datagram(flow, true)), 0);
    }
    assert_eq!((card.metrics.rx_packets_count.get(), card.metrics.tx_packets_count.get()), (32, 16));
}

#[test]
fn commands_that_make_no_sense_change_nothing() {
    let mut card = Card::up(RateLimits::default(), BOTH);
    assert_eq!(card.set_pairs(2), 0);
    for bad in [0, 3, 0x8000, u16::MAX] {
        assert_eq!(card.set_pairs(bad), 1, "{bad}");
    }
    for words in [&[4, 1, 1, 0][..], &[0, 0, 1, 0], &[4, 0, 1], &[9, 9, 9, 9, 9, 9]] {
        assert_eq!(card.say(CTRL, words), 1, "{words:?}");
    }
    card.send(1, &datagram(5, false));
    assert_eq!(card.arrives(&datagram(5, true)), 1);
    // Again and again, all at once: each change is made, and the device is there for others.
    for round in 0..60 {
        assert_eq!(card.set_pairs(1 + round % 2), 0);
    }
}

/// §5.1.2: for such a driver the control queue is the third one, wherever the card has it otherwise.
#[test]
fn a_driver_that_knows_of_one_pair_only() {
    let mut card = Card::up(RateLimits::default(), MERGEABLE | CTRL_VQ);
    assert_eq!(card.say(2, &[4, 0, 2, 0]), 1);
    card.send(0, &datagram(1, false));
    assert_eq!(card.arrives(&datagram(1, true)), 0);
    // Its other queues lead nowhere.
    let tx = card.metrics.tx_queue_event_count.get();
    card.cell.ring_doorbell(3);
    card.cell.ring_doorbell(4);
    card.events.settle();
    assert_eq!(card.metrics.tx_queue_event_count.get(), tx);
    // And one without a control queue has none.
    card.bring_up(MERGEABLE);
    card.send(0, &datagram(2, false));
    assert_eq!(card.arrives(&datagram(2, true)), 0);
}

#[test]
fn a_reset_leaves_one_pair() {
    let mut card = Card::up(RateLimits::default(), BOTH);
    for _ in 0..3 {
        assert_eq!(card.set_pairs(2), 0);
        card.send(1, &datagram(3, false));
        assert_eq!(card.arrives(&datagram(3, true)), 1);
        card.bring_up(BOTH);
        assert_eq!(card.arrives(&datagram(3, true)), 0);
    }
}

#[test]
fn pairs_in_use_outlive_the_process() {
    let mut card = Card::up(RateLimits::default(), BOTH);
    assert_eq!(card.set_pairs(2), 0);
    card.send(1, &datagram(3, false));
    card.cell.pause();
    let state = card.cell.save().unwrap();
    assert!(matches!(state.device, DeviceState::NetPairs { in_use: 2, .. }));
    let mut memory = vec![0; TestDriver::RAM_LEN];
    card.driver.ram.read_slice(&mut memory, GuestAddress(0)).unwrap();
    let (queues, buffers, used) = (std::mem::take(&mut card.driver.queues), card.buffers.clone(), card.next);
    drop(card);
    let mut next = Card::idle(RateLimits::default());
    next.driver.ram.write_slice(&memory, GuestAddress(0)).unwrap();
    (next.driver.queues, next.buffers, next.next) = (queues, buffers, used);
    next.cell.restore(&state).unwrap();
    assert_eq!(next.cell.save().unwrap(), state);
    next.cell.resume();
    next.events.settle();
    for pair in [1, 0] {
        next.send(pair, &datagram(4 + pair as u16, false));
        assert_eq!(next.arrives(&datagram(4 + pair as u16, true)), pair);
    }
    // No driver could have brought about a third pair, nor a second one that it does not know of.
    for spoil in [0, 3, u16::MAX] {
        let mut bad = state.clone();
        let DeviceState::NetPairs { in_use, .. } = &mut bad.device else { unreachable!() };
        *in_use = spoil;
        next.cell.write_status(0);
        assert!(next.cell.restore(&bad).is_err(), "{spoil}");
    }
}

/// One budget for frames, whichever pair they are sent on.
#[test]
fn limits_are_the_cards() {
    let ops = Some(BucketSpec { size: 10, one_time_burst: 0, refill_ms: 3_600_000 });
    let mut card = Card::up(RateLimits { bandwidth: None, ops }, BOTH);
    assert_eq!(card.set_pairs(2), 0);
    for turn in 0..10 {
        card.send(turn % 2, &datagram(turn as u16, false));
    }
    for pair in [0, 1] {
        let at = card.place();
        card.driver.offer(2 * pair + 1, &[Buffer { addr: at, len: 80, writable: false }]);
        card.cell.ring_doorbell(2 * pair as u32 + 1);
        card.events.settle();
        assert!(card.driver.take_used(2 * pair + 1).is_none(), "pair {pair}");
    }
    assert_eq!(card.metrics.tx_packets_count.get(), 10);
}
