//! Segments that no proper client sends.

use super::super::test_frames::{Heard, Tcp, hear};
use super::*;

const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

fn hear_all(rig: &mut Rig) -> Vec<Heard> {
    std::iter::from_fn(|| rig.fetch()).map(|frame| hear(&frame)).collect()
}

/// A connection from `port`, and the next segment on it.
fn open(rig: &mut Rig, port: u16) -> Tcp {
    rig.give(&Tcp::syn(port).frame());
    let heard = hear_all(rig);
    let [answer] = &heard[..] else { panic!("{heard:?}") };
    assert_eq!((answer.flags, answer.ack, answer.port), (SYN | ACK, 1001, port));
    let tcp = Tcp { seq: 1001, ack: answer.seq.wrapping_add(1), flags: ACK, ..Tcp::syn(port) };
    rig.give(&tcp.frame());
    assert_eq!(hear_all(rig), []);
    tcp
}

fn data(tcp: &Tcp, at: u32, data: &[u8]) -> Vec<u8> {
    Tcp { seq: tcp.seq.wrapping_add(at), flags: ACK | PSH, data: data.to_vec(), ..tcp.clone() }.frame()
}

/// That a connection can be made and used.
#[track_caller]
fn still_serves(rig: &mut Rig) {
    let tcp = open(rig, 55_555);
    rig.give(&data(&tcp, 0, b"GET /a HTTP/1.1\r\n\r\n"));
    let heard = hear_all(rig);
    assert!(heard.iter().any(|heard| heard.data.ends_with(b"\r\n\r\nb")), "{heard:?}");
    rig.give(&Tcp { seq: tcp.seq + 19, flags: RST, ..tcp }.frame());
}

#[test]
fn overlapping_and_reordered_segments_make_one_request() {
    let request = b"GET /a HTTP/1.1\r\nA: 0123456789\r\n\r\n";
    let mut rig = Rig::new(V1);
    let tcp = open(&mut rig, 1);
    for (from, to) in [(20, 30), (25, 33), (5, 12), (0, 7), (3, 22), (30, 34), (0, 34)] {
        rig.give(&data(&tcp, from as u32, &request[from..to]));
    }
    let answers = hear_all(&mut rig).iter().filter(|heard| heard.data.ends_with(b"\r\n\r\nb")).count();
    assert_eq!(answers, 1);
    // Two versions of the same bytes: the first one counts.
    let tcp = open(&mut rig, 2);
    rig.give(&data(&tcp, 4, b"/a HTTP/1.1\r\n\r\n"));
    rig.give(&data(&tcp, 0, b"GET /b HTTP/1.1\r\n\r\n"));
    assert!(!hear_all(&mut rig).is_empty());
    still_serves(&mut rig);
}

#[test]
fn a_flood_of_connections_costs_thirty_and_only_for_a_while() {
    let mut rig = Rig::new(V1);
    let mut resets = 0;
    for n in 0..10_000u32 {
        let source = (0x0a00_0000 | n).into();
        rig.give(&Tcp { source, ..Tcp::syn(1000) }.frame());
        while let Some(frame) = rig.fetch() {
            resets += u32::from(frame[14 + 20 + 13] & RST != 0);
        }
        assert!(rig.stack.connections() <= 30);
    }
    assert_eq!(resets, 10_000 - 30);
    rig.pass(Duration::from_secs(4));
    assert_eq!(rig.stack.connections(), 0);
    while rig.fetch().is_some() {}
    assert_eq!(rig.stack.wake_at(rig.now), None);
    still_serves(&mut rig);
}

#[test]
fn nobody_fetches_and_nothing_grows() {
    let mut rig = Rig::new(V1);
    for n in 0..10_000u32 {
        rig.give(&Tcp::syn(1000 + (n % 50_000) as u16).frame());
        rig.give(&frames::arp(frames::GUEST, DEFAULT_ADDRESS));
        assert!(rig.stack.waiting() <= 64 && rig.stack.connections() <= 30);
    }
    let metrics = rig.mmds.metrics();
    assert!(metrics.rx_accepted_err.get() > 19_000, "{metrics:?}");
    // Neither does it keep anybody awake.
    rig.pass(Duration::from_secs(60));
    assert_eq!((rig.stack.wake_at(rig.now), rig.stack.connections()), (None, 0));
    while rig.fetch().is_some() {}
    still_serves(&mut rig);
}

#[test]
fn segments_of_no_connection_are_reset_and_resets_ignored() {
    let mut rig = Rig::new(V1);
    for (flags, to, answers) in
        [(ACK, 80, 1), (SYN | ACK, 80, 1), (SYN, 81, 1), (RST, 80, 0), (RST | ACK, 443, 0), (0, 80, 1)]
    {
        rig.give(&Tcp { flags, to, ..Tcp::syn(9) }.frame());
        let heard = std::iter::from_fn(|| rig.fetch()).collect::<Vec<_>>();
        assert_eq!(heard.len(), answers, "{flags:#x} to {to}");
        assert!(heard.iter().all(|frame| frame[14 + 20 + 13] & RST != 0));
    }
    assert_eq!(rig.stack.connections(), 0);
    assert_eq!(rig.mmds.metrics().connections_created.get(), 0);
    // A reset in the handshake.
    rig.give(&Tcp::syn(10).frame());
    hear_all(&mut rig);
    rig.give(&Tcp { seq: 1001, flags: RST, ..Tcp::syn(10) }.frame());
    assert_eq!((rig.stack.connections(), rig.mmds.metrics().connections_destroyed.get()), (0, 1));
    still_serves(&mut rig);
}

#[test]
fn acknowledgements_of_what_was_never_sent_do_nothing() {
    let mut rig = Rig::new(V1);
    let tcp = open(&mut rig, 3);
    for (seq, ack) in
        [(0u32, 1u32 << 31), (0, 1), (0, u32::MAX), (1 << 31, 0), (u32::MAX, 5000), (70_000, 0), (0, 0x7fff_ffff)]
    {
        for flags in [ACK, ACK | SYN, ACK | 1, ACK | PSH | 1, ACK | 0x20, 0xff] {
            for data in [&b""[..], b"GET"] {
                let frame = Tcp {
                    seq: tcp.seq.wrapping_add(seq),
                    ack: tcp.ack.wrapping_add(ack),
                    flags,
                    data: data.to_vec(),
                    ..tcp.clone()
                };
                rig.give(&frame.frame());
                while rig.fetch().is_some() {}
            }
        }
    }
    still_serves(&mut rig);
}

#[test]
fn a_window_that_stays_shut_ends_the_connection() {
    let mut rig = Rig::new(V1);
    let tcp = open(&mut rig, 4);
    let mut ask = Tcp { flags: ACK | PSH, data: b"GET /long HTTP/1.1\r\n\r\n".to_vec(), window: 10, ..tcp.clone() };
    rig.give(&ask.frame());
    // The client goes on to say that it has no room, which is an answer and no progress.
    ask = Tcp { seq: tcp.seq + 22, ack: tcp.ack + 10, flags: ACK, data: Vec::new(), window: 0, ..tcp };
    for _ in 0..40 {
        rig.give(&ask.frame());
        rig.pass(Duration::from_secs(1));
        while rig.fetch().is_some() {}
    }
    assert_eq!(rig.stack.connections(), 0);
    still_serves(&mut rig);
}

#[test]
fn a_request_byte_by_byte_has_ten_seconds() {
    let mut rig = Rig::new(V1);
    let tcp = open(&mut rig, 5);
    for n in 0..9 {
        rig.give(&data(&tcp, n, b"G"));
        rig.pass(Duration::from_secs(1));
    }
    assert_eq!(rig.stack.connections(), 1);
    rig.give(&data(&tcp, 9, b"G"));
    rig.pass(Duration::from_millis(1500));
    assert_eq!(rig.stack.connections(), 0);
    assert!(hear_all(&mut rig).iter().any(|heard| heard.flags & RST != 0));
    still_serves(&mut rig);
}

#[test]
fn the_smallest_segments_are_answered_in_pieces_that_fit() {
    let mut rig = Rig::new(V1);
    // An MSS of one byte.
    rig.give(&Tcp { options: vec![2, 4, 0, 1], ..Tcp::syn(6) }.frame());
    let answer = hear_all(&mut rig);
    let tcp = Tcp { seq: 1001, ack: answer[0].seq.wrapping_add(1), flags: ACK | PSH, ..Tcp::syn(6) };
    rig.give(&Tcp { data: b"GET /a HTTP/1.1\r\n\r\n".to_vec(), ..tcp }.frame());
    let heard = hear_all(&mut rig);
    assert!(heard.iter().all(|heard| heard.data.len() <= 536), "{heard:?}");
    still_serves(&mut rig);
}

#[test]
fn a_new_driver_finds_nothing_of_the_old_one() {
    let mut rig = Rig::new(V1);
    open(&mut rig, 7);
    rig.give(&Tcp::syn(8).frame());
    assert!(rig.stack.has_frames());
    rig.stack.reset();
    assert!(!rig.stack.has_frames() && rig.stack.connections() == 0);
    assert_eq!(rig.stack.wake_at(rig.now), None);
    still_serves(&mut rig);
}
