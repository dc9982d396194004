//! Sockets between host programs and the guest.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guest::{Job, Mode, Report, pattern};
use mayfly_tests::{PATIENCE, Vmm, metrics, on_pci, uninterrupted};
use serde_json::json;

use super::pass_bar::{LINES_MAX, PassBar, VMM_THREAD, rss_kib, wake_ups};
use super::snapshots::{LOAD, RESTORE, moved_with};
use super::{configured, finish, measured, number};

const ECHO: u32 = 1;
const SINK: u32 = 2;
const SOURCE: u32 = 3;
const DEAF: u32 = 4;
const STOP: u32 = 9;
const MIB: u64 = 1 << 20;
/// Connections of a machine at a time.
const SEATS: usize = 1023;

fn path(vmm: &Vmm) -> PathBuf {
    vmm.dir().join("v.sock")
}

/// A guest with services behind its socket device.
fn served(bytes: u64, connect: Option<u32>) -> Vmm {
    // Longer than a thousand snapshots take on a host that has other things to do.
    let vmm = configured(&Job::new(Mode::Vsock { bytes, connect }).with("ms", 900_000));
    vmm.put("/vsock", &json!({"guest_cid": 7, "uds_path": path(&vmm)})).expect_204();
    vmm
}

fn running(bytes: u64) -> Vmm {
    let vmm = served(bytes, None);
    vmm.instance_start();
    vmm.wait_for_line("vsock=started cid=7", PATIENCE);
    vmm
}

/// A connection of which nothing is known yet.
fn knock(vmm: &Vmm, line: &str) -> UnixStream {
    let mut stream = UnixStream::connect(path(vmm)).expect("a listener");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // Who is refused a seat may be gone already.
    if let Err(error) = stream.write_all(line.as_bytes()) {
        assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
    }
    stream
}

/// What comes until the other side closes.
fn rest(mut stream: UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    all
}

/// The number in `OK <number>`.
fn accepted(stream: &mut UnixStream) -> u32 {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        assert_eq!(uninterrupted(|| stream.read(&mut byte)).expect("an answer"), 1, "closed after {line:?}");
        line.extend(byte);
    }
    let line = String::from_utf8(line).unwrap();
    line.strip_prefix("OK ").and_then(|rest| rest.trim_end().parse().ok()).unwrap_or_else(|| panic!("{line:?}"))
}

fn connect(vmm: &Vmm, port: u32) -> UnixStream {
    let mut stream = knock(vmm, &format!("CONNECT {port}\n"));
    accepted(&mut stream);
    stream
}

fn echoes(stream: &mut UnixStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text);
}

/// Ends the guest's services in good order.
fn stop(vmm: &Vmm) -> Report {
    assert_eq!(rest(knock(vmm, &format!("CONNECT {STOP}\n"))), b"", "the port that ends it accepts nobody");
    finish(vmm)
}

fn streamed(bytes: u64) -> Vec<u8> {
    let mut data = vec![0; bytes as usize];
    pattern::stream(0, &mut data);
    data
}

#[test]
fn a_host_program_says_which_port_it_wants() {
    let vmm = running(0);
    let mut numbers = Vec::new();
    for line in ["CONNECT 1\n", "connect 1\n", "Connect 1\n"] {
        let mut stream = knock(&vmm, line);
        numbers.push(accepted(&mut stream));
        echoes(&mut stream, line.as_bytes());
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(stream), b"");
    }
    assert!(numbers.iter().all(|number| *number >= 1 << 30), "{numbers:?}");
    // What follows the line at once is data.
    let mut stream = knock(&vmm, "CONNECT 1\nhello");
    accepted(&mut stream);
    let mut five = [0; 5];
    stream.read_exact(&mut five).unwrap();
    assert_eq!(&five, b"hello");
    drop(stream);
    for line in ["CONNECT 77\n", "CONNECT\n", "CONNECT -1\n", "CONNECT 4294967296\n", "hello\n", "\n"] {
        assert_eq!(rest(knock(&vmm, line)), b"", "{line:?}");
    }
    assert_eq!(rest(knock(&vmm, &"x".repeat(33))), b"", "no line");
    let report = stop(&vmm);
    assert_eq!((number(&report, "accepted"), number(&report, "refused")), (4, 2));
}

#[test]
fn what_is_sent_arrives_both_ways() {
    let bytes = 48 * MIB;
    let vmm = running(bytes);
    let mut sink = connect(&vmm, SINK);
    let source = connect(&vmm, SOURCE);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            sink.write_all(&streamed(bytes)).unwrap();
            sink.shutdown(Shutdown::Write).unwrap();
        });
        assert!(rest(source) == streamed(bytes), "the host got something else");
    });
    vmm.wait_for_line(&format!("sunk={bytes} bad=0"), PATIENCE);
    stop(&vmm);
}

#[test]
fn a_half_closed_connection_goes_on_the_other_way() {
    let vmm = running(MIB);
    let mut source = connect(&vmm, SOURCE);
    let mut first = [0; 8];
    source.read_exact(&mut first).unwrap();
    // More than either side keeps: the guest is still sending when it learns of it.
    let mut echo = connect(&vmm, ECHO);
    let text = vec![0x61; 200_000];
    std::thread::scope(|scope| {
        let mut writer = echo.try_clone().unwrap();
        let text = &text;
        scope.spawn(move || {
            writer.write_all(text).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        echo.read_to_end(&mut back).unwrap();
        assert!(back == *text, "{} of {} bytes came back", back.len(), text.len());
    });
    assert_eq!([&first[..], &rest(source)].concat(), streamed(MIB));
    stop(&vmm);
}

#[test]
fn the_guest_connects_to_a_program_on_the_host() {
    let (bytes, port) = (8 * MIB, 52);
    let vmm = served(bytes, Some(port));
    let listener = UnixListener::bind(vmm.dir().join(format!("v.sock_{port}"))).unwrap();
    vmm.instance_start();
    let (stream, _) = listener.accept().unwrap();
    vmm.wait_for_line(&format!("connected={port}"), PATIENCE);
    assert!(rest(stream) == streamed(bytes), "the host got something else");
    vmm.wait_for_line(&format!("sourced={bytes} open=1"), PATIENCE);
    stop(&vmm);
}

#[test]
fn nobody_listens_on_the_host() {
    let vmm = served(8, Some(53));
    vmm.instance_start();
    vmm.wait_for_line("sourced=0 open=0", PATIENCE);
    assert_eq!(number(&stop(&vmm), "resets"), 1);
}

#[test]
fn all_seats_are_taken_and_given_back() {
    let vmm = running(0);
    let before = (vmm.descriptors(), rss_kib(&vmm));
    let mut streams: Vec<UnixStream> = (0..SEATS).map(|_| connect(&vmm, ECHO)).collect();
    assert_eq!(rest(knock(&vmm, "CONNECT 1\n")), b"", "one more than there are seats");
    for stream in [0, 1, SEATS / 2, SEATS - 1] {
        echoes(&mut streams[stream], b"still here");
    }
    let each = (rss_kib(&vmm).saturating_sub(before.1)) as f64 / SEATS as f64;
    assert!(each < 8.0, "{each} KiB for an idle connection");
    drop(streams);
    let deadline = Instant::now() + PATIENCE;
    while vmm.descriptors() > before.0 {
        assert!(Instant::now() < deadline, "{} descriptors, {} before", vmm.descriptors(), before.0);
        std::thread::sleep(Duration::from_millis(10));
    }
    echoes(&mut connect(&vmm, ECHO), b"room again");
    assert_eq!(number(&stop(&vmm), "most_open"), SEATS as u64);
}

#[test]
fn a_pause_stops_connections_and_loses_nothing() {
    let bytes = 16 * MIB;
    let vmm = running(bytes);
    let mut source = connect(&vmm, SOURCE);
    let mut got = vec![0; MIB as usize];
    source.read_exact(&mut got).unwrap();
    for _ in 0..5 {
        vmm.patch("/vm", &json!({"state": "Paused"})).expect_204();
        // What was on its way still comes; then nothing.
        source.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut piece = vec![0; MIB as usize];
        while let Ok(count) = uninterrupted(|| source.read(&mut piece)) {
            assert!(count > 0, "it ended");
            got.extend(&piece[..count]);
        }
        source.set_read_timeout(Some(PATIENCE)).unwrap();
        vmm.patch("/vm", &json!({"state": "Resumed"})).expect_204();
    }
    got.extend(rest(source));
    assert!(got == streamed(bytes), "the host got something else");
    stop(&vmm);
}

/// The guest reads nothing, and the host writes as long as it can: then both wait, and nobody is woken.
#[test]
fn who_does_not_read_holds_up_who_writes_at_no_cost() {
    let vmm = running(64 * MIB);
    let mut deaf = connect(&vmm, DEAF);
    deaf.set_nonblocking(true).unwrap();
    let unread = connect(&vmm, SOURCE);
    let until = Instant::now() + Duration::from_millis(500);
    let mut written = 0;
    while Instant::now() < until {
        match deaf.write(&[0; 4096]) {
            Ok(count) => written += count,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    assert!(written < MIB as usize, "{written} bytes were taken for a guest that reads nothing");
    let before = wake_ups(&vmm, VMM_THREAD);
    std::thread::sleep(Duration::from_secs(1));
    let woken = wake_ups(&vmm, VMM_THREAD) - before;
    assert!(woken <= 3, "the VMM thread was woken {woken} times");
    echoes(&mut connect(&vmm, ECHO), b"others go on");
    assert!(rest(unread) == streamed(64 * MIB), "the host got something else");
    drop(deaf);
    stop(&vmm);
}

/// G18: credit for more than there are buffers, no buffer for a while, and a host that writes as much as it can: it waits, at no cost,
/// and nothing is lost.
#[test]
fn a_guest_without_buffers_holds_up_the_host_at_no_cost() {
    let bytes = 16 * MIB;
    let job = Job::new(Mode::Vsock { bytes: 0, connect: None }).with("withhold_ms", 4000).with("sink_room", 64 * MIB);
    let vmm = configured(&job);
    vmm.put("/vsock", &json!({"guest_cid": 7, "uds_path": path(&vmm)})).expect_204();
    vmm.instance_start();
    vmm.wait_for_line("vsock=started", PATIENCE);
    let mut sink = connect(&vmm, SINK);
    vmm.wait_for_line("vsock=withholding", PATIENCE);
    let bar = PassBar::before(&vmm);
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for piece in streamed(bytes).chunks(64 << 10) {
                sink.write_all(piece).unwrap();
                written.fetch_add(piece.len() as u64, Ordering::SeqCst);
            }
            sink.shutdown(Shutdown::Write).unwrap();
        });
        std::thread::sleep(Duration::from_millis(500));
        let before = (wake_ups(&vmm, VMM_THREAD), written.load(Ordering::SeqCst));
        std::thread::sleep(Duration::from_secs(1));
        let woken = wake_ups(&vmm, VMM_THREAD) - before.0;
        assert!(woken <= 3, "the VMM thread was woken {woken} times");
        assert_eq!(written.load(Ordering::SeqCst), before.1, "the host goes on writing");
        // All buffers are full, and so is the socket.
        assert!((MIB / 2..4 * MIB).contains(&before.1), "{} bytes were taken", before.1);
        bar.check(&vmm, LINES_MAX);
        assert!(
            vmm.console().find("vsock=taking", Duration::ZERO).is_none(),
            "the guest took something before the check"
        );
    });
    vmm.wait_for_line(&format!("sunk={bytes} bad=0"), PATIENCE);
    stop(&vmm);
}

#[test]
fn the_socket_goes_with_the_machine_and_the_metrics_count() {
    let vmm = served(MIB, None);
    let file = measured(&vmm);
    vmm.instance_start();
    vmm.wait_for_line("vsock=started", PATIENCE);
    echoes(&mut connect(&vmm, ECHO), &[7; 1000]);
    assert_eq!(rest(connect(&vmm, SOURCE)).len() as u64, MIB);
    assert_eq!(rest(knock(&vmm, "CONNECT 77\n")), b"");
    vmm.signal(libc::SIGTERM);
    assert_eq!(vmm.wait_exit(PATIENCE), 143);
    assert!(!path(&vmm).exists(), "the socket is removed");
    let total = |field: &str| metrics::total(&file, "vsock", field);
    assert_eq!((total("rx_bytes_count"), total("tx_bytes_count")), (1000, MIB + 1000));
    // The one that was refused counts until the guest has said so.
    assert_eq!((total("conns_added"), total("conns_removed"), total("conns_killed")), (3, 3, 0));
    assert!(total("rx_packets_count") > 5 && total("tx_packets_count") > 16);
}

/// Another process has another path, because that of the one that was killed is still there; and another address, if one is asked for.
#[track_caller]
fn moved(vmm: Vmm, cid: Option<u32>) -> Vmm {
    moved_with(vmm, |vmm, load| {
        if let Some(cid) = cid {
            load["vsock"] = json!({"guest_cid": cid, "uds_path": path(vmm)});
            return RESTORE;
        }
        load["vsock_override"] = json!({"uds_path": path(vmm)});
        LOAD
    })
}

/// Connections end, at both ends; who listens goes on, and is reached again at once.
#[test]
fn a_snapshot_ends_connections_and_nothing_else() {
    let mut vmm = running(0);
    let mut cid = 7;
    // On PCI the same device does the same.
    let rounds = if on_pci() { 200 } else { 1000 };
    for round in 0..rounds {
        let mut streams: Vec<UnixStream> = (0..3).map(|_| connect(&vmm, ECHO)).collect();
        echoes(&mut streams[0], format!("round {round}").as_bytes());
        // Half said, half closed, and nobody knows what it wants.
        streams[1].write_all(&[7; 3000]).unwrap();
        streams[2].shutdown(Shutdown::Write).unwrap();
        let silent = knock(&vmm, "CONN");
        let other = (round % 2 == 1).then_some(100 + round);
        cid = other.unwrap_or(cid);
        vmm = moved(vmm, other);
        for stream in streams {
            rest(stream);
        }
        rest(silent);
        let mut stream = connect(&vmm, ECHO);
        echoes(&mut stream, b"again");
        let told = vmm.wait_for_line("vsock=reset", PATIENCE);
        assert!(told.contains(&format!("cid={cid}")), "{told}");
    }
    assert_eq!(rest(knock(&vmm, &format!("CONNECT {STOP}\n"))), b"");
    super::snapshots::finish(&vmm);
}
