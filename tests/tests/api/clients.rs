//! What clients in the field do, each of them a habit that some tool has, and what they compare.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mayfly_tests::{Client, Disk, PATIENCE, Vmm, VmmBuilder, binary, metrics, uninterrupted};
use serde_json::{Value, json};

use crate::process::{config, firecracker, run};
use crate::{SPIN, configured, fifo, guest_kernel};

/// A monitor that presents itself as the one these clients know.
fn as_firecracker() -> VmmBuilder {
    let builder = VmmBuilder::new();
    let path = firecracker(builder.dir());
    builder.binary(path)
}

/// A FIFO's reader, as a client opens it before it tells the monitor.
fn reader(path: &Path) -> impl BufRead {
    BufReader::new(fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap())
}

/// The next whole line of a FIFO, once it is there.
fn next_line(reader: &mut impl BufRead) -> String {
    let (started, mut line) = (Instant::now(), Vec::new());
    while !line.ends_with(b"\n") {
        assert!(started.elapsed() < PATIENCE, "no line, but {:?}", String::from_utf8_lossy(&line));
        if reader.read_until(b'\n', &mut line).is_err() || !line.ends_with(b"\n") {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    String::from_utf8(line).unwrap()
}

/// One exchange as the simplest of clients has it: a write, and a single read for the whole reply.
fn exchange(stream: &mut UnixStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut buffer = vec![0; 256 << 10];
    let length = uninterrupted(|| stream.read(&mut buffer)).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[test]
fn http_1_0_without_any_header_on_one_connection_and_a_reply_in_one_read() {
    let vmm = Vmm::start();
    // A reply of some size, so that it is more than what one packet of anything would hold.
    vmm.put("/mmds", &json!({"text": "x".repeat(40 << 10)})).expect_204();
    let mut stream = UnixStream::connect(vmm.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for turn in 0..50 {
        for path in ["/", "/version", "/machine-config", "/vm/config", "/mmds", "/nothing"] {
            let reply = exchange(&mut stream, &format!("GET {path} HTTP/1.0\r\n\r\n"));
            let (head, body) = reply.split_once("\r\n\r\n").unwrap_or_else(|| panic!("half a head: {reply}"));
            assert!(head.starts_with("HTTP/1.1 200 \r\n") || head.starts_with("HTTP/1.1 400 \r\n"), "{head}");
            assert!(head.ends_with(&format!("\r\nContent-Length: {}", body.len())), "{path}: {head}");
            assert!(!head.to_lowercase().contains("transfer-encoding"), "{head}");
        }
        let body = format!(r#"{{"vcpu_count": 1, "mem_size_mib": {}}}"#, turn + 1);
        let put = format!("PUT /machine-config HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let done = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(exchange(&mut stream, &put), done);
    }
}

#[test]
fn the_instance_has_the_keys_that_generated_clients_decode() {
    let vmm = as_firecracker().start();
    let keys =
        |path: &str| -> Vec<String> { vmm.get(path).expect_200().as_object().unwrap().keys().cloned().collect() };
    assert_eq!(keys("/"), ["app_name", "id", "state", "vmm_version"]);
    assert_eq!(keys("/version"), ["firecracker_version"]);
    let sections = [
        "balloon",
        "boot-source",
        "cpu-config",
        "drives",
        "entropy",
        "logger",
        "machine-config",
        "memory-hotplug",
        "metrics",
        "mmds-config",
        "network-interfaces",
        "pmem",
        "vsock",
    ];
    assert_eq!(keys("/vm/config"), sections);
    let version = run(&vmm_binary(&vmm), &["--version"]);
    let text = String::from_utf8(version.stdout).unwrap();
    let said = text.lines().next().unwrap().strip_prefix("Firecracker v").unwrap();
    assert_eq!(vmm.get("/version").expect_200()["firecracker_version"], said);
    assert_eq!(vmm.get("/").expect_200()["vmm_version"], said);
    assert_eq!(vmm.get("/").expect_200()["app_name"], "Firecracker");
    assert_eq!(said.split('.').filter(|part| part.parse::<u32>().is_ok()).count(), 3, "{said}");
}

fn vmm_binary(vmm: &Vmm) -> PathBuf {
    vmm.dir().join("firecracker")
}

#[test]
fn older_clients_name_what_needs_no_name() {
    let vmm = Vmm::start();
    let vsock = json!({"vsock_id": "vsock0", "guest_cid": 3, "uds_path": vmm.dir().join("v.sock")});
    for path in ["/vsock/vsock0", "/vsock/", "//vsock"] {
        let reply = vmm.put(path, &vsock);
        reply.expect_204();
        assert_eq!(reply.header("Deprecation"), Some("true"));
    }
    vmm.put("/machine-config/", &json!({"vcpu_count": 1, "mem_size_mib": 64})).expect_204();
    vmm.put("/entropy/rng0", &json!({})).expect_204();
    let disk = Disk::sparse(vmm.dir(), "disk", 1 << 20).unwrap();
    let drive = json!({"drive_id": "a", "is_root_device": false, "path_on_host": disk.path()});
    vmm.put("/drives/a/", &drive).expect_204();
    assert_eq!(vmm.get("/machine-config/").expect_200()["mem_size_mib"], 64);
}

/// A process that was started without any help of the harness.
struct Raw(Child);

impl Raw {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a client does that looks for the socket every 10 ms and asks until there is an answer.
fn wait_until_ready(socket: &Path) -> Client {
    let started = Instant::now();
    loop {
        if socket.exists()
            && let Ok(mut client) = Client::connect(socket)
            && let Ok(reply) = client.request("GET", "/machine-config", None)
        {
            assert_eq!(reply.expect_200()["vcpu_count"], 1);
            return client;
        }
        assert!(started.elapsed() < PATIENCE, "never ready");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn only_a_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("fc.sock");
    let mut vmm = Raw::start(Command::new(firecracker(dir.path())).arg("--api-sock").arg(&socket));
    let mut client = wait_until_ready(&socket);
    assert_eq!(client.request("GET", "/", None).unwrap().expect_200()["id"], "anonymous-instance");
    // Without a log file the log is on standard output, from its first line.
    let mut line = String::new();
    BufReader::new(vmm.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains(" [anonymous-instance:main] Running Firecracker v1.17.0"), "{line}");
}

#[test]
fn every_flag_at_once() {
    binary::require_kvm();
    let builder = as_firecracker();
    let kernel = guest_kernel(&builder);
    let file = fifo(builder.dir(), "metrics.fifo");
    let mut reports = reader(&file);
    let vmm = builder
        .args(["--id", "vm-1", "--start-time-us", "1", "--start-time-cpu-us", "0", "--parent-cpu-time-us", "5000000"])
        .args(["--level", "Debug", "--show-level", "--show-log-origin", "--boot-timer", "--no-seccomp"])
        .args(["--http-api-max-payload-size", "100000", "--mmds-size-limit", "200000"])
        .arg("--metrics-path")
        .arg(&file)
        .start();
    vmm.wait_for_log("API server started.", Duration::from_secs(1).max(PATIENCE));
    vmm.put("/serial", &json!({"serial_out_path": vmm.dir().join("console")})).expect_204();
    vmm.boot_source(&kernel, SPIN);
    vmm.machine(2, 64);
    vmm.instance_start();
    let report = metrics::line(&next_line(&mut reports));
    assert!(report["api_server"]["process_startup_time_us"].as_u64() > Some(1));
    // The caller's own five seconds are in it.
    assert!(report["api_server"]["process_startup_time_cpu_us"].as_u64() > Some(5_000_000));
    let line = vmm.wait_for_log("API server started.", PATIENCE);
    assert!(line.contains(":INFO:"), "{line}");
    let comms: Vec<String> = fs::read_dir(format!("/proc/{}/task", vmm.pid()))
        .unwrap()
        .map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap().trim_end().to_owned())
        .collect();
    for name in ["firecracker", "fc_api", "fc_vcpu 0", "fc_vcpu 1"] {
        assert_eq!(comms.iter().filter(|comm| *comm == name).count(), 1, "{name} in {comms:?}");
    }
    assert_eq!(vmm.get("/").expect_200()["id"], "vm-1");
}

#[test]
fn a_configuration_file_alone() {
    binary::require_kvm();
    let builder = as_firecracker();
    let kernel = guest_kernel(&builder);
    let metadata = builder.file("metadata.json", br#"{"latest": {"meta-data": {}}}"#);
    let job = guest::Job::new(guest::Mode::Hello).boot_timer().command_line();
    let file = builder.file("vm.json", config(&kernel, &job).to_string().as_bytes());
    let vmm =
        builder.no_api().arg("--config-file").arg(file).arg("--metadata").arg(metadata).arg("--boot-timer").spawn();
    assert_eq!(vmm.wait_exit(PATIENCE), 0, "{}", vmm.said());
    assert!(!vmm.socket().exists());
    let log = vmm.log();
    let (first, last) = ("Running Firecracker v1.17.0", "Firecracker exiting successfully. exit_code=0");
    let metadata = "Successfully added metadata to mmds from file";
    // A guest may be faster than the thread that says that it was started.
    let started = "Successfully started microvm that was configured from one single json";
    for text in [started, "Guest-boot-time = "] {
        assert_in_order(&log, &[first, metadata, text, last]);
    }
}

/// Each text is in a line after that of the one before; the first is the first line of all, the last the last.
#[track_caller]
fn assert_in_order(log: &str, texts: &[&str]) {
    let lines: Vec<&str> = log.lines().collect();
    let mut at = 0;
    for text in texts {
        let found = lines[at..].iter().position(|line| line.contains(text));
        at += found.unwrap_or_else(|| panic!("{text:?} is missing or too early in\n{log}")) + 1;
    }
    assert!(lines[0].contains(texts[0]), "{log}");
    assert_eq!(at, lines.len(), "more lines after the last one in\n{log}");
}

#[test]
fn log_lines_come_in_the_order_that_tools_expect() {
    binary::require_kvm();
    let builder = as_firecracker();
    let kernel = guest_kernel(&builder);
    let vmm = builder.args(["--level", "Debug"]).start();
    vmm.boot_source(&kernel, &guest::Job::new(guest::Mode::Hello).command_line());
    vmm.machine(1, 64);
    vmm.get("/nothing").expect_fault("GET nothing");
    vmm.instance_start();
    assert_eq!(vmm.wait_exit(PATIENCE), 0, "{}", vmm.said());
    let log = vmm.log();
    assert_in_order(
        &log,
        &[
            "Running Firecracker v1.17.0",
            "API server started.",
            r#"The API server received a Put request on "/boot-source" with body "#,
            "The request was executed successfully. Status code: 204 No Content.",
            "Total previous API call duration: ",
            r#"The API server received a Put request on "/machine-config" with body "#,
            "The request was executed successfully. Status code: 204 No Content.",
            "Total previous API call duration: ",
            r#"The API server received a Get request on "/nothing"."#,
            "Received Error. Status code: 400 Bad Request. Message: Invalid request method and/or path: GET nothing.",
            "Total previous API call duration: ",
            r#"The API server received a Put request on "/actions" with body "#,
            "event_start: build microvm for boot",
            "event_end: build microvm for boot",
            "event_start: boot microvm",
            "event_end: boot microvm",
            "Firecracker exiting successfully. exit_code=0",
        ],
    );
    // Every line begins as parsers want it: local time to the nanosecond, then instance and thread.
    for line in log.lines() {
        let (time, rest) = line.split_once(' ').unwrap();
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "0000-00-00T00:00:00.000000000", "{line}");
        let thread = rest.strip_prefix("[anonymous-instance:").and_then(|rest| rest.split_once("] ")).unwrap().0;
        assert!(["main", "fc_api", "fc_vcpu 0"].contains(&thread), "{line}");
    }
    for line in log.lines().filter(|line| line.contains("Total previous API call duration")) {
        let us = line.split_once("duration: ").and_then(|(_, rest)| rest.strip_suffix(" us.")).unwrap();
        assert!(us.parse::<u64>().is_ok(), "{line}");
    }
}

#[test]
fn fifos_that_are_there_before_log_and_metrics_are_named() {
    binary::require_kvm();
    let builder = VmmBuilder::new();
    let kernel = guest_kernel(&builder);
    let [log, reports] = ["log.fifo", "metrics.fifo"].map(|name| fifo(builder.dir(), name));
    let (mut log_reader, mut reports_reader) = (reader(&log), reader(&reports));
    let vmm = builder.start();
    vmm.put("/logger", &json!({"log_path": log, "level": "Info", "show_level": true})).expect_204();
    vmm.put("/metrics", &json!({"metrics_path": reports})).expect_204();
    assert!(next_line(&mut log_reader).contains("The request was executed successfully. Status code: 204"));
    vmm.boot_source(&kernel, SPIN);
    vmm.machine(1, 64);
    vmm.instance_start();
    metrics::line(&next_line(&mut reports_reader));
    vmm.put("/actions", &json!({"action_type": "FlushMetrics"})).expect_204();
    metrics::line(&next_line(&mut reports_reader));
}

/// Placeholders are configured, and what is plugged later takes the place of one of them.
#[test]
fn a_placeholder_drive_becomes_another_file_while_the_guest_runs() {
    binary::require_kvm();
    let vmm = configured(VmmBuilder::new());
    for id in ["stub0", "stub1"] {
        vmm.drive(id, &vmm.file(id, &[0; 512]), "Sync");
    }
    vmm.instance_start();
    let layer = Disk::sparse(vmm.dir(), "layer", 4 << 20).unwrap();
    for id in ["stub0", "stub1"] {
        let body = json!({"drive_id": id, "path_on_host": layer.path()});
        vmm.patch(&format!("/drives/{id}"), &body).expect_204();
    }
    for drive in vmm.get("/vm/config").expect_200()["drives"].as_array().unwrap() {
        assert_eq!(drive["path_on_host"], json!(layer.path()));
    }
}

#[test]
fn clients_end_machines_by_signal_and_remove_the_socket_themselves() {
    binary::require_kvm();
    for removed_first in [false, true] {
        let builder = as_firecracker();
        let vmm = configured(builder);
        vmm.instance_start();
        if removed_first {
            fs::remove_file(vmm.socket()).unwrap();
            // Who is connected stays so.
            assert_eq!(vmm.get("/").expect_200()["state"], "Running");
            // What comes to be at its place is not the monitor's.
            fs::write(vmm.socket(), "mine").unwrap();
        }
        vmm.signal(libc::SIGTERM);
        assert_eq!(vmm.wait_exit(PATIENCE), 143, "{}", vmm.said());
        assert_eq!(vmm.socket().exists(), removed_first);
        assert!(vmm.log().trim_end().ends_with("Firecracker exiting with error. exit_code=143"), "{}", vmm.log());
    }
}

/// A client whose load fails is told why, and can boot instead.
#[test]
fn after_a_load_that_fails_the_machine_can_be_booted() {
    binary::require_kvm();
    let builder = VmmBuilder::new();
    let kernel = guest_kernel(&builder);
    let vmm = builder.start();
    let mut load = json!({
        "snapshot_path": "/nowhere/s", "mem_backend": {"backend_type": "File", "backend_path": "/m"}, "resume_vm": true,
    });
    let deprecation = |load: &Value| {
        let reply = vmm.put("/snapshot/load", load);
        reply.expect_fault("Load snapshot error: Failed to restore from snapshot: Failed to get snapshot state from file: Failed to open snapshot file: No such file or directory (os error 2)");
        reply.header("Deprecation").map(str::to_owned)
    };
    assert_eq!(deprecation(&load), None);
    load["enable_diff_snapshots"] = json!(true);
    assert_eq!(deprecation(&load).as_deref(), Some("true"));
    vmm.boot_source(&kernel, SPIN);
    vmm.machine(1, 64);
    vmm.instance_start();
    // On a refusal for the phase too.
    let reply = vmm.put("/snapshot/load", &load);
    reply.expect_fault("The requested operation is not supported after starting the microVM.");
    assert_eq!(reply.header("Deprecation"), Some("true"));
}
