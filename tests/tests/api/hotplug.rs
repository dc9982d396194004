//! Devices that come and go while the machine runs, as a client sees them: what is accepted, shown and refused. The guest here has no drivers, so
//! that each device goes at once; `guest/hotplug.rs` has guests that notice.

use std::process::Command;

use mayfly_tests::backend::Backend;
use mayfly_tests::{Disk, Tap, Vmm, VmmBuilder, binary, on_pci};
use serde_json::{Value, json};

use crate::table::{AFTER, BEFORE};
use crate::{configured, refused};

const MIB: u64 = 1 << 20;

/// Of a machine whose devices come and go, whatever the tests are run for.
pub(crate) fn pci() -> VmmBuilder {
    if on_pci() { VmmBuilder::new() } else { VmmBuilder::new().arg("--enable-pci") }
}

/// Running, with as many vCPUs.
fn running(builder: VmmBuilder, vcpus: u8) -> Vmm {
    binary::require_kvm();
    let vmm = configured(builder);
    vmm.machine(vcpus, 64);
    vmm.instance_start();
    vmm
}

fn delete(vmm: &Vmm, path: &str) -> mayfly_tests::Response {
    vmm.request("DELETE", path, None)
}

fn drive(id: &str, disk: &Disk) -> Value {
    json!({"drive_id": id, "path_on_host": disk.path(), "is_root_device": false})
}

/// Everything a device can be configured to comes while the machine runs, is shown, changed, and goes.
#[track_caller]
fn comes_and_goes(vmm: &Vmm, path: &str, list: &str, body: &Value) {
    let before = vmm.get("/vm/config").expect_200();
    for _ in 0..2 {
        let plugged = vmm.put(path, body);
        assert_eq!(plugged.status, 204, "{path} {body}: {}\n{}", plugged.text(), vmm.said());
        let shown = vmm.get("/vm/config").expect_200()[list].as_array().unwrap().last().cloned().unwrap();
        for (key, value) in body.as_object().unwrap() {
            assert!(&shown[key] == value || value.is_object(), "{key} of {path} is shown as {}", shown[key]);
        }
        assert_eq!(refused(vmm, "PUT", path, body), "Device ID in use");
        let gone = delete(vmm, path);
        assert_eq!(gone.status, 204, "{path}: {}\n{}", gone.text(), vmm.said());
        assert_eq!(vmm.get("/vm/config").expect_200(), before, "something of {path} is left");
    }
    delete(vmm, path).expect_fault("Device not found");
}

/// With one vCPU, and with two, for which devices have several queues: one that came to the latter once ended the process, because its maker
/// looked up how many processors there are.
#[test]
fn what_is_configured_before_can_come_later() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", 3 * MIB + 4096).unwrap();
    let limiter = json!({"ops": {"size": 100, "refill_time": 100}});
    for vcpus in [1, 2] {
        let vmm = running(pci(), vcpus);
        for (engine, more) in [
            ("Sync", json!({})),
            ("Async", json!({})),
            ("Async", json!({"num_queues": 3})),
            ("Sync", json!({"is_read_only": true, "rate_limiter": limiter})),
            ("Async", json!({"cache_type": "Writeback", "rate_limiter": limiter})),
        ] {
            let mut body = drive("late", &disk);
            body["io_engine"] = json!(engine);
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            comes_and_goes(&vmm, "/drives/late", "drives", &body);
        }
        for more in [json!({}), json!({"read_only": true}), json!({"rate_limiter": limiter})] {
            let mut body = json!({"id": "late", "path_on_host": disk.path()});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            comes_and_goes(&vmm, "/pmem/late", "pmem", &body);
        }
        let plain = Tap::create(&format!("mfp{vcpus}")).unwrap();
        let wide = Tap::create_with_queues(&format!("mfw{vcpus}")).unwrap();
        let new = format!("mfn{vcpus}");
        for (tap, more) in [
            (plain.name(), json!({"guest_mac": "06:00:ac:10:00:02", "mtu": 1400})),
            (plain.name(), json!({"rx_rate_limiter": limiter, "tx_rate_limiter": limiter})),
            (wide.name(), json!({})),
            (wide.name(), json!({"num_queues": 2})),
            (&new, json!({})),
            (&new, json!({"num_queues": 2})),
        ] {
            let mut body = json!({"iface_id": "late", "host_dev_name": tap});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            comes_and_goes(&vmm, "/network-interfaces/late", "network-interfaces", &body);
        }
        assert!(!std::path::Path::new("/sys/class/net").join(&new).exists(), "the tap that was made has gone");
    }
}

/// A device that came later can be changed as others can.
#[test]
fn what_came_later_can_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| Disk::sparse(dir.path(), name, MIB).unwrap());
    let tap = Tap::create("mfchange").unwrap();
    let vmm = running(pci(), 2);
    vmm.put("/drives/late", &drive("late", &first)).expect_204();
    vmm.put("/pmem/late", &json!({"id": "late", "path_on_host": first.path()})).expect_204();
    vmm.put("/network-interfaces/late", &json!({"iface_id": "late", "host_dev_name": tap.name()})).expect_204();
    let limiter = json!({"ops": {"size": 7, "refill_time": 100}});
    vmm.patch("/drives/late", &json!({"drive_id": "late", "path_on_host": second.path()})).expect_204();
    vmm.patch("/pmem/late", &json!({"id": "late", "rate_limiter": limiter})).expect_204();
    vmm.patch("/network-interfaces/late", &json!({"iface_id": "late", "rx_rate_limiter": limiter})).expect_204();
    let config = vmm.get("/vm/config").expect_200();
    assert_eq!(config["drives"][0]["path_on_host"], json!(second.path()));
    assert_eq!(config["network-interfaces"][0]["rx_rate_limiter"]["ops"]["size"], 7);
    for path in ["/drives/late", "/pmem/late", "/network-interfaces/late"] {
        delete(&vmm, path).expect_204();
    }
    vmm.patch("/drives/late", &json!({"drive_id": "late", "path_on_host": second.path()})).expect_fault("no drive");
    // What runs, with what came, can be started from its configuration.
    let again = pci().config_file(&config).start();
    assert_eq!(again.get("/vm/config").expect_200(), config);
    delete(&again, "/drives/late").expect_204();
}

#[test]
fn what_cannot_come_later_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", MIB).unwrap();
    let empty = Disk::sparse(dir.path(), "empty", 0).unwrap();
    let tap = Tap::create("mfbusy").unwrap();
    let vmm = running(pci(), 2);
    let net = |id: &str, mac: &str| json!({"iface_id": id, "host_dev_name": tap.name(), "guest_mac": mac});
    vmm.put("/network-interfaces/a", &net("a", "06:00:ac:10:00:02")).expect_204();
    let (mut root, pmem) = (drive("x", &disk), json!({"id": "x", "path_on_host": disk.path(), "root_device": true}));
    root["is_root_device"] = json!(true);
    let no_root = "A device that comes while the machine runs cannot be its root device";
    let served = json!({"drive_id": "x", "is_root_device": false, "socket": "/no/such"});
    let mut both = drive("x", &disk);
    both["socket"] = json!("/no/such");
    let directory = json!({"drive_id": "x", "path_on_host": dir.path(), "is_root_device": false});
    for (path, body, why) in [
        ("/drives/x", root, no_root),
        ("/pmem/x", pmem, no_root),
        // Once it ended the process: whoever tried to meet the backend may not make sockets.
        ("/drives/x", served, "a vhost-user drive can be there only from the start"),
        ("/drives/x", both, "exclude each other"),
        ("/drives/x", directory, "directory"),
        ("/pmem/x", json!({"id": "x", "path_on_host": empty.path()}), "Error backing file size is 0"),
        ("/network-interfaces/b", net("b", "06:00:ac:10:00:02"), "The MAC address is already in use"),
        ("/network-interfaces/b", net("b", "06:00:ac:10:00:03"), "Resource busy (os error 16)"),
        ("/network-interfaces/b", json!({"iface_id": "b", "host_dev_name": "lo"}), "exists and is not a tap"),
        ("/fs/x", json!({"fs_id": "x", "tag": "x", "socket": "/no/such"}), AFTER),
        ("/vsock", json!({"guest_cid": 3, "uds_path": dir.path().join("v")}), AFTER),
        ("/entropy", json!({}), AFTER),
        ("/balloon", json!({"amount_mib": 1, "deflate_on_oom": true}), AFTER),
    ] {
        let text = refused(&vmm, "PUT", path, &body);
        assert!(text.contains(why), "{path} {body}: {text}");
    }
    assert!(vmm.is_running(), "{}", vmm.said());
}

/// A drive that another process serves is there from the start, and goes as others do. Once it was not found, and another one could come under its
/// name.
#[test]
fn a_drive_that_another_process_serves_goes() {
    binary::require_kvm();
    let dir = tempfile::tempdir().unwrap();
    let [disk, other] = ["disk", "other"].map(|name| Disk::sparse(dir.path(), name, MIB).unwrap());
    for path in ["/drives/d", "/drives/d?force=true"] {
        let socket = dir.path().join("backend");
        let _backend = Backend::storage(disk.path(), &socket, true);
        let vmm = configured(pci());
        vmm.put("/drives/d", &json!({"drive_id": "d", "is_root_device": false, "socket": socket})).expect_204();
        vmm.instance_start();
        assert_eq!(refused(&vmm, "PUT", "/drives/d", &drive("d", &other)), "Device ID in use");
        delete(&vmm, path).expect_204();
        assert_eq!(vmm.get("/vm/config").expect_200()["drives"], json!([]));
        comes_and_goes(&vmm, "/drives/d", "drives", &drive("d", &other));
        assert!(vmm.is_running(), "{}", vmm.said());
    }
}

/// The 32nd slot is the bridge's.
#[test]
fn slots_run_out_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", MIB).unwrap();
    let full = "PCI manager error: Could not find an available device slot on the PCI bus.";
    let vmm = configured(pci());
    for n in 0..31 {
        vmm.put(&format!("/drives/d{n}"), &drive(&format!("d{n}"), &disk)).expect_204();
    }
    vmm.put("/drives/more", &drive("more", &disk)).expect_204();
    let start = json!({"action_type": "InstanceStart"});
    vmm.put("/actions", &start).expect_fault("Could not find an available device slot on the PCI bus.");
    drop(vmm);
    let vmm = running(pci(), 1);
    for n in 0..31 {
        vmm.put(&format!("/drives/d{n}"), &drive(&format!("d{n}"), &disk)).expect_204();
    }
    assert_eq!(refused(&vmm, "PUT", "/drives/more", &drive("more", &disk)), full);
    assert_eq!(refused(&vmm, "PUT", "/pmem/more", &json!({"id": "more", "path_on_host": disk.path()})), full);
    delete(&vmm, "/drives/d13").expect_204();
    vmm.put("/pmem/more", &json!({"id": "more", "path_on_host": disk.path()})).expect_204();
    assert_eq!(refused(&vmm, "PUT", "/drives/d13", &drive("d13", &disk)), full);
}

/// What may stand behind the `?`, in every phase, and with a bus or without.
#[test]
fn parameters_of_a_delete() {
    binary::require_kvm();
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", MIB).unwrap();
    for (builder, bus) in [(VmmBuilder::new(), on_pci()), (pci(), true)] {
        let vmm = configured(builder);
        vmm.put("/drives/d", &drive("d", &disk)).expect_204();
        let wrong = ["now", "force", "force=", "force=1", "force=TRUE", "Force=true", "timeout_ms", "timeout_ms="];
        let wrong = wrong.into_iter().chain(["timeout_ms=-1", "timeout_ms=1s", "timeout_ms=4294967296", "a=b"]);
        let all_refused = |vmm: &Vmm| {
            for pair in wrong.clone() {
                for query in [format!("?{pair}"), format!("/?force=true&{pair}"), format!("?{pair}&timeout_ms=1")] {
                    let text = delete(vmm, &format!("/drives/d{query}")).expect_fault(pair);
                    assert_eq!(
                        text,
                        format!(
                            "{pair} is no parameter of this request: it takes force=true, force=false and timeout_ms, a number of milliseconds."
                        )
                    );
                }
            }
        };
        let right =
            ["", "?", "?&", "?force=true", "?force=false", "?timeout_ms=0", "?force=true&timeout_ms=4294967295"];
        all_refused(&vmm);
        for query in right {
            delete(&vmm, &format!("/drives/d{query}")).expect_fault(BEFORE);
        }
        vmm.instance_start();
        all_refused(&vmm);
        for query in right {
            let answer = delete(&vmm, &format!("/drives/d{query}"));
            if bus {
                answer.expect_204();
                vmm.put("/drives/d", &drive("d", &disk)).expect_204();
            } else {
                answer.expect_fault("PCI is not enabled");
            }
        }
        // Other requests have no parameters: there the `?` is a piece of a name, and no good one.
        vmm.request("PUT", "/drives/d?force=true", Some(&drive("d", &disk).to_string()))
            .expect_fault("API Resource IDs can only contain alphanumeric characters and underscores.");
    }
}

/// The metadata service is not reached by what has gone.
#[test]
fn an_interface_that_goes_leaves_the_metadata_service() {
    binary::require_kvm();
    let [first, second] = ["mfmdsa", "mfmdsb"].map(|name| Tap::create(name).unwrap());
    let vmm = configured(pci());
    for (id, tap) in [("a", &first), ("b", &second)] {
        vmm.put(&format!("/network-interfaces/{id}"), &json!({"iface_id": id, "host_dev_name": tap.name()}))
            .expect_204();
    }
    vmm.put("/mmds/config", &json!({"network_interfaces": ["a", "b"], "version": "V2"})).expect_204();
    vmm.instance_start();
    let named = || vmm.get("/vm/config").expect_200()["mmds-config"].clone();
    delete(&vmm, "/network-interfaces/a").expect_204();
    assert_eq!(named()["network_interfaces"], json!(["b"]));
    delete(&vmm, "/network-interfaces/b").expect_204();
    assert_eq!(named(), json!(null));
    // One that comes under that name does not take its place.
    vmm.put("/network-interfaces/a", &json!({"iface_id": "a", "host_dev_name": first.name()})).expect_204();
    assert_eq!(named(), json!(null));
}

/// Where the process was not told that devices come and go, they do not, although the machine that it goes on with has a bus.
#[test]
fn a_machine_on_pci_in_a_process_without_keeps_its_devices() {
    if on_pci() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", MIB).unwrap();
    let vmm = running(pci(), 1);
    vmm.put("/drives/d", &drive("d", &disk)).expect_204();
    vmm.patch("/vm", &json!({"state": "Paused"})).expect_204();
    let [state, memory] = ["state", "memory"].map(|name| dir.path().join(name));
    vmm.put("/snapshot/create", &json!({"snapshot_path": state, "mem_file_path": memory})).expect_204();
    let config = vmm.get("/vm/config").expect_200();
    drop(vmm);
    let backend = json!({"backend_type": "File", "backend_path": memory});
    let load = json!({"snapshot_path": state, "mem_backend": backend, "resume_vm": true});
    for (builder, may) in [(VmmBuilder::new(), false), (pci(), true)] {
        let vmm = builder.start();
        vmm.put("/snapshot/load", &load).expect_204();
        assert_eq!(vmm.get("/vm/config").expect_200(), config);
        if may {
            delete(&vmm, "/drives/d").expect_204();
            vmm.put("/drives/d", &drive("d", &disk)).expect_204();
        } else {
            delete(&vmm, "/drives/d").expect_fault("PCI is not enabled");
            vmm.put("/drives/e", &drive("e", &disk)).expect_fault(AFTER);
        }
    }
}

/// A block device comes as a file does.
#[test]
fn a_block_device_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", MIB).unwrap();
    let made = Command::new("losetup").args(["--find", "--show"]).arg(disk.path()).output();
    let Some(made) = made.ok().filter(|made| made.status.success()) else {
        panic!("losetup cannot make a loop device: this test needs root and the loop module");
    };
    let device = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let vmm = running(pci(), 2);
    let body = json!({"drive_id": "late", "path_on_host": device, "is_root_device": false});
    let pmem = json!({"id": "late", "path_on_host": device});
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        comes_and_goes(&vmm, "/drives/late", "drives", &body);
        comes_and_goes(&vmm, "/pmem/late", "pmem", &pmem);
    }));
    drop(vmm);
    assert!(Command::new("losetup").args(["--detach", &device]).status().unwrap().success());
    outcome.unwrap();
}
