//! Routes against the contract in `openapi.yaml`, and the texts of refusals.

use std::collections::BTreeSet;

use serde_json::Value;
use vmm::Settings;
use vmm::config::InstanceId;

use super::*;
use crate::identity::Identity;

const OPENAPI: &str = include_str!("../../../openapi.yaml");
const METHODS: [&str; 5] = ["get", "put", "post", "patch", "delete"];

fn app() -> App {
    let settings = Settings {
        id: InstanceId::default(),
        boot_timer: false,
        mmds_size_limit: 100,
        seccomp: vmm::confine::Seccomp::Off,
        clonable: false,
        pci: false,
        on_rename: |_| (),
    };
    App::new(vmm::launch(settings, |_| ()).unwrap(), Identity::Mayfly, 51_200, crate::confinement::ApiFences::none())
}

fn ask(app: &App, method: Method, path: &str, body: &str) -> Result<Reply, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(serve(app, &method, path, body.as_bytes())).outcome.map_err(|fault| fault.message().to_owned())
}

#[track_caller]
fn fault(app: &App, method: Method, path: &str, body: &str) -> String {
    ask(app, method, path, body).unwrap_err()
}

#[test]
fn openapi_lists_exactly_the_routes() {
    let document: Value = serde_norway::from_str(OPENAPI).unwrap();
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| METHODS.iter().filter(|m| item.get(**m).is_some()).map(move |m| (path, m)))
        .map(|(path, method)| {
            let pieces = path.split('/').filter(|p| !p.is_empty()).map(|p| if p.starts_with('{') { "{}" } else { p });
            (method.to_uppercase(), pieces.collect::<Vec<_>>().join("/"))
        })
        .collect();
    let routed: Vec<(String, String)> = table::ROUTES
        .iter()
        .map(|route| {
            let id = route.has_id.then_some("{}");
            (route.method.to_string(), route.pieces.iter().copied().chain(id).collect::<Vec<_>>().join("/"))
        })
        .collect();
    assert_eq!(routed.len(), described.len(), "a route is there twice, or missing");
    assert_eq!(routed.into_iter().collect::<BTreeSet<_>>(), described);
}

#[test]
fn openapi_describes_every_operation_with_examples() {
    let document: Value = serde_norway::from_str(OPENAPI).unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in METHODS {
            let Some(operation) = item.get(method) else { continue };
            assert!(operation["summary"].is_string(), "{method} {path}");
            assert!(operation["responses"]["default"].is_object(), "{method} {path}");
            let examples = match method {
                "put" | "post" | "patch" => &operation["requestBody"]["content"]["application/json"]["examples"],
                "get" => &operation["responses"]["200"]["content"]["application/json"]["examples"],
                _ => continue,
            };
            assert!(!examples.as_object().unwrap().is_empty(), "{method} {path}");
        }
    }
}

#[test]
fn routes_are_reachable_and_do_not_hide_each_other() {
    for route in table::ROUTES {
        let mut pieces = route.pieces.to_vec();
        if route.has_id {
            pieces.push("id");
        }
        let found = table::find(&route.method, &pieces).unwrap();
        assert!(std::ptr::eq(found.route, route));
        assert_eq!(found.id, if route.has_id { "id" } else { "" });
        assert!(found.rest.is_empty());
    }
}

#[test]
fn slashes_and_extra_pieces_do_not_matter() {
    let app = app();
    for path in ["/version", "/version/", "//version", "/version/xyz", "version"] {
        assert!(ask(&app, Method::GET, path, "").is_ok(), "{path}");
    }
    assert!(ask(&app, Method::PUT, "/machine-config/x/", r#"{"vcpu_count":1,"mem_size_mib":128}"#).is_ok());
    assert!(ask(&app, Method::GET, "/", "").is_ok());
    assert!(ask(&app, Method::GET, "/vm/config/", "").is_ok());
}

#[test]
fn unknown_paths_and_methods_are_named() {
    let app = app();
    for (method, path, body, said) in [
        (Method::GET, "/nothing/here", "", "GET nothing"),
        (Method::GET, "/vm", "", "GET vm"),
        (Method::GET, "/actions", "", "GET actions"),
        (Method::PATCH, "/boot-source", "{}", "PATCH boot-source"),
        (Method::PATCH, "/logger", "{}", "PATCH logger"),
        (Method::PUT, "/", "{}", "PUT "),
        (Method::DELETE, "/machine-config", "", "DELETE machine-config"),
        (Method::GET, "/balloon/nothing", "", "GET /balloon/nothing"),
        (Method::GET, "/balloon/hinting", "", "GET /balloon/hinting"),
        (Method::PATCH, "/balloon/hinting", "{}", "PATCH /balloon/hinting"),
        (Method::PATCH, "/balloon/hinting/pause", "{}", "PATCH /balloon/hinting"),
        (Method::DELETE, "/balloon", "", "DELETE balloon"),
        (Method::PATCH, "/vsock", "{}", "PATCH vsock"),
        (Method::GET, "/entropy", "", "GET entropy"),
        (Method::PUT, "/hotplug", "{}", "PUT hotplug"),
        (Method::GET, "/hotplug/cpu", "", "GET hotplug"),
    ] {
        let expected = format!("Invalid request method and/or path: {said}.");
        assert_eq!(fault(&app, method, path, body), expected);
    }
}

/// The phase comes after what is wrong in itself, and before what this version lacks.
#[test]
fn snapshots_are_understood() {
    let app = app();
    let before = "The requested operation is not supported before starting the microVM.";
    let json = |why: &str| format!("An error occurred when deserializing the json body of a request: {why}.");
    let create = |body: &str| fault(&app, Method::PUT, "/snapshot/create", body);
    assert_eq!(create(r#"{"snapshot_path":"s","mem_file_path":"m"}"#), before);
    assert_eq!(create(r#"{"snapshot_path":"s"}"#), json("missing field `mem_file_path` at line 1 column 21"));
    let half = r#"{"snapshot_type":"Half","snapshot_path":"s","mem_file_path":"m"}"#;
    assert_eq!(create(half), json("unknown variant `Half`, expected `Diff` or `Full` at line 1 column 23"));

    let load = |body: &str| fault(&app, Method::PUT, "/snapshot/load", body);
    let nowhere = "Load snapshot error: Failed to restore from snapshot: Failed to get snapshot state from file: Failed to open snapshot file: No such file or directory (os error 2)";
    let whole = r#"{"snapshot_path":"/nowhere/s","mem_backend":{"backend_type":"Uffd","backend_path":"m"},"enable_diff_snapshots":true,
        "track_dirty_pages":true,"resume_vm":true,"network_overrides":[{"iface_id":"n","host_dev_name":"t","more":1}],
        "vsock_override":{"uds_path":"u","more":1},"clock_realtime":true,"huge_pages":"2M"}"#;
    assert_eq!(load(r#"{"snapshot_path":"/nowhere/s","mem_file_path":"m"}"#), nowhere);
    assert_eq!(load(whole), nowhere);
    for (body, said) in [
        (r#"{"mem_file_path":"m"}"#, "missing field `snapshot_path`"),
        (r#"{"snapshot_path":"s","mem_backend":{"backend_path":"m"}}"#, "missing field `backend_type`"),
        (r#"{"snapshot_path":"s","mem_backend":{"backend_type":"File"}}"#, "missing field `backend_path`"),
        (
            r#"{"snapshot_path":"s","mem_backend":{"backend_type":"foo","backend_path":"m"}}"#,
            "unknown variant `foo`, expected `File` or `Uffd`",
        ),
        (r#"{"snapshot_path":"s","mem_file":"m"}"#, "unknown field `mem_file`, expected one of `snapshot_path`"),
    ] {
        assert!(load(body).contains(said), "{}", load(body));
    }
    assert_eq!(load(r#"{"snapshot_path":"s"}"#), "missing field: either `mem_backend` or `mem_file_path` is required");
    assert_eq!(
        load(r#"{"snapshot_path":"s","mem_file_path":"m","mem_backend":{"backend_type":"File","backend_path":"m"}}"#),
        "too many fields: either `mem_backend` or `mem_file_path` exclusively is required."
    );
    let restore = |body: &str| fault(&app, Method::PUT, "/snapshot/restore", body);
    let whole = r#"{"snapshot_path":"/nowhere/s","mem_backend":{"backend_type":"File","backend_path":"m"},"track_dirty_pages":true,
        "resume_vm":true,"clock_realtime":true,"force":true,"huge_pages":"Snapshot","drives":[{"drive_id":"d","path_on_host":"f"}],
        "pmem":[{"id":"p","path_on_host":"f"}],"network_interfaces":[{"iface_id":"n","host_dev_name":"t","guest_mac":"06:00:ac:10:00:02"}],
        "vsock":{"guest_cid":4,"uds_path":"u"},"serial":{"serial_out_path":"o"},"mmds":{"a":1}}"#;
    assert_eq!(restore(whole), nowhere);
    for (body, said) in [
        (r#"{"snapshot_path":"s"}"#, "missing field `mem_backend`"),
        (r#"{"snapshot_path":"s","mem_backend":null}"#, "invalid type: null, expected an object"),
        (r#"{"snapshot_path":"s","mem_backend":["File","m"]}"#, "invalid type: sequence, expected an object"),
        (
            r#"{"snapshot_path":"s","mem_backend":{"backend_type":"File","backend_path":"m"},"drives":[{"drive_id":"/","path_on_host":"f"}]}"#,
            "drives: drive_id \"/\": ",
        ),
    ] {
        assert!(restore(body).contains(said), "{}", restore(body));
    }
    assert_eq!(fault(&app, Method::PUT, "/snapshot", "{}"), "Missing snapshot operation type.");
    assert_eq!(
        fault(&app, Method::PUT, "/snapshot/delete", "{}"),
        "Invalid request method and/or path: PUT /snapshot/delete."
    );
}

#[test]
fn body_rules_come_before_the_path() {
    let app = app();
    assert_eq!(fault(&app, Method::GET, "/version", "{}"), "GET request cannot have a body.");
    assert_eq!(fault(&app, Method::PUT, "/nothing", ""), "Empty PUT request.");
    assert_eq!(fault(&app, Method::PATCH, "/vm", ""), "Empty PATCH request.");
    assert_eq!(fault(&app, Method::DELETE, "/drives/a", "x"), "Empty Delete request.");
    assert_eq!(fault(&app, Method::PATCH, "/machine-config", "{}"), "Empty PATCH request.");
    assert_eq!(fault(&app, Method::PATCH, "/machine-config", r#"{"smt":null}"#), "Empty PATCH request.");
    assert_eq!(fault(&app, Method::PATCH, "/balloon", ""), "Empty PATCH request.");
    assert_eq!(fault(&app, Method::PATCH, "/balloon/hinting", ""), "Empty PATCH request.");
    // Hinting is started and stopped without a body too.
    let before = "The requested operation is not supported before starting the microVM.";
    for body in ["", "{}", r#"{"acknowledge_on_stop":false,"more":1}"#] {
        assert_eq!(fault(&app, Method::PATCH, "/balloon/hinting/start", body), before);
        assert_eq!(fault(&app, Method::PATCH, "/balloon/hinting/stop", body), before);
    }
    let text = fault(&app, Method::PATCH, "/balloon/hinting/start", r#"{"acknowledge_on_stop":1}"#);
    assert!(
        text.starts_with("An error occurred when deserializing the json body of a request: invalid type"),
        "{text}"
    );
}

#[test]
fn ids_are_checked_and_compared() {
    let app = app();
    let drive = r#"{"drive_id":"a","is_root_device":false,"path_on_host":"/nope"}"#;
    let net = r#"{"iface_id":"a","host_dev_name":"t"}"#;
    assert_eq!(fault(&app, Method::PUT, "/drives", drive), "The ID cannot be empty.");
    for bad in ["a%2Fb", "a-b", "..", "a.b"] {
        assert_eq!(
            fault(&app, Method::PUT, &format!("/drives/{bad}"), drive),
            "API Resource IDs can only contain alphanumeric characters and underscores."
        );
    }
    assert_eq!(
        fault(&app, Method::PUT, "/drives/b", drive),
        "The id from the path does not match the id from the body!"
    );
    assert_eq!(
        fault(&app, Method::PUT, "/network-interfaces/b", net),
        "The id from the path [b] does not match the id from the body [a]!"
    );
    assert!(fault(&app, Method::PUT, "/drives/a/extra", drive).starts_with("Drive config error: "));
    let pmem = r#"{"id":"a","path_on_host":"/nope"}"#;
    assert_eq!(fault(&app, Method::PUT, "/pmem", pmem), "The ID cannot be empty.");
    for method in [Method::PUT, Method::PATCH] {
        let body = if method == Method::PUT { pmem } else { r#"{"id":"a"}"# };
        assert_eq!(fault(&app, method, "/pmem/b", body), "The id from the path does not match the id from the body!");
    }
}

#[test]
fn backends_that_are_not_there_are_named() {
    let app = app();
    let drive = r#"{"drive_id":"a","is_root_device":false,"socket":"/nobody"}"#;
    assert_eq!(
        fault(&app, Method::PUT, "/drives/a", drive),
        "Drive config error: Unable to create the virtio block device: Vhost-user backend error: socket /nobody: \
         No such file or directory (os error 2)"
    );
    let fs = r#"{"fs_id":"a","tag":"t","socket":"/nobody"}"#;
    assert_eq!(
        fault(&app, Method::PUT, "/fs/a", fs),
        "File system config error: the backend at socket /nobody is of no use: No such file or directory (os error 2)"
    );
    assert_eq!(fault(&app, Method::PUT, "/fs/b", fs), "The id from the path does not match the id from the body!");
}

#[test]
fn what_this_version_lacks_is_refused_unless_the_phase_is_wrong_anyway() {
    let app = app();
    let later = |what: &str| format!("{what} is not supported yet by this version of Mayfly.");
    let before = "The requested operation is not supported before starting the microVM.";
    let gdb = r#"{"vcpu_count":1,"mem_size_mib":1,"gdb_socket_path":"/s"}"#;
    assert_eq!(fault(&app, Method::PUT, "/machine-config", gdb), later("gdb_socket_path"));
    assert_eq!(fault(&app, Method::PUT, "/actions", r#"{"action_type":"FlushMetrics"}"#), before);
    for resource in ["drives", "network-interfaces", "pmem"] {
        assert_eq!(fault(&app, Method::DELETE, &format!("/{resource}/a"), ""), before);
    }
}

#[test]
fn json_that_is_not_says_where() {
    let app = app();
    let deep = "[".repeat(10_000);
    for (body, said) in [
        ("{", "EOF while parsing an object at line 1 column 1"),
        ("nonsense", "expected ident at line 1 column 2"),
        (r#"{"state":"Paused"} x"#, "trailing characters at line 1 column 20"),
        (deep.as_str(), "invalid type: sequence, expected struct Vm at line 1 column 0"),
    ] {
        let text = fault(&app, Method::PATCH, "/vm", body);
        let prefix = "An error occurred when deserializing the json body of a request: ";
        assert!(text.starts_with(prefix), "{text}");
        if !body.starts_with('[') {
            assert_eq!(text, format!("{prefix}{said}."));
        }
    }
}
