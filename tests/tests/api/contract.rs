//! `openapi.yaml` against the binary: every example is sent, every answer is validated, and what a schema forbids is refused.

use std::path::Path;

use mayfly_tests::{Response, Tap, Vmm, VmmBuilder, binary};
use serde_json::{Value, json};

use crate::{SPIN, guest_kernel};

/// Examples name files in these directories and this tap; the test puts its own in their place.
const PLACES: [&str; 3] = ["/boot/", "/images/", "/tmp/"];
const TAP: &str = "tap0";
const TAP_WITH_QUEUES: &str = "tap1";

struct Contract(Value);

impl Contract {
    fn read() -> Self {
        let text = std::fs::read_to_string(binary::workspace().join("openapi.yaml")).expect("openapi.yaml");
        Self(serde_norway::from_str(&text).expect("openapi.yaml is YAML"))
    }

    /// Follows a `$ref` within the document.
    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value.get("$ref").and_then(Value::as_str) {
            Some(at) => self.0.pointer(at.trim_start_matches('#')).unwrap_or_else(|| panic!("{at} leads nowhere")),
            None => value,
        }
    }

    /// What `schema` finds wrong with `value`.
    fn errors(&self, schema: &Value, value: &Value) -> Vec<String> {
        // References in the schema are relative to the document, so it takes the components along.
        let mut root = schema.as_object().expect("a schema").clone();
        root.insert("components".to_owned(), self.0["components"].clone());
        let validator = jsonschema::validator_for(&Value::Object(root)).expect("a valid schema");
        validator.iter_errors(value).map(|error| format!("{error} at {}", error.instance_path())).collect()
    }

    fn operation(&self, method: &str, path: &str) -> &Value {
        let item = &self.0["paths"][path];
        let operation = &item[method.to_lowercase()];
        assert!(operation.is_object(), "{method} {path} is not in openapi.yaml");
        operation
    }

    /// Checks a reply against the documented response of its status.
    #[track_caller]
    fn check_reply(&self, method: &str, path: &str, reply: &Response) {
        let responses = &self.operation(method, path)["responses"];
        let status = reply.status.to_string();
        let documented = responses.get(&status).unwrap_or_else(|| {
            assert_eq!(reply.status, 400, "{method} {path} answers {status}: {}", reply.text());
            &responses["default"]
        });
        let documented = self.resolve(documented);
        if let Some(deprecation) = reply.header("Deprecation") {
            let schema = &self.resolve(&documented["headers"]["Deprecation"])["schema"];
            assert_eq!(self.errors(schema, &json!(deprecation)), Vec::<String>::new(), "{method} {path} {status}");
        }
        match documented.get("content") {
            Some(content) => {
                let errors = self.errors(&content["application/json"]["schema"], &reply.json());
                assert!(errors.is_empty(), "{method} {path} {status}: {errors:?} in {}", reply.text());
            }
            None => assert!(reply.body.is_empty(), "{method} {path} {status} has a body"),
        }
    }

    fn request_schema(&self, method: &str, path: &str) -> &Value {
        &self.operation(method, path)["requestBody"]["content"]["application/json"]["schema"]
    }

    /// Method, path and body of every example request.
    fn examples(&self) -> Vec<(String, String, String, Value)> {
        let mut examples = Vec::new();
        for (path, item) in self.0["paths"].as_object().expect("paths") {
            for method in ["put", "post", "patch"] {
                let content = &item[method]["requestBody"]["content"]["application/json"];
                for (name, example) in content["examples"].as_object().into_iter().flatten() {
                    examples.push((name.clone(), method.to_uppercase(), path.clone(), example["value"].clone()));
                }
            }
        }
        assert!(examples.len() >= 15, "only {} examples", examples.len());
        examples
    }
}

/// The request path for a body: ids are what the body says.
fn fill(path: &str, body: &Value) -> String {
    let id = |key: &str| body[key].as_str().unwrap_or("data").to_owned();
    let keys = ["drive_id", "iface_id", "fs_id", "id"];
    keys.iter().fold(path.to_owned(), |path, key| path.replace(&format!("{{{key}}}"), &id(key)))
}

/// Puts the test's files and tap in the place of the example's.
fn at_home(value: &Value, dir: &Path, tap: &str) -> Value {
    match value {
        Value::String(text) if text == TAP => json!(tap),
        // Not there, so it is made with the queues that are asked for.
        Value::String(text) if text == TAP_WITH_QUEUES => json!(format!("{tap}q")),
        Value::String(text) => match PLACES.iter().find_map(|place| text.strip_prefix(place)) {
            Some(name) => json!(dir.join(name)),
            None => value.clone(),
        },
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), at_home(v, dir, tap))).collect(),
        _ => value.clone(),
    }
}

/// Paths whose examples are refused, perhaps followed by an example's name, and why: the bare-metal guest has no driver for its balloon;
/// this machine runs and has been configured, so it can neither be saved nor be another one; and nobody serves devices here.
const REFUSED: &[(&str, &str)] = &[
    ("/balloon/hinting/", "Balloon update error: Device not activated yet"),
    ("/snapshot/create", "save/restore unavailable while running"),
    ("/snapshot/progress", "No snapshot is being written."),
    ("/snapshot/restore", "not allowed after configuring boot-specific resources"),
    ("/snapshot/load", "not allowed after configuring boot-specific resources"),
    ("/drives/{drive_id} served", "disk.sock: No such file or directory (os error 2)"),
    ("/fs/", "fs.sock is of no use: No such file or directory (os error 2)"),
    ("/clones", "Clone error: this process was not started to make clones"),
];

/// Everything that was sent is in the echo, which may say more.
fn holds(echo: &Value, sent: &Value) -> bool {
    match sent {
        Value::Object(fields) => fields.iter().all(|(key, value)| holds(&echo[key], value)),
        _ => echo == sent,
    }
}

/// Everything sent is in the echo, as sent.
#[track_caller]
fn assert_echoed(vmm: &Vmm, path: &str, sent: &Value) {
    let config = vmm.get("/vm/config").expect_200();
    let item = |list: &str, key: &str| {
        config[list].as_array().and_then(|l| l.iter().find(|i| i[key] == sent[key])).cloned().unwrap_or_default()
    };
    let echo = match path {
        "/boot-source" => config["boot-source"].clone(),
        "/machine-config" => config["machine-config"].clone(),
        "/drives/{drive_id}" => item("drives", "drive_id"),
        "/network-interfaces/{iface_id}" => item("network-interfaces", "iface_id"),
        "/pmem/{id}" => item("pmem", "id"),
        "/balloon" => config["balloon"].clone(),
        "/vsock" => config["vsock"].clone(),
        "/entropy" => config["entropy"].clone(),
        "/hotplug/memory" if sent.get("requested_size_mib").is_some() => vmm.get("/hotplug/memory").expect_200(),
        "/hotplug/memory" => config["memory-hotplug"].clone(),
        "/hotplug/vcpus" => vmm.get("/hotplug/vcpus").expect_200(),
        "/mmds/config" => config["mmds-config"].clone(),
        _ => return,
    };
    for (key, value) in sent.as_object().expect("an object") {
        if key == "cpu_template" && value == "None" {
            assert!(echo.get(key).is_none(), "the template None is not echoed");
        } else {
            assert!(holds(&echo[key], value), "{key} of {path}: {} for {value}", echo[key]);
        }
    }
}

#[test]
fn every_example_is_accepted_answered_as_documented_and_echoed() {
    binary::require_kvm();
    let contract = Contract::read();
    let tap = Tap::create("mflycontract").expect("a tap");
    let builder = VmmBuilder::new();
    let kernel = guest_kernel(&builder);
    for name in ["vmlinuz", "initrd.img", "root.ext4", "data.img", "fast.img", "other.img"] {
        builder.file(name, if name == "vmlinuz" { guest::ELF } else { &[0; 4096] });
    }
    let vmm = builder.start();
    let (after, before): (Vec<_>, Vec<_>) = contract.examples().into_iter().partition(|(_, method, path, _)| {
        let acts = ["/actions", "/snapshot/create", "/clones"].contains(&path.as_str());
        acts || (method == "PATCH" && path != "/machine-config")
    });
    let send = |(name, method, path, value): &(String, String, String, Value)| {
        let errors = contract.errors(contract.request_schema(method, path), value);
        assert!(errors.is_empty(), "example {name} of {method} {path}: {errors:?}");
        let body = at_home(value, vmm.dir(), tap.name());
        let reply = vmm.request(method, &fill(path, &body), Some(&body.to_string()));
        contract.check_reply(method, path, &reply);
        let what = format!("{path} {name}");
        if let Some((_, why)) = REFUSED.iter().find(|(begin, _)| what.starts_with(begin)) {
            reply.expect_fault(why);
        } else {
            assert_eq!(reply.status, 204, "example {name} of {method} {path}: {}\n{}", reply.text(), vmm.said());
            assert_echoed(&vmm, path, &body);
        }
    };
    // The metadata service names interfaces, so these come first.
    let (late, early): (Vec<_>, Vec<_>) = before.into_iter().partition(|(_, _, path, _)| path.starts_with("/mmds"));
    early.iter().chain(&late).for_each(send);
    let get_all = |more: &[&str]| {
        for path in ["/", "/version", "/vm/config", "/machine-config", "/balloon", "/mmds"].iter().chain(more) {
            let reply = vmm.get(path);
            assert_eq!(reply.status, 200, "{path}");
            contract.check_reply("GET", path, &reply);
        }
    };
    get_all(&[]);
    // The examples' own kernel arguments and memory are a real system's; what is started is small and stays.
    vmm.boot_source(&kernel, SPIN);
    vmm.machine(1, 64);
    vmm.patch("/machine-config", &json!({"max_vcpus": 4})).expect_204();
    let (starts, others): (Vec<_>, Vec<_>) =
        after.into_iter().partition(|(_, _, _, v)| v["action_type"] == "InstanceStart");
    assert_eq!(starts.len(), 1);
    starts.iter().for_each(send);
    others.iter().for_each(send);
    get_all(&["/balloon/statistics", "/balloon/hinting/status", "/hotplug/memory", "/hotplug/vcpus"]);
    // What the metadata service says can be changed in every phase.
    for (_, method, path, value) in early.iter().chain(&late).filter(|(_, _, path, _)| path != "/mmds") {
        let body = at_home(value, vmm.dir(), tap.name());
        let reply = vmm.request(method, &fill(path, &body), Some(&body.to_string()));
        reply.expect_fault("not supported after starting");
        contract.check_reply(method, path, &reply);
    }
}

/// What is documented of devices that come and go: parameters are taken, answers are as described, and each text that is shown is said by a
/// machine in that state.
#[test]
fn devices_that_come_and_go_do_so_as_documented() {
    binary::require_kvm();
    let contract = Contract::read();
    let builder = crate::hotplug::pci();
    let kernel = guest_kernel(&builder);
    for name in ["root.ext4", "data.img"] {
        builder.file(name, &[0; 4096]);
    }
    let vmm = builder.start();
    // A guest that uses what comes and lets go of nothing.
    let job = guest::Job::new(guest::Mode::Hotplug { steps: u64::MAX }).with("keep", 1).end(guest::End::Spin);
    vmm.boot_source(&kernel, &job.command_line());
    let mut said = Vec::new();
    let mut send = |vmm: &Vmm, method: &str, template: &str, path: &str, body: Option<&Value>| {
        let reply = vmm.request(method, path, body.map(Value::to_string).as_deref());
        contract.check_reply(method, template, &reply);
        said.extend(reply.fault());
        reply
    };
    let example = |method: &str, path: &str, name: &str| {
        let content = &contract.operation(method, path)["requestBody"]["content"]["application/json"];
        at_home(&content["examples"][name]["value"], vmm.dir(), "mflycomes")
    };
    let tap = Tap::create("mflycomes").expect("a tap");
    let root = example("PUT", "/drives/{drive_id}", "root");
    vmm.put("/drives/root", &root).expect_204();
    send(&vmm, "DELETE", "/drives/{drive_id}", "/drives/root", None);
    vmm.instance_start();
    send(&vmm, "PUT", "/drives/{drive_id}", "/drives/root", Some(&root));
    send(&vmm, "DELETE", "/drives/{drive_id}", "/drives/root", None);
    for (template, name, kind) in [
        ("/drives/{drive_id}", "data", "drive"),
        ("/network-interfaces/{iface_id}", "eth0", "net"),
        ("/pmem/{id}", "code", "pmem"),
    ] {
        let body = example("PUT", template, name);
        let path = fill(template, &body);
        send(&vmm, "DELETE", template, &path, None).expect_fault("Device not found");
        send(&vmm, "PUT", template, &path, Some(&body)).expect_204();
        vmm.wait_for_line(&format!("plugged=2 {kind}="), mayfly_tests::PATIENCE);
        send(&vmm, "PUT", template, &path, Some(&body)).expect_fault("Device ID in use");
        let parameters = contract.operation("DELETE", template)["parameters"].as_array().expect("parameters");
        let pairs: Vec<String> = parameters
            .iter()
            .map(|parameter| contract.resolve(parameter))
            .map(|parameter| format!("{}={}", parameter["name"].as_str().unwrap(), parameter["example"]))
            .collect();
        assert_eq!(pairs.len(), 2, "{pairs:?}");
        send(&vmm, "DELETE", template, &format!("{path}?now"), None).expect_fault("is no parameter");
        let waits = pairs.iter().find(|pair| pair.starts_with("timeout_ms=")).expect("how long to wait");
        send(&vmm, "DELETE", template, &format!("{path}?{waits}"), None).expect_fault("The guest has not let go of");
        send(&vmm, "DELETE", template, &format!("{path}?{}", pairs.join("&")), None).expect_204();
    }
    for n in 0.. {
        let mut body = example("PUT", "/drives/{drive_id}", "data");
        body["drive_id"] = json!(format!("d{n}"));
        if send(&vmm, "PUT", "/drives/{drive_id}", &format!("/drives/d{n}"), Some(&body)).status != 204 {
            break;
        }
    }
    for path in ["/confinement", "/vm/config"] {
        let reply = vmm.get(path);
        assert_eq!(reply.status, 200, "{path}");
        contract.check_reply("GET", path, &reply);
    }
    let other = crate::configured(VmmBuilder::new());
    let drive = example("PUT", "/drives/{drive_id}", "data");
    other.instance_start();
    send(&other, "DELETE", "/drives/{drive_id}", "/drives/data", None);
    send(&other, "PUT", "/drives/{drive_id}", "/drives/data", Some(&drive));
    drop(tap);
    for response in ["NotPlugged", "NotUnplugged"] {
        let content = &contract.0["components"]["responses"][response]["content"]["application/json"];
        for (name, example) in content["examples"].as_object().expect("examples") {
            let text = example["value"]["fault_message"].as_str().expect("a text");
            assert!(said.iter().any(|said| said == text), "nobody said {name}, {text}, but {said:#?}");
        }
    }
}

#[test]
fn what_a_schema_forbids_is_refused() {
    let contract = Contract::read();
    let vmm = Vmm::start();
    let fresh = vmm.get("/vm/config").expect_200();
    for (_, method, path, value) in contract.examples() {
        let schema = contract.resolve(contract.request_schema(&method, &path)).clone();
        let send = |body: &Value| {
            assert!(!contract.errors(&schema, body).is_empty(), "{method} {path} allows {body}");
            let reply = vmm.request(&method, &fill(&path, &value), Some(&body.to_string()));
            contract.check_reply(&method, &path, &reply);
            reply
        };
        let mut with_unknown = value.clone();
        with_unknown["bogus"] = json!(1);
        if schema["additionalProperties"] == json!(false) {
            send(&with_unknown).expect_fault("unknown field `bogus`");
        } else {
            let takes_any = path.starts_with("/balloon/hinting/") || path == "/mmds" || path == "/metrics";
            assert!(takes_any, "{path} takes fields nobody knows");
        }
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let mut without = value.clone();
            without.as_object_mut().expect("an object").remove(key);
            send(&without).expect_fault("missing field");
        }
        if path.starts_with("/drives/") && method == "PUT" {
            // One of two alternatives in v1, so its absence is not serde's business.
            let mut without = value.clone();
            for key in ["path_on_host", "socket"] {
                without.as_object_mut().expect("an object").remove(key);
            }
            send(&without).expect_fault("path_on_host is missing");
        }
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let mut mistyped = value.clone();
            let types = &contract.resolve(property)["type"];
            let takes_lists = types == "array" || types.as_array().is_some_and(|t| t.contains(&json!("array")));
            mistyped[key] = if takes_lists { json!({}) } else { json!([]) };
            assert!(property.is_object());
            send(&mistyped).expect_fault("An error occurred when deserializing the json body");
        }
    }
    assert_eq!(vmm.get("/vm/config").expect_200(), fresh, "a refused request left a trace");
}

#[test]
fn the_gets_examples_are_as_their_schemas_say() {
    let contract = Contract::read();
    let mut seen = 0;
    for (path, item) in contract.0["paths"].as_object().expect("paths") {
        let content = &item["get"]["responses"]["200"]["content"]["application/json"];
        for (name, example) in content["examples"].as_object().into_iter().flatten() {
            let errors = contract.errors(&content["schema"], &example["value"]);
            assert!(errors.is_empty(), "example {name} of GET {path}: {errors:?}");
            seen += 1;
        }
    }
    assert!(seen >= 8, "only {seen} examples");
}

#[test]
fn the_gets_examples_are_what_a_fresh_monitor_says() {
    let contract = Contract::read();
    let vmm = Vmm::start();
    for path in ["/", "/version", "/vm/config", "/machine-config", "/mmds"] {
        let content = &contract.operation("GET", path)["responses"]["200"]["content"]["application/json"];
        for (name, example) in content["examples"].as_object().expect("examples") {
            assert_eq!(vmm.get(path).expect_200(), example["value"], "example {name} of GET {path}");
        }
    }
}

/// The requests in a page's `sh` blocks: method, path and body.
fn requests_of(page: &str) -> Vec<(String, String, Value)> {
    let mut requests = Vec::new();
    for block in page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        // Both spellings: a whole `curl`, and the function `api` of docs/api.md.
        for (begin, end) in [("-X ", " -d '"), ("\napi ", " '")] {
            for piece in block.split(begin).skip(1) {
                let Some((head, rest)) = piece.split_once(end) else { continue };
                let Some((method, path)) = head.split_once(' ') else { continue };
                let Some(path) = path.strip_prefix("http://localhost").or(begin.starts_with('\n').then_some(path))
                else {
                    continue;
                };
                let body = rest.split('\'').next().unwrap_or_default();
                let body = serde_json::from_str(body).unwrap_or_else(|e| panic!("{method} {path}: {e} in {body}"));
                requests.push((method.to_owned(), path.to_owned(), body));
            }
        }
    }
    requests
}

#[test]
fn the_requests_in_the_docs_are_as_their_schemas_say() {
    let contract = Contract::read();
    let paths = contract.0["paths"].as_object().expect("paths");
    let mut seen = 0;
    for page in std::fs::read_dir(binary::workspace().join("docs")).expect("docs") {
        let page = page.expect("a page").path();
        for (method, path, body) in requests_of(&std::fs::read_to_string(&page).expect("text")) {
            let what = format!("{method} {path} in {}", page.display());
            let (template, _) = paths
                .iter()
                .find(|(template, _)| *template == &path || fill(template, &body) == path)
                .unwrap_or_else(|| panic!("no such path: {what}"));
            let errors = contract.errors(contract.request_schema(&method, template), &body);
            assert!(errors.is_empty(), "{what}: {errors:?}");
            seen += 1;
        }
    }
    assert!(seen >= 15, "only {seen} requests were found");
}
