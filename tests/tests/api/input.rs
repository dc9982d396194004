//! Wrong values and hostile paths (threats A7 to A10): refused at once, and without a trace.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use mayfly_tests::{Disk, Tap, Vmm, VmmBuilder, binary};
use serde_json::json;

use crate::{SPIN, guest_kernel, refused};

fn hostile_paths(dir: &Path) -> Vec<String> {
    let fifo = dir.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let socket = dir.join("socket");
    // Its path stays when the listener goes.
    drop(UnixListener::bind(&socket).unwrap());
    let dangling = dir.join("dangling");
    std::os::unix::fs::symlink(dir.join("nowhere"), &dangling).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    vec![
        text(&fifo),
        text(&socket),
        text(&dangling),
        text(dir),
        text(&dir.join("missing")),
        "".to_owned(),
        "/dev/zero".to_owned(),
        "/dev/null".to_owned(),
        "/dev/tty".to_owned(),
        "/proc/self/mem".to_owned(),
        "/proc/self/exe".to_owned(),
        "/proc/self/fd/0".to_owned(),
        "../../../../../../../..".to_owned(),
        format!("/{}", "a".repeat(5000)),
        format!("/{}", "a/".repeat(2500)),
        "/etc/hostname\0.img".to_owned(),
    ]
}

/// A socket is made, so what must not be there is anything at all.
fn hostile_paths_of_sockets(dir: &Path) -> Vec<String> {
    let there = ["fifo", "socket", "dangling", "."].map(|name| dir.join(name));
    let missing = [dir.join("no/such"), dir.join("socket/below"), dir.join("a".repeat(200))];
    let mut paths: Vec<_> = there.iter().chain(&missing).map(|path| path.to_str().unwrap().to_owned()).collect();
    paths.extend(["", "/dev/null", "/proc/self/socket", "/v\0"].map(str::to_owned));
    paths
}

/// A7.
#[test]
fn hostile_paths_are_refused_at_once() {
    let vmm = Vmm::start();
    let kernel = vmm.file("kernel", b"any regular file");
    for path in hostile_paths(vmm.dir()) {
        let boot = refused(&vmm, "PUT", "/boot-source", &json!({"kernel_image_path": path}));
        assert!(boot.starts_with("Boot source error: The kernel file cannot be opened: "), "{boot}");
        let initrd = refused(&vmm, "PUT", "/boot-source", &json!({"kernel_image_path": kernel, "initrd_path": path}));
        assert!(initrd.starts_with("Boot source error: The initrd file cannot be opened "), "{initrd}");
        for read_only in [true, false] {
            let drive =
                json!({"drive_id": "a", "is_root_device": false, "path_on_host": path, "is_read_only": read_only});
            let drive = refused(&vmm, "PUT", "/drives/a", &drive);
            assert!(drive.starts_with("Drive config error: Unable to create the virtio block device: "), "{drive}");
        }
    }
    for path in hostile_paths_of_sockets(vmm.dir()) {
        let text = refused(&vmm, "PUT", "/vsock", &json!({"guest_cid": 3, "uds_path": path}));
        assert!(text.starts_with("Vsock config error: "), "{text}");
    }
    let outputs = ["no/such/dir", ".", "socket", "socket/below"].map(|name| vmm.dir().join(name));
    for path in outputs.iter().map(|path| path.to_str().unwrap()).chain(["", "/x\0y"]) {
        refused(&vmm, "PUT", "/serial", &json!({"serial_out_path": path}));
        assert!(refused(&vmm, "PUT", "/logger", &json!({"log_path": path})).starts_with("Logger error: "));
        assert!(refused(&vmm, "PUT", "/metrics", &json!({"metrics_path": path})).starts_with("Metrics error: "));
    }
}

/// A7: persistent memory is opened by the start, which is refused and can be repeated.
#[test]
fn hostile_paths_of_persistent_memory_are_refused_by_the_start() {
    binary::require_kvm();
    let builder = VmmBuilder::new();
    let kernel = guest_kernel(&builder);
    let disk = Disk::sparse(builder.dir(), "disk", 2 << 20).unwrap();
    let vmm = builder.start();
    vmm.boot_source(&kernel, SPIN);
    vmm.machine(1, 64);
    for path in hostile_paths(vmm.dir()) {
        vmm.put("/pmem/p", &json!({"id": "p", "path_on_host": path})).expect_204();
        refused(&vmm, "PUT", "/actions", &json!({"action_type": "InstanceStart"}));
        assert_eq!(vmm.get("/").expect_200()["state"], "Not started", "{path}");
    }
    vmm.put("/pmem/p", &json!({"id": "p", "path_on_host": disk.path()})).expect_204();
    vmm.instance_start();
}

/// A7, A9: as in v1, links are followed, and several drives may share a file, also writable. It is for the caller to know.
#[test]
fn what_v1_accepts_is_accepted() {
    let vmm = Vmm::start();
    let disk = Disk::sparse(vmm.dir(), "disk", 1 << 20).unwrap();
    let link = vmm.dir().join("link");
    std::os::unix::fs::symlink(disk.path(), &link).unwrap();
    vmm.drive("a", disk.path(), "Sync");
    vmm.drive("b", disk.path(), "Sync");
    vmm.drive("c", &link, "Sync");
    let drives = vmm.get("/vm/config").expect_200()["drives"].clone();
    assert_eq!(drives[2]["path_on_host"], json!(link), "shown as it was named");
}

#[test]
fn a_missing_file_is_named_as_the_contract_says() {
    let vmm = Vmm::start();
    let boot = refused(&vmm, "PUT", "/boot-source", &json!({"kernel_image_path": "/no/such"}));
    assert!(boot.ends_with("The kernel file cannot be opened: No such file or directory (os error 2)"), "{boot}");
    let drive = json!({"drive_id": "a", "is_root_device": true, "path_on_host": "/no/such"});
    let drive = refused(&vmm, "PUT", "/drives/a", &drive);
    let said = "Error manipulating the backing file: No such file or directory (os error 2) /no/such";
    assert!(drive.ends_with(said), "{drive}");
}

/// A8.
#[test]
fn numbers_out_of_range_are_refused() {
    let vmm = Vmm::start();
    for vcpus in [0, 33, 255, 256, 1_u64 << 40] {
        refused(&vmm, "PUT", "/machine-config", &json!({"vcpu_count": vcpus, "mem_size_mib": 128}));
        refused(&vmm, "PATCH", "/machine-config", &json!({"vcpu_count": vcpus}));
    }
    // 2^44 MiB is 2^64 bytes: it must not come out as none at all.
    for mib in [0, 1_u64 << 44, (1 << 44) + 128, u64::MAX] {
        let text = refused(&vmm, "PUT", "/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": mib}));
        assert!(text.starts_with("Machine config error: The memory size (MiB) is either 0"), "{text}");
        refused(&vmm, "PATCH", "/machine-config", &json!({"mem_size_mib": mib}));
    }
    refused(&vmm, "PUT", "/machine-config", &json!({"vcpu_count": 3, "mem_size_mib": 128, "smt": true}));
    refused(&vmm, "PUT", "/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 129, "huge_pages": "2M"}));
    for mtu in [0, 67, 65_536] {
        let net = json!({"iface_id": "a", "host_dev_name": "t", "mtu": mtu});
        refused(&vmm, "PUT", "/network-interfaces/a", &net);
    }
    vmm.put("/machine-config", &json!({"vcpu_count": 32, "mem_size_mib": 128})).expect_204();
}

#[test]
fn put_resets_and_patch_keeps() {
    let vmm = Vmm::start();
    vmm.put("/machine-config", &json!({"vcpu_count": 2, "mem_size_mib": 64, "smt": true, "cpu_template": "T2"}))
        .expect_204();
    vmm.patch("/machine-config", &json!({"mem_size_mib": 66})).expect_204();
    let machine = json!({
        "vcpu_count": 2, "mem_size_mib": 66, "smt": true, "cpu_template": "T2",
        "track_dirty_pages": false, "huge_pages": "None",
    });
    assert_eq!(vmm.get("/machine-config").expect_200(), machine);
    vmm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 64})).expect_204();
    let machine = vmm.get("/machine-config").expect_200();
    assert_eq!((&machine["smt"], &machine["vcpu_count"]), (&json!(false), &json!(1)));
}

/// One slot: the last one to write a template wins, and a request that says nothing of templates writes none.
#[test]
fn custom_and_named_cpu_templates_share_a_slot() {
    let vmm = Vmm::start();
    let named = || vmm.get("/machine-config").expect_200().get("cpu_template").cloned();
    let machine = |template: &str| json!({"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": template});
    vmm.put("/machine-config", &machine("C3")).expect_204();
    vmm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 64})).expect_204();
    assert_eq!(named(), Some(json!("C3")));
    vmm.put("/cpu-config", &json!({})).expect_204();
    assert_eq!(named(), None);
    let config = vmm.get("/vm/config").expect_200();
    assert_eq!((&config["cpu-config"], config["machine-config"].get("cpu_template")), (&json!(null), None));
    vmm.patch("/machine-config", &json!({"cpu_template": "T2A"})).expect_204();
    assert_eq!(named(), Some(json!("T2A")));
    let text = refused(&vmm, "PUT", "/cpu-config", &json!({"msr_modifiers": [{"addr": "0jj0", "bitmap": "0b1"}]}));
    assert!(text.contains("No supported number system prefix found in value [0jj0]"), "{text}");
    refused(&vmm, "PUT", "/cpu-config", &json!({"reg_modifiers": []}));
    assert_eq!(named(), Some(json!("T2A")), "a refused template changes nothing");
    vmm.put("/machine-config", &machine("None")).expect_204();
    assert_eq!(named(), None);
}

/// A9.
#[test]
fn ids_and_roots_must_be_unique_and_well_formed() {
    let vmm = Vmm::start();
    let disk = Disk::sparse(vmm.dir(), "disk", 1 << 20).unwrap();
    let drive = |id: &str, root: bool| json!({"drive_id": id, "is_root_device": root, "path_on_host": disk.path()});
    for bad in ["a-b", "a.b", "..", "a%2Fb"] {
        let text = refused(&vmm, "PUT", &format!("/drives/{bad}"), &drive(bad, false));
        assert_eq!(text, "API Resource IDs can only contain alphanumeric characters and underscores.");
    }
    refused(&vmm, "PUT", "/drives/a", &drive("a/../b", false));
    assert_eq!(refused(&vmm, "PUT", "/drives/", &drive("", false)), "The ID cannot be empty.");
    vmm.put("/drives/one", &drive("one", true)).expect_204();
    let text = refused(&vmm, "PUT", "/drives/two", &drive("two", true));
    assert_eq!(text, "Drive config error: A root block device already exists!");
    // The same id replaces, also away from being root.
    vmm.put("/drives/one", &drive("one", false)).expect_204();
    vmm.put("/drives/two", &drive("two", true)).expect_204();
    vmm.put("/drives/três", &drive("três", false)).expect_204();
    let drives = vmm.get("/vm/config").expect_200()["drives"].clone();
    let ids: Vec<_> = drives.as_array().unwrap().iter().map(|d| d["drive_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["two", "one", "três"], "root first, then in the order they were put");
    assert_eq!(
        drives[0],
        json!({
            "drive_id": "two", "partuuid": null, "is_root_device": true, "cache_type": "Unsafe", "is_read_only": false,
            "path_on_host": disk.path(), "rate_limiter": null, "io_engine": "Sync", "socket": null,
        })
    );
}

/// A9.
#[test]
fn macs_and_taps_are_checked() {
    let tap = Tap::create("mflyinput").expect("a tap");
    let vmm = Vmm::start();
    let net = |id: &str, tap: &str, mac: &str| json!({"iface_id": id, "host_dev_name": tap, "guest_mac": mac});
    for bad in
        ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "06:00:00:00:00", "06-00-00-00-00-01", "", "06:00:00:00:00:0g"]
    {
        let text = refused(&vmm, "PUT", "/network-interfaces/a", &net("a", tap.name(), bad));
        assert!(text.starts_with("Network config error: "), "{text}");
    }
    for bad in ["", "name-longer-than-15-bytes", "a/b", "..", "a b\n"] {
        let text = refused(&vmm, "PUT", "/network-interfaces/a", &net("a", bad, "06:00:00:00:00:01"));
        assert!(text.starts_with("Network config error: Could not create the network device: "), "{text}");
    }
    vmm.put("/network-interfaces/a", &net("a", tap.name(), "06:00:00:00:00:01")).expect_204();
    let text = refused(&vmm, "PUT", "/network-interfaces/b", &net("b", "mflyother", "06:00:00:00:00:01"));
    assert_eq!(text, "Network config error: The MAC address is already in use: 06:00:00:00:00:01");
    let text = refused(&vmm, "PUT", "/network-interfaces/b", &net("b", tap.name(), "06:00:00:00:00:02"));
    assert!(text.contains("busy"), "{text}");
    // The same interface may be put again on its own tap.
    vmm.put("/network-interfaces/a", &net("a", tap.name(), "06:00:00:00:00:03")).expect_204();
}

/// A10: an initrd that does not fit is refused by the start, in the guest tier.
#[test]
fn a_command_line_that_is_too_long_or_not_text_is_refused_before_the_start() {
    let builder = VmmBuilder::new();
    let kernel = builder.file("kernel", guest::ELF);
    let vmm = builder.args(["--http-api-max-payload-size", "4000000"]).start();
    for args in ["a".repeat(2049), "a".repeat(1 << 20), "a\0b".to_owned(), "a\u{1b}[2J".to_owned(), "é".to_owned()] {
        let text = refused(&vmm, "PUT", "/boot-source", &json!({"kernel_image_path": kernel, "boot_args": args}));
        assert!(text.starts_with("Boot source error: The kernel command line is invalid: "), "{text}");
    }
}
