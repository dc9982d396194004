//! The metadata service from the host's side: what it can be told, by requests and by files, and how large it may grow (threats A11).

use mayfly_tests::{PATIENCE, Tap, Vmm, VmmBuilder, binary};
use serde_json::{Value, json};

use crate::{configured, refused};

const NOT_INITIALIZED: &str = "MMDS error: The MMDS data store is not initialized.";
const TOO_LARGE: &str = "MMDS limit exceeded error: The MMDS patch request doesn't fit.";

/// Sends a request that must be refused with `status` and change nothing.
#[track_caller]
fn unchanged(vmm: &Vmm, method: &str, body: &Value, status: u16, text: &str) {
    let before = vmm.get("/mmds").expect_200();
    vmm.request(method, "/mmds", Some(&body.to_string())).expect_fault_status(status, text);
    assert_eq!(vmm.get("/mmds").expect_200(), before);
}

#[test]
fn objects_are_put_merged_and_shown() {
    let vmm = Vmm::start();
    assert_eq!(vmm.get("/mmds").expect_200(), json!({}));
    unchanged(&vmm, "PATCH", &json!({"a": 1}), 400, NOT_INITIALIZED);
    let first = json!({"latest": {"meta-data": {"ami-id": "dummy", "list": [1, {"b": null}]}}, "\u{e9}\"": 0.5});
    vmm.put("/mmds", &first).expect_204();
    assert_eq!(vmm.get("/mmds").expect_200(), first);
    vmm.patch("/mmds", &json!({"latest": {"meta-data": {"ami-id": null, "list": [2]}, "new": {"x": null, "y": {}}}}))
        .expect_204();
    let merged = json!({"latest": {"meta-data": {"list": [2]}, "new": {"y": {}}}, "\u{e9}\"": 0.5});
    assert_eq!(vmm.get("/mmds").expect_200(), merged);
    for wrong in [json!(null), json!(1), json!("a"), json!([]), json!([{"a": 1}])] {
        for method in ["PUT", "PATCH"] {
            unchanged(&vmm, method, &wrong, 400, "An error occurred when deserializing the json body of a request: ");
        }
    }
    let deep = format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200));
    vmm.request("PUT", "/mmds", Some(&deep)).expect_fault("recursion limit exceeded");
    vmm.put("/mmds", &json!({})).expect_204();
    assert_eq!(vmm.get("/mmds/whatever/follows").expect_200(), json!({}));
}

/// A11.
#[test]
fn the_limit_is_that_of_the_serialised_store_also_after_a_patch() {
    let args = ["--http-api-max-payload-size", "512000", "--mmds-size-limit", "51200"];
    let vmm = VmmBuilder::new().args(args).start();
    let value = |key: &str, len: usize| json!({"latest": {"meta-data": {"ami-id": "smth", key: "a".repeat(len)}}});
    vmm.put("/mmds", &json!({"latest": {"meta-data": {"ami-id": "dummy"}}})).expect_204();
    unchanged(&vmm, "PUT", &value("secret_key", 51_200), 413, TOO_LARGE);
    // Exactly full.
    vmm.patch("/mmds", &value("secret_key", 51_137)).expect_204();
    let len = vmm.get("/mmds").body.len();
    assert!((51_190..=51_200).contains(&len), "{len} bytes");
    unchanged(&vmm, "PATCH", &value("secret_key2", 10), 413, TOO_LARGE);
    unchanged(&vmm, "PATCH", &value("secret_key", 51_138 + 51_200 - len), 413, TOO_LARGE);
    // What a patch takes away makes room for what it brings.
    let mut both = value("secret_key2", 51_000);
    both["latest"]["meta-data"]["secret_key"] = json!(null);
    vmm.patch("/mmds", &both).expect_204();
    vmm.patch("/mmds", &json!({"latest": null})).expect_204();
    assert_eq!(vmm.get("/mmds").expect_200(), json!({}));
}

/// A11.
#[test]
fn many_small_patches_fill_the_store_to_the_limit_and_no_further() {
    let vmm = VmmBuilder::new().args(["--mmds-size-limit", "2000"]).start();
    vmm.put("/mmds", &json!({})).expect_204();
    let mut taken = 0;
    for n in 0..300 {
        let reply = vmm.patch("/mmds", &json!({"k": {format!("{n}"): {"deep": {"er": n}}}}));
        match reply.status {
            204 => taken += 1,
            _ => {
                reply.expect_fault_status(413, TOO_LARGE);
            }
        }
        assert!(vmm.get("/mmds").body.len() <= 2000);
    }
    assert!((40..100).contains(&taken), "{taken} patches fit");
}

#[test]
fn the_limit_is_the_largest_body_unless_it_is_said() {
    let vmm = VmmBuilder::new().args(["--http-api-max-payload-size", "1000"]).start();
    vmm.put("/mmds", &json!({"a": "x".repeat(900)})).expect_204();
    unchanged(&vmm, "PATCH", &json!({"b": "x".repeat(900)}), 413, TOO_LARGE);
}

#[test]
fn a_large_document_is_taken_if_the_limits_are() {
    let vmm = VmmBuilder::new().args(["--http-api-max-payload-size", "2000000"]).start();
    let large = json!({"a": "x".repeat(1 << 20)});
    vmm.put("/mmds", &large).expect_204();
    assert_eq!(vmm.get("/mmds").expect_200(), large);
}

#[test]
fn the_configuration_is_checked_and_shown_with_its_defaults() {
    let vmm = Vmm::start();
    let tap = Tap::create("mflymmds0").expect("a tap");
    let config = |ids: Value| json!({"network_interfaces": ids, "version": "V2"});
    let unknown = "MMMDS config error: The list of network interface IDs provided contains at least one ID that does not correspond to any \
                   existing network interface.";
    let empty = "MMMDS config error: The list of network interface IDs that allow forwarding MMDS requests is empty.";
    assert_eq!(refused(&vmm, "PUT", "/mmds/config", &config(json!([]))), empty);
    assert_eq!(refused(&vmm, "PUT", "/mmds/config", &config(json!(["eth0"]))), unknown);
    vmm.network("eth0", tap.name(), "06:00:ac:10:00:02");
    assert_eq!(refused(&vmm, "PUT", "/mmds/config", &config(json!(["eth0", "eth1"]))), unknown);
    assert_eq!(refused(&vmm, "PUT", "/mmds/config", &config(json!(["eth0", "no/id"]))), unknown);
    let mut wrong = config(json!(["eth0"]));
    for address in ["1.1.1.1", "169.254.0.1", "169.254.255.1", "0.0.0.0"] {
        wrong["ipv4_address"] = json!(address);
        let text = refused(&vmm, "PUT", "/mmds/config", &wrong);
        assert_eq!(text, "MMMDS config error: The MMDS IPv4 address is not link local.", "{address}");
    }
    for address in ["", "169.254.1", "::1"] {
        wrong["ipv4_address"] = json!(address);
        assert!(refused(&vmm, "PUT", "/mmds/config", &wrong).contains("invalid IPv4 address syntax"), "{address}");
    }
    let version = refused(&vmm, "PUT", "/mmds/config", &json!({"network_interfaces": ["eth0"], "version": "foo"}));
    assert!(version.contains("unknown variant `foo`, expected `V1` or `V2`"), "{version}");
    let field = refused(&vmm, "PUT", "/mmds/config", &json!({"foo": 1}));
    assert!(
        field.contains(
            "unknown field `foo`, expected one of `version`, `network_interfaces`, `ipv4_address`, `imds_compat`"
        ),
        "{field}"
    );
    assert!(refused(&vmm, "PUT", "/mmds/config", &json!({})).contains("missing field `network_interfaces`"));
    for (sent, shown) in [
        (json!({}), json!({"version": "V1", "ipv4_address": "169.254.169.254", "imds_compat": false})),
        (
            json!({"version": null, "ipv4_address": null, "imds_compat": null}),
            json!({"version": "V1", "ipv4_address": "169.254.169.254", "imds_compat": false}),
        ),
        (
            json!({"version": "V2", "ipv4_address": "169.254.169.250", "imds_compat": true}),
            json!({"version": "V2", "ipv4_address": "169.254.169.250", "imds_compat": true}),
        ),
    ] {
        let with_ids = |value: &Value| {
            let mut value = value.clone();
            value["network_interfaces"] = json!(["eth0"]);
            value
        };
        let reply = vmm.put("/mmds/config", &with_ids(&sent));
        reply.expect_204();
        let deprecated = (shown["version"] == "V1").then_some("true");
        assert_eq!(reply.header("Deprecation"), deprecated, "{sent}");
        assert_eq!(vmm.get("/vm/config").expect_200()["mmds-config"], with_ids(&shown));
    }
    // On a refusal too.
    assert_eq!(vmm.put("/mmds/config", &json!({"network_interfaces": []})).header("Deprecation"), Some("true"));
}

#[test]
fn a_machine_without_the_service_has_nobody_to_tell() {
    binary::require_kvm();
    let vmm = configured(VmmBuilder::new());
    assert_eq!(vmm.get("/mmds").expect_200(), json!({}));
    vmm.instance_start();
    for (method, body) in [("GET", None), ("PUT", Some("{}")), ("PATCH", Some("{}"))] {
        assert_eq!(vmm.request(method, "/mmds", body).expect_fault(""), NOT_INITIALIZED, "{method}");
    }
}

#[test]
fn metadata_comes_from_a_file() {
    let builder = VmmBuilder::new();
    let file = builder.file("metadata.json", br#"{"from": {"a": "file"}}"#);
    let vmm = builder.arg("--metadata").arg(&file).start();
    vmm.wait_for_log("Successfully added metadata to mmds from file", PATIENCE);
    assert_eq!(vmm.get("/mmds").expect_200(), json!({"from": {"a": "file"}}));
    vmm.patch("/mmds", &json!({"from": null})).expect_204();
}

#[test]
fn metadata_that_cannot_be_had_ends_the_start() {
    for (name, text, said) in [
        (None, "", "Unable to open or read from the mmds content file"),
        (Some("no.json"), "{\"a\":", "MMDS error: metadata provided not valid json"),
        (Some("list.json"), "[1]", "MMDS error: metadata provided not valid json"),
        (
            Some("large.json"),
            "{\"a\": \"0123456789\"}",
            "Populating MMDS from file failed: The MMDS patch request doesn't fit.",
        ),
    ] {
        let builder = VmmBuilder::new();
        let path = name.map_or_else(|| builder.dir().join("missing"), |name| builder.file(name, text.as_bytes()));
        let vmm = builder.args(["--mmds-size-limit", "16", "--metadata"]).arg(&path).spawn();
        assert_eq!(vmm.wait_exit(PATIENCE), 1, "{}", vmm.said());
        vmm.wait_for_log(said, PATIENCE);
    }
}
