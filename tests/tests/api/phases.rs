//! Every request in every phase a client can see (threats A5, A6): the rows of [`crate::table`], and what goes through phases.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use mayfly_tests::{Disk, Response, Tap, Vmm, VmmBuilder, binary};
use serde_json::{Value, json};

use crate::table::wrong::{BORROWED, NOWHERE, WRONG};
use crate::table::{AFTER, Answer, BEFORE, Row, World, rows};
use crate::{SPIN, configured, guest_kernel};

const METHODS: [&str; 4] = ["GET", "PUT", "PATCH", "DELETE"];

fn world(builder: &VmmBuilder, tap: &str) -> World {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    World {
        kernel: text(&guest_kernel(builder)),
        disk: text(Disk::sparse(builder.dir(), "disk", 2 << 20).unwrap().path()),
        tap: tap.to_owned(),
        console: text(&builder.dir().join("console")),
        vsock: text(&builder.dir().join("v.sock")),
    }
}

/// Sends every row's request to a machine in `phase` and tells of all that are not answered as they should be.
fn check<'r>(vmm: &Vmm, rows: impl IntoIterator<Item = (&'r Row, Answer)>, phase: &str) {
    let wrong: Vec<String> = rows.into_iter().filter_map(|(row, answer)| complaint(vmm, row, answer, phase)).collect();
    assert!(wrong.is_empty(), "while {phase}:\n{}\n{}", wrong.join("\n"), vmm.said());
}

fn complaint(vmm: &Vmm, row: &Row, answer: Answer, phase: &str) -> Option<String> {
    if matches!(answer, Answer::NotSent) {
        return None;
    }
    let before = vmm.get("/vm/config").expect_200();
    let body = row.body.as_ref().map(Value::to_string);
    let reply = vmm.request(row.method, row.path, body.as_deref());
    let fault = reply.fault().unwrap_or_default();
    let right = match answer {
        Answer::NotSent => true,
        Answer::Found => reply.status == 200 && reply.json().is_object(),
        Answer::Done => reply.status == 204 && reply.body.is_empty(),
        Answer::Fault(text) => reply.status == 400 && fault == text,
        Answer::Begins(text) => reply.status == 400 && fault.starts_with(text),
        Answer::Json(why) => {
            let words = format!("An error occurred when deserializing the json body of a request: {why}");
            reply.status == 400 && fault.starts_with(&words) && fault.ends_with('.')
        }
    };
    let what = || format!("{} {} {}", row.method, row.path, body.as_deref().unwrap_or(""));
    if !right {
        return Some(format!("{}: {} {}, not {answer:?}", what(), reply.status, reply.text()));
    }
    if reply.status == 400 && vmm.get("/vm/config").expect_200() != before {
        return Some(format!("{} was refused and left a trace", what()));
    }
    (vmm.get("/").expect_200()["state"] != phase).then(|| format!("{} changed the phase", what()))
}

/// The column of a phase: before the start, and after it.
fn column(phase: &str) -> usize {
    usize::from(phase != "Not started")
}

fn state(vmm: &Vmm, state: &str) -> Response {
    vmm.patch("/vm", &json!({"state": state}))
}

/// Takes a machine through its phases and has `look` look at it in each of them.
fn through_all_phases(vmm: &Vmm, look: &mut dyn FnMut(&Vmm, &str)) {
    look(vmm, "Not started");
    state(vmm, "Paused").expect_fault(BEFORE);
    state(vmm, "Resumed").expect_fault(BEFORE);
    vmm.instance_start();
    look(vmm, "Running");
    state(vmm, "Resumed").expect_204();
    state(vmm, "Paused").expect_204();
    look(vmm, "Paused");
    state(vmm, "Paused").expect_204();
    state(vmm, "Resumed").expect_204();
    assert_eq!(vmm.get("/").expect_200()["state"], "Running");
}

/// A5.
#[test]
fn every_request_in_every_phase_of_a_machine_with_every_device() {
    binary::require_kvm();
    let tap = Tap::create("mflyphases").expect("a tap");
    let builder = VmmBuilder::new();
    let rows = rows(&world(&builder, tap.name()));
    let metrics = builder.dir().join("metrics");
    let vmm = builder.arg("--metrics-path").arg(metrics).start();
    // The first time devices are added, the second time replaced.
    check(&vmm, rows.iter().map(|row| (row, row.with[0])), "Not started");
    through_all_phases(&vmm, &mut |vmm, phase| {
        check(vmm, rows.iter().map(|row| (row, row.with[column(phase)])), phase)
    });
}

/// A5.
#[test]
fn every_request_in_every_phase_of_a_machine_whose_devices_come_and_go() {
    binary::require_kvm();
    let tap = Tap::create("mflycome").expect("a tap");
    let builder = crate::hotplug::pci();
    let rows = rows(&world(&builder, tap.name()));
    let metrics = builder.dir().join("metrics");
    let vmm = builder.arg("--metrics-path").arg(metrics).start();
    check(&vmm, rows.iter().map(|row| (row, row.with[0])), "Not started");
    through_all_phases(&vmm, &mut |vmm, phase| {
        check(vmm, rows.iter().map(|row| (row, row.on_pci(phase))), phase);
        if phase != "Not started" {
            let config = vmm.get("/vm/config").expect_200();
            for device in ["drives", "network-interfaces", "pmem"] {
                assert_eq!(config[device], json!([]), "{phase}");
            }
            assert_eq!(config["mmds-config"], json!(null), "its interface has gone");
        }
    });
}

/// A5.
#[test]
fn every_request_in_every_phase_of_a_machine_without_devices() {
    binary::require_kvm();
    let tap = Tap::create("mflynothing").expect("a tap");
    let builder = VmmBuilder::new();
    let rows = rows(&world(&builder, tap.name()));
    let metrics = builder.dir().join("metrics");
    let vmm = builder.arg("--metrics-path").arg(metrics).start();
    through_all_phases(&vmm, &mut |vmm, phase| {
        check(vmm, rows.iter().map(|row| (row, row.without[column(phase)])), phase);
        let config = vmm.get("/vm/config").expect_200();
        for device in ["drives", "network-interfaces", "pmem"] {
            assert_eq!(config[device], json!([]), "{phase}");
        }
        for device in ["balloon", "vsock", "entropy", "memory-hotplug", "mmds-config"] {
            assert_eq!(config[device], json!(null), "{phase}");
        }
    });
}

/// An example of a path with an id in it.
fn filled(path: &str) -> String {
    let path = path.replace("{drive_id}", "data").replace("{iface_id}", "eth0");
    path.replace("{fs_id}", "share").replace("{id}", "code")
}

/// A5. Body rules come before everything else, so one row per method and path says all.
#[test]
fn wrong_methods_and_bodies_in_every_phase() {
    binary::require_kvm();
    let builder = VmmBuilder::new();
    let there: BTreeSet<(&str, String)> = rows(&world(&builder, "t"))
        .iter()
        .filter(|row| row.path != "/snapshot")
        .map(|row| (row.method, row.path.to_owned()))
        .collect();
    let vmm = configured(builder);
    through_all_phases(&vmm, &mut |vmm, phase| {
        let before = vmm.get("/vm/config").expect_200();
        let refused = |method: &str, path: &str, body: Option<&str>, text: &str| {
            let reply = vmm.request(method, path, body);
            assert_eq!(reply.status, 400, "{method} {path} while {phase}");
            assert_eq!(reply.fault().as_deref(), Some(text), "{method} {path} while {phase}");
        };
        for (path, methods, named) in WRONG {
            for method in methods.split(' ') {
                let body = matches!(method, "PUT" | "PATCH").then_some("{}");
                let text = format!("Invalid request method and/or path: {method} {named}.");
                refused(method, &filled(path), body, &text);
            }
        }
        for (path, named) in NOWHERE {
            for method in METHODS {
                let body = matches!(method, "PUT" | "PATCH").then_some("{}");
                refused(method, path, body, &format!("Invalid request method and/or path: {method} {named}."));
            }
        }
        for (method, path) in &there {
            match *method {
                "GET" => refused(method, path, Some("{}"), "GET request cannot have a body."),
                "PUT" => refused(method, path, None, "Empty PUT request."),
                "POST" => refused(method, path, None, "Empty POST request."),
                // These two may come without.
                "PATCH" if path.starts_with("/balloon/hinting/") => {}
                "PATCH" => refused(method, path, None, "Empty PATCH request."),
                _ => refused(method, path, Some("{}"), "Empty Delete request."),
            }
        }
        assert_eq!(vmm.get("/vm/config").expect_200(), before);
    });
}

/// A5. Other methods than the four (and POST where it is ours) are not requests: the other shape of error, and the end of the connection.
#[test]
fn other_methods_in_every_phase() {
    binary::require_kvm();
    let vmm = configured(VmmBuilder::new());
    through_all_phases(&vmm, &mut |vmm, phase| {
        for (path, ..) in WRONG {
            for method in ["POST", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get"] {
                if (method, *path) == ("POST", "/clones") {
                    continue;
                }
                let mut client = vmm.client();
                client.send_raw(format!("{method} {} HTTP/1.1\r\n\r\n", filled(path)).as_bytes()).unwrap();
                let mut text = String::new();
                client.stream().read_to_string(&mut text).unwrap();
                assert!(text.starts_with("HTTP/1.1 400 \r\n"), "{method} {path} while {phase}: {text}");
                let body = text.split_once("\r\n\r\n").unwrap().1;
                assert!(
                    body.starts_with("{ \"error\": \"Invalid HTTP Method:"),
                    "{method} {path} while {phase}: {text}"
                );
            }
        }
    });
}

/// Nothing is left out: each method of each path of `openapi.yaml` has a row, and each that is not there is known to be wrong.
#[test]
fn the_table_is_complete() {
    let text = std::fs::read_to_string(binary::workspace().join("openapi.yaml")).unwrap();
    let document: Value = serde_norway::from_str(&text).unwrap();
    let builder = VmmBuilder::new();
    let rows = rows(&world(&builder, "t"));
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in METHODS.into_iter().chain(["POST"]) {
            let listed =
                |list: &[(&str, &str)]| list.iter().any(|(p, m)| p == path && m.split(' ').any(|m| m == method));
            let has_row = rows.iter().any(|row| row.method == method && row.path == filled(path));
            let wrong: Vec<(&str, &str)> = WRONG.iter().map(|(path, methods, _)| (*path, *methods)).collect();
            let there = item.get(method.to_lowercase()).is_some();
            assert_eq!(has_row, there, "a row for {method} {path}");
            if method == "POST" {
                continue;
            }
            assert_eq!(listed(&wrong) || listed(BORROWED), !there, "{method} {path} among the wrong ones");
        }
    }
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

/// A6.
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
                    // Where nothing can be written, so that all that matters is who may go first.
                    let snapshot = r#"{"snapshot_path": "/nowhere/s", "mem_file_path": "/nowhere/m"}"#;
                    let reply = vmm.client().request("PUT", "/snapshot/create", Some(snapshot)).unwrap();
                    let text = reply.text();
                    let known = ["Cannot write memory file", "save/restore unavailable while running"];
                    assert!(known.iter().any(|known| text.contains(known)), "{text}");
                }
            });
        }
    });
    state(&vmm, "Resumed").expect_204();
    assert_eq!(vmm.get("/").expect_200()["state"], "Running");
}
