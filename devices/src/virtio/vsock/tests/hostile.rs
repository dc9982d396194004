//! Guests and host programs that mean harm (G15 to G18).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::super::MAX_SEATS;
use super::super::packet::{Header, Ports, op};
use super::rig::{RX, Rig, TX};
use crate::virtio::device::VirtioDevice;
use crate::virtio::test_driver::{Buffer, TestDriver};

const PORTS: Ports = Ports { host: 77, guest: 99 };

#[test]
fn packets_from_and_to_elsewhere() {
    let mut rig = Rig::ready();
    let good = rig.header(op::REQUEST, PORTS);
    // Nobody to answer to.
    for src in [0, 1, 2, 41, 43, u64::MAX] {
        rig.send_header(Header { src_cid: src.into(), ..good }, &[]);
        rig.expect_nothing();
    }
    for dst in [0, 1, 3, 42, u64::MAX] {
        rig.send_header(Header { dst_cid: dst.into(), ..good }, &[]);
        let answer = rig.receive();
        assert_eq!((answer.op(), answer.ports(), answer.header.src_cid.get()), (op::RST, PORTS, dst));
    }
    for kind in [0, 2, 3, u16::MAX] {
        rig.send_header(Header { kind: kind.into(), ..good }, &[]);
        let answer = rig.receive();
        assert_eq!((answer.op(), answer.ports(), answer.header.kind.get()), (op::RST, PORTS, kind));
    }
    assert_eq!(rig.metrics().tx_malformed_packets.get(), 15);
}

#[test]
fn packets_of_no_connection_are_refused_once() {
    let mut rig = Rig::ready();
    for op in [op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 8, u16::MAX] {
        rig.send(op, PORTS);
        rig.expect(op::RST, PORTS);
    }
    rig.send(op::RST, PORTS);
    rig.expect_nothing();
}

#[test]
fn unknown_operations_and_repeated_requests_end_the_connection() {
    let mut rig = Rig::ready();
    let listener = rig.listen(PORTS.host);
    for op in [0, 8, u16::MAX, op::REQUEST, op::RESPONSE] {
        let mut stream = rig.guest_connects(&listener, PORTS);
        rig.send(op, PORTS);
        rig.expect(op::RST, PORTS);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        assert_eq!(rig.device.taken(), 0);
    }
}

#[test]
fn lengths_that_lie() {
    let mut rig = Rig::ready();
    let listener = rig.listen(PORTS.host);
    for len in [11, 4096, 65_536, 0x7fff_ffff, u32::MAX] {
        for op in [op::RW, op::CREDIT_UPDATE] {
            let mut stream = rig.guest_connects(&listener, PORTS);
            rig.send_header(Header { len: len.into(), ..rig.header(op, PORTS) }, &[1; 10]);
            rig.expect(op::RST, PORTS);
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "not a byte of it");
        }
        rig.send_header(Header { len: len.into(), ..rig.header(op::REQUEST, PORTS) }, &[]);
        rig.expect(op::RST, PORTS);
    }
    // Less than there is: the rest means nothing.
    let mut stream = rig.guest_connects(&listener, PORTS);
    rig.send_header(Header { len: 3.into(), ..rig.header(op::RW, PORTS) }, b"abcdef");
    rig.send_data(PORTS, b"g");
    let mut seen = [0; 4];
    stream.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"abcg");
}

#[test]
fn chains_that_are_no_packets() {
    let mut rig = Rig::ready();
    let addr = TestDriver::FREE + (12 << 20);
    let header = rig.header(op::REQUEST, PORTS);
    rig.driver.ram.write_slice(header.as_bytes(), GuestAddress(addr)).unwrap();
    let readable = |addr, len| Buffer { addr, len, writable: false };
    let writable = |addr, len| Buffer { addr, len, writable: true };
    for chain in [
        &[readable(addr, 43)][..],
        &[readable(addr, 0)],
        &[readable(addr, 20), readable(addr + 20, 23)],
        &[writable(addr, 44)],
        &[readable(addr, 44), writable(addr, 44)],
    ] {
        let head = rig.driver.offer(TX.into(), chain);
        rig.ring(TX);
        assert_eq!(rig.driver.take_used(TX.into()), Some((head, 0)));
    }
    rig.expect_nothing();
    // A header in pieces is a header.
    rig.driver
        .offer(TX.into(), &[readable(addr, 1), readable(addr + 1, 0), readable(addr + 1, 42), readable(addr + 43, 1)]);
    rig.ring(TX);
    rig.expect(op::RST, PORTS);
}

#[test]
fn receive_buffers_that_are_none() {
    let mut rig = Rig::new();
    let addr = TestDriver::FREE;
    let readable = |len| Buffer { addr, len, writable: false };
    let writable = |len| Buffer { addr, len, writable: true };
    for chain in [&[readable(4096)][..], &[writable(0)], &[writable(44)], &[readable(10), writable(4096)]] {
        let head = rig.driver.offer(RX.into(), chain);
        rig.ring(RX);
        rig.send(op::RW, PORTS);
        rig.settle();
        assert_eq!(rig.driver.take_used(RX.into()), Some((head, 0)));
    }
    assert_eq!(rig.driver.take_used(RX.into()), None);
    rig.post(8);
    for _ in 0..4 {
        rig.expect(op::RST, PORTS);
    }
}

#[test]
fn more_than_the_credit() {
    let mut rig = Rig::ready();
    let listener = rig.listen(PORTS.host);
    let _stream = rig.guest_connects(&listener, PORTS);
    let mut packets = 0;
    loop {
        rig.send_data(PORTS, &[0; 60_000]);
        packets += 1;
        rig.settle();
        match rig.take().map(|packet| packet.op()) {
            Some(op::RST) => break,
            Some(op::CREDIT_UPDATE) | None => {}
            other => panic!("{other:?}"),
        }
        assert!(packets < 20, "nothing stops it");
    }
    assert_eq!((rig.device.taken(), rig.metrics().conns_killed.get()), (0, 1));
}

#[test]
fn credit_that_lies() {
    let mut rig = Rig::ready();
    let (mut stream, ports) = rig.host_connects(5);
    stream.write_all(&[7; 1000]).unwrap();
    rig.expect(op::RW, ports);
    for (alloc, forwarded) in [(0, 0), (u32::MAX, 1001), (0, u32::MAX), (500, 0)] {
        let header =
            Header { buf_alloc: alloc.into(), fwd_cnt: forwarded.into(), ..rig.header(op::CREDIT_UPDATE, ports) };
        rig.send_header(header, &[]);
        stream.write_all(b"y").unwrap();
        rig.settle();
        if let Some(packet) = rig.take() {
            assert_eq!(packet.op(), op::CREDIT_REQUEST, "{alloc} {forwarded}");
            rig.post(1);
        }
    }
    let header = Header { buf_alloc: u32::MAX.into(), fwd_cnt: 0.into(), ..rig.header(op::CREDIT_UPDATE, ports) };
    rig.send_header(header, &[]);
    assert_eq!(rig.expect(op::RW, ports).data, b"yyyy");
}

/// A guest that sends and never receives: what it is owed is bounded, its packets wait, and nothing is lost when it comes to its senses.
#[test]
fn a_guest_that_does_not_receive_its_refusals() {
    let mut rig = Rig::new();
    let mut sent = 0u32;
    while rig.unsent() == 0 {
        rig.send(op::RW, Ports { guest: sent, ..PORTS });
        sent += 1;
        assert!(sent < 1000, "refusals without end");
    }
    for _ in 0..10 {
        rig.send(op::RW, Ports { guest: sent, ..PORTS });
        sent += 1;
    }
    assert!(!rig.turn(Duration::from_millis(100)), "nobody waits actively");
    assert!(rig.metrics().tx_stalls.get() > 0);
    rig.post(32);
    for guest in 0..sent {
        rig.expect(op::RST, Ports { guest, ..PORTS });
    }
    assert_eq!(rig.unsent(), 0);
    rig.expect_nothing();
}

/// Opened and reset, again and again, while nothing is received.
#[test]
fn connections_that_come_and_go_leave_nothing() {
    let mut rig = Rig::new();
    let listener = rig.listen(PORTS.host);
    for guest in 0..3000 {
        let ports = Ports { guest, ..PORTS };
        rig.send(op::REQUEST, ports);
        drop(listener.accept().unwrap());
        rig.send(op::RST, ports);
        rig.turn(Duration::ZERO);
    }
    assert_eq!(rig.device.taken(), 0);
    rig.post(8);
    rig.expect_nothing();
    let metrics = rig.metrics();
    assert_eq!((metrics.conns_added.get(), metrics.conns_removed.get()), (3000, 3000));
}

#[test]
fn there_are_only_so_many_seats() {
    let mut rig = Rig::ready();
    let listener = rig.listen(PORTS.host);
    let mut streams: Vec<UnixStream> = Vec::new();
    for guest in 0..MAX_SEATS as u32 {
        streams.push(rig.guest_connects(&listener, Ports { guest, ..PORTS }));
    }
    for guest in 5000..5100 {
        let ports = Ports { guest, ..PORTS };
        rig.send(op::REQUEST, ports);
        rig.expect(op::RST, ports);
    }
    // Host programs are turned away too.
    let mut visitor = rig.connect("CONNECT 1\n");
    rig.settle();
    assert!(visitor.read(&mut [0]).map_or(true, |count| count == 0));
    assert_eq!((rig.device.taken(), rig.metrics().conns_refused.get()), (MAX_SEATS, 101));
    // All of them still work, and one that leaves makes room for another.
    for (guest, stream) in (0u32..).zip(&mut streams) {
        rig.send_data(Ports { guest, ..PORTS }, &guest.to_le_bytes());
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, guest.to_le_bytes());
    }
    rig.send(op::RST, Ports { guest: 500, ..PORTS });
    rig.guest_connects(&listener, Ports { guest: 9999, ..PORTS });
    rig.device.reset();
    assert_eq!(rig.device.taken(), 0);
}

/// Host programs that say nothing must not keep others out for long.
#[test]
fn visitors_who_say_nothing_make_room() {
    let mut rig = Rig::ready();
    let silent: Vec<UnixStream> = (0..MAX_SEATS)
        .map(|_| {
            let stream = rig.connect("");
            rig.turn(Duration::ZERO);
            stream
        })
        .collect();
    rig.settle();
    assert_eq!(rig.device.taken(), MAX_SEATS);
    let mut refused = rig.connect("CONNECT 1\n");
    rig.settle();
    assert!(refused.read(&mut [0]).map_or(true, |count| count == 0), "they have only just come");
    std::thread::sleep(Duration::from_millis(2100));
    rig.host_connects(2);
    assert_eq!(rig.metrics().idlers_evicted.get(), 1);
    drop(silent);
    rig.until("they are gone", |rig| rig.device.taken() == 1);
}
