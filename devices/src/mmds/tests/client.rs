//! A proper client: smoltcp on an Ethernet, with ARP and its own idea of time.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as Moment;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use super::super::DEFAULT_ADDRESS;
use super::super::test_frames::{GUEST, GUEST_MAC};
use super::*;

/// The cable between the two.
#[derive(Default)]
struct Cable {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: VecDeque<Vec<u8>>,
    mtu: usize,
}

struct In(Vec<u8>);
struct Out<'a>(&'a mut VecDeque<Vec<u8>>);

impl phy::RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl phy::Device for Cable {
    type RxToken<'a> = In;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, _: Moment) -> Option<(In, Out<'_>)> {
        Some((In(self.to_guest.pop_front()?), Out(&mut self.from_guest)))
    }

    fn transmit(&mut self, _: Moment) -> Option<Out<'_>> {
        Some(Out(&mut self.from_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

/// A guest and the service.
struct Guest {
    rig: Rig,
    cable: Cable,
    interface: Interface,
    sockets: SocketSet<'static>,
    ms: i64,
    /// Every so many frames one is lost.
    loses: Option<usize>,
    frames: usize,
    next_port: u16,
}

impl Guest {
    fn new(manner: Manner) -> Self {
        Self::at(manner, GUEST, 1514)
    }

    fn at(manner: Manner, address: Ipv4Addr, mtu: usize) -> Self {
        let mut cable = Cable { mtu, ..Cable::default() };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC)));
        config.random_seed = 3;
        let mut interface = Interface::new(config, &mut cable, Moment::ZERO);
        // On the link, as after `ip route add 169.254.169.254 dev eth0`.
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(address.into(), 0)).unwrap());
        let sockets = SocketSet::new(Vec::new());
        Self { rig: Rig::new(manner), cable, interface, sockets, ms: 0, loses: None, frames: 0, next_port: 40_000 }
    }

    /// A millisecond for both.
    fn turn(&mut self) {
        self.ms += 1;
        self.interface.poll(Moment::from_millis(self.ms), &mut self.cable, &mut self.sockets);
        self.rig.pass(Duration::from_millis(1));
        while let Some(frame) = self.cable.from_guest.pop_front() {
            if !self.is_lost() {
                self.rig.give(&frame);
            }
        }
        while let Some(frame) = self.rig.fetch() {
            if !self.is_lost() {
                self.cable.to_guest.push_back(frame);
            }
        }
    }

    fn is_lost(&mut self) -> bool {
        self.frames += 1;
        self.loses.is_some_and(|every| self.frames.is_multiple_of(every))
    }

    fn connect(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 20_000]);
        let mut socket = Socket::new(buffer(), buffer());
        self.next_port += 1;
        socket.connect(self.interface.context(), (DEFAULT_ADDRESS, 80), self.next_port).unwrap();
        let handle = self.sockets.add(socket);
        self.until(|guest| guest.socket(handle).may_send());
        handle
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    #[track_caller]
    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..120_000 {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("it did not happen in two minutes of the guest's time");
    }

    /// Sends `request` and returns one answer, head and body.
    #[track_caller]
    fn ask(&mut self, handle: SocketHandle, request: &str) -> String {
        self.say(handle, request);
        self.answer(handle)
    }

    fn say(&mut self, handle: SocketHandle, request: &str) {
        let mut left = request.as_bytes().to_vec();
        self.until(|guest| {
            let sent = guest.socket(handle).send_slice(&left).unwrap();
            left.drain(..sent);
            left.is_empty()
        });
    }

    #[track_caller]
    fn answer(&mut self, handle: SocketHandle) -> String {
        let mut got = Vec::new();
        self.until(|guest| {
            let socket = guest.socket(handle);
            // Not a byte more than this answer.
            let mut byte = [0];
            while !is_whole(&got) && socket.can_recv() && socket.recv_slice(&mut byte).unwrap() == 1 {
                got.push(byte[0]);
            }
            is_whole(&got)
        });
        String::from_utf8(got).unwrap()
    }
}

fn is_whole(answer: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(answer) else { return false };
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let len = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    body.len() == len.parse::<usize>().unwrap()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

const GET_A: &str = "GET /a HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n";

#[test]
fn a_value_is_read_and_the_connection_used_again() {
    let mut guest = Guest::new(V1);
    let handle = guest.connect();
    for _ in 0..3 {
        let answer = guest.ask(handle, GET_A);
        assert!(answer.starts_with("HTTP/1.1 200 \r\n") && body(&answer) == "b", "{answer}");
    }
    assert_eq!(guest.rig.stack.connections(), 1);
    guest.socket(handle).close();
    guest.until(|guest| guest.socket(handle).state() == State::TimeWait && guest.rig.stack.connections() == 0);
    let metrics = guest.rig.mmds.metrics();
    assert_eq!((metrics.connections_created.get(), metrics.connections_destroyed.get()), (1, 1));
    assert_eq!(metrics.rx_count.get(), metrics.rx_accepted.get());
    assert!(metrics.tx_frames.get() > 4 && metrics.tx_bytes.get() > 400, "{metrics:?}");
}

#[test]
fn a_token_is_fetched_and_used() {
    let mut guest = Guest::new(V2);
    let handle = guest.connect();
    assert!(guest.ask(handle, GET_A).starts_with("HTTP/1.1 401 "));
    let answer = guest.ask(handle, "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 2\r\n\r\n");
    let with_token = format!("GET /a HTTP/1.1\r\nX-metadata-token: {}\r\n\r\n", body(&answer));
    assert_eq!(body(&guest.ask(handle, &with_token)), "b");
    let end = guest.ms + 2000;
    guest.until(|guest| guest.ms >= end);
    assert_eq!(body(&guest.ask(handle, &with_token)), "MMDS token not valid.");
}

#[test]
fn a_long_answer_arrives_whole_whatever_the_mtu_the_address_and_the_losses() {
    for (address, mtu, loses) in [
        (GUEST, 1514, None),
        (Ipv4Addr::new(10, 200, 3, 4), 590, None),
        (Ipv4Addr::new(169, 254, 77, 1), 9014, None),
        (GUEST, 1514, Some(7)),
        (GUEST, 600, Some(11)),
    ] {
        let mut guest = Guest::at(V1, address, mtu);
        guest.loses = loses;
        let handle = guest.connect();
        let answer = guest.ask(handle, "GET /long HTTP/1.1\r\n\r\n");
        assert!(
            body(&answer).len() == 100_000 && body(&answer).bytes().all(|b| b == b'x'),
            "{address} {mtu} {loses:?}"
        );
        assert_eq!(body(&guest.ask(handle, GET_A)), "b");
    }
}

#[test]
fn requests_that_come_together_are_answered_in_order() {
    let mut guest = Guest::new(V1);
    let handle = guest.connect();
    let one = |path: &str| format!("GET {path} HTTP/1.1\r\n\r\n");
    let mut text = String::new();
    for n in 0..1000 {
        text += &one(if n % 100 == 99 { "/long" } else { ["/a", "/no", "/"][n % 3] });
    }
    // Said while the answers are read: neither side can keep all of it.
    let mut left = text.into_bytes();
    for n in 0..1000 {
        let sent = guest.socket(handle).send_slice(&left).unwrap();
        left.drain(..sent);
        let answer = guest.answer(handle);
        match n % 100 == 99 {
            true => assert_eq!(body(&answer).len(), 100_000),
            false => assert_eq!(body(&answer), ["b", "Resource not found: /no.", "a\nlong"][n % 3], "{n}"),
        }
    }
}

#[test]
fn an_answer_to_the_last_request_comes_before_the_end() {
    let mut guest = Guest::new(V1);
    for request in ["GET /a HTTP/1.0\r\n\r\n", "GET /a HTTP/1.1\r\nConnection: close\r\n\r\n"] {
        let handle = guest.connect();
        let answer = guest.ask(handle, request);
        assert!(answer.contains("Connection: close") && body(&answer) == "b");
        guest.until(|guest| guest.socket(handle).state() == State::CloseWait);
        guest.socket(handle).close();
        guest.until(|guest| guest.socket(handle).state() == State::Closed);
    }
    // Here the client says first that it is done, while it is owed more than one answer.
    let handle = guest.connect();
    guest.say(handle, &format!("{GET_A}GET /long HTTP/1.1\r\n\r\n{GET_A}GET /"));
    guest.socket(handle).close();
    assert_eq!(body(&guest.answer(handle)), "b");
    assert_eq!(body(&guest.answer(handle)).len(), 100_000);
    assert_eq!(body(&guest.answer(handle)), "b");
    guest.until(|guest| !guest.socket(handle).may_recv());
    // What was closed from our side is forgotten after a while.
    let end = guest.ms + 10_000;
    guest.until(|guest| guest.ms > end);
    assert_eq!(guest.rig.stack.connections(), 0);
}

#[test]
fn a_request_that_is_too_large_is_refused_and_the_rest_thrown_away() {
    let mut guest = Guest::new(V1);
    let handle = guest.connect();
    let mut sent = 0;
    let mut got = Vec::new();
    // A header of 1 MiB, as long as anybody listens.
    guest.until(|guest| {
        let socket = guest.socket(handle);
        let mut buffer = [0; 1000];
        while socket.can_recv() {
            let len = socket.recv_slice(&mut buffer).unwrap();
            got.extend(&buffer[..len]);
        }
        let start = if sent == 0 { "GET / HTTP/1.1\r\nA: ".as_bytes() } else { &[b'a'; 4096] };
        if socket.may_send() && sent < 1 << 20 {
            sent += socket.send_slice(start).unwrap();
        }
        sent >= 1 << 20 || socket.state() == State::Closed
    });
    let answer = String::from_utf8(got).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 ") && body(&answer).contains("2500 bytes"), "{answer}");
    // Another client is served as ever.
    let other = guest.connect();
    assert_eq!(body(&guest.ask(other, GET_A)), "b");
}

#[test]
fn thirty_connections_are_served_and_the_next_takes_the_place_of_an_idle_one() {
    let mut guest = Guest::new(V1);
    let handles: Vec<_> = (0..30).map(|_| guest.connect()).collect();
    for handle in &handles {
        assert_eq!(body(&guest.ask(*handle, GET_A)), "b");
    }
    // All have been heard of lately.
    let mut refused = Socket::new(SocketBuffer::new(vec![0; 100]), SocketBuffer::new(vec![0; 100]));
    refused.connect(guest.interface.context(), (DEFAULT_ADDRESS, 80), 39_999).unwrap();
    let refused = guest.sockets.add(refused);
    guest.until(|guest| guest.socket(refused).state() == State::Closed);
    let end = guest.ms + 10_000;
    guest.until(|guest| guest.ms > end);
    assert_eq!(body(&guest.ask(handles[0], GET_A)), "b");
    let new = guest.connect();
    assert_eq!(body(&guest.ask(new, GET_A)), "b");
    assert_eq!(guest.rig.stack.connections(), 30);
    assert_eq!(body(&guest.ask(handles[0], GET_A)), "b", "it was not idle");
    assert_eq!(handles.iter().filter(|handle| guest.sockets.get::<Socket<'_>>(**handle).is_open()).count(), 29);
}

#[test]
fn an_idle_connection_needs_no_timer() {
    let mut guest = Guest::new(V1);
    let now = guest.rig.now;
    assert_eq!(guest.rig.stack.wake_at(now), None);
    let handle = guest.connect();
    assert_eq!(body(&guest.ask(handle, GET_A)), "b");
    guest.until(|guest| guest.cable.from_guest.is_empty());
    for _ in 0..100 {
        guest.turn();
    }
    let now = guest.rig.now;
    assert_eq!(guest.rig.stack.wake_at(now), None);
    assert_eq!(guest.rig.stack.connections(), 1);
}

#[test]
fn clients_that_fetch_nothing_make_others_wait_but_not_for_ever() {
    let mut guest = Guest::new(V1);
    // 30 x 100 kB are more than may be kept.
    let handles: Vec<_> = (0..29).map(|_| guest.connect()).collect();
    for handle in &handles {
        guest.say(*handle, "GET /long HTTP/1.1\r\n\r\n");
    }
    for _ in 0..1000 {
        guest.turn();
    }
    let kept = guest.rig.stack.kept();
    assert!((1 << 20..(1 << 20) + 100_001).contains(&kept), "{kept} bytes are kept");
    // Not for a short answer.
    let other = guest.connect();
    assert_eq!(body(&guest.ask(other, GET_A)), "b");
    assert!(guest.ms < 5000, "{} ms", guest.ms);
    // They have 20 000 bytes each and take no more. Their time runs out, and then it is others' turn.
    assert_eq!(body(&guest.ask(other, "GET /long HTTP/1.1\r\n\r\n")).len(), 100_000);
    assert!(guest.ms > 29_000, "{} ms", guest.ms);
    let end = guest.ms + 100_000;
    guest.until(|guest| guest.ms > end);
    assert_eq!((guest.rig.stack.connections(), guest.rig.stack.kept()), (1, 0));
}
