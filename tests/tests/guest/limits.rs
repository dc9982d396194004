//! Rate limiters: what they let through, that they can be changed while the machine runs, and what waiting for them costs (G30).

use std::time::{Duration, Instant};

use guest::{Direction, Job, Mode, Report};
use mayfly_tests::{Disk, PATIENCE, PacketSocket, Vmm, metrics};
use serde_json::{Value, json};

use super::network::{attach, network};
use super::pass_bar::{LINES_MAX, PassBar, VMM_THREAD, answers_quickly, thread_ticks, wake_ups};
use super::{configured, finish, flush_metrics, measured, number, run};

const ENGINES: [&str; 2] = ["Sync", "Async"];
const MIB: u64 = 1 << 20;
const BENCH_TYPE: [u8; 2] = [0x88, 0xb5];

/// So many operations and then no more within a test.
fn once(ops: u64) -> Value {
    json!({"ops": {"size": ops, "refill_time": 3_600_000}})
}

fn nothing() -> Value {
    json!({"ops": {"size": 0, "refill_time": 0}})
}

fn limited_drive(vmm: &Vmm, disk: &Disk, engine: &str, limiter: &Value) {
    let body = json!({
        "drive_id": "d", "path_on_host": disk.path(), "is_root_device": false, "io_engine": engine,
        "rate_limiter": limiter,
    });
    vmm.put("/drives/d", &body).expect_204();
}

/// Gives the machine the interface with these limiters once the host sends on it.
fn limit_interface(vmm: &Vmm, tap: &str, rx: &Value, tx: &Value) {
    let body = json!({
        "iface_id": "eth0", "host_dev_name": tap, "guest_mac": "06:00:ac:10:00:02",
        "rx_rate_limiter": rx, "tx_rate_limiter": tx,
    });
    vmm.put("/network-interfaces/eth0", &body).expect_204();
}

/// Frames from the guest until none comes for `patience`, or `most` have come.
fn count_frames(socket: &PacketSocket, most: u64, patience: Duration) -> u64 {
    let mut frames = 0;
    while frames < most {
        match socket.receive(patience).unwrap() {
            Some(frame) if frame[12..14] == BENCH_TYPE => frames += 1,
            Some(_) => {}
            None => break,
        }
    }
    frames
}

#[test]
fn a_drives_limit_holds_until_it_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    for engine in ENGINES {
        let disk = Disk::sparse(dir.path(), engine, MIB).unwrap();
        let vmm = configured(&Job::new(Mode::Busy { ops: 500 }));
        limited_drive(&vmm, &disk, engine, &once(1));
        vmm.instance_start();
        vmm.wait_for_line("busy=started", PATIENCE);
        // A bigger bucket is full, but not big enough.
        vmm.patch("/drives/d", &json!({"drive_id": "d", "rate_limiter": once(100)})).expect_204();
        (0..50).for_each(|_| drop(vmm.get("/").expect_200()));
        assert!(!vmm.console().text().contains("busy=ended"), "{engine}: no limit at all");
        let config = vmm.get("/vm/config").expect_200();
        assert_eq!(config["drives"][0]["rate_limiter"]["ops"]["size"], 100, "{config}");
        vmm.patch("/drives/d", &json!({"drive_id": "d", "rate_limiter": nothing()})).expect_204();
        let report = finish(&vmm);
        assert!(number(&report, "reads") >= 500 && number(&report, "errors") == 0, "{report:?}");
    }
}

#[test]
fn a_drives_limit_is_as_fast_as_it_says() {
    let dir = tempfile::tempdir().unwrap();
    for engine in ENGINES {
        // 40 reads of a sector: ten at once, then one every ten milliseconds.
        for (bucket, size) in [("ops", 10), ("bandwidth", 5120)] {
            let disk = Disk::sparse(dir.path(), &format!("{engine}-{bucket}"), MIB).unwrap();
            let vmm = configured(&Job::new(Mode::Busy { ops: 40 }));
            limited_drive(&vmm, &disk, engine, &json!({bucket: {"size": size, "refill_time": 100}}));
            let begun = Instant::now();
            run(&vmm);
            assert!(begun.elapsed() >= Duration::from_millis(290), "{engine} {bucket}: {:?}", begun.elapsed());
        }
    }
}

#[test]
fn a_burst_is_for_once() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", MIB).unwrap();
    let vmm = configured(&Job::new(Mode::Busy { ops: 40 }));
    let limiter = json!({"ops": {"size": 1, "one_time_burst": 38, "refill_time": 500}});
    limited_drive(&vmm, &disk, "Sync", &limiter);
    let begun = Instant::now();
    run(&vmm);
    assert!(begun.elapsed() >= Duration::from_millis(450), "too fast: {:?}", begun.elapsed());
}

#[test]
fn sending_is_limited_until_it_is_not() {
    let tap = network("mflimtx");
    let socket = tap.packets().unwrap();
    let vmm = configured(&Job::new(Mode::BenchNet { direction: Direction::Tx, size: 100, packets: 200 }));
    attach(&vmm, &tap);
    limit_interface(&vmm, tap.name(), &json!(null), &once(10));
    vmm.instance_start();
    assert_eq!(count_frames(&socket, 10, PATIENCE), 10, "{}", vmm.said());
    assert_eq!(count_frames(&socket, 1, Duration::from_millis(300)), 0, "beyond the limit");
    // The other direction is none of its business.
    vmm.patch("/network-interfaces/eth0", &json!({"iface_id": "eth0", "rx_rate_limiter": nothing()})).expect_204();
    assert_eq!(count_frames(&socket, 1, Duration::from_millis(100)), 0, "beyond the limit");
    vmm.patch("/network-interfaces/eth0", &json!({"iface_id": "eth0", "tx_rate_limiter": nothing()})).expect_204();
    assert_eq!(count_frames(&socket, 190, PATIENCE), 190, "{}", vmm.said());
    assert_eq!(number(&finish(&vmm), "packets"), 200);
}

#[test]
fn receiving_is_limited_until_it_is_not() {
    let tap = network("mflimrx");
    let socket = tap.packets().unwrap();
    let job = Job::new(Mode::BenchNet { direction: Direction::Rx, size: 100, packets: 50 });
    let vmm = configured(&job.with("idle_ms", 20_000));
    attach(&vmm, &tap);
    limit_interface(&vmm, tap.name(), &once(5), &json!(null));
    let metrics = measured(&vmm);
    vmm.instance_start();
    vmm.wait_for_line("net=listening", PATIENCE);
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9]);
    frame.extend(BENCH_TYPE);
    frame.resize(100, 0);
    (0..50).for_each(|_| socket.send(&frame).unwrap());
    (0..50).for_each(|_| drop(vmm.get("/").expect_200()));
    assert!(!vmm.console().text().contains("packets="), "no limit at all: {}", vmm.said());
    vmm.patch("/network-interfaces/eth0", &json!({"iface_id": "eth0", "rx_rate_limiter": nothing()})).expect_204();
    let report = finish(&vmm);
    assert_eq!((number(&report, "packets"), number(&report, "stalled")), (50, 0));
    let total = |field| metrics::total(&metrics, "net_eth0", field);
    assert_eq!((total("rx_packets_count"), total("rx_rate_limiter_throttled")), (50, 1));
    assert_eq!(total("rx_event_rate_limiter_count"), 1);
}

#[test]
fn a_paused_machine_does_not_move_and_its_limits_go_on() {
    let tap = network("mflimpause");
    let socket = tap.packets().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", MIB).unwrap();
    let vmm = configured(&Job::new(Mode::Busy { ops: 60 }));
    let limiter = json!({"ops": {"size": 1, "refill_time": 30}});
    limited_drive(&vmm, &disk, "Async", &limiter);
    attach(&vmm, &tap);
    limit_interface(&vmm, tap.name(), &json!(null), &limiter);
    vmm.instance_start();
    assert_eq!(count_frames(&socket, 5, PATIENCE), 5, "{}", vmm.said());
    for round in 0..3 {
        vmm.patch("/vm", &json!({"state": "Paused"})).expect_204();
        count_frames(&socket, 100, Duration::ZERO);
        assert_eq!(count_frames(&socket, 1, Duration::from_millis(150)), 0, "round {round}: it moves");
        vmm.patch("/vm", &json!({"state": "Resumed"})).expect_204();
        assert_eq!(count_frames(&socket, 3, PATIENCE), 3, "round {round}: {}", vmm.said());
    }
    assert_eq!(number(&finish(&vmm), "reads"), 60);
}

#[test]
fn the_consoles_limit_drops_and_holds_nobody_up() {
    let vmm = configured(&Job::new(Mode::Hostile("g23-serial-flood".to_owned())).with("bytes", 20_000));
    let out = vmm.file("console", b"");
    let bucket = json!({"size": 1000, "one_time_burst": 500, "refill_time": 3_600_000_000_u64});
    vmm.put("/serial", &json!({"serial_out_path": out, "rate_limiter": bucket})).expect_204();
    let metrics = measured(&vmm);
    vmm.instance_start();
    assert_eq!(vmm.wait_exit(PATIENCE), 0, "{}", vmm.said());
    assert_eq!(std::fs::metadata(&out).unwrap().len(), 1500);
    let dropped = metrics::total(&metrics, "uart", "rate_limiter_dropped_bytes");
    assert!((18_500..20_000).contains(&dropped), "{dropped} bytes dropped");
    assert_eq!(metrics::total(&metrics, "uart", "error_count"), 0);
}

/// G30: one processor burns and asks for more than there is, of every device that has a limiter.
#[test]
fn g30_limits_hold_at_no_cost_against_a_busy_guest() {
    const OPS: u64 = 30;
    const EACH_MS: u64 = 100;
    let tap = network("mfg30");
    let dir = tempfile::tempdir().unwrap();
    let limiter = json!({"ops": {"size": 1, "refill_time": EACH_MS}});
    let threads = |vmm: &Vmm| -> (u64, u64) {
        let names = [VMM_THREAD, "io 0"];
        let deadline = Instant::now() + PATIENCE;
        // A thread takes its name when it first runs, which on a busy machine may be after the guest's first line.
        while !names.iter().all(|name| thread_ticks(vmm, name).is_some()) {
            assert!(Instant::now() < deadline, "{}", vmm.said());
        }
        let ticks = names.iter().map(|name| thread_ticks(vmm, name).unwrap()).sum();
        (ticks, names.iter().map(|name| wake_ups(vmm, name)).sum())
    };
    for (engine, kicks) in [("Sync", false), ("Async", false), ("Sync", true), ("Async", true)] {
        let disk = Disk::sparse(dir.path(), &format!("{engine}-{kicks}"), MIB).unwrap();
        let vmm = configured(&Job::new(Mode::Busy { ops: OPS }).with("kicks", u8::from(kicks)).end(guest::End::Spin));
        limited_drive(&vmm, &disk, engine, &limiter);
        vmm.put("/entropy", &json!({"rate_limiter": limiter})).expect_204();
        attach(&vmm, &tap);
        limit_interface(&vmm, tap.name(), &limiter, &limiter);
        let metrics = measured(&vmm);
        vmm.instance_start();
        let begun = Instant::now();
        vmm.wait_for_line("busy=started", PATIENCE);
        let bar = PassBar::before(&vmm);
        let before = threads(&vmm);
        (0..5).for_each(|_| answers_quickly(&vmm));
        vmm.wait_for_line("busy=ended", PATIENCE);
        let elapsed = begun.elapsed();
        let after = threads(&vmm);

        let report = Report::parse(&vmm.console().text());
        let [reads, errors, frames, draws] = ["reads", "errors", "frames", "draws"].map(|key| number(&report, key));
        assert_eq!((reads, errors), (OPS, 0));
        // In the time since before the first one, no device can have done more than this.
        let most = elapsed.as_millis() as u64 / EACH_MS + 1;
        for (what, count) in [("reads", reads), ("frames", frames), ("draws", draws)] {
            assert!(count <= most, "{engine}: {count} {what} in {elapsed:?}, at most {most}");
            // All have the same limit, so they keep step, however slow this machine is.
            assert!(count * 10 >= OPS * 8, "{engine}: {count} {what} beside {OPS} reads");
        }
        if !kicks {
            // A timer, a doorbell and a completion for each operation, and the requests of ours; a busy loop wakes up all the time.
            let (ticks, wake_ups) = (after.0 - before.0, after.1 - before.1);
            assert!(wake_ups < 20 * OPS, "{engine}: {wake_ups} wake-ups for {OPS} operations");
            assert!(u128::from(ticks) * 10 < elapsed.as_millis() / 10, "{engine}: {ticks} ticks in {elapsed:?}");
        }
        flush_metrics(&vmm);
        let most = begun.elapsed().as_millis() as u64 / EACH_MS + 1;
        for (group, throttled, event) in [
            ("block_d", "rate_limiter_throttled_events", "rate_limiter_event_count"),
            ("net_eth0", "tx_rate_limiter_throttled", "tx_rate_limiter_event_count"),
            ("entropy", "entropy_rate_limiter_throttled", "rate_limiter_event_count"),
        ] {
            // Each refusal waits for one report of the timer.
            let counts = [throttled, event].map(|field| metrics::total(&metrics, group, field));
            assert!(
                counts.iter().all(|count| *count * 10 >= OPS * 8 && *count <= most),
                "{engine}: {group}: {counts:?}"
            );
        }
        let reads = metrics::total(&metrics, "block_d", "read_count");
        assert_eq!(metrics::total(&metrics, "block_d", "read_bytes"), 512 * reads);
        let timed: u64 =
            metrics::lines(&metrics).iter().map(|l| l["block_d"]["read_agg"]["sum_us"].as_u64().unwrap()).sum();
        assert!(timed > 0, "{engine}: {reads} reads took no time");
        bar.check(&vmm, LINES_MAX);
    }
}
