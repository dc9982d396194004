//! The configuration as one document: `GET /vm/config` shows it exactly, `--config-file` reads it back and applies it in order.

use std::os::unix::net::UnixStream;
use std::path::Path;

use mayfly_tests::{Disk, PATIENCE, Tap, VmmBuilder, binary};
use serde_json::{Value, json};

use crate::{SPIN, guest_kernel};

/// Every section, each with more than its defaults, as it is shown.
fn everything(dir: &Path, kernel: &Path, disk: &Disk, tap: &str) -> Value {
    let limiter = json!({"bandwidth": {"size": 1000, "one_time_burst": 5, "refill_time": 10}, "ops": null});
    json!({
        "balloon": {
            "amount_mib": 8, "deflate_on_oom": true, "stats_polling_interval_s": 1,
            "free_page_hinting": true, "free_page_reporting": true,
        },
        "drives": [{
            "drive_id": "d", "partuuid": "0eaa91a0-01", "is_root_device": true, "cache_type": "Writeback",
            "is_read_only": true, "path_on_host": disk.path(), "rate_limiter": limiter, "io_engine": "Async",
            "socket": null, "num_queues": 3,
        }],
        "boot-source": {"kernel_image_path": kernel, "initrd_path": null, "boot_args": SPIN},
        "cpu-config": null,
        "logger": null,
        "machine-config": {
            "vcpu_count": 1, "mem_size_mib": 64, "smt": false, "track_dirty_pages": false, "huge_pages": "None",
        },
        "metrics": null,
        "mmds-config": {
            "version": "V2", "network_interfaces": ["n"], "ipv4_address": "169.254.170.2", "imds_compat": true,
        },
        "network-interfaces": [{
            "iface_id": "n", "host_dev_name": tap, "guest_mac": "06:00:ac:10:00:02", "mtu": 1500,
            "rx_rate_limiter": null, "tx_rate_limiter": limiter, "num_queues": 2,
        }],
        "vsock": {"guest_cid": 3, "uds_path": dir.join("v.sock")},
        "entropy": {"rate_limiter": limiter},
        "pmem": [{
            "id": "p", "path_on_host": disk.path(), "root_device": false, "read_only": true, "rate_limiter": limiter,
        }],
        "memory-hotplug": {"total_size_mib": 512, "block_size_mib": 4, "slot_size_mib": 256},
    })
}

#[test]
fn what_a_file_says_is_what_is_shown() {
    binary::require_kvm();
    let tap = Tap::create_with_queues("mflywhole").expect("a tap");
    let builder = VmmBuilder::new();
    let kernel = guest_kernel(&builder);
    let disk = Disk::sparse(builder.dir(), "disk", 2 << 20).unwrap();
    let document = everything(builder.dir(), &kernel, &disk, tap.name());
    let vmm = builder.config_file(&document).start();
    assert_eq!(vmm.get("/").expect_200()["state"], "Running");
    assert_eq!(vmm.get("/vm/config").expect_200(), document);
    assert_eq!(vmm.get("/balloon").expect_200(), document["balloon"]);
    UnixStream::connect(vmm.dir().join("v.sock")).expect("a listener");
}

/// In the contract's order the first section that is refused is the one that is named.
#[test]
fn sections_are_applied_in_order() {
    let builder = VmmBuilder::new();
    let kernel = builder.file("kernel", guest::ELF);
    let mut document = json!({
        "memory-hotplug": {"total_size_mib": 1},
        "pmem": [{"id": "a/b", "path_on_host": "/p"}],
        "balloon": {"amount_mib": 1000, "deflate_on_oom": true},
        "vsock": {"guest_cid": 0, "uds_path": "/v"},
        "network-interfaces": [{"iface_id": "n", "host_dev_name": ""}],
        "drives": [{"drive_id": "d", "is_root_device": false, "path_on_host": "/no/such"}],
        "boot-source": {"kernel_image_path": "/no/such"},
        "machine-config": {"vcpu_count": 0, "mem_size_mib": 1},
    });
    let mended = [
        ("machine-config", "Machine config error: ", json!(null)),
        ("boot-source", "Boot source error: ", json!({"kernel_image_path": kernel})),
        ("drives", "Drive config error: ", json!([])),
        ("network-interfaces", "Network config error: ", json!([])),
        ("vsock", "Vsock config error: ", json!(null)),
        ("balloon", "Balloon config error: ", json!(null)),
        ("pmem", "API Resource IDs", json!([])),
        ("memory-hotplug", "Memory hotplug config error: ", json!(null)),
    ];
    for (section, said, mend) in mended {
        let vmm = VmmBuilder::new().config_file(&document).spawn();
        assert_eq!(vmm.wait_exit(PATIENCE), 1, "{section}");
        let refusal = format!("Configuration for VMM from one single json failed: {said}");
        assert!(vmm.stderr().find(&refusal, PATIENCE).is_some(), "{section}: {}", vmm.said());
        document[section] = mend;
    }
}
