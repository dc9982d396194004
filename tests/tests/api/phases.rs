//! Every request in every phase a client can see (threats A5).

use mayfly_tests::{Disk, Response, Tap, Vmm, VmmBuilder, binary};
use serde_json::{Value, json};

use crate::{SPIN, guest_kernel};

const BEFORE: &str = "The requested operation is not supported before starting the microVM.";
const AFTER: &str = "The requested operation is not supported after starting the microVM.";
const NO_PCI: &str = "PCI is not enabled";
const NO_BALLOON: &str = "No balloon device found.";
const NO_MEMORY: &str = "No memory hotplug device found.";
const LARGE: &str = "Amount of pages requested is too large.";

/// What a phase answers.
#[derive(Debug, Clone, Copy)]
enum Expected {
    Found,
    Done,
    Fault(&'static str),
}
use Expected::{Done, Fault, Found};

struct Row {
    method: &'static str,
    path: &'static str,
    body: Option<Value>,
    configuring: Expected,
    started: Expected,
}

fn rows(kernel: &str, disk: &str, serial: &str, tap: &str) -> Vec<Row> {
    let row = |method, path, body, configuring, started| Row { method, path, body, configuring, started };
    let configure = |path, body| row("PUT", path, Some(body), Done, Fault(AFTER));
    vec![
        row("GET", "/", None, Found, Found),
        row("GET", "/version", None, Found, Found),
        row("GET", "/vm/config", None, Found, Found),
        row("GET", "/machine-config", None, Found, Found),
        configure("/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 64})),
        row("PATCH", "/machine-config", Some(json!({"mem_size_mib": 128})), Done, Fault(AFTER)),
        configure("/boot-source", json!({"kernel_image_path": kernel, "boot_args": SPIN})),
        configure("/drives/data", json!({"drive_id": "data", "path_on_host": disk, "is_root_device": false})),
        configure("/network-interfaces/eth0", json!({"iface_id": "eth0", "host_dev_name": tap})),
        configure("/serial", json!({"serial_out_path": serial})),
        configure("/logger", json!({"level": "Info"})),
        configure("/metrics", json!({"metrics_path": format!("{disk}.metrics")})),
        row("PATCH", "/drives/data", Some(json!({"drive_id": "data", "path_on_host": disk})), Fault(BEFORE), Done),
        row("DELETE", "/drives/data", None, Fault(BEFORE), Fault(NO_PCI)),
        row("PATCH", "/network-interfaces/eth0", Some(json!({"iface_id": "eth0"})), Fault(BEFORE), Done),
        row("DELETE", "/network-interfaces/eth0", None, Fault(BEFORE), Fault(NO_PCI)),
        row("PUT", "/actions", Some(json!({"action_type": "SendCtrlAltDel"})), Fault(BEFORE), Done),
        row("PUT", "/actions", Some(json!({"action_type": "FlushMetrics"})), Fault(BEFORE), Done),
        row("GET", "/balloon", None, Fault(NO_BALLOON), Fault(NO_BALLOON)),
        row("PATCH", "/balloon", Some(json!({"amount_mib": 1})), Fault(BEFORE), Fault(NO_BALLOON)),
        row("GET", "/balloon/statistics", None, Fault(BEFORE), Fault(NO_BALLOON)),
        row(
            "PATCH",
            "/balloon/statistics",
            Some(json!({"stats_polling_interval_s": 1})),
            Fault(BEFORE),
            Fault(NO_BALLOON),
        ),
        row("PATCH", "/balloon/hinting/start", None, Fault(BEFORE), Fault(NO_BALLOON)),
        row("PATCH", "/balloon/hinting/stop", None, Fault(BEFORE), Fault(NO_BALLOON)),
        row("GET", "/balloon/hinting/status", None, Fault(BEFORE), Fault(NO_BALLOON)),
        row(
            "PUT",
            "/balloon",
            Some(json!({"amount_mib": 1 << 30, "deflate_on_oom": true})),
            Fault(LARGE),
            Fault(AFTER),
        ),
        configure("/entropy", json!({"rate_limiter": {"ops": {"size": 1, "refill_time": 1}}})),
        configure("/pmem/pmem", json!({"id": "pmem", "path_on_host": disk})),
        row("PATCH", "/pmem/pmem", Some(json!({"id": "pmem"})), Fault(BEFORE), Done),
        row("DELETE", "/pmem/pmem", None, Fault(BEFORE), Fault(NO_PCI)),
        // What is wrong in itself is refused for its phase first.
        row(
            "PUT",
            "/vsock",
            Some(json!({"guest_cid": 2, "uds_path": ""})),
            Fault("guest_cid 2 is reserved"),
            Fault(AFTER),
        ),
        row("PUT", "/drives/x", Some(json!({"drive_id": "x", "is_root_device": true})), Fault("missing"), Fault(AFTER)),
        row("GET", "/hotplug/memory", None, Fault(BEFORE), Fault(NO_MEMORY)),
        row("PATCH", "/hotplug/memory", Some(json!({"requested_size_mib": 0})), Fault(BEFORE), Fault(NO_MEMORY)),
        row("PUT", "/hotplug/memory", Some(json!({"total_size_mib": 1})), Fault("Total size"), Fault(AFTER)),
        row("GET", "/mmds", None, Found, Found),
        row("PUT", "/mmds", Some(json!({"a": 1})), Done, Done),
        row("PATCH", "/mmds", Some(json!({"a": 2})), Done, Done),
        configure("/mmds/config", json!({"network_interfaces": ["eth0"], "version": "V2"})),
        row(
            "PUT",
            "/mmds/config",
            Some(json!({"network_interfaces": []})),
            Fault("The list of network interface IDs that allow forwarding MMDS requests is empty."),
            Fault(AFTER),
        ),
        row("GET", "/nothing", None, Fault("Invalid request method"), Fault("Invalid request method")),
    ]
}

/// Sends every row's request in the phase the machine is in. Running and paused machines answer the same.
fn check(vmm: &Vmm, rows: &[Row], phase: &str) {
    for row in rows {
        let expected = if phase == "Not started" { row.configuring } else { row.started };
        let before = vmm.get("/vm/config").expect_200();
        let body = row.body.as_ref().map(Value::to_string);
        let reply = vmm.request(row.method, row.path, body.as_deref());
        let what = format!("{} {} while {phase}: {}", row.method, row.path, reply.text());
        match expected {
            Found => assert_eq!(reply.status, 200, "{what}"),
            Done => assert_eq!(reply.status, 204, "{what}"),
            Fault(text) => {
                assert_eq!(reply.status, 400, "{what}");
                assert!(reply.fault().is_some_and(|fault| fault.contains(text)), "{what}");
                assert_eq!(vmm.get("/vm/config").expect_200(), before, "changed by a refused {what}");
            }
        }
        assert_eq!(vmm.get("/").expect_200()["state"], phase, "{what}");
    }
}

fn state(vmm: &Vmm, state: &str) -> Response {
    vmm.patch("/vm", &json!({"state": state}))
}

#[test]
fn every_request_in_every_phase() {
    binary::require_kvm();
    let tap = Tap::create("mflyphases").expect("a tap");
    let builder = VmmBuilder::new();
    let kernel = guest_kernel(&builder);
    let disk = Disk::sparse(builder.dir(), "disk", 1 << 20).unwrap();
    let serial = builder.dir().join("console");
    let rows = rows(kernel.to_str().unwrap(), disk.path().to_str().unwrap(), serial.to_str().unwrap(), tap.name());
    let vmm = builder.start();
    check(&vmm, &rows, "Not started");
    state(&vmm, "Paused").expect_fault(BEFORE);
    state(&vmm, "Resumed").expect_fault(BEFORE);

    vmm.instance_start();
    check(&vmm, &rows, "Running");
    vmm.put("/actions", &json!({"action_type": "InstanceStart"})).expect_fault(AFTER);
    state(&vmm, "Resumed").expect_204();

    state(&vmm, "Paused").expect_204();
    check(&vmm, &rows, "Paused");
    vmm.put("/actions", &json!({"action_type": "InstanceStart"})).expect_fault(AFTER);
    state(&vmm, "Paused").expect_204();

    state(&vmm, "Resumed").expect_204();
    assert_eq!(vmm.get("/").expect_200()["state"], "Running");
}

#[test]
fn a_start_that_fails_can_be_mended_and_tried_again() {
    binary::require_kvm();
    let builder = VmmBuilder::new();
    let kernel = guest_kernel(&builder);
    let broken = builder.file("broken", b"this is not a kernel");
    let vmm = builder.start();
    let start = json!({"action_type": "InstanceStart"});
    vmm.put("/actions", &start).expect_fault("Start microvm error: ");
    vmm.boot_source(&broken, SPIN);
    vmm.put("/actions", &start).expect_fault("Start microvm error: ");
    // More memory than any host has.
    vmm.boot_source(&kernel, SPIN);
    vmm.machine(1, 1_u64 << 40);
    vmm.put("/actions", &start).expect_fault("Start microvm error: ");
    vmm.machine(1, 64);
    assert_eq!(vmm.get("/").expect_200()["state"], "Not started");
    vmm.instance_start();
    assert_eq!(vmm.get("/").expect_200()["state"], "Running");
}

#[test]
fn clients_that_race_are_served_one_after_the_other() {
    binary::require_kvm();
    let builder = VmmBuilder::new();
    let kernel = guest_kernel(&builder);
    let vmm = builder.start();
    vmm.boot_source(&kernel, SPIN);
    let started: usize = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = vmm.client();
                    let body = r#"{"action_type": "InstanceStart"}"#;
                    let reply = client.request("PUT", "/actions", Some(body)).unwrap();
                    match reply.status {
                        204 => 1,
                        _ => {
                            reply.expect_fault(AFTER);
                            0
                        }
                    }
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).sum()
    });
    assert_eq!(started, 1, "exactly one start wins");
    std::thread::scope(|scope| {
        for turn in 0..8 {
            let vmm = &vmm;
            scope.spawn(move || {
                let body = json!({"state": if turn % 2 == 0 { "Paused" } else { "Resumed" }}).to_string();
                for _ in 0..20 {
                    vmm.client().request("PATCH", "/vm", Some(&body)).unwrap().expect_204();
                }
            });
        }
    });
    state(&vmm, "Resumed").expect_204();
    assert_eq!(vmm.get("/").expect_200()["state"], "Running");
}
