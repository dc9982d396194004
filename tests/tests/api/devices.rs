//! Each device before the start: what it can be configured to, which objects must agree, and the texts when they do not.

use std::os::unix::net::UnixStream;

use mayfly_tests::{Disk, Tap, Vmm};
use serde_json::{Value, json};

use crate::refused;

fn balloon(mib: u64) -> Value {
    json!({"amount_mib": mib, "deflate_on_oom": true})
}

#[test]
fn a_balloon_is_shown_with_its_defaults_and_replaced_as_a_whole() {
    let vmm = Vmm::start();
    vmm.get("/balloon").expect_fault("Balloon config error: No balloon device found.");
    vmm.put("/balloon", &json!({"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 5})).expect_204();
    vmm.put("/balloon", &json!({"amount_mib": 2, "deflate_on_oom": false, "free_page_hinting": true})).expect_204();
    let expected = json!({
        "amount_mib": 2, "deflate_on_oom": false, "stats_polling_interval_s": 0,
        "free_page_hinting": true, "free_page_reporting": false,
    });
    assert_eq!(vmm.get("/balloon").expect_200(), expected);
    assert_eq!(vmm.get("/vm/config").expect_200()["balloon"], expected);
    for wrong in [json!(-1), json!(1_u64 << 32), json!("1"), json!(null)] {
        refused(&vmm, "PUT", "/balloon", &json!({"amount_mib": wrong, "deflate_on_oom": true}));
    }
    refused(&vmm, "PUT", "/balloon", &json!({"amount_mib": 1}));
    let too_often = json!({"amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 65_536});
    refused(&vmm, "PUT", "/balloon", &too_often);
}

/// A8.
#[test]
fn a_balloon_fits_into_memory_whichever_of_them_is_set_last() {
    let vmm = Vmm::start();
    let text = refused(&vmm, "PUT", "/balloon", &balloon(129));
    assert_eq!(text, "Balloon config error: Amount of pages requested is too large.");
    vmm.put("/balloon", &balloon(128)).expect_204();
    let small =
        "Machine config error: The memory size (MiB) is smaller than the previously set balloon device target size.";
    assert_eq!(refused(&vmm, "PATCH", "/machine-config", &json!({"mem_size_mib": 127})), small);
    assert_eq!(refused(&vmm, "PUT", "/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 127})), small);
    vmm.machine(1, 256);
    vmm.put("/balloon", &balloon(256)).expect_204();
    // 2^24 MiB are 2^32 pages, which is 0 in the device's 32 bits.
    vmm.machine(1, 1 << 30);
    for mib in [1_u64 << 24, (1 << 32) - 1] {
        let text = refused(&vmm, "PUT", "/balloon", &balloon(mib));
        assert_eq!(text, "Balloon config error: Amount of pages requested is too large.");
    }
    vmm.put("/balloon", &balloon((1 << 24) - 1)).expect_204();
}

/// A9.
#[test]
fn reserved_cids_are_refused() {
    let vmm = Vmm::start();
    let path = vmm.dir().join("v.sock");
    for cid in [0, 1, 2, u32::MAX] {
        let text = refused(&vmm, "PUT", "/vsock", &json!({"guest_cid": cid, "uds_path": path}));
        assert_eq!(text, format!("Vsock config error: guest_cid {cid} is reserved: choose one from 3 to 4294967294."));
    }
    for cid in [json!(1_u64 << 32), json!(-1), json!("3")] {
        refused(&vmm, "PUT", "/vsock", &json!({"guest_cid": cid, "uds_path": path}));
    }
    assert!(!path.exists(), "a refused request made a socket");
    for cid in [3, u32::MAX - 1] {
        vmm.put("/vsock", &json!({"guest_cid": cid, "uds_path": path})).expect_204();
    }
}

#[test]
fn the_vsock_socket_is_bound_by_the_request_and_removed_by_its_replacement() {
    let vmm = Vmm::start();
    let [first, second] = ["first.sock", "second.sock"].map(|name| vmm.dir().join(name));
    let vsock = |cid: u32, path: &std::path::Path| json!({"guest_cid": cid, "uds_path": path});
    vmm.put("/vsock", &vsock(3, &first)).expect_204();
    UnixStream::connect(&first).expect("a listener");
    assert_eq!(vmm.get("/vm/config").expect_200()["vsock"], vsock(3, &first));
    // The same socket again, also under another spelling of its name.
    vmm.put("/vsock", &vsock(4, &first)).expect_204();
    vmm.put("/vsock", &vsock(5, &vmm.dir().join("./first.sock"))).expect_204();
    UnixStream::connect(&first).expect("a listener");
    // A replacement that fails leaves what there was.
    let taken = vmm.file("taken", b"");
    let text = refused(&vmm, "PUT", "/vsock", &vsock(6, &taken));
    assert!(text.contains("Address"), "{text}");
    UnixStream::connect(&first).expect("a listener");
    vmm.put("/vsock", &vsock(7, &second)).expect_204();
    assert!(!first.exists(), "the replaced socket is still there");
    UnixStream::connect(&second).expect("a listener");
}

#[test]
fn a_vsock_id_is_answered_as_deprecated_and_not_shown() {
    let vmm = Vmm::start();
    let path = vmm.dir().join("v.sock");
    let deprecated = |body: &Value| vmm.put("/vsock", body).header("Deprecation").map(str::to_owned);
    let named = json!({"guest_cid": 3, "uds_path": path, "vsock_id": "v"});
    assert_eq!(deprecated(&named).as_deref(), Some("true"));
    assert_eq!(vmm.get("/vm/config").expect_200()["vsock"], json!({"guest_cid": 3, "uds_path": path}));
    // On a refusal too.
    assert_eq!(deprecated(&json!({"guest_cid": 1, "uds_path": path, "vsock_id": "v"})).as_deref(), Some("true"));
    assert_eq!(deprecated(&json!({"guest_cid": 3, "uds_path": path, "vsock_id": null})), None);
}

#[test]
fn one_root_among_drives_and_pmem() {
    let vmm = Vmm::start();
    let disk = Disk::sparse(vmm.dir(), "disk", 1 << 20).unwrap();
    let drive = |id: &str, root: bool| json!({"drive_id": id, "is_root_device": root, "path_on_host": disk.path()});
    let pmem = |id: &str, root: bool| json!({"id": id, "root_device": root, "path_on_host": disk.path()});
    vmm.put("/drives/d", &drive("d", true)).expect_204();
    assert_eq!(
        refused(&vmm, "PUT", "/pmem/p", &pmem("p", true)),
        "Pmem config error: Attempt to add pmem as a root device while the root device defined as a block device"
    );
    vmm.put("/drives/d", &drive("d", false)).expect_204();
    vmm.put("/pmem/p", &pmem("p", false)).expect_204();
    vmm.put("/pmem/q", &pmem("q", true)).expect_204();
    assert_eq!(
        refused(&vmm, "PUT", "/pmem/p", &pmem("p", true)),
        "Pmem config error: A root pmem device already exist"
    );
    assert_eq!(
        refused(&vmm, "PUT", "/drives/d", &drive("d", true)),
        "Drive config error: Attempt to add block as a root device while the root device defined as a pmem device"
    );
    vmm.put("/pmem/q", &pmem("q", true)).expect_204();
    // The guest numbers them in the order they were first put; being root does not change that.
    let shown = vmm.get("/vm/config").expect_200()["pmem"].clone();
    let item = |id: &str, root: bool| json!({"id": id, "path_on_host": disk.path(), "root_device": root, "read_only": false, "rate_limiter": null});
    assert_eq!(shown, json!([item("p", false), item("q", true)]));
}

#[test]
fn a_pmem_needs_an_id_and_a_path() {
    let vmm = Vmm::start();
    let id = "The id from the path does not match the id from the body!";
    assert_eq!(refused(&vmm, "PUT", "/pmem/a", &json!({"id": "b", "path_on_host": "p"})), id);
    assert_eq!(refused(&vmm, "PATCH", "/pmem/a", &json!({"id": "b"})), id);
    assert_eq!(
        refused(&vmm, "PUT", "/pmem/a", &json!({"id": "a"})),
        "An error occurred when deserializing the json body of a request: missing field `path_on_host` at line 1 column 10."
    );
    // Not opened before the start, so it need not be there yet.
    vmm.put("/pmem/a", &json!({"id": "a", "path_on_host": "/no/such"})).expect_204();
}

/// A8.
#[test]
fn hot_pluggable_memory_comes_in_blocks_and_slots() {
    let vmm = Vmm::start();
    let memory = |total: u64, block: u64, slot: u64| json!({"total_size_mib": total, "block_size_mib": block, "slot_size_mib": slot});
    for (total, block, slot, why) in [
        (1024, 0, 128, "Block size must not be lower than 2 MiB"),
        (1024, 1, 128, "Block size must not be lower than 2 MiB"),
        (1024, 3, 128, "Block size must be a power of 2"),
        (1024, 2, 127, "Slot size must not be lower than 128 MiB"),
        (1024, 4, 130, "Slot size must be a multiple of block size (4 MiB)"),
        (0, 2, 128, "Total size must not be lower than slot size (128 MiB)"),
        (64, 2, 128, "Total size must not be lower than slot size (128 MiB)"),
        (1000, 2, 128, "Total size must be a multiple of slot size (128 MiB)"),
        ((1 << 32) - 1, 2, 128, "Total size must be a multiple of slot size (128 MiB)"),
    ] {
        let text = refused(&vmm, "PUT", "/hotplug/memory", &memory(total, block, slot));
        assert!(text.starts_with("Memory hotplug config error: ") && text.ends_with(why), "{text}");
    }
    // 2^44 MiB are 2^64 bytes: none, were it not for the 32 bits.
    for total in [1_u64 << 32, 1 << 44, u64::MAX] {
        refused(&vmm, "PUT", "/hotplug/memory", &json!({"total_size_mib": total}));
    }
    refused(&vmm, "PUT", "/hotplug/memory", &json!({"block_size_mib": 2}));
    vmm.put("/hotplug/memory", &json!({"total_size_mib": 512})).expect_204();
    assert_eq!(vmm.get("/vm/config").expect_200()["memory-hotplug"], memory(512, 2, 128));
    vmm.put("/hotplug/memory", &memory(1024, 128, 256)).expect_204();
    assert_eq!(vmm.get("/vm/config").expect_200()["memory-hotplug"], memory(1024, 128, 256));
}

#[test]
fn a_drive_has_a_file_or_a_backend_that_is_there() {
    let vmm = Vmm::start();
    let drive = |more: Value| {
        let mut drive = json!({"drive_id": "a", "is_root_device": false, "socket": "/s"});
        drive.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        drive
    };
    let text = refused(&vmm, "PUT", "/drives/a", &drive(json!({})));
    assert!(text.ends_with("Vhost-user backend error: socket /s: No such file or directory (os error 2)"), "{text}");
    for more in [json!({"path_on_host": "/d"}), json!({"is_read_only": true}), json!({"io_engine": "Sync"})] {
        let text = refused(&vmm, "PUT", "/drives/a", &drive(more));
        assert!(text.starts_with("Drive config error: socket and "), "{text}");
    }
}

#[test]
fn a_tap_of_one_queue_is_refused_where_several_are_asked_for() {
    let tap = Tap::create("mflyone").expect("a tap");
    let vmm = Vmm::start();
    let net = |queues: Value| json!({"iface_id": "n", "host_dev_name": tap.name(), "num_queues": queues});
    vmm.put("/network-interfaces/n", &net(Value::Null)).expect_204();
    let before = vmm.get("/vm/config").expect_200();
    let text = refused(&vmm, "PUT", "/network-interfaces/n", &net(json!(2)));
    for part in
        ["num_queues is more than 1", "`ip tuntap add dev mflyone mode tap multi_queue`", "Invalid TUN/TAP Backend"]
    {
        assert!(text.contains(part), "{text}");
    }
    for bad in [json!(0), json!(17), json!(1_u64 << 40)] {
        let text = refused(&vmm, "PUT", "/network-interfaces/n", &net(bad.clone()));
        assert!(text.contains(&format!("num_queues is {bad}: it must be from 1 to 16.")), "{text}");
    }
    assert_eq!(vmm.get("/vm/config").expect_200(), before, "a refusal changes nothing");
    vmm.put("/network-interfaces/n", &net(json!(1))).expect_204();
}
