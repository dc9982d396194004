//! Rate limiters as the API sees them: which ones there are, what switches them off, how they are shown.

use mayfly_tests::{Disk, Tap, Vmm, VmmBuilder, binary};
use serde_json::{Value, json};

use crate::{SPIN, guest_kernel, refused};

const BEFORE: &str = "The requested operation is not supported before starting the microVM.";

/// What is sent, and what is shown of it.
fn limiters() -> Vec<(Value, Value)> {
    let max = u64::MAX;
    let ops = |size: u64, burst: Value, refill: u64| json!({"bandwidth": null, "ops": {"size": size, "one_time_burst": burst, "refill_time": refill}});
    vec![
        (json!(null), json!(null)),
        (json!({}), json!(null)),
        (json!({"ops": null}), json!(null)),
        (json!({"ops": {"size": 5, "refill_time": 100}}), ops(5, json!(null), 100)),
        (json!({"ops": {"size": 5, "refill_time": 100, "one_time_burst": 0}}), ops(5, json!(null), 100)),
        (json!({"ops": {"size": 5, "refill_time": 100, "one_time_burst": 7}}), ops(5, json!(7), 100)),
        // Off: no tokens, or refilled in no time.
        (json!({"ops": {"size": 0, "refill_time": 100}}), json!(null)),
        (json!({"ops": {"size": 5, "refill_time": 0, "one_time_burst": 7}}), json!(null)),
        (
            json!({"bandwidth": {"size": 0, "refill_time": 0}, "ops": {"size": 5, "refill_time": 1}}),
            ops(5, json!(null), 1),
        ),
        // Unknown fields of a bucket are ignored, those of a limiter are not.
        (json!({"ops": {"size": 5, "refill_time": 100, "more": 1}}), ops(5, json!(null), 100)),
        (
            json!({"bandwidth": {"size": max, "one_time_burst": max, "refill_time": max}}),
            json!({"bandwidth": {"size": max, "one_time_burst": max, "refill_time": max}, "ops": null}),
        ),
    ]
}

fn bad_limiters() -> Vec<Value> {
    vec![
        json!([]),
        json!([null, null]),
        json!(5),
        json!({"op": {"size": 1, "refill_time": 1}}),
        json!({"ops": {"size": 1}}),
        json!({"ops": {"refill_time": 1}}),
        json!({"ops": [1, null, 1]}),
        json!({"ops": {"size": -1, "refill_time": 1}}),
        json!({"ops": {"size": 1.5, "refill_time": 1}}),
        json!({"ops": {"size": "1", "refill_time": 1}}),
        json!({"ops": {"size": 1e30, "refill_time": 1}}),
    ]
}

/// A8.
#[test]
fn limiters_are_shown_as_they_limit() {
    let tap = Tap::create("mflylimits").expect("a tap");
    let vmm = Vmm::start();
    let disk = Disk::sparse(vmm.dir(), "disk", 1 << 20).unwrap();
    let drive =
        |l: &Value| json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk.path(), "rate_limiter": l});
    let net = |l: &Value, m: &Value| json!({"iface_id": "n", "host_dev_name": tap.name(), "rx_rate_limiter": l, "tx_rate_limiter": m});
    let pmem = |l: &Value| json!({"id": "p", "path_on_host": disk.path(), "rate_limiter": l});
    for (sent, shown) in limiters() {
        vmm.put("/drives/d", &drive(&sent)).expect_204();
        vmm.put("/pmem/p", &pmem(&sent)).expect_204();
        vmm.put("/entropy", &json!({"rate_limiter": sent})).expect_204();
        vmm.put("/network-interfaces/n", &net(&sent, &json!(null))).expect_204();
        let config = vmm.get("/vm/config").expect_200();
        assert_eq!(config["drives"][0]["rate_limiter"], shown, "drive {sent}");
        assert_eq!(config["pmem"][0]["rate_limiter"], shown, "pmem {sent}");
        assert_eq!(config["entropy"], json!({"rate_limiter": shown}), "entropy {sent}");
        let interface = &config["network-interfaces"][0];
        assert_eq!((&interface["rx_rate_limiter"], &interface["tx_rate_limiter"]), (&shown, &json!(null)), "{sent}");
        vmm.put("/network-interfaces/n", &net(&json!(null), &sent)).expect_204();
        let interface = vmm.get("/vm/config").expect_200()["network-interfaces"][0].clone();
        assert_eq!((&interface["rx_rate_limiter"], &interface["tx_rate_limiter"]), (&json!(null), &shown), "{sent}");
    }
    for bad in bad_limiters() {
        for (path, body) in [
            ("/drives/d", drive(&bad)),
            ("/pmem/p", pmem(&bad)),
            ("/entropy", json!({"rate_limiter": bad})),
            ("/network-interfaces/n", net(&bad, &json!(null))),
            ("/network-interfaces/n", net(&json!(null), &bad)),
        ] {
            let text = refused(&vmm, "PUT", path, &body);
            assert!(text.starts_with("An error occurred when deserializing the json body of a request: "), "{text}");
        }
    }
}

#[test]
fn the_console_has_one_bucket() {
    let vmm = Vmm::start();
    for bucket in [json!(null), json!({"size": 1, "refill_time": 1}), json!({"size": 0, "refill_time": 0})] {
        vmm.put("/serial", &json!({"rate_limiter": bucket})).expect_204();
    }
    for bad in [json!([]), json!([1, null, 1]), json!({"ops": {"size": 1, "refill_time": 1}}), json!({"size": 1})] {
        refused(&vmm, "PUT", "/serial", &json!({"rate_limiter": bad}));
    }
}

/// A8.
#[test]
fn patches_of_limiters_belong_to_a_started_machine() {
    binary::require_kvm();
    let tap = Tap::create("mflylimpatch").expect("a tap");
    let builder = VmmBuilder::new();
    let kernel = guest_kernel(&builder);
    let disk = Disk::sparse(builder.dir(), "disk", 1 << 20).unwrap();
    let vmm = builder.start();
    let limiter = json!({"bandwidth": {"size": 9, "refill_time": 9}, "ops": {"size": 5, "refill_time": 5}});
    vmm.boot_source(&kernel, SPIN);
    vmm.machine(1, 64);
    let drive = json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk.path(), "rate_limiter": limiter});
    vmm.put("/drives/d", &drive).expect_204();
    vmm.put("/network-interfaces/n", &json!({"iface_id": "n", "host_dev_name": tap.name()})).expect_204();
    let nothing = [
        ("/drives/d", json!({"drive_id": "d", "rate_limiter": {}})),
        ("/network-interfaces/n", json!({"iface_id": "n", "rx_rate_limiter": {}, "tx_rate_limiter": {"ops": null}})),
    ];
    for (path, body) in &nothing {
        assert_eq!(refused(&vmm, "PATCH", path, body), BEFORE);
    }
    vmm.instance_start();
    let before = vmm.get("/vm/config").expect_200();
    // A patch that leaves every bucket out leaves every bucket as it is.
    for (path, body) in &nothing {
        vmm.patch(path, body).expect_204();
    }
    assert_eq!(vmm.get("/vm/config").expect_200(), before);
    for (path, body) in [
        ("/drives/none", json!({"drive_id": "none", "rate_limiter": {}})),
        ("/network-interfaces/none", json!({"iface_id": "none"})),
    ] {
        assert!(refused(&vmm, "PATCH", path, &body).contains("`none`"));
    }
    let text = refused(&vmm, "PATCH", "/pmem/none", &json!({"id": "none"}));
    assert!(
        text.starts_with("Pmem config error: Unable to patch the pmem device: ") && text.contains("not found"),
        "{text}"
    );
    let text = refused(&vmm, "PATCH", "/drives/d", &json!({"drive_id": "d"}));
    assert!(text.starts_with("Drive config error: Unable to patch the block device: "), "{text}");
    assert!(text.contains("Running method expected different backend."), "{text}");
    assert!(text.ends_with("Please verify the request arguments."), "{text}");
    for bad in bad_limiters() {
        refused(&vmm, "PATCH", "/drives/d", &json!({"drive_id": "d", "rate_limiter": bad}));
        refused(&vmm, "PATCH", "/network-interfaces/n", &json!({"iface_id": "n", "tx_rate_limiter": bad}));
    }
}

#[test]
fn a_patch_changes_the_buckets_it_names() {
    binary::require_kvm();
    let tap = Tap::create("mflylimchange").expect("a tap");
    let builder = VmmBuilder::new();
    let kernel = guest_kernel(&builder);
    let disk = Disk::sparse(builder.dir(), "disk", 1 << 20).unwrap();
    let vmm = builder.start();
    let bucket = |size: u64| json!({"size": size, "one_time_burst": null, "refill_time": 7});
    let off = json!({"size": 0, "refill_time": 9});
    let limiter = json!({"bandwidth": bucket(9), "ops": bucket(5)});
    vmm.boot_source(&kernel, SPIN);
    vmm.machine(1, 64);
    let drive = json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk.path(), "rate_limiter": limiter});
    vmm.put("/drives/d", &drive).expect_204();
    let interface = json!({"iface_id": "n", "host_dev_name": tap.name(), "tx_rate_limiter": limiter});
    vmm.put("/network-interfaces/n", &interface).expect_204();
    vmm.instance_start();
    let drive = |vmm: &Vmm| vmm.get("/vm/config").expect_200()["drives"][0].clone();

    let patch = |limiter: Value| json!({"drive_id": "d", "rate_limiter": limiter});
    vmm.patch("/drives/d", &patch(json!({"ops": bucket(6)}))).expect_204();
    assert_eq!(drive(&vmm)["rate_limiter"], json!({"bandwidth": bucket(9), "ops": bucket(6)}));
    vmm.patch("/drives/d", &patch(json!({"ops": off}))).expect_204();
    assert_eq!(drive(&vmm)["rate_limiter"], json!({"bandwidth": bucket(9), "ops": null}));

    // With a file as well: both or neither.
    let mut both = patch(json!({"bandwidth": off, "ops": bucket(3)}));
    both["path_on_host"] = json!("/does/not/exist");
    let before = drive(&vmm);
    refused(&vmm, "PATCH", "/drives/d", &both);
    assert_eq!(drive(&vmm), before);
    let other = vmm.file("other", &[0; 4096]);
    both["path_on_host"] = json!(other);
    vmm.patch("/drives/d", &both).expect_204();
    let now = drive(&vmm);
    assert_eq!((&now["path_on_host"], &now["rate_limiter"]["ops"]), (&json!(other), &bucket(3)));
    vmm.patch("/drives/d", &patch(json!({"ops": off}))).expect_204();
    assert_eq!(drive(&vmm)["rate_limiter"], json!(null));

    let body = json!({"iface_id": "n", "rx_rate_limiter": {"ops": bucket(4)}, "tx_rate_limiter": {"bandwidth": off}});
    vmm.patch("/network-interfaces/n", &body).expect_204();
    let interface = &vmm.get("/vm/config").expect_200()["network-interfaces"][0];
    assert_eq!(interface["rx_rate_limiter"], json!({"bandwidth": null, "ops": bucket(4)}));
    assert_eq!(interface["tx_rate_limiter"], json!({"bandwidth": null, "ops": bucket(5)}));
}
