//! Drives with several queues: what goes through either is in one file, and one budget holds for both.

use guest::{Job, Mode, Report, pattern};
use mayfly_tests::{Disk, Vmm, metrics};
use serde_json::{Value, json};

use super::pass_bar::RAM_MIB;
use super::{configured, flush_metrics, measured, number, run};

const ENGINES: [&str; 2] = ["Sync", "Async"];
const SECTOR: usize = 512;
const SECTORS: u64 = 2048;

/// A machine with so many vCPUs that uses two queues of its drive.
fn two_queues(disk: &Disk, engine: &str, write: bool, cpus: u8, more: Value) -> Vmm {
    let vmm = configured(&Job::new(Mode::BlockQueues { write, sectors: SECTORS, seed: 11, cpus }));
    vmm.machine(cpus, RAM_MIB);
    let mut drive = json!({
        "drive_id": "d", "path_on_host": disk.path(), "is_root_device": false, "io_engine": engine, "num_queues": 2,
    });
    drive.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    vmm.put("/drives/d", &drive).expect_204();
    vmm
}

/// Requests, errors and mismatches of each queue.
fn tallies(report: &Report) -> Vec<[u64; 3]> {
    report
        .with_key("requests")
        .map(|line| ["requests", "errors", "mismatches"].map(|key| line.number(key).expect(key)))
        .collect()
}

fn expected() -> Vec<u8> {
    let mut bytes = vec![0; SECTORS as usize * SECTOR];
    for (sector, chunk) in (0..).zip(bytes.chunks_exact_mut(SECTOR)) {
        pattern::fill(11, sector, chunk);
    }
    bytes
}

#[test]
fn both_queues_write_and_read_one_disk() {
    let dir = tempfile::tempdir().unwrap();
    for engine in ENGINES {
        for cpus in [1, 2] {
            let disk = Disk::sparse(dir.path(), &format!("{engine}{cpus}"), 4 << 20).unwrap();
            let report = run(&two_queues(&disk, engine, true, cpus, json!({})));
            assert_eq!((number(&report, "mq"), number(&report, "queues")), (1, 2), "{report:?}");
            assert_eq!(tallies(&report), [[SECTORS / 16, 0, 0]; 2], "{engine}, {cpus} vCPUs: {report:?}");
            assert!(disk.read(0, SECTORS as usize * SECTOR).unwrap() == expected(), "{engine}, {cpus} vCPUs");
            let vmm = two_queues(&disk, engine, false, cpus, json!({}));
            let file = measured(&vmm);
            let report = run(&vmm);
            assert_eq!(tallies(&report), [[SECTORS / 16, 0, 0]; 2], "{engine}, {cpus} vCPUs: {report:?}");
            // One group, whichever queue it was.
            assert_eq!(metrics::total(&file, "block_d", "read_count"), SECTORS / 8);
            // The same with a byte off in what the second queue reads must be noticed, or this proves nothing.
            disk.write(9 * SECTOR as u64, &[0xff ^ expected()[9 * SECTOR]]).unwrap();
            let report = run(&two_queues(&disk, engine, false, cpus, json!({})));
            assert_eq!(tallies(&report), [[SECTORS / 16, 0, 0], [SECTORS / 16, 0, 1]], "{report:?}");
        }
    }
}

/// As many as the bucket holds are done, from whichever queue.
#[test]
fn a_rate_limit_is_the_drives() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "d", 4 << 20).unwrap();
    let limiter = json!({"rate_limiter": {"ops": {"size": 50, "refill_time": 3_600_000}}});
    let vmm = two_queues(&disk, "Sync", false, 2, limiter);
    let file = measured(&vmm);
    vmm.instance_start();
    let begun = std::time::Instant::now();
    loop {
        flush_metrics(&vmm);
        let count = metrics::total(&file, "block_d", "read_count");
        let throttled = metrics::total(&file, "block_d", "rate_limiter_throttled_events");
        assert!(count <= 50, "{count} requests");
        // Both queues have met the end of it.
        if count == 50 && throttled >= 2 {
            break;
        }
        assert!(begun.elapsed() < mayfly_tests::PATIENCE, "{count} requests, stopped {throttled} times");
        std::thread::yield_now();
    }
}
