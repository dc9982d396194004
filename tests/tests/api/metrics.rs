//! The metrics file: when there are lines, what they count, and what happens when nobody takes them (threats A13).
//!
//! Which groups and fields there are is written down in [`mayfly_tests::metrics`], which refuses every line that has more or less.

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use mayfly_tests::{Disk, PATIENCE, Tap, Vmm, VmmBuilder, binary, metrics};
use serde_json::{Value, json};

use crate::{SPIN, configured, fifo, guest_kernel};

fn flush(vmm: &Vmm) -> mayfly_tests::Response {
    vmm.put("/actions", &json!({"action_type": "FlushMetrics"}))
}

/// A small machine whose metrics go to `file`, not started.
fn measured(builder: VmmBuilder, file: &Path) -> Vmm {
    binary::require_kvm();
    let vmm = configured(builder);
    vmm.put("/metrics", &json!({"metrics_path": file})).expect_204();
    vmm
}

fn number(line: &Value, group: &str, field: &str) -> u64 {
    line[group][field].as_u64().unwrap_or_else(|| panic!("no {group}.{field} in {line}"))
}

/// Everything that is in a FIFO.
fn drain(path: &Path) -> String {
    let mut file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    let mut bytes = Vec::new();
    // Ends with EAGAIN, as the monitor still has it open.
    let _ = file.read_to_end(&mut bytes);
    String::from_utf8(bytes).unwrap()
}

#[test]
fn one_line_at_the_start_one_for_each_flush_and_one_at_the_end() {
    let builder = VmmBuilder::new();
    let file = builder.dir().join("metrics");
    let vmm = measured(builder, &file);
    assert_eq!(metrics::lines(&file).len(), 0, "before the start there is nothing to tell");
    vmm.instance_start();
    let lines = metrics::lines(&file);
    assert_eq!(lines.len(), 1, "exactly one line after the start");
    assert!(metrics::age_ms(&lines[0]) < 1000, "{}", lines[0]["utc_timestamp_ms"]);
    for count in 2..5 {
        flush(&vmm).expect_204();
        assert_eq!(metrics::lines(&file).len(), count);
    }
    vmm.signal(libc::SIGTERM);
    vmm.wait_exit(PATIENCE);
    assert_eq!(metrics::lines(&file).len(), 5, "one more at the end");
}

/// Counters say what has been added since the line before.
#[test]
fn requests_are_counted_by_route_and_outcome() {
    let builder = VmmBuilder::new();
    let file = builder.dir().join("metrics");
    let vmm = measured(builder, &file);
    vmm.put("/machine-config", &json!({"vcpu_count": 0, "mem_size_mib": 64})).expect_fault("vCPUs");
    vmm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "None"})).expect_204();
    vmm.put("/vsock", &json!({"guest_cid": 1, "uds_path": "/v", "vsock_id": "v"})).expect_fault("reserved");
    vmm.patch("/drives/none", &json!({"drive_id": "none"})).expect_fault("before starting");
    for _ in 0..3 {
        vmm.get("/version").expect_200();
        vmm.get("/mmds").expect_200();
    }
    vmm.get("/machine-config").expect_200();
    vmm.instance_start();
    for _ in 0..2 {
        vmm.get("/hotplug/memory").expect_fault("No memory hotplug device found.");
    }
    vmm.put("/metrics", &json!({"metrics_path": "/x"})).expect_fault("after starting");
    flush(&vmm).expect_204();
    flush(&vmm).expect_204();
    let lines = metrics::lines(&file);
    for (line, group, field, expected) in [
        (0, "put_api_requests", "machine_cfg_count", 3),
        (0, "put_api_requests", "machine_cfg_fails", 1),
        (0, "put_api_requests", "boot_source_count", 1),
        (0, "put_api_requests", "metrics_count", 1),
        (0, "put_api_requests", "vsock_count", 1),
        (0, "put_api_requests", "vsock_fails", 1),
        (0, "patch_api_requests", "drive_count", 1),
        (0, "patch_api_requests", "drive_fails", 1),
        (0, "get_api_requests", "vmm_version_count", 3),
        (0, "get_api_requests", "mmds_count", 3),
        (0, "get_api_requests", "machine_cfg_count", 1),
        (0, "deprecated_api", "deprecated_http_api_calls", 2),
        (1, "get_api_requests", "hotplug_memory_count", 2),
        (1, "get_api_requests", "vmm_version_count", 0),
        (1, "put_api_requests", "metrics_fails", 1),
        (1, "put_api_requests", "machine_cfg_count", 0),
        // The start has been answered by then, and the flush itself has not.
        (1, "put_api_requests", "actions_count", 1),
        (1, "deprecated_api", "deprecated_http_api_calls", 0),
        (2, "put_api_requests", "actions_count", 1),
    ] {
        assert_eq!(number(&lines[line], group, field), expected, "{group}.{field} of line {line}");
    }
}

#[test]
fn devices_have_a_group_each_and_labels_are_in_every_line() {
    let tap = Tap::create("mflymetrics").expect("a tap");
    let builder = VmmBuilder::new().args(["--id", "vm-7"]);
    let kernel = guest_kernel(&builder);
    let file = builder.dir().join("metrics");
    let disk = Disk::sparse(builder.dir(), "disk", 2 << 20).unwrap();
    let vmm = builder.start();
    let labels = json!({"rack": "7", "quote": "\"\n"});
    vmm.put("/metrics", &json!({"metrics_path": file, "emit_id": true, "properties": labels})).expect_204();
    vmm.boot_source(&kernel, SPIN);
    vmm.machine(1, 64);
    vmm.drive("a", disk.path(), "Sync");
    vmm.drive("b", disk.path(), "Async");
    vmm.put("/network-interfaces/n", &json!({"iface_id": "n", "host_dev_name": tap.name()})).expect_204();
    vmm.put("/pmem/p", &json!({"id": "p", "path_on_host": disk.path()})).expect_204();
    vmm.put("/balloon", &json!({"amount_mib": 1, "deflate_on_oom": true})).expect_204();
    vmm.put("/entropy", &json!({})).expect_204();
    vmm.put("/vsock", &json!({"guest_cid": 3, "uds_path": vmm.dir().join("v.sock")})).expect_204();
    vmm.put("/hotplug/memory", &json!({"total_size_mib": 128})).expect_204();
    vmm.instance_start();
    vmm.patch("/drives/a", &json!({"drive_id": "a", "path_on_host": disk.path()})).expect_204();
    flush(&vmm).expect_204();
    // That sums are those of the devices, and that there is nothing else, has been checked by the reader.
    let lines = metrics::lines(&file);
    assert_eq!(lines.len(), 2);
    for line in &lines {
        assert_eq!((&line["id"], &line["properties"]), (&json!("vm-7"), &labels));
        for group in ["block_a", "block_b", "net_n", "pmem_p"] {
            assert!(line[group].is_object(), "{group}");
        }
    }
    assert_eq!(number(&lines[1], "block_a", "update_count"), 1);
    assert_eq!(number(&lines[1], "block", "update_count"), 1);
    assert_eq!(number(&lines[1], "block_b", "update_count"), 0);
}

#[test]
fn a_second_metrics_file_is_refused_however_the_first_was_named() {
    let again = "Metrics error: Reinitialization of metrics not allowed.";
    let builder = VmmBuilder::new();
    let [first, second] = ["first", "second"].map(|name| builder.dir().join(name));
    let vmm = builder.arg("--metrics-path").arg(&first).start();
    vmm.put("/metrics", &json!({"metrics_path": second})).expect_fault(again);
    let vmm = Vmm::start();
    vmm.put("/metrics", &json!({"metrics_path": vmm.dir()}))
        .expect_fault("Metrics error: Cannot open the metrics file");
    vmm.put("/metrics", &json!({"metrics_path": first, "unknown": "ignored"})).expect_204();
    vmm.put("/metrics", &json!({"metrics_path": second})).expect_fault(again);
    assert!(!second.exists(), "a refused request made a file");
}

/// A13: a FIFO that nobody reads takes what it holds; the rest is lost, counted, and holds nobody up.
#[test]
fn lines_that_a_full_fifo_does_not_take_are_counted() {
    let builder = VmmBuilder::new();
    let file = fifo(builder.dir(), "metrics.fifo");
    let vmm = measured(builder, &file);
    vmm.instance_start();
    let lost = (0..100).filter(|_| flush(&vmm).status == 400).count();
    assert!(lost > 0, "a FIFO holds 64 KiB");
    assert_eq!(vmm.get("/").expect_200()["state"], "Running");
    let taken = drain(&file);
    flush(&vmm).expect_204();
    let text = taken + &drain(&file);
    let lines: Vec<Value> = text.lines().map(metrics::line).collect();
    let missed: u64 = lines.iter().map(|line| number(line, "logger", "missed_metrics_count")).sum();
    assert_eq!(missed, lost as u64);
    // Nothing that was counted in a lost line is lost.
    let actions: u64 = lines.iter().map(|line| number(line, "put_api_requests", "actions_count")).sum();
    assert_eq!(actions, 101, "the start and a hundred flushes");
}

/// A13: a disk that is full, here of the metrics and then of the log.
#[test]
fn a_full_disk_does_not_touch_the_machine_and_is_counted() {
    let vmm = measured(VmmBuilder::new(), Path::new("/dev/full"));
    vmm.instance_start();
    flush(&vmm).expect_fault("The metrics could not be written: ");
    assert_eq!(vmm.get("/").expect_200()["state"], "Running");
    vmm.signal(libc::SIGTERM);
    assert_eq!(vmm.wait_exit(PATIENCE), 143);

    let builder = VmmBuilder::new();
    let file = builder.dir().join("metrics");
    let vmm = measured(builder, &file);
    vmm.put("/logger", &json!({"log_path": "/dev/full"})).expect_204();
    vmm.instance_start();
    (0..10).for_each(|_| drop(vmm.get("/version").expect_200()));
    flush(&vmm).expect_204();
    let missed: u64 = metrics::total(&file, "logger", "missed_log_count");
    assert!(missed >= 20, "two lines for each of ten requests, but {missed} were missed");
}

/// A13: a reader that goes away, and one that comes back.
#[test]
fn a_reader_may_come_and_go() {
    let builder = VmmBuilder::new();
    let [reports, log] = ["metrics.fifo", "log.fifo"].map(|name| fifo(builder.dir(), name));
    let vmm = measured(builder, &reports);
    vmm.put("/logger", &json!({"log_path": log})).expect_204();
    vmm.instance_start();
    for _ in 0..3 {
        flush(&vmm).expect_204();
        assert!(drain(&reports).lines().map(metrics::line).count() >= 1);
        assert!(drain(&log).contains("/actions"));
    }
    assert_eq!(vmm.get("/").expect_200()["state"], "Running");
}
