use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::virtio::vsock::packet::Ports;

const PORTS: Ports = Ports { host: 1, guest: 2 };

fn packet(op: u16, buf_alloc: u32, fwd_cnt: u32) -> Header {
    Header { buf_alloc: buf_alloc.into(), fwd_cnt: fwd_cnt.into(), ..Header::to_guest(3, PORTS, op) }
}

fn data(len: u32) -> Header {
    Header { len: len.into(), ..packet(op::RW, 1000, 0) }
}

fn shut(flags: u32) -> Header {
    Header { flags: flags.into(), ..packet(op::SHUTDOWN, 1000, 0) }
}

fn open(room: u32) -> Link {
    let mut link = Link::accept(&packet(op::REQUEST, 1000, 0), room);
    assert_eq!(link.next_control(), Some((op::RESPONSE, 0)));
    assert_eq!(link.next_control(), None);
    link
}

#[test]
fn a_host_program_has_to_wait_for_the_guest() {
    let mut link = Link::ask(100);
    assert!(link.is_unheard_of() && !link.wants_data());
    assert_eq!(link.next_control(), Some((op::REQUEST, 0)));
    assert!(!link.is_unheard_of());
    assert_eq!(link.hear(&packet(op::RESPONSE, 50, 0)), Heard::Accepted);
    assert_eq!((link.phase(), link.credit()), (Phase::Open, 50));
    assert!(matches!(link.hear(&packet(op::RESPONSE, 50, 0)), Heard::Wrong(_)));
}

#[test]
fn packets_that_do_not_belong_are_wrong() {
    for op in [op::RW, op::SHUTDOWN, op::CREDIT_UPDATE, op::CREDIT_REQUEST, op::REQUEST, 0, 8, u16::MAX] {
        assert!(matches!(Link::ask(100).hear(&packet(op, 9, 9)), Heard::Wrong(_)), "{op} before the answer");
    }
    for op in [op::REQUEST, op::RESPONSE, 0, 8, u16::MAX] {
        assert!(matches!(open(100).hear(&packet(op, 9, 9)), Heard::Wrong(_)), "{op} on an open connection");
    }
    for mut link in [Link::ask(100), open(100)] {
        assert_eq!(link.hear(&packet(op::RST, 0, 0)), Heard::Reset);
    }
}

#[test]
fn the_guest_cannot_send_more_than_there_is_room_for() {
    let mut link = open(100);
    assert_eq!(link.hear(&data(60)), Heard::Data);
    assert_eq!(link.hear(&data(40)), Heard::Data);
    link.forwarded(1);
    assert!(matches!(link.hear(&data(2)), Heard::Wrong(_)));
    let mut link = open(100);
    assert!(matches!(link.hear(&data(u32::MAX)), Heard::Wrong(_)));
    let mut link = open(100);
    assert_eq!(link.hear(&shut(2)), Heard::Shut);
    assert!(matches!(link.hear(&data(1)), Heard::Wrong(_)));
}

#[test]
fn a_guest_that_lies_about_its_room_cheats_itself_only() {
    let mut link = open(100);
    link.data_sent(10);
    for (alloc, forwarded, credit) in [
        (1000, 0, 990),
        (0, 0, 0),
        (5, 0, 0),
        (u32::MAX, 0, u32::MAX - 10),
        // More forwarded than was sent: by 2^32 less than nothing is on its way.
        (1000, 11, 0),
        (u32::MAX, 11, 0),
        (1000, 10, 1000),
    ] {
        assert_eq!(link.hear(&packet(op::CREDIT_UPDATE, alloc, forwarded)), Heard::Credit);
        assert_eq!(link.credit(), credit, "{alloc} {forwarded}");
    }
}

#[test]
fn credit_is_asked_for_once() {
    let mut link = open(100);
    link.starve();
    assert!(!link.owes(), "there is credit");
    link.data_sent(1000);
    link.starve();
    link.starve();
    assert_eq!(link.next_control(), Some((op::CREDIT_REQUEST, 0)));
    // It has none to give.
    link.hear(&packet(op::CREDIT_UPDATE, 1000, 0));
    link.starve();
    assert_eq!(link.next_control(), None);
    link.hear(&packet(op::CREDIT_UPDATE, 1000, 1));
    link.data_sent(1);
    link.starve();
    assert_eq!(link.next_control(), Some((op::CREDIT_REQUEST, 0)));
}

#[test]
fn updates_are_sent_before_the_guest_runs_dry_and_not_for_every_packet() {
    let mut link = open(1000);
    let mut updates = 0;
    for _ in 0..100 {
        assert_eq!(link.hear(&data(20)), Heard::Data);
        link.forwarded(20);
        if let Some((op, _)) = link.next_control() {
            assert_eq!(op, op::CREDIT_UPDATE);
            updates += 1;
        }
    }
    assert!((2..=4).contains(&updates), "{updates} updates for twice the room");
    // Other packets bring the news as well.
    for _ in 0..100 {
        assert_eq!(link.hear(&data(20)), Heard::Data);
        link.forwarded(20);
        link.data_sent(1);
        assert_eq!(link.next_control(), None);
    }
    link.hear(&packet(op::CREDIT_REQUEST, 0, 0));
    assert_eq!(link.next_control(), Some((op::CREDIT_UPDATE, 0)));
}

#[test]
fn closed_directions_stay_closed() {
    let mut link = open(100);
    link.shut(Shut::SEND);
    assert_eq!(link.next_control(), Some((op::SHUTDOWN, 2)));
    assert_eq!(link.credit(), 0);
    link.shut(Shut::SEND);
    assert_eq!(link.next_control(), None);
    link.shut(Shut::RECEIVE);
    assert_eq!(link.next_control(), Some((op::SHUTDOWN, 3)));

    let mut link = open(100);
    link.hear(&shut(1));
    link.hear(&shut(0));
    assert_eq!((link.guest_shut(), link.credit()), (Shut::RECEIVE, 0));
    link.hear(&shut(0xffff_fff0 | 2));
    assert_eq!(link.guest_shut(), Shut::all());
}

/// A guest and a host that move bytes by one link in both directions. The guest's side is written from the specification, with counts
/// that do not wrap.
struct World {
    link: Link,
    /// Packets on their way to the guest.
    to_guest: VecDeque<(u16, u32, u32, u32)>,
    guest_room: u64,
    guest_has: u64,
    guest_read: u64,
    guest_told: u64,
    guest_sent: u64,
    /// What the guest last heard of our room.
    heard: (u32, u32),
    room: u32,
    backlog: u64,
    host_wrote: u64,
    fetched: u64,
    passed_on: u64,
}

impl World {
    fn new(room: u32, guest_room: u32) -> Self {
        let mut world = Self {
            link: Link::accept(&packet(op::REQUEST, guest_room, 0), room),
            to_guest: VecDeque::new(),
            guest_room: guest_room.into(),
            guest_has: 0,
            guest_read: 0,
            guest_told: 0,
            guest_sent: 0,
            heard: (0, 0),
            room,
            backlog: 0,
            host_wrote: 0,
            fetched: 0,
            passed_on: 0,
        };
        world.device_sends(0);
        world.guest_hears();
        world
    }

    /// The device sends all it owes, and up to `most` bytes of data.
    fn device_sends(&mut self, most: u64) {
        let pending = self.host_wrote - self.fetched;
        if pending > 0 {
            self.link.starve();
        }
        while let Some((op, _)) = self.link.next_control() {
            let (alloc, forwarded) = self.link.credit_fields();
            self.to_guest.push_back((op, 0, alloc, forwarded));
        }
        let len = pending.min(most).min(self.link.credit().into()) as u32;
        if len > 0 {
            self.link.data_sent(len);
            let (alloc, forwarded) = self.link.credit_fields();
            self.to_guest.push_back((op::RW, len, alloc, forwarded));
            self.fetched += u64::from(len);
        }
    }

    fn guest_hears(&mut self) -> bool {
        let Some((op, len, alloc, forwarded)) = self.to_guest.pop_front() else { return false };
        self.heard = (alloc, forwarded);
        self.guest_has += u64::from(len);
        assert!(self.guest_has <= self.guest_room, "{} bytes in a room for {}", self.guest_has, self.guest_room);
        if op == op::CREDIT_REQUEST {
            self.guest_says(op::CREDIT_UPDATE, 0);
        }
        true
    }

    fn guest_says(&mut self, op: u16, len: u32) -> Heard {
        self.guest_told = self.guest_read;
        let header = Header { len: len.into(), ..packet(op, self.guest_room as u32, self.guest_read as u32) };
        self.link.hear(&header)
    }

    fn guest_reads(&mut self, most: u64) {
        let len = most.min(self.guest_has);
        self.guest_has -= len;
        self.guest_read += len;
        // As Linux does: tell when the other side sees little room.
        let seen = self.guest_room - (self.guest_read + self.guest_has - self.guest_told).min(self.guest_room);
        if len > 0 && seen < self.guest_room / 2 {
            self.guest_says(op::CREDIT_UPDATE, 0);
        }
    }

    fn guest_sends(&mut self, most: u64) -> u64 {
        let (alloc, forwarded) = self.heard;
        let credit = alloc - (self.guest_sent as u32).wrapping_sub(forwarded);
        let len = most.min(credit.into()) as u32;
        if len > 0 {
            assert_eq!(self.guest_says(op::RW, len), Heard::Data, "the guest kept to its credit");
            self.guest_sent += u64::from(len);
            self.backlog += u64::from(len);
            assert!(self.backlog <= self.room.into());
        }
        len.into()
    }

    fn host_takes(&mut self, most: u64) {
        let len = most.min(self.backlog);
        self.backlog -= len;
        self.passed_on += len;
        self.link.forwarded(len as u32);
    }
}

#[derive(Debug, Clone)]
enum Step {
    HostWrites(u32),
    DeviceSends(u32),
    GuestHears,
    GuestReads(u32),
    GuestSends(u32),
    HostTakes(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let amount = prop_oneof![1u32..10, 1u32..100_000, 1u32..(1 << 30)];
    let step = prop_oneof![
        amount.clone().prop_map(Step::HostWrites),
        amount.clone().prop_map(Step::DeviceSends),
        Just(Step::GuestHears),
        amount.clone().prop_map(Step::GuestReads),
        amount.clone().prop_map(Step::GuestSends),
        amount.prop_map(Step::HostTakes),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    /// Whatever happens in whatever order, nobody's room overflows, and in the end everything arrives: no credit is lost for good.
    #[test]
    fn credit_is_kept_and_never_lost(
        room in prop_oneof![1u32..2000, 1u32 << 16..1 << 31],
        guest_room in prop_oneof![1u32..2000, 1u32 << 16..1 << 31],
        steps in steps(),
    ) {
        let mut world = World::new(room, guest_room);
        for step in steps {
            match step {
                Step::HostWrites(n) => world.host_wrote += u64::from(n),
                Step::DeviceSends(n) => world.device_sends(n.into()),
                Step::GuestHears => drop(world.guest_hears()),
                Step::GuestReads(n) => world.guest_reads(n.into()),
                Step::GuestSends(n) => drop(world.guest_sends(n.into())),
                Step::HostTakes(n) => world.host_takes(n.into()),
            }
        }
        // Enough for the counts to wrap around if the rooms are large.
        let (to_guest, mut to_host) = (world.host_wrote, u64::from(room) * 5);
        let expected = world.guest_sent + to_host;
        let mut idle = 0;
        while world.guest_read < to_guest || world.passed_on < expected {
            let before = (world.guest_read, world.passed_on, world.to_guest.len());
            world.device_sends(u64::MAX);
            while world.guest_hears() {}
            world.guest_reads(u64::MAX);
            to_host -= world.guest_sends(to_host);
            world.host_takes(u64::MAX);
            idle = if before == (world.guest_read, world.passed_on, world.to_guest.len()) { idle + 1 } else { 0 };
            prop_assert!(idle < 3, "stuck: {} of {to_guest} and {} of {expected}", world.guest_read, world.passed_on);
            // A small room and much data would take for ever and show nothing new.
            if world.guest_read > u64::from(guest_room) * 20 && to_guest > u64::from(guest_room) * 100 {
                break;
            }
        }
    }
}
