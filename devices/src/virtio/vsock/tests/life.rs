//! How connections begin and end.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::super::packet::{Ports, op};
use super::rig::{CID, EVENT, Rig, TX, pattern, read_line};
use crate::virtio::device::VirtioDevice;
use crate::virtio::queue::MAX_SIZE;
use crate::virtio::registers::{F_EVENT_IDX, F_IN_ORDER, F_VERSION_1};
use crate::virtio::test_driver::{Buffer, TestDriver};

/// Reads until the end or a reset.
fn rest(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => bytes,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => bytes,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn what_a_driver_sees() {
    let mut rig = Rig::new();
    assert_eq!(rig.device.queue_max_sizes(), [MAX_SIZE; 3]);
    assert_eq!(rig.device.features(), F_VERSION_1 | F_EVENT_IDX | F_IN_ORDER);
    let mut space = [0xff; 10];
    rig.device.read_config(0, &mut space);
    assert_eq!(space, [CID as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    rig.device.read_config(u64::MAX, &mut space);
    assert_eq!(space, [0; 10]);
    rig.device.write_config(0, &[1]);
    assert_eq!(rig.metrics().cfg_fails.get(), 1);
}

#[test]
fn a_host_program_connects_to_the_guest() {
    let mut rig = Rig::ready();
    let mut stream = rig.connect("connect 52\nearly");
    let request = rig.receive();
    assert_eq!((request.op(), request.ports()), (op::REQUEST, Ports { host: 1 << 30, guest: 52 }));
    assert!(request.header.buf_alloc.get() >= 64 << 10);
    rig.expect_nothing();
    rig.send(op::RESPONSE, request.ports());
    assert_eq!(read_line(&mut stream), "OK 1073741824\n");
    assert_eq!(rig.expect(op::RW, request.ports()).data, b"early");
    rig.send_data(request.ports(), b"answer");
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
    // The next one has the next port.
    let (_, ports) = rig.host_connects(52);
    assert_eq!(ports.host, (1 << 30) + 1);
}

#[test]
fn half_a_line_holds_nobody_up() {
    let mut rig = Rig::ready();
    let mut slow = rig.connect("CONN");
    rig.settle();
    let (_fast, _) = rig.host_connects(7);
    slow.write_all(b"ECT 8\n").unwrap();
    assert_eq!(rig.receive().ports().guest, 8);
}

#[test]
fn lines_that_are_none_are_answered_with_a_close() {
    let mut rig = Rig::ready();
    for (count, line) in (1..).zip([
        "GET / HTTP/1.1\r\n",
        "CONNECT\n",
        "CONNECT 99999999999\n",
        "CONNECT 1 and then nothing for too long",
    ]) {
        let mut stream = rig.connect(line);
        rig.until("the visitor is gone", |rig| rig.metrics().handshake_fails.get() == count);
        assert_eq!(rest(&mut stream), b"", "{line}");
    }
    // One that goes away in the middle of its line.
    drop(rig.connect("CONNE"));
    rig.settle();
    assert_eq!((rig.device.taken(), rig.metrics().handshake_fails.get()), (0, 5));
    rig.expect_nothing();
}

#[test]
fn the_guest_refuses() {
    let mut rig = Rig::ready();
    let mut stream = rig.connect("CONNECT 9\n");
    let ports = rig.receive().ports();
    rig.send(op::RST, ports);
    assert_eq!(rest(&mut stream), b"");
    assert_eq!(rig.device.taken(), 0);
    rig.expect_nothing();
}

#[test]
fn a_guest_that_does_not_answer_has_two_seconds() {
    let mut rig = Rig::ready();
    let start = Instant::now();
    let mut stream = rig.connect("CONNECT 9\n");
    let ports = rig.receive().ports();
    rig.expect(op::RST, ports);
    let took = start.elapsed();
    assert!((Duration::from_millis(1900)..Duration::from_secs(10)).contains(&took), "{took:?}");
    assert_eq!(rest(&mut stream), b"");
    // Too late.
    rig.send(op::RESPONSE, ports);
    rig.expect(op::RST, ports);
}

#[test]
fn a_pause_does_not_count() {
    let mut rig = Rig::ready();
    let _stream = rig.connect("CONNECT 9\n");
    let ports = rig.receive().ports();
    rig.device.quiesce(&mut rig.rings).unwrap();
    std::thread::sleep(Duration::from_millis(2300));
    rig.visit_all();
    rig.send(op::RESPONSE, ports);
    rig.settle();
    assert_eq!((rig.device.taken(), rig.metrics().conns_killed.get()), (1, 0));
}

#[test]
fn the_guest_connects_to_the_path_of_its_port() {
    let mut rig = Rig::ready();
    let ports = Ports { host: 4_294_967_295, guest: 1 };
    rig.send(op::REQUEST, ports);
    rig.expect(op::RST, ports);
    assert_eq!(rig.metrics().no_listener_count.get(), 1);
    let listener = rig.listen(ports.host);
    let mut stream = rig.guest_connects(&listener, ports);
    rig.send_data(ports, b"hello");
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).unwrap();
    stream.write_all(b"you").unwrap();
    assert_eq!((&hello, rig.expect(op::RW, ports).data), (b"hello", b"you".to_vec()));
    // A listener that is gone.
    drop(listener);
    let other = Ports { guest: 2, ..ports };
    rig.send(op::REQUEST, other);
    rig.expect(op::RST, other);
    assert_eq!(rig.device.taken(), 1);
}

#[test]
fn the_guest_closes_one_direction_and_then_the_other() {
    let mut rig = Rig::ready();
    let (mut stream, ports) = rig.host_connects(5);
    rig.send_data(ports, b"last words");
    rig.shut(ports, 2);
    assert_eq!(rest(&mut stream), b"last words");
    stream.write_all(b"still listening?").unwrap();
    assert_eq!(rig.expect(op::RW, ports).data, b"still listening?");
    rig.shut(ports, 1);
    rig.expect(op::RST, ports);
    assert_eq!(stream.write_all(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(rig.device.taken(), 0);
}

#[test]
fn the_host_closes_one_direction_and_then_the_other() {
    let mut rig = Rig::ready();
    let (mut stream, ports) = rig.host_connects(5);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rig.expect(op::RW, ports).data, b"question");
    assert_eq!(rig.expect(op::SHUTDOWN, ports).header.flags.get(), 2);
    rig.send_data(ports, b"answer");
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).unwrap();
    drop(stream);
    assert_eq!(rig.expect(op::SHUTDOWN, ports).header.flags.get(), 3);
    rig.send(op::RST, ports);
    assert_eq!(rig.device.taken(), 0);
    rig.expect_nothing();
}

#[test]
fn a_host_that_reads_no_more() {
    let mut rig = Rig::ready();
    let (mut stream, ports) = rig.host_connects(5);
    stream.shutdown(Shutdown::Read).unwrap();
    for _ in 0..10 {
        rig.send_data(ports, &[1; 60_000]);
        rig.settle();
    }
    let shutdown = rig.expect(op::SHUTDOWN, ports);
    assert_eq!(shutdown.header.flags.get(), 1);
    stream.write_all(b"but still speaks").unwrap();
    assert_eq!(rig.expect_after_updates(op::RW, ports).data, b"but still speaks");
}

#[test]
fn what_the_host_wrote_before_it_closed_arrives() {
    let mut rig = Rig::ready();
    let (mut stream, ports) = rig.host_connects(5);
    let sent = pattern(1, 0, 150_000);
    stream.write_all(&sent).unwrap();
    drop(stream);
    let mut seen = Vec::new();
    while seen.len() < sent.len() {
        seen.extend(rig.expect(op::RW, ports).data);
    }
    assert!(seen == sent);
    assert_eq!(rig.expect(op::SHUTDOWN, ports).header.flags.get(), 3);
    // A guest that does not confirm has two seconds.
    rig.expect(op::RST, ports);
    assert_eq!(rig.device.taken(), 0);
}

/// "Fire and forget": everything is written and the program gone before the guest has even accepted.
#[test]
fn a_host_program_need_not_wait_for_the_answer() {
    let mut rig = Rig::ready();
    drop(rig.connect("CONNECT 5\nall I had to say"));
    let ports = rig.receive().ports();
    rig.send(op::RESPONSE, ports);
    let mut seen = Vec::new();
    loop {
        let packet = rig.receive();
        match packet.op() {
            op::RW => seen.extend(packet.data),
            op::SHUTDOWN if packet.header.flags.get() == 3 => break,
            op::SHUTDOWN => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(seen, b"all I had to say");
}

#[test]
fn what_the_guest_wrote_before_it_closed_arrives() {
    let mut rig = Rig::ready();
    let (mut stream, ports) = rig.host_connects(5);
    let sent = pattern(2, 0, 256 << 10);
    for part in sent.chunks(32 << 10) {
        rig.send_data(ports, part);
    }
    rig.shut(ports, 3);
    rig.settle();
    assert!(rig.take().is_none_or(|packet| packet.op() == op::CREDIT_UPDATE), "not before it is all written");
    let reader = std::thread::spawn(move || rest(&mut stream));
    rig.expect_after_updates(op::RST, ports);
    assert_eq!(rig.device.taken(), 0);
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn the_host_may_take_longer_than_the_guest_waits() {
    let mut rig = Rig::ready();
    let (mut stream, ports) = rig.host_connects(5);
    let sent = pattern(3, 0, 256 << 10);
    for part in sent.chunks(32 << 10) {
        rig.send_data(ports, part);
    }
    let closed = Instant::now();
    rig.shut(ports, 3);
    rig.expect_after_updates(op::RST, ports);
    assert!(closed.elapsed() > Duration::from_millis(1900));
    assert_eq!(rig.device.taken(), 1, "what is left is kept");
    // The guest may use the ports again.
    rig.send(op::CREDIT_REQUEST, ports);
    rig.expect(op::RST, ports);
    let reader = std::thread::spawn(move || rest(&mut stream));
    rig.until("the rest is written", |rig| rig.device.taken() == 0);
    assert!(reader.join().unwrap() == sent);
    rig.expect_nothing();
}

#[test]
fn a_host_program_that_dies_resets_the_guest() {
    let mut rig = Rig::ready();
    let (stream, ports) = rig.host_connects(5);
    rig.send_data(ports, b"never read");
    rig.settle();
    drop(stream);
    rig.expect(op::RST, ports);
    assert_eq!((rig.device.taken(), rig.metrics().rx_read_fails.get()), (0, 1));
}

#[test]
fn a_reset_closes_everything_and_the_next_driver_finds_a_working_device() {
    let mut rig = Rig::ready();
    let mut open: Vec<_> = (0..5).map(|port| rig.host_connects(port).0).collect();
    let mut half = rig.connect("CONN");
    rig.settle();
    rig.device.reset();
    for stream in open.iter_mut().chain([&mut half]) {
        assert_eq!(rest(stream), b"");
    }
    assert_eq!(rig.device.taken(), 0);
    // Those who come meanwhile wait.
    let _early = rig.connect("CONNECT 77\n");
    rig.restart();
    rig.post(8);
    assert_eq!(rig.receive().ports().guest, 77);
    rig.host_connects(1);
    assert_eq!(rig.metrics().conns_removed.get(), 5);
}

#[test]
fn the_guest_hears_of_a_transport_reset() {
    let mut rig = Rig::ready();
    let (mut stream, ports) = rig.host_connects(5);
    rig.device.reset_transport();
    rig.settle();
    assert_eq!(rest(&mut stream), b"");
    let addr = TestDriver::FREE;
    rig.driver.ram.write_obj(u32::MAX, GuestAddress(addr)).unwrap();
    let head = rig.driver.offer(EVENT.into(), &[Buffer { addr, len: 4, writable: true }]);
    rig.ring(EVENT);
    assert_eq!(rig.driver.take_used(EVENT.into()), Some((head, 4)));
    assert_eq!(rig.driver.ram.read_obj::<u32>(GuestAddress(addr)).unwrap(), 0);
    // Told once.
    rig.driver.offer(EVENT.into(), &[Buffer { addr, len: 4, writable: true }]);
    rig.ring(EVENT);
    assert_eq!(rig.driver.take_used(EVENT.into()), None);
    // With a buffer waiting, at once.
    rig.device.reset_transport();
    rig.settle();
    assert!(rig.driver.take_used(EVENT.into()).is_some());
    rig.send(op::RW, ports);
    rig.expect(op::RST, ports);
    rig.ring(TX);
}
