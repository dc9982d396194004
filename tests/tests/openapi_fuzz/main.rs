//! A public OpenAPI fuzzer (Schemathesis) reads `openapi.yaml` and tries to make the live API break its word.
//!
//! It sends well-formed and malformed requests to every operation and checks each answer: no status the document does not know, no body
//! that differs from its schema, no acceptance of what the document forbids. The monitor runs in a chroot, because the fuzzer invents
//! paths and the monitor creates what it is told to. The fuzzer speaks TCP only, so a small relay stands in between.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use guest::{Job, Mode};
use mayfly_tests::{Client, PATIENCE, binary};
use serde_json::json;

/// Answers that would be wrong, by the fuzzer's names for them.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
                      negative_data_rejection";
/// Requests to each operation and phase of fuzzing; bounds the run to well under a minute.
const EXAMPLES: &str = "60";

/// A monitor that sees nothing of this machine but its own directory.
struct Caged {
    process: Child,
    root: tempfile::TempDir,
}

impl Caged {
    fn start() -> Self {
        binary::require_kvm();
        binary::require_root();
        let root = tempfile::tempdir().unwrap();
        let inside = |name: &str| root.path().join(name);
        binary::copy(&binary::mayfly(), &inside("mayfly"));
        std::fs::write(inside("kernel"), guest::ELF).unwrap();
        std::fs::create_dir(inside("dev")).unwrap();
        let node = Command::new("mknod").arg(inside("dev/kvm")).args(["c", "10", "232"]).status().unwrap();
        assert!(node.success(), "mknod failed: this test needs the capability to make device nodes");
        let process = Command::new("chroot")
            .arg(root.path())
            .args(["/mayfly", "--api-sock", "/api.sock", "--log-path", "/log"])
            .stdout(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let caged = Self { process, root };
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(caged.socket()).is_err() {
            assert!(Instant::now() < deadline, "the API does not come up");
            std::thread::yield_now();
        }
        caged
    }

    fn socket(&self) -> PathBuf {
        self.root.path().join("api.sock")
    }

    fn put(&self, path: &str, body: &serde_json::Value) {
        let mut client = Client::connect(&self.socket()).unwrap();
        client.request("PUT", path, Some(&body.to_string())).unwrap().expect_204();
    }
}

impl Drop for Caged {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Relays TCP connections to the socket until the test ends; returns the port.
fn relay(socket: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            let Ok(unix) = UnixStream::connect(&socket) else { return };
            let (mut tcp_in, mut unix_out) = (tcp.try_clone().unwrap(), unix.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = io::copy(&mut tcp_in, &mut unix_out);
                let _ = unix_out.shutdown(Shutdown::Both);
            });
            std::thread::spawn(move || back(unix, tcp));
        }
    });
    port
}

fn back(mut unix: UnixStream, mut tcp: TcpStream) {
    let _ = io::copy(&mut unix, &mut tcp);
    let _ = tcp.shutdown(Shutdown::Both);
}

/// The fuzzer, put there by `cargo xtask test`.
fn schemathesis() -> PathBuf {
    let path = binary::target_dir().join("tools/schemathesis/bin/st");
    assert!(path.exists(), "{} is missing: `cargo xtask test --tier api` installs it", path.display());
    path
}

#[track_caller]
fn fuzz(caged: &mut Caged, seed: u32) {
    let port = relay(caged.socket());
    let output = Command::new(schemathesis())
        .current_dir(caged.root.path())
        .args(["run", "--url", &format!("http://127.0.0.1:{port}"), "--checks", CHECKS])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--seed", &seed.to_string()])
        .args(["--no-color", "--warnings", "off", "--suppress-health-check", "all"])
        .arg(document(caged.root.path()))
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "seed {seed}\n{said}");
    assert!(caged.process.try_wait().unwrap().is_none(), "the monitor ended\n{said}");
    let mut client = Client::connect(&caged.socket()).unwrap();
    client.request("GET", "/", None).unwrap().expect_200();
}

/// A copy of `openapi.yaml` that says in the fuzzer's dialect of regular expressions which characters an id may have.
fn document(dir: &Path) -> PathBuf {
    let ours = std::fs::read_to_string(binary::workspace().join("openapi.yaml")).unwrap();
    let (pattern, theirs) = (r"^[\p{Alphabetic}\p{N}_]+$", r"^\w+$");
    assert!(ours.contains(pattern), "the pattern for ids has changed: change it here too");
    let path = dir.join("openapi.yaml");
    std::fs::write(&path, ours.replace(pattern, theirs)).unwrap();
    path
}

#[test]
fn before_the_start() {
    fuzz(&mut Caged::start(), 1);
}

#[test]
fn after_the_start() {
    let mut caged = Caged::start();
    let job = Job::new(Mode::SpinQuiet).command_line();
    caged.put("/boot-source", &json!({"kernel_image_path": "/kernel", "boot_args": job}));
    caged.put("/actions", &json!({"action_type": "InstanceStart"}));
    fuzz(&mut caged, 2);
}
