//! The network card on a real tap in a private network namespace.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use guest::{Direction, Job, Mode, Net};
use mayfly_tests::{PATIENCE, PacketSocket, Tap, Vmm, tap, uninterrupted};
use serde_json::json;

use super::pass_bar::{LINES_MAX, PassBar};
use super::{configured, finish, number};

const MAC: &str = "06:00:ac:10:00:02";
const MAC_BYTES: [u8; 6] = [6, 0, 0xac, 0x10, 0, 2];
const BENCH_TYPE: [u8; 2] = [0x88, 0xb5];

pub(super) fn network(name: &str) -> Tap {
    tap::private_network();
    let tap = Tap::create(name).unwrap();
    tap.up().unwrap();
    tap
}

/// Gives the tap to the machine and waits until the host sends on it.
///
/// The kernel notices in its own time (`net/core/link_watch.c`) that somebody holds the tap; until then it drops what is sent.
#[track_caller]
pub(super) fn attach(vmm: &Vmm, tap: &Tap) {
    vmm.network("eth0", tap.name(), MAC);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let out = Command::new("ip").args(["link", "show", tap.name()]).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        if out.status.success() && !text.contains("qdisc noop") && text.contains("LOWER_UP") {
            return;
        }
        assert!(Instant::now() < deadline, "the tap does not come up: {text}");
    }
}

/// A broadcast frame of `len` bytes that the guest counts.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9]);
    frame.extend(BENCH_TYPE);
    frame.resize(len, 0);
    frame
}

/// The next frame of `kind` that the guest sent.
#[track_caller]
fn next(socket: &PacketSocket, kind: [u8; 2], vmm: &Vmm) -> Vec<u8> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(frame) = socket.receive(left).unwrap() else { panic!("no frame of {kind:x?}\n{}", vmm.said()) };
        if frame[6..12] == MAC_BYTES && frame[12..14] == kind {
            return frame;
        }
    }
}

#[test]
fn the_guest_answers_arp() {
    let tap = network("mfarp");
    let socket = tap.packets().unwrap();
    let ip = Ipv4Addr::new(172, 16, 0, 2);
    let vmm = configured(&Job::new(Mode::Net(Net { ip, packets: Some(1), limit_ms: 20_000 })));
    attach(&vmm, &tap);
    vmm.instance_start();
    vmm.wait_for_line("net=listening", PATIENCE);
    let mut ask = vec![0xff; 6];
    ask.extend([2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 172, 16, 0, 1, 0, 0, 0, 0, 0, 0]);
    ask.extend(ip.octets());
    socket.send(&ask).unwrap();
    let answer = next(&socket, [8, 6], &vmm);
    assert_eq!(answer[20..22], [0, 2], "a reply");
    assert_eq!(answer[22..28], MAC_BYTES);
    assert_eq!(answer[28..32], ip.octets());
    assert_eq!(number(&finish(&vmm), "arp"), 1);
}

/// One's complement sum of 16-bit words (RFC 1071).
fn internet_sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn the_guest_answers_a_ping() {
    answers_pings(&network("mfping"), 1);
}

/// On a tap with several queues, by a driver that knows of one pair.
#[test]
fn a_card_with_several_pairs_serves_a_driver_that_knows_of_one() {
    tap::private_network();
    let tap = Tap::create_with_queues("mfpairs").unwrap();
    tap.up().unwrap();
    answers_pings(&tap, 4);
}

#[track_caller]
fn answers_pings(tap: &Tap, pairs: u32) {
    let socket = tap.packets().unwrap();
    let ip = Ipv4Addr::new(172, 16, 0, 2);
    let count = 20;
    let vmm = configured(&Job::new(Mode::Net(Net { ip, packets: Some(count), limit_ms: 20_000 })));
    attach(&vmm, tap);
    if pairs > 1 {
        let more = json!({"iface_id": "eth0", "host_dev_name": tap.name(), "guest_mac": MAC, "num_queues": pairs});
        vmm.put("/network-interfaces/eth0", &more).expect_204();
    }
    vmm.instance_start();
    vmm.wait_for_line("net=listening", PATIENCE);
    for n in 0..count as u8 {
        let data = vec![n; 8 + 70 * usize::from(n)];
        let mut echo = vec![8, 0, 0, 0, 0x12, 0x34, 0, n];
        echo.extend(&data);
        let sum = !internet_sum(&echo);
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut packet = vec![0x45, 0];
        packet.extend((20 + echo.len() as u16).to_be_bytes());
        packet.extend([0, n, 0, 0, 64, 1, 0, 0, 172, 16, 0, 1]);
        packet.extend(ip.octets());
        let sum = !internet_sum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = MAC_BYTES.to_vec();
        frame.extend([2, 0, 0, 0, 0, 9, 8, 0]);
        frame.extend(&packet);
        frame.extend(&echo);
        socket.send(&frame).unwrap();

        let answer = next(&socket, [8, 0], &vmm);
        assert_eq!(answer[..6], [2, 0, 0, 0, 0, 9]);
        let (header, echo) = (&answer[14..34], &answer[34..34 + 8 + data.len()]);
        assert_eq!((internet_sum(header), internet_sum(echo)), (0xffff, 0xffff), "the checksums hold");
        assert_eq!(echo[..2], [0, 0], "a reply");
        assert_eq!(echo[4..8], [0x12, 0x34, 0, n]);
        assert_eq!(echo[8..], data);
    }
    assert_eq!(number(&finish(&vmm), "echo"), count);
}

/// The host's own network stack on the other side, which leaves checksums to the card if it may.
#[test]
fn datagrams_through_the_hosts_stack_come_back() {
    let tap = network("mfudp");
    let ip = Ipv4Addr::new(172, 16, 0, 2);
    let host = Command::new("ip").args(["addr", "add", "172.16.0.1/24", "dev", tap.name()]).status().unwrap();
    assert!(host.success());
    let vmm = configured(&Job::new(Mode::Net(Net { ip, packets: None, limit_ms: 20_000 })));
    attach(&vmm, &tap);
    vmm.instance_start();
    vmm.wait_for_line("net=listening", PATIENCE);
    let socket = UdpSocket::bind("172.16.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    for len in [1, 17, 512, 1472] {
        let sent: Vec<u8> = (0..len).map(|n| (n * 7 + len) as u8).collect();
        socket.send_to(&sent, (ip, 7)).unwrap();
        let mut back = vec![0; 2000];
        let (n, from) =
            uninterrupted(|| socket.recv_from(&mut back)).unwrap_or_else(|e| panic!("{len}: {e}\n{}", vmm.said()));
        assert_eq!(from.ip(), ip);
        assert!(back[..n] == sent, "{len} bytes came back as {n} others");
    }
    socket.send_to(b"stop", (ip, 9)).unwrap();
    let report = finish(&vmm);
    assert_eq!((number(&report, "udp"), number(&report, "stopped")), (4, 1), "{report:?}");
}

#[test]
fn every_frame_the_host_sends_arrives_once() {
    let tap = network("mfrxall");
    let socket = tap.packets().unwrap();
    for size in [64u16, 1514] {
        // As many as the tap's queue holds, because a full queue drops.
        let packets = 900;
        let vmm = configured(&Job::new(Mode::BenchNet { direction: Direction::Rx, size, packets }));
        attach(&vmm, &tap);
        vmm.instance_start();
        vmm.wait_for_line("net=listening", PATIENCE);
        for _ in 0..packets {
            socket.send(&frame(size.into())).unwrap();
        }
        let report = finish(&vmm);
        assert_eq!((number(&report, "packets"), number(&report, "stalled")), (packets, 0), "{report:?}");
        assert_eq!(number(&report, "bytes"), packets * u64::from(size));
    }
}

#[test]
fn every_frame_the_guest_sends_arrives_once() {
    let tap = network("mftx");
    let statistics = |name: &str| -> u64 {
        let path = format!("/sys/class/net/{}/statistics/{name}", tap.name());
        // Another namespace's sysfs shows other interfaces, so a process of this namespace reads it.
        let out = Command::new("ip").args(["-s", "-j", "link", "show", tap.name()]).output().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{path}: {e}"));
        json[0]["stats64"]["rx"][name].as_u64().unwrap()
    };
    for size in [64u16, 1514] {
        let before = (statistics("packets"), statistics("bytes"));
        let vmm = configured(&Job::new(Mode::BenchNet { direction: Direction::Tx, size, packets: 5000 }));
        attach(&vmm, &tap);
        let report = super::run(&vmm);
        assert_eq!(number(&report, "packets"), 5000);
        assert_eq!(statistics("packets") - before.0, 5000, "{size}");
        assert_eq!(statistics("bytes") - before.1, 5000 * u64::from(size), "{size}");
    }
}

/// G12: the host floods a guest that posts no buffers, for as long as its queue lasts and longer. When buffers come, frames flow.
#[test]
fn a_flood_before_there_are_buffers_does_not_stop_reception() {
    let tap = network("mfrx");
    let socket = tap.packets().unwrap();
    let vmm = configured(&Job::new(Mode::BenchNet { direction: Direction::Rx, size: 64, packets: 2000 }));
    attach(&vmm, &tap);
    let fill = frame(64);
    for _ in 0..5000 {
        // A full queue drops; that is what is wanted here.
        let _ = socket.send(&fill);
    }
    vmm.instance_start();
    vmm.wait_for_line("net=listening", PATIENCE);
    let deadline = Instant::now() + PATIENCE;
    while vmm.is_running() && Instant::now() < deadline {
        let _ = socket.send(&fill);
    }
    // It stops at the end of the batch that brings the 2000th.
    assert!(number(&finish(&vmm), "packets") >= 2000);
}

/// G12 on a card that is up: no buffers, a flood, nothing to do for the VMM thread; then buffers, and frames flow.
#[test]
fn a_flood_while_there_are_no_buffers_costs_nothing() {
    let tap = network("mfhold");
    let socket = tap.packets().unwrap();
    let job = Job::new(Mode::BenchNet { direction: Direction::Rx, size: 64, packets: 2000 }).with("withhold_ms", 4000);
    let vmm = configured(&job);
    attach(&vmm, &tap);
    vmm.instance_start();
    vmm.wait_for_line("net=withholding", PATIENCE);
    let bar = PassBar::before(&vmm);
    let fill = frame(64);
    for _ in 0..20_000 {
        // A full queue drops; that is what is wanted here.
        let _ = socket.send(&fill);
    }
    bar.check(&vmm, LINES_MAX);
    assert!(vmm.console().find("net=listening", Duration::ZERO).is_none(), "the guest posted buffers before the check");
    vmm.wait_for_line("net=listening", PATIENCE);
    let deadline = Instant::now() + PATIENCE;
    while vmm.is_running() && Instant::now() < deadline {
        let _ = socket.send(&fill);
    }
    assert!(number(&finish(&vmm), "packets") >= 2000);
}

/// F5: the tap is deleted under a running guest. The monitor lives, takes frames and drops them, and does not spin.
#[test]
fn a_tap_that_is_deleted_costs_frames_only() {
    let tap = network("mfgone");
    let delete = |name: &str| assert!(Command::new("ip").args(["link", "del", name]).status().unwrap().success());
    let ip = Ipv4Addr::new(172, 16, 0, 2);
    let vmm = configured(&Job::new(Mode::Net(Net { ip, packets: None, limit_ms: 600_000 })));
    attach(&vmm, &tap);
    vmm.instance_start();
    vmm.wait_for_line("net=listening", PATIENCE);
    let bar = PassBar::before(&vmm);
    delete(tap.name());
    bar.check(&vmm, LINES_MAX);
    drop(vmm);

    let tap = network("mfgone2");
    let socket = tap.packets().unwrap();
    let packets = 100_000;
    let vmm = configured(&Job::new(Mode::BenchNet { direction: Direction::Tx, size: 64, packets }));
    attach(&vmm, &tap);
    vmm.instance_start();
    next(&socket, BENCH_TYPE, &vmm);
    delete(tap.name());
    let report = finish(&vmm);
    assert_eq!((number(&report, "packets"), number(&report, "stalled")), (packets, 0), "every chain comes back");
    assert!(vmm.log().lines().count() < LINES_MAX, "{}", vmm.log());
}

#[test]
fn a_missing_tap_is_made_and_goes_with_the_machine() {
    tap::private_network();
    let vmm = configured(&Job::new(Mode::Spin));
    vmm.network("eth0", "mfmade", MAC);
    let there = || Command::new("ip").args(["link", "show", "mfmade"]).output().unwrap().status.success();
    assert!(there());
    vmm.signal(libc::SIGTERM);
    vmm.wait_exit(PATIENCE);
    assert!(!there());
}

#[test]
fn a_busy_tap_is_refused_and_nothing_changes() {
    let tap = network("mfbusy");
    let owner = configured(&Job::new(Mode::Spin));
    owner.network("eth0", tap.name(), MAC);
    let other = configured(&Job::new(Mode::Spin));
    let body = json!({"iface_id": "eth0", "host_dev_name": tap.name()});
    let fault = other.put("/network-interfaces/eth0", &body).expect_fault("Could not create the network device");
    assert!(fault.contains("busy"), "{fault}");
    assert!(fault.contains("Invalid TUN/TAP Backend provided by mfbusy."), "{fault}");
    assert_eq!(other.get("/vm/config").json()["network-interfaces"], json!([]));
}

#[test]
fn bad_names_and_addresses_are_refused() {
    tap::private_network();
    let vmm = configured(&Job::new(Mode::Spin));
    let put = |id: &str, body: serde_json::Value| vmm.put(&format!("/network-interfaces/{id}"), &body);
    for name in ["", "with/slash", "a-name-that-is-too-long", "with space"] {
        put("a", json!({"iface_id": "a", "host_dev_name": name})).expect_fault("Network config error");
    }
    for mac in ["", "06:00:00:00:00", "01:00:5e:00:00:01", "xx:00:00:00:00:00"] {
        put("a", json!({"iface_id": "a", "host_dev_name": "mfbad", "guest_mac": mac})).expect_fault("MAC");
    }
    put("a", json!({"iface_id": "a", "host_dev_name": "mfa", "guest_mac": MAC})).expect_204();
    put("b", json!({"iface_id": "b", "host_dev_name": "mfb", "guest_mac": MAC}))
        .expect_fault("The MAC address is already in use: 06:00:ac:10:00:02");
    assert_eq!(vmm.get("/vm/config").json()["network-interfaces"].as_array().unwrap().len(), 1);
}

/// F5: the link goes down under a sending guest. The monitor lives, drops, and serves again.
#[test]
fn a_link_that_goes_down_costs_frames_only() {
    let tap = network("mfdown");
    let down = Command::new("ip").args(["link", "set", tap.name(), "down"]).status().unwrap();
    assert!(down.success());
    let vmm = configured(&Job::new(Mode::BenchNet { direction: Direction::Tx, size: 64, packets: 1000 }));
    vmm.network("eth0", tap.name(), MAC);
    let report = super::run(&vmm);
    assert_eq!(number(&report, "packets"), 1000, "every chain comes back");
    assert!(vmm.log().lines().count() < 60, "{}", vmm.log());
}
