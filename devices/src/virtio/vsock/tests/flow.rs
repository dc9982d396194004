//! Data: in order, whole, and without a wake-up when it cannot flow.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use super::super::packet::{Header, op};
use super::rig::{PATIENCE, Rig, pattern};

/// Writes what fits.
fn fill(stream: &mut std::os::unix::net::UnixStream, seed: u64) -> usize {
    stream.set_nonblocking(true).unwrap();
    let mut total = 0;
    loop {
        match stream.write(&pattern(seed, total as u64, 10_000)) {
            Ok(count) => total += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    total
}

#[test]
fn no_credit_no_wake_ups_and_everything_arrives_later() {
    let mut rig = Rig::ready();
    rig.room = 10_000;
    let (mut stream, ports) = rig.host_connects(5);
    stream.set_nonblocking(true).unwrap();
    let mut sent = 0u64;
    // More than the socket holds.
    for _ in 0..1000 {
        if let Ok(count) = stream.write(&pattern(7, sent, 4000)) {
            sent += count as u64;
        }
        rig.turn(Duration::ZERO);
    }
    rig.settle();
    let mut seen = Vec::new();
    while let Some(packet) = rig.take() {
        match packet.op() {
            op::RW => seen.extend(packet.data),
            op::CREDIT_REQUEST => {}
            other => panic!("{other}"),
        }
        rig.post(1);
    }
    assert_eq!(seen.len(), 10_000, "all the credit and no more");
    let before = rig.wakes;
    assert!(!rig.turn(Duration::from_millis(300)), "nothing happens, so nothing is to be done");
    assert_eq!(rig.wakes, before);

    drop(stream);
    loop {
        let update = Header { fwd_cnt: (seen.len() as u32).into(), ..rig.header(op::CREDIT_UPDATE, ports) };
        rig.send_header(update, &[]);
        let packet = rig.receive();
        match packet.op() {
            op::RW => seen.extend(packet.data),
            op::SHUTDOWN => break,
            op::CREDIT_REQUEST => {}
            other => panic!("{other}"),
        }
        assert!(seen.len() as u64 <= sent);
    }
    assert!(seen == pattern(7, 0, sent as usize), "{} of {sent}", seen.len());
}

#[test]
fn no_receive_buffers_no_wake_ups_and_everything_arrives_later() {
    let mut rig = Rig::ready();
    let (mut stream, ports) = rig.host_connects(5);
    let mut seen = Vec::new();
    let mut total = 0u64;
    stream.set_nonblocking(true).unwrap();
    // Until neither the socket nor the ring takes any more.
    let mut refused = 0;
    while refused < 3 {
        match stream.write(&pattern(3, total, 3000)) {
            Ok(count) => {
                total += count as u64;
                refused = 0;
            }
            Err(_) => refused += 1,
        }
        rig.settle();
    }
    let before = rig.wakes;
    assert!(!rig.turn(Duration::from_millis(300)));
    assert_eq!(rig.wakes, before);
    assert!(rig.metrics().no_rx_avail_buffer.get() >= 1);
    drop(stream);
    loop {
        let packet = rig.receive();
        match packet.op() {
            op::RW => seen.extend(packet.data),
            op::SHUTDOWN => break,
            other => panic!("{other}"),
        }
    }
    assert!(seen == pattern(3, 0, total as usize), "{} of {total}", seen.len());
    rig.send(op::RST, ports);
}

#[test]
fn a_host_that_does_not_read_stops_the_guest_and_nobody_wakes_up() {
    let mut rig = Rig::ready();
    let (mut stream, ports) = rig.host_connects(5);
    // The guest's own arithmetic.
    let (mut sent, mut alloc, mut forwarded) = (0u32, 256 << 10, 0u32);
    let mut stopped = false;
    while !stopped {
        let credit = alloc - sent.wrapping_sub(forwarded);
        let len = credit.min(16 << 10);
        if len > 0 {
            rig.send_data(ports, &pattern(5, sent.into(), len as usize));
            sent += len;
        }
        rig.settle();
        let packet = rig.take();
        stopped = len == 0 && packet.is_none();
        if let Some(packet) = packet {
            assert_eq!(packet.op(), op::CREDIT_UPDATE);
            (alloc, forwarded) = (packet.header.buf_alloc.get(), packet.header.fwd_cnt.get());
            rig.post(1);
        }
    }
    assert!(sent > 256 << 10, "the socket's own buffer and ours");
    assert!(!rig.turn(Duration::from_millis(300)), "a full socket wakes nobody");
    // As the host reads, the guest hears of it and can go on.
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; sent as usize + 100_000];
        stream.read_exact(&mut bytes).map(|()| bytes)
    });
    let mut left = 100_000u32;
    while left > 0 {
        let credit = alloc - sent.wrapping_sub(forwarded);
        let len = credit.min(16 << 10).min(left);
        if len > 0 {
            rig.send_data(ports, &pattern(5, sent.into(), len as usize));
            (sent, left) = (sent + len, left - len);
        } else {
            let update = rig.expect(op::CREDIT_UPDATE, ports);
            (alloc, forwarded) = (update.header.buf_alloc.get(), update.header.fwd_cnt.get());
        }
    }
    rig.until("the host has all of it", |_| reader.is_finished());
    assert!(reader.join().unwrap().unwrap() == pattern(5, 0, sent as usize));
}

#[test]
fn packets_are_written_together_and_read_together() {
    let mut rig = Rig::ready();
    let (mut stream, ports) = rig.host_connects(5);
    for n in 0..40u8 {
        let data = [n; 100];
        let header = Header { len: 100.into(), ..rig.header(op::RW, ports) };
        rig.put(header, &data);
    }
    rig.ring(super::rig::TX);
    let mut all = [0; 4000];
    // On a stream socket of this kind one read gives all that is there.
    assert_eq!(stream.read(&mut all).unwrap(), 4000);
    assert!((0..40).all(|n| all[n * 100..][..100] == [n as u8; 100]));
    assert_eq!(rig.unsent(), 0);

    // Small buffers: a read fills many of them.
    let mut rig = Rig::new();
    rig.buffer_len = 300;
    rig.post(64);
    let (mut stream, ports) = rig.host_connects(5);
    let mut seen = Vec::new();
    for round in 0..20 {
        stream.write_all(&pattern(1, round * 8000, 8000)).unwrap();
        while (seen.len() as u64) < (round + 1) * 8000 {
            let packet = rig.expect(op::RW, ports);
            assert!(packet.data.len() <= 300 - 44);
            seen.extend(packet.data);
        }
    }
    assert!(seen == pattern(1, 0, seen.len()));
}

/// Many megabytes each way at once, through a ring of few small buffers.
#[test]
fn both_ways_at_once() {
    const TOTAL: usize = 8 << 20;
    let mut rig = Rig::new();
    rig.buffer_len = 3000;
    rig.post(16);
    rig.room = 20_000;
    let (mut stream, ports) = rig.host_connects(5);
    let mut writer = stream.try_clone().unwrap();
    let writes = std::thread::spawn(move || writer.write_all(&pattern(1, 0, TOTAL)));
    let reads = std::thread::spawn(move || {
        let mut bytes = vec![0; TOTAL];
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut bytes).map(|()| bytes)
    });
    let to_host = pattern(2, 0, TOTAL);
    let (mut sent, mut alloc, mut forwarded) = (0usize, 64u32 << 10, 0u32);
    let mut seen: Vec<u8> = Vec::new();
    let mut told = 0;
    rig.until("all of it arrives", |rig| {
        while let Some(packet) = rig.take() {
            (alloc, forwarded) = (packet.header.buf_alloc.get(), packet.header.fwd_cnt.get());
            seen.extend(&packet.data);
            assert!(seen.len() - told <= rig.room as usize, "more than its credit");
            rig.post(1);
        }
        let credit = alloc - (sent as u32).wrapping_sub(forwarded);
        let len = (credit as usize).min(9000).min(TOTAL - sent);
        let fwd_cnt = seen.len() as u32;
        if len > 0 {
            let header = Header { len: (len as u32).into(), fwd_cnt: fwd_cnt.into(), ..rig.header(op::RW, ports) };
            rig.send_header(header, &to_host[sent..sent + len]);
            sent += len;
        } else if seen.len() - told > 10_000 {
            rig.send_header(Header { fwd_cnt: fwd_cnt.into(), ..rig.header(op::CREDIT_UPDATE, ports) }, &[]);
        } else {
            return seen.len() == TOTAL && reads.is_finished();
        }
        told = seen.len();
        seen.len() == TOTAL && sent == TOTAL && reads.is_finished()
    });
    assert!(seen == pattern(1, 0, TOTAL));
    assert!(reads.join().unwrap().unwrap() == to_host);
    writes.join().unwrap().unwrap();
    let metrics = rig.metrics();
    assert_eq!((metrics.rx_bytes_count.get(), metrics.tx_bytes_count.get()), (TOTAL as u64, TOTAL as u64));
}

#[test]
fn connections_take_turns() {
    let mut rig = Rig::new();
    rig.post(10);
    let (mut greedy, first) = rig.host_connects(1);
    let (mut modest, second) = rig.host_connects(2);
    fill(&mut greedy, 0);
    rig.settle();
    modest.write_all(b"x").unwrap();
    rig.settle();
    let mut before = 0;
    loop {
        let packet = rig.receive();
        if packet.ports() == second {
            break;
        }
        assert_eq!((packet.op(), packet.ports()), (op::RW, first));
        before += 1;
    }
    assert!(before < 40, "{before} packets of the other one came first");
}
