//! What serde says about bodies; the texts are compared by clients.

use proptest::prelude::*;
use serde_json::{from_str, json, to_value};
use vmm::config::{BucketChange, BucketSpec, RateLimitChange, RateLimits};
use vmm::requests::{BalloonStatistics, HintingStatus};

use super::*;

fn error<T: serde::de::DeserializeOwned>(text: &str) -> String {
    match from_str::<T>(text) {
        Ok(_) => panic!("{text} was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn messages_name_fields_in_the_order_of_the_contract() {
    assert_eq!(error::<MachineConfig>(r#"{"mem_size_mib": 128}"#), "missing field `vcpu_count` at line 1 column 21");
    assert!(error::<MachineConfig>(r#"{"x":1}"#).starts_with(
        "unknown field `x`, expected one of `vcpu_count`, `mem_size_mib`, `smt`, `cpu_template`, `track_dirty_pages`, `huge_pages`"
    ));
    assert!(
        error::<BootSource>(r#"{"x":1}"#)
            .starts_with("unknown field `x`, expected one of `kernel_image_path`, `initrd_path`, `boot_args`")
    );
    assert!(
        error::<DrivePatch>(r#"{"drive_id":"a","is_read_only":true}"#)
            .starts_with("unknown field `is_read_only`, expected one of `drive_id`, `path_on_host`, `rate_limiter`")
    );
    assert!(
        error::<Action>(r#"{"action_type":"x"}"#)
            .starts_with("unknown variant `x`, expected one of `FlushMetrics`, `InstanceStart`, `SendCtrlAltDel`")
    );
    assert!(error::<Vm>(r#"{"state":"x"}"#).starts_with("unknown variant `x`, expected `Paused` or `Resumed`"));
    assert!(error::<Logger>(r#"{"level":"loud"}"#).starts_with("unknown log level `loud`"));
}

#[test]
fn duplicates_wrong_types_and_overflows_are_refused() {
    assert!(error::<Vm>(r#"{"state":"Paused","state":"Paused"}"#).starts_with("duplicate field `state`"));
    assert!(
        error::<MachineConfig>(r#"{"vcpu_count":256,"mem_size_mib":1}"#).starts_with("invalid value: integer `256`")
    );
    assert!(
        error::<MachineConfig>(r#"{"vcpu_count":1,"mem_size_mib":18446744073709551616}"#).starts_with("invalid type")
    );
    assert!(error::<MachineConfig>(r#"{"vcpu_count":1,"mem_size_mib":-1}"#).starts_with("invalid value: integer `-1`"));
    assert!(error::<MachineConfig>(r#"{"vcpu_count":1e400,"mem_size_mib":1}"#).starts_with("number out of range"));
    assert!(error::<MachineConfig>(r#"{"vcpu_count":NaN}"#).starts_with("expected value"));
}

#[test]
fn null_means_absent() {
    let machine: MachineConfig = from_str(r#"{"vcpu_count":1,"mem_size_mib":128,"cpu_template":null}"#).unwrap();
    assert!(!machine.deprecated());
    let drive: Drive = from_str(
        r#"{"drive_id":"a","is_root_device":false,"path_on_host":"/x","partuuid":null,"is_read_only":null,"rate_limiter":null,"io_engine":null,"socket":null}"#,
    )
    .unwrap();
    assert!(vmm::config::DriveConfig::try_from(drive).is_ok());
    assert!(from_str::<Vsock>(r#"{"guest_cid":3,"uds_path":"/v","vsock_id":null}"#).is_ok_and(|v| !v.deprecated()));
    assert!(from_str::<Vsock>(r#"{"guest_cid":3,"uds_path":"/v","vsock_id":""}"#).is_ok_and(|v| v.deprecated()));
}

/// How a limiter is understood by PUT, by PATCH, and how it is shown.
fn limiter(text: &str) -> (RateLimits, RateLimitChange, serde_json::Value) {
    let put: Entropy = from_str(&format!(r#"{{"rate_limiter":{text}}}"#)).unwrap();
    let config = vmm::config::EntropyConfig::from(put);
    let patch: PmemPatch = from_str(&format!(r#"{{"id":"a","rate_limiter":{text}}}"#)).unwrap();
    let echo = to_value(Entropy::from(config.clone())).unwrap();
    (config.rate_limiter, patch.rate_limits(), echo["rate_limiter"].clone())
}

#[test]
fn limiters_that_limit_nothing_are_none() {
    let (nothing, keep) = (RateLimits::default(), RateLimitChange::default());
    for text in ["null", "{}", r#"{"ops":null,"bandwidth":null}"#] {
        assert_eq!(limiter(text), (nothing, keep, json!(null)), "{text}");
    }
    // An empty bucket, or one that fills in no time, switches off.
    let off = RateLimitChange { ops: BucketChange::Remove, ..keep };
    for text in [r#"{"ops":{"size":0,"refill_time":100}}"#, r#"{"ops":{"size":5,"refill_time":0,"one_time_burst":9}}"#]
    {
        assert_eq!(limiter(text), (nothing, off, json!(null)), "{text}");
    }
}

#[test]
fn limiters_are_echoed_without_the_burst_they_do_not_have() {
    let ops = BucketSpec { size: 5, one_time_burst: 0, refill_ms: 100 };
    let expected = (
        RateLimits { ops: Some(ops), bandwidth: None },
        RateLimitChange { ops: BucketChange::Set(ops), bandwidth: BucketChange::Keep },
        json!({"bandwidth": null, "ops": {"size": 5, "one_time_burst": null, "refill_time": 100}}),
    );
    assert_eq!(limiter(r#"{"ops":{"size":5,"refill_time":100}}"#), expected);
    assert_eq!(limiter(r#"{"ops":{"size":5,"refill_time":100,"one_time_burst":0,"more":1}}"#), expected);
    // The largest numbers are fine: buckets reckon in 128 bits.
    let max = u64::MAX;
    let (limits, _, echo) = limiter(&format!(
        r#"{{"bandwidth":{{"size":{max},"refill_time":{max},"one_time_burst":{max}}},"ops":{{"size":0,"refill_time":0}}}}"#
    ));
    assert_eq!(limits.bandwidth, Some(BucketSpec { size: max, one_time_burst: max, refill_ms: max }));
    assert_eq!(echo, json!({"bandwidth": {"size": max, "one_time_burst": max, "refill_time": max}, "ops": null}));
}

#[test]
fn misshapen_limiters_are_refused() {
    for bad in [
        r#"{"op":{"size":1,"refill_time":1}}"#,
        r#"{"ops":{"size":1}}"#,
        r#"{"ops":{"size":-1,"refill_time":1}}"#,
        // serde's second spelling of a struct.
        "[]",
        "[null,null]",
        r#"{"ops":[1,null,1]}"#,
        "1",
        r#""""#,
    ] {
        error::<Entropy>(&format!(r#"{{"rate_limiter":{bad}}}"#));
        error::<Pmem>(&format!(r#"{{"id":"a","path_on_host":"p","rate_limiter":{bad}}}"#));
        error::<PmemPatch>(&format!(r#"{{"id":"a","rate_limiter":{bad}}}"#));
        error::<Drive>(&format!(
            r#"{{"drive_id":"a","is_root_device":false,"path_on_host":"p","rate_limiter":{bad}}}"#
        ));
        error::<DrivePatch>(&format!(r#"{{"drive_id":"a","rate_limiter":{bad}}}"#));
        for way in ["rx", "tx"] {
            error::<Net>(&format!(r#"{{"iface_id":"a","host_dev_name":"t","{way}_rate_limiter":{bad}}}"#));
            error::<NetPatch>(&format!(r#"{{"iface_id":"a","{way}_rate_limiter":{bad}}}"#));
        }
    }
    error::<Serial>(r#"{"rate_limiter":[1,null,1]}"#);
    error::<Serial>(r#"{"rate_limiter":{"ops":{"size":1,"refill_time":1}}}"#);
    let text = error::<Entropy>(r#"{"rate_limiter":{"ops":{"size":1}}}"#);
    assert_eq!(text, "missing field `refill_time` at line 1 column 33");
    let text = error::<Entropy>(r#"{"rate_limiter":{"op":1}}"#);
    assert!(text.starts_with("unknown field `op`, expected `bandwidth` or `ops`"), "{text}");
}

#[test]
fn devices_name_their_fields_in_order_too() {
    let unknown = r#"{"x":1}"#;
    for (text, fields) in [
        (
            error::<Balloon>(unknown),
            "one of `amount_mib`, `deflate_on_oom`, `stats_polling_interval_s`, `free_page_hinting`, `free_page_reporting`",
        ),
        (error::<BalloonPatch>(unknown), "`amount_mib`"),
        (error::<BalloonStatisticsPatch>(unknown), "`stats_polling_interval_s`"),
        (error::<Vsock>(unknown), "one of `vsock_id`, `guest_cid`, `uds_path`"),
        (error::<Entropy>(unknown), "`rate_limiter`"),
        (error::<Pmem>(unknown), "one of `id`, `path_on_host`, `root_device`, `read_only`, `rate_limiter`"),
        (error::<PmemPatch>(unknown), "`id` or `rate_limiter`"),
        (error::<Fs>(unknown), "one of `fs_id`, `tag`, `socket`, `num_queues`, `queue_size`"),
        (error::<MemoryHotplug>(unknown), "one of `total_size_mib`, `block_size_mib`, `slot_size_mib`"),
        (error::<MemoryHotplugPatch>(unknown), "`requested_size_mib`"),
        (error::<VcpusPatch>(unknown), "`vcpu_count`"),
        (error::<Serial>(unknown), "`serial_out_path` or `rate_limiter`"),
        (error::<NetPatch>(unknown), "one of `iface_id`, `rx_rate_limiter`, `tx_rate_limiter`"),
    ] {
        assert!(text.starts_with(&format!("unknown field `x`, expected {fields} at line")), "{text}");
    }
    assert_eq!(error::<Pmem>(r#"{"id":"a"}"#), "missing field `path_on_host` at line 1 column 10");
    assert!(
        error::<MemoryHotplug>(r#"{"total_size_mib":4294967296}"#).starts_with("invalid value: integer `4294967296`")
    );
    assert!(from_str::<HintingStart>(r#"{"x":1}"#).unwrap().acknowledge_on_stop);
    assert!(!from_str::<HintingStart>(r#"{"acknowledge_on_stop":false}"#).unwrap().acknowledge_on_stop);
}

#[test]
fn a_drive_has_a_file_or_a_socket() {
    let refused = |more: &str| {
        let wire: Drive = from_str(&format!(r#"{{"drive_id":"a","is_root_device":false{more}}}"#)).unwrap();
        vmm::config::DriveConfig::try_from(wire).unwrap_err().to_string()
    };
    assert!(refused("").contains("path_on_host is missing"));
    for (field, value) in
        [("path_on_host", r#""/p""#), ("is_read_only", "false"), ("rate_limiter", "{}"), ("io_engine", r#""Sync""#)]
    {
        let text = refused(&format!(r#","socket":"/s","{field}":{value}"#));
        assert!(text.contains(&format!("socket and {field} exclude each other")), "{text}");
    }
    let wire: Drive = from_str(r#"{"drive_id":"a","is_root_device":true,"partuuid":"u","socket":"/s"}"#).unwrap();
    let echo = to_value(Drive::from(vmm::config::DriveConfig::try_from(wire).unwrap())).unwrap();
    assert_eq!(
        echo,
        json!({"drive_id": "a", "partuuid": "u", "is_root_device": true, "cache_type": "Unsafe", "is_read_only": null,
            "path_on_host": null, "rate_limiter": null, "io_engine": null, "socket": "/s"})
    );
}

#[test]
fn a_file_system_has_defaults_and_bounds() {
    let read = |text: &str| {
        let wire: Fs = from_str(text).unwrap();
        vmm::config::FsConfig::try_from(wire).map_err(|e| e.to_string())
    };
    let echo = to_value(Fs::from(read(r#"{"fs_id":"a","tag":"t","socket":"/s"}"#).unwrap())).unwrap();
    assert_eq!(echo, json!({"fs_id": "a", "tag": "t", "socket": "/s", "num_queues": 1, "queue_size": 256}));
    let text = read(r#"{"fs_id":"a","tag":"","socket":"/s"}"#).unwrap_err();
    assert_eq!(text, "File system config error: tag has 0 bytes: choose one of 1 to 36 bytes.");
    assert!(read(r#"{"fs_id":"a-b","tag":"t","socket":"/s"}"#).unwrap_err().starts_with("API Resource IDs"));
}

#[test]
fn statistics_show_what_the_guest_reports() {
    let said = BalloonStatistics { target_mib: 2, target_pages: 512, free_memory: Some(7), ..Default::default() };
    let expected = json!({"target_pages": 512, "actual_pages": 0, "target_mib": 2, "actual_mib": 0, "free_memory": 7});
    assert_eq!(to_value(Statistics::from(said)).unwrap(), expected);
    let hinting = |guest_cmd| to_value(Hinting::from(HintingStatus { host_cmd: 2, guest_cmd })).unwrap();
    assert_eq!(hinting(None), json!({"host_cmd": 2, "guest_cmd": null}));
    assert_eq!(hinting(Some(2)), json!({"host_cmd": 2, "guest_cmd": 2}));
}

#[test]
fn an_empty_configuration_has_every_key() {
    let empty = to_value(FullConfig::from(vmm::config::FullConfig::default())).unwrap();
    let expected = json!({
        "balloon": null, "drives": [], "boot-source": null, "cpu-config": null, "logger": null,
        "machine-config": {
            "vcpu_count": 1, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false, "huge_pages": "None"
        },
        "metrics": null, "mmds-config": null, "network-interfaces": [], "vsock": null, "entropy": null,
        "pmem": [], "memory-hotplug": null,
    });
    assert_eq!(empty, expected);
}

#[test]
fn an_mtu_below_68_is_refused() {
    let net = |mtu: u16| {
        let wire: Net = from_str(&format!(r#"{{"iface_id":"a","host_dev_name":"t","mtu":{mtu}}}"#)).unwrap();
        vmm::config::NetConfig::try_from(wire)
    };
    assert!(net(67).is_err());
    assert!(net(68).is_ok());
    assert!(net(65535).is_ok());
}

#[test]
fn a_number_of_queues_is_shown_only_if_it_was_set() {
    let drive = |queues: &str| {
        let text = format!(r#"{{"drive_id":"a","is_root_device":false,"path_on_host":"/x"{queues}}}"#);
        vmm::config::DriveConfig::try_from(from_str::<Drive>(&text).unwrap()).map_err(|e| e.to_string())
    };
    let net = |queues: &str| {
        let text = format!(r#"{{"iface_id":"a","host_dev_name":"t"{queues}}}"#);
        vmm::config::NetConfig::try_from(from_str::<Net>(&text).unwrap()).map_err(|e| e.to_string())
    };
    for (queues, shown) in [("", json!(null)), (r#","num_queues":null"#, json!(null)), (r#","num_queues":2"#, json!(2))]
    {
        let echoes = [to_value(Drive::from(drive(queues).unwrap())), to_value(Net::from(net(queues).unwrap()))];
        for echo in echoes.map(Result::unwrap) {
            assert_eq!((echo.get("num_queues").is_some(), &echo["num_queues"]), (!shown.is_null(), &shown));
        }
    }
    for bad in ["0", "17", "300", "18446744073709551615"] {
        let queues = format!(r#","num_queues":{bad}"#);
        for error in [drive(&queues).unwrap_err(), net(&queues).unwrap_err()] {
            assert!(error.contains(&format!("num_queues is {bad}: it must be from 1 to 16.")), "{error}");
        }
    }
}

proptest! {
    /// What was accepted is echoed as it was sent.
    #[test]
    fn machine_configs_round_trip(
        vcpus in 0u8..40, mib in 0u64..5000, smt: bool, dirty: bool, template in 0usize..7, huge in 0usize..3,
        max in proptest::option::of(0u8..40),
    ) {
        let templates = [json!(null), json!("None"), json!("C3"), json!("T2"), json!("T2S"), json!("T2CL"), json!("T2A")];
        let huge = [json!("None"), json!("Transparent"), json!("2M")][huge].clone();
        let mut sent = json!({
            "vcpu_count": vcpus, "mem_size_mib": mib, "smt": smt, "track_dirty_pages": dirty,
            "huge_pages": huge, "cpu_template": templates[template],
        });
        // Where it is left out it is not echoed either.
        if let Some(max) = max {
            sent["max_vcpus"] = json!(max);
        }
        let wire: MachineConfig = serde_json::from_value(sent.clone()).unwrap();
        if let Ok(config) = vmm::config::MachineConfig::default().patched(&wire.into()) {
            if template < 2 {
                sent.as_object_mut().unwrap().remove("cpu_template");
            }
            prop_assert_eq!(to_value(MachineConfig::from(config)).unwrap(), sent);
        }
    }

    /// Drives too, with defaults filled in and every key there.
    #[test]
    fn drives_round_trip(id in "[a-z0-9_]{1,8}", root: bool, ro: bool, writeback: bool, asynchronous: bool, uuid in proptest::option::of("[0-9a-f-]{1,36}")) {
        let sent = json!({
            "drive_id": id, "partuuid": uuid, "is_root_device": root, "cache_type": if writeback { "Writeback" } else { "Unsafe" },
            "is_read_only": ro, "path_on_host": "/disk", "rate_limiter": null,
            "io_engine": if asynchronous { "Async" } else { "Sync" }, "socket": null,
        });
        let wire: Drive = serde_json::from_value(sent.clone()).unwrap();
        let config = vmm::config::DriveConfig::try_from(wire).unwrap();
        prop_assert_eq!(to_value(Drive::from(config)).unwrap(), sent);
    }
}
