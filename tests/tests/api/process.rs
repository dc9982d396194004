//! The process from outside: arguments, socket, log, ends (threats A12, A13).

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use mayfly_tests::{PATIENCE, Vmm, VmmBuilder, binary};
use serde_json::{Value, json};

use crate::{SPIN, guest_kernel};

pub(crate) fn run(binary: &Path, arguments: &[&str]) -> Output {
    Command::new(binary).args(arguments).output().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// The binary under the name that old tools look for.
pub(crate) fn firecracker(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("firecracker");
    binary::copy(&binary::mayfly(), &path);
    path
}

pub(crate) fn config(kernel: &Path, boot_args: &str) -> Value {
    json!({
        "boot-source": {"kernel_image_path": kernel, "boot_args": boot_args},
        "drives": [],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 64},
        "something-else": {"ignored": true},
    })
}

#[test]
fn version_and_help() {
    let mayfly = binary::mayfly();
    let version = run(&mayfly, &["--version"]);
    let text = String::from_utf8(version.stdout).unwrap();
    assert_eq!(version.status.code(), Some(0));
    let vmm = Vmm::start();
    let served = vmm.get("/version").expect_200()["firecracker_version"].as_str().unwrap().to_owned();
    assert_eq!(text, format!("Mayfly v{served}\n"));
    let help = run(&mayfly, &["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(String::from_utf8(help.stdout).unwrap().contains("curl --unix-socket"));
}

#[test]
fn wrong_arguments_have_their_own_exit_code() {
    let mayfly = binary::mayfly();
    for (arguments, code, said) in [
        (&["--bogus"][..], 153, "--bogus"),
        (&["--id", "a/b"], 153, "Invalid instance ID: Invalid char (/) at position 1"),
        (&["--id", ""], 153, "Invalid instance ID: Invalid len (0);  the length must be between 1 and 64"),
        (&["--no-api"], 153, "--config-file"),
        (&["--seccomp-filter", "/x"], 1, "The seccomp filters /x cannot be read"),
        (&["--metrics-path", "/a", "--metrics-path", "/b"], 153, "cannot be used multiple times"),
        (&["--metrics-path", "/no/such/dir"], 1, "Error: Metrics error: Cannot open the metrics file /no/such/dir: "),
        (&["--enable-pci=yes"], 153, "unexpected value 'yes' for '--enable-pci'"),
        (&["--level", "loud"], 152, "unknown log level `loud`"),
    ] {
        let output = run(&mayfly, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(said), "{arguments:?}: {text}");
    }
}

/// A12.
#[test]
fn the_socket_is_private_and_gone_after_a_graceful_end() {
    let vmm = Vmm::start();
    assert!(fs::metadata(vmm.socket()).unwrap().file_type().is_socket());
    assert_eq!(mode(vmm.socket()), 0o600);
    vmm.wait_for_log("API server started.", PATIENCE);
    vmm.signal(libc::SIGTERM);
    assert_eq!(vmm.wait_exit(PATIENCE), 143);
    assert!(!vmm.socket().exists(), "the socket was left behind");
    let log = vmm.log();
    let lines: Vec<_> = log.lines().map(|l| l.split_once("] ").unwrap().1).collect();
    assert_eq!(lines[0], format!("Running Mayfly v{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(
        lines[lines.len() - 2..],
        ["The microVM ended: signal 15 was received.", "Mayfly exiting with error. exit_code=143"]
    );
}

/// A12: whatever the umask.
#[test]
fn the_umask_does_not_open_the_socket() {
    for umask in ["000", "022", "077"] {
        let builder = VmmBuilder::new();
        let script = format!("#!/bin/sh\numask {umask}\nexec {} \"$@\"\n", binary::mayfly().display());
        let wrapper = builder.dir().join("wrapper");
        // By another process; see `firecracker`.
        let write = "printf %s \"$0\" > \"$1\" && chmod 755 \"$1\"";
        assert!(Command::new("sh").args(["-c", write, &script]).arg(&wrapper).status().unwrap().success());
        assert_eq!(mode(builder.binary(wrapper).start().socket()), 0o600, "umask {umask}");
    }
}

/// A12.
#[test]
fn what_is_at_the_sockets_path_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
    let missing = dir.path().join("no/such/dir/api.sock");
    let long = dir.path().join("a".repeat(108));
    // Not even root can make files there.
    let unwritable = Path::new("/proc/api.sock");
    for path in [file.as_path(), &link, dir.path(), &missing, &long, unwritable] {
        let output = run(&binary::mayfly(), &["--api-sock", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{}", path.display());
        let said = format!("Failed to open the API socket at: {}. Check that it is not already used.", path.display());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains(&said), "{stderr}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(stdout.trim_end().ends_with("Mayfly exiting with error. exit_code=1"), "{stdout}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    assert!(fs::symlink_metadata(&link).is_ok());
}

#[test]
fn under_the_name_firecracker_it_presents_itself_as_that() {
    let builder = VmmBuilder::new();
    let path = firecracker(builder.dir());
    assert_eq!(String::from_utf8(run(&path, &["--version"]).stdout).unwrap(), "Firecracker v1.17.0\n");
    let vmm = builder.binary(path).args(["--id", "vm-1", "--level", "Debug", "--show-level"]).start();
    let instance = json!({"id": "vm-1", "state": "Not started", "vmm_version": "1.17.0", "app_name": "Firecracker"});
    assert_eq!(vmm.get("/").expect_200(), instance);
    // As the reference: whatever the umask leaves.
    assert_eq!(mode(vmm.socket()) & 0o700, 0o700);
    let comm = fs::read_to_string(format!("/proc/{}/comm", vmm.pid())).unwrap();
    assert_eq!(comm, "firecracker\n");
    let line = vmm.wait_for_log("Total previous API call duration: ", PATIENCE);
    assert!(line.contains(" [vm-1:fc_api:DEBUG] Total"), "{line}");
}

#[test]
fn requests_are_logged_as_tools_parse_them() {
    let vmm = VmmBuilder::new().args(["--level", "Debug"]).start();
    vmm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 64})).expect_204();
    vmm.get("/");
    vmm.request("PUT", "/vm", Some("forged\n\u{1b}[2J"));
    let log = vmm.log();
    for said in [
        r#"The API server received a Put request on "/machine-config" with body "{\"mem_size_mib\":64,\"vcpu_count\":1}"."#,
        "The request was executed successfully. Status code: 204 No Content.",
        r#"The API server received a Get request on "/"."#,
        "The request was executed successfully. Status code: 200 OK.",
        r#"with body "forged\n\u{1b}[2J"."#,
        "Received Error. Status code: 400 Bad Request. Message: Invalid request method and/or path: PUT vm.",
        "Total previous API call duration: ",
    ] {
        assert!(log.contains(said), "{said} is missing in\n{log}");
    }
    assert!(!log.contains('\u{1b}'));
}

#[test]
fn the_logger_can_be_moved_and_changed_before_the_start() {
    let vmm = Vmm::start();
    let other = vmm.dir().join("other.log");
    vmm.put("/logger", &json!({"log_path": other, "level": "dEBUG", "show_level": true, "show_log_origin": true}))
        .expect_204();
    vmm.get("/version");
    let text = fs::read_to_string(&other).unwrap();
    let line = text.lines().find(|l| l.contains("call duration")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("[anonymous-instance:api:DEBUG:api-server/src/porch.rs:"), "{line}");
    vmm.put("/logger", &json!({"module": "nothing::at::all"})).expect_204();
    let before = fs::read_to_string(&other).unwrap();
    vmm.get("/version");
    assert_eq!(fs::read_to_string(&other).unwrap(), before, "the module filter lets lines through");
}

/// A13.
#[test]
fn a_log_that_takes_nothing_does_not_hold_up_anything() {
    let builder = VmmBuilder::new();
    let fifo = builder.dir().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let vmm = builder.start();
    for path in [fifo.as_path(), Path::new("/dev/full")] {
        vmm.put("/logger", &json!({"log_path": path, "level": "Trace"})).expect_204();
        // More than a FIFO holds.
        for _ in 0..1000 {
            vmm.get("/vm/config").expect_200();
        }
    }
    // A log that works again says what was lost.
    let log = vmm.dir().join("late.log");
    vmm.put("/logger", &json!({"log_path": log})).expect_204();
    vmm.get("/");
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.lines().next().is_some_and(|l| l.contains("log lines were lost")), "{text}");
}

#[test]
fn a_log_that_cannot_be_opened_ends_the_start() {
    let output = run(&binary::mayfly(), &["--log-path", "/no/such/dir/log", "--api-sock", "/no/such/dir/sock"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Cannot open the log file /no/such/dir/log: "));
}

/// A13.
#[test]
fn stdout_that_nobody_reads_does_not_hold_up_the_api() {
    // The harness reads; this one does not.
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let mut child = Command::new(binary::mayfly())
        .args(["--level", "Trace", "--api-sock", socket.to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let started = std::time::Instant::now();
    let mut client = loop {
        match mayfly_tests::Client::connect(&socket) {
            Ok(client) => break client,
            Err(error) => assert!(started.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    for _ in 0..1000 {
        assert_eq!(client.request("GET", "/vm/config", None).unwrap().status, 200);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_configuration_file_boots_without_an_api() {
    binary::require_kvm();
    let builder = VmmBuilder::new();
    let kernel = guest_kernel(&builder);
    let file = builder.file("vm.json", config(&kernel, "mayfly.mode=hello").to_string().as_bytes());
    let vmm = builder.no_api().arg("--config-file").arg(file).spawn();
    assert_eq!(vmm.wait_exit(PATIENCE), 0, "{}", vmm.said());
    assert!(vmm.console().text().contains("mayfly-guest done"));
    let log = vmm.log();
    assert!(log.contains("Successfully started microvm that was configured from one single json"), "{log}");
    assert!(log.trim_end().ends_with("Mayfly exiting successfully. exit_code=0"), "{log}");
}

#[test]
fn a_configuration_file_with_an_api_starts_in_the_running_state() {
    binary::require_kvm();
    let builder = VmmBuilder::new();
    let kernel = guest_kernel(&builder);
    let vmm = builder.config_file(&config(&kernel, SPIN)).start();
    assert_eq!(vmm.get("/").expect_200()["state"], "Running");
    let echo = vmm.get("/vm/config").expect_200();
    assert_eq!(echo["machine-config"]["mem_size_mib"], 64);
    vmm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 64})).expect_fault("after starting");
    // What is echoed can be given back.
    let again = VmmBuilder::new().config_file(&echo).start();
    assert_eq!(again.get("/vm/config").expect_200(), echo);
    again.signal(libc::SIGINT);
    assert_eq!(again.wait_exit(PATIENCE), 130);
}

#[test]
fn bad_configuration_files_say_what_is_wrong() {
    let cases = [
        (json!({"drives": []}), "missing field `boot-source`"),
        (config(Path::new("/no/such"), SPIN), "The kernel file cannot be opened: No such file or directory"),
        (
            json!({"boot-source": {"kernel_image_path": "/k"}, "drives": [], "balloon": {"amount_mib": 1}}),
            "missing field `deflate_on_oom`",
        ),
        (json!([]), "invalid length 0"),
    ];
    for (document, said) in cases {
        let vmm = VmmBuilder::new().config_file(&document).spawn();
        assert_eq!(vmm.wait_exit(PATIENCE), 1);
        let log = vmm.log();
        assert!(log.contains("Configuration for VMM from one single json failed: "), "{log}");
        assert!(log.contains(said), "{said}: {log}");
        assert!(vmm.stderr().text().contains("Error: Failed to build MicroVM from Json: "));
        assert!(!vmm.socket().exists());
    }
}

#[test]
fn a_file_whose_machine_cannot_start_says_so() {
    binary::require_kvm();
    let builder = VmmBuilder::new();
    let kernel = builder.file("kernel", b"not a kernel");
    let vmm = builder.config_file(&config(&kernel, SPIN)).spawn();
    assert_eq!(vmm.wait_exit(PATIENCE), 1);
    let said = "Could not Start MicroVM from one single json: Start microvm error: ";
    assert!(vmm.log().contains(said), "{}", vmm.log());
    assert!(vmm.stderr().text().contains(&format!("Error: {said}")), "{}", vmm.said());
    assert!(vmm.log().trim_end().ends_with("Mayfly exiting with error. exit_code=1"));
    assert!(!vmm.socket().exists());
}

#[test]
fn the_demo_shows_a_guest_and_how_to_do_it_by_hand() {
    binary::require_kvm();
    let output = run(&binary::mayfly(), &["demo"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for said in
        ["Hello from inside a Mayfly microVM.", "mayfly-guest done", "timeline", "curl --unix-socket", "InstanceStart"]
    {
        assert!(text.contains(said), "{said} is missing in\n{text}");
    }
}
