//! What serde says about bodies; the texts are compared by clients.

use proptest::prelude::*;
use serde_json::{from_str, json, to_value};

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
    assert_eq!(drive.later(), None);
}

#[test]
fn limiters_are_accepted_only_if_they_limit_nothing() {
    let limiter =
        |text: &str| from_str::<DrivePatch>(&format!(r#"{{"drive_id":"a","rate_limiter":{text}}}"#)).map(|d| d.later());
    assert_eq!(limiter("null").unwrap(), None);
    assert_eq!(limiter("{}").unwrap(), None);
    assert_eq!(limiter(r#"{"ops":null,"bandwidth":null}"#).unwrap(), None);
    assert_eq!(limiter(r#"{"ops":{"size":1,"refill_time":1}}"#).unwrap(), Some(Later("rate_limiter")));
    assert!(limiter(r#"{"op":{"size":1,"refill_time":1}}"#).is_err());
    assert!(limiter(r#"{"ops":{"size":1}}"#).is_err());
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

proptest! {
    /// What was accepted is echoed as it was sent.
    #[test]
    fn machine_configs_round_trip(vcpus in 0u8..40, mib in 0u64..5000, smt: bool, dirty: bool, template in 0usize..7, huge in 0usize..3) {
        let templates = [json!(null), json!("None"), json!("C3"), json!("T2"), json!("T2S"), json!("T2CL"), json!("T2A")];
        let huge = [json!("None"), json!("Transparent"), json!("2M")][huge].clone();
        let mut sent = json!({
            "vcpu_count": vcpus, "mem_size_mib": mib, "smt": smt, "track_dirty_pages": dirty,
            "huge_pages": huge, "cpu_template": templates[template],
        });
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
