//! The entropy device: random bytes as asked for, a limit that holds, and G14.

use std::time::{Duration, Instant};

use guest::{Job, Mode};
use mayfly_tests::metrics;
use serde_json::json;

use super::{configured, measured, number, run};

const REQUEST_MAX: u64 = 64 << 10;

#[test]
fn the_guest_gets_random_bytes() {
    for (requests, len) in [(5000, 64), (300, 4096), (20, 2 * REQUEST_MAX)] {
        let vmm = configured(&Job::new(Mode::Rng { requests, len }));
        vmm.put("/entropy", &json!({})).expect_204();
        let file = measured(&vmm);
        let report = run(&vmm);
        let total = |field: &str| metrics::total(&file, "entropy", field);
        let each = len.min(REQUEST_MAX);
        assert_eq!(number(&report, "queue_max"), 256);
        let facts = ["requests", "bytes", "longest", "empty", "suspicious", "stalled"].map(|key| number(&report, key));
        assert_eq!(facts, [requests, requests * each, each, 0, 0, 0], "{report:?}");
        assert_eq!(total("entropy_bytes"), requests * each);
        assert_eq!((total("entropy_event_fails"), total("host_rng_fails")), (0, 0));
        // Half of the bits, within ten standard deviations.
        let bits = (8 * requests * each) as f64;
        let off = number(&report, "ones") as f64 - bits / 2.0;
        assert!(off.abs() < 10.0 * bits.sqrt() / 2.0, "{off} of {bits} bits too many");
    }
}

#[test]
fn a_limit_holds() {
    // 40 requests; ten at once, then one every ten milliseconds.
    for bucket in ["ops", "bandwidth"] {
        let size = if bucket == "ops" { 10 } else { 640 };
        let vmm = configured(&Job::new(Mode::Rng { requests: 40, len: 64 }));
        vmm.put("/entropy", &json!({"rate_limiter": {bucket: {"size": size, "refill_time": 100}}})).expect_204();
        let begun = Instant::now();
        let report = run(&vmm);
        assert_eq!((number(&report, "bytes"), number(&report, "stalled")), (40 * 64, 0), "{bucket}");
        assert!(begun.elapsed() >= Duration::from_millis(300), "{bucket}: too fast: {:?}", begun.elapsed());
    }
}

#[test]
fn without_a_request_there_is_no_device() {
    let vmm = configured(&Job::new(Mode::Rng { requests: 1, len: 64 }));
    vmm.instance_start();
    vmm.wait_for_line("error=no-entropy-device", mayfly_tests::PATIENCE);
}
