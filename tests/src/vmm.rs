//! One VMM process from start to end, driven only from outside.
//!
//! [`VmmBuilder`] starts the real binary in a fresh directory, waits until its socket answers
//! and captures everything it prints. Dropping a [`Vmm`] kills and reaps the process.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{Client, Response};
use crate::lines::Lines;
use crate::{PATIENCE, binary, sys};

/// How often a state that has no event to wait for (a socket that does not exist yet) is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// How to start a VMM.
#[derive(Debug)]
pub struct VmmBuilder {
    binary: PathBuf,
    dir: TempDir,
    args: Vec<OsString>,
    api: bool,
    log_file: bool,
    stdout: Option<Stdio>,
}

impl Default for VmmBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl VmmBuilder {
    /// The binary of [`binary::mayfly`], a fresh directory, an API socket and a log file in it.
    ///
    /// # Panics
    /// When there is no binary or no directory can be made.
    #[track_caller]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("mayfly-test-").tempdir();
        Self {
            binary: binary::mayfly(),
            dir: dir.expect("a temporary directory"),
            args: Vec::new(),
            api: true,
            log_file: true,
            stdout: None,
        }
    }

    /// Starts another binary than the default one.
    #[must_use]
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = path.into();
        self
    }

    /// Adds one command-line argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds command-line arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Leaves `--log-path` out, so that log lines go where the binary sends them by itself.
    #[must_use]
    pub fn log_to_stdout(mut self) -> Self {
        self.log_file = false;
        self
    }

    /// Gives the process this as its stdout; [`Vmm::console`] then stays empty.
    #[must_use]
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// Starts with `--config-file` holding `config`, with the API socket.
    ///
    /// # Panics
    /// When the file cannot be written.
    #[must_use]
    #[track_caller]
    pub fn config_file(self, config: &Value) -> Self {
        let path = self.file("config.json", config.to_string().as_bytes());
        self.arg("--config-file").arg(path)
    }

    /// Starts with `--no-api`: no socket at all.
    #[must_use]
    pub fn no_api(mut self) -> Self {
        self.api = false;
        self.arg("--no-api")
    }

    /// The process's own directory, empty until it starts.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file into the process's directory and returns its path.
    ///
    /// # Panics
    /// When it cannot be written.
    #[track_caller]
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).expect("a file in the test's directory");
        path
    }

    /// Starts the process and waits until the API socket accepts connections
    /// (without the API: until the process exists).
    ///
    /// # Panics
    /// When the process ends or stays silent instead; the message holds its output.
    #[track_caller]
    pub fn start(self) -> Vmm {
        let api = self.api;
        let vmm = self.spawn();
        if api {
            vmm.wait_for_socket(PATIENCE);
        }
        vmm
    }

    /// Starts the process and returns at once; for tests of a start that fails.
    ///
    /// # Panics
    /// When the binary cannot be executed.
    #[track_caller]
    pub fn spawn(self) -> Vmm {
        let socket = self.dir.path().join("api.sock");
        let log = self.dir.path().join("mayfly.log");
        let mut command = Command::new(&self.binary);
        if self.api {
            command.arg("--api-sock").arg(&socket);
        }
        if self.log_file {
            // The file exists beforehand: the v1 contract only promises to open it.
            std::fs::write(&log, "").expect("a log file in the test's directory");
            command.arg("--log-path").arg(&log);
        }
        if on_pci() {
            command.arg("--enable-pci");
        }
        command.args(&self.args);
        command.stdin(Stdio::piped()).stdout(self.stdout.unwrap_or_else(Stdio::piped)).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot start {}: {error}", self.binary.display()),
        };
        let stdout = match child.stdout.take() {
            Some(pipe) => Lines::capture(pipe),
            None => Lines::capture(std::io::empty()),
        };
        let stderr = Lines::capture(child.stderr.take().expect("stderr is piped"));
        let stdin = child.stdin.take();
        Vmm {
            child: Mutex::new(Running { child, status: None }),
            stdin: Mutex::new(stdin),
            client: Mutex::new(None),
            stdout,
            stderr,
            socket,
            log,
            dir: self.dir,
        }
    }
}

/// Whether this run of the tests is for machines with a PCI bus: `MAYFLY_TEST_PCI=1`.
pub fn on_pci() -> bool {
    std::env::var_os("MAYFLY_TEST_PCI").is_some_and(|value| value == "1")
}

#[derive(Debug)]
struct Running {
    child: Child,
    status: Option<ExitStatus>,
}

/// One VMM process.
#[derive(Debug)]
pub struct Vmm {
    child: Mutex<Running>,
    stdin: Mutex<Option<ChildStdin>>,
    client: Mutex<Option<Client>>,
    stdout: Lines,
    stderr: Lines,
    socket: PathBuf,
    log: PathBuf,
    dir: TempDir,
}

impl Vmm {
    /// [`VmmBuilder::new`] started as it is.
    ///
    /// # Panics
    /// As [`VmmBuilder::start`].
    #[track_caller]
    pub fn start() -> Self {
        VmmBuilder::new().start()
    }

    /// The process's own directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file into the process's directory and returns its path.
    ///
    /// # Panics
    /// When it cannot be written.
    #[track_caller]
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).expect("a file in the test's directory");
        path
    }

    /// The path of the API socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.running().child.id()
    }

    /// How many descriptors the process has open.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the process is there").count()
    }

    /// What the guest's console (and the binary) wrote to stdout.
    pub fn console(&self) -> &Lines {
        &self.stdout
    }

    /// What the binary wrote to stderr.
    pub fn stderr(&self) -> &Lines {
        &self.stderr
    }

    /// The log file's text so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits for a console line that contains `pattern` and returns it.
    ///
    /// # Panics
    /// When it does not come in time; the message holds everything the process said.
    #[track_caller]
    pub fn wait_for_line(&self, pattern: &str, patience: Duration) -> String {
        match self.stdout.find(pattern, patience) {
            Some(line) => line,
            None => panic!("no console line with {pattern:?} in {patience:?}\n{}", self.said()),
        }
    }

    /// Waits until the log contains `pattern`; returns that line.
    ///
    /// # Panics
    /// When it does not come in time; the message holds everything the process said.
    #[track_caller]
    pub fn wait_for_log(&self, pattern: &str, patience: Duration) -> String {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(line) = self.log().lines().find(|line| line.contains(pattern)) {
                return line.to_owned();
            }
            if Instant::now() >= deadline {
                panic!("no log line with {pattern:?} in {patience:?}\n{}", self.said());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Types `text` on the guest's console.
    ///
    /// # Panics
    /// When the process has closed its stdin.
    #[track_caller]
    pub fn type_text(&self, text: &str) {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        let stdin = stdin.as_mut().expect("stdin is open");
        stdin.write_all(text.as_bytes()).expect("the process reads its stdin");
    }

    /// Closes the process's stdin.
    pub fn close_stdin(&self) {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// A new connection of its own.
    ///
    /// # Panics
    /// When the socket does not accept it.
    #[track_caller]
    pub fn client(&self) -> Client {
        match Client::connect(&self.socket) {
            Ok(client) => client,
            Err(error) => panic!("cannot connect to the API socket: {error}\n{}", self.said()),
        }
    }

    /// Sends one request over the shared keep-alive connection.
    ///
    /// # Panics
    /// When there is no reply; the message holds everything the process said.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, body: Option<&str>) -> Response {
        let mut shared = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let mut client = match shared.take() {
            Some(client) => client,
            None => self.client(),
        };
        match client.request(method, path, body) {
            Ok(response) => {
                *shared = Some(client);
                response
            }
            Err(error) => panic!("{method} {path} had no reply: {error}\n{}", self.said()),
        }
    }

    /// `GET path`.
    ///
    /// # Panics
    /// As [`request`](Self::request).
    #[track_caller]
    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, None)
    }

    /// `PUT path` with a JSON body.
    ///
    /// # Panics
    /// As [`request`](Self::request).
    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) -> Response {
        self.request("PUT", path, Some(&body.to_string()))
    }

    /// `PATCH path` with a JSON body.
    ///
    /// # Panics
    /// As [`request`](Self::request).
    #[track_caller]
    pub fn patch(&self, path: &str, body: &Value) -> Response {
        self.request("PATCH", path, Some(&body.to_string()))
    }

    /// `PUT /boot-source`, expecting 204.
    ///
    /// # Panics
    /// On any other reply.
    #[track_caller]
    pub fn boot_source(&self, kernel: &Path, boot_args: &str) {
        let body = json!({"kernel_image_path": kernel, "boot_args": boot_args});
        self.put("/boot-source", &body).expect_204();
    }

    /// `PUT /machine-config`, expecting 204.
    ///
    /// # Panics
    /// On any other reply.
    #[track_caller]
    pub fn machine(&self, vcpu_count: u8, mem_size_mib: u64) {
        let body = json!({"vcpu_count": vcpu_count, "mem_size_mib": mem_size_mib});
        self.put("/machine-config", &body).expect_204();
    }

    /// `PUT /drives/{id}` for a writable, non-root drive with that engine, expecting 204.
    ///
    /// # Panics
    /// On any other reply.
    #[track_caller]
    pub fn drive(&self, id: &str, path: &Path, engine: &str) {
        let body = json!({
            "drive_id": id, "path_on_host": path, "is_root_device": false,
            "is_read_only": false, "io_engine": engine,
        });
        self.put(&format!("/drives/{id}"), &body).expect_204();
    }

    /// `PUT /network-interfaces/{id}`, expecting 204.
    ///
    /// # Panics
    /// On any other reply.
    #[track_caller]
    pub fn network(&self, id: &str, tap: &str, guest_mac: &str) {
        let body = json!({"iface_id": id, "host_dev_name": tap, "guest_mac": guest_mac});
        self.put(&format!("/network-interfaces/{id}"), &body).expect_204();
    }

    /// `PUT /actions` `InstanceStart`, expecting 204.
    ///
    /// # Panics
    /// On any other reply.
    #[track_caller]
    pub fn instance_start(&self) {
        self.put("/actions", &json!({"action_type": "InstanceStart"})).expect_204();
    }

    /// Sends `signal` (a `libc::SIG*` number) to the process.
    ///
    /// # Panics
    /// When the process is gone.
    #[track_caller]
    pub fn signal(&self, signal: i32) {
        let running = self.running();
        assert!(running.status.is_none(), "the process has already ended");
        sys::kill(running.child.id(), signal).expect("the signal can be sent");
    }

    /// Waits for the end of the process: its exit code, or 128 + the signal that killed it.
    ///
    /// # Panics
    /// When it is still there after `patience`; the message holds everything it said.
    #[track_caller]
    pub fn wait_exit(&self, patience: Duration) -> i32 {
        match self.exited(patience) {
            Some(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            None => panic!("still running after {patience:?}\n{}", self.said()),
        }
    }

    /// Whether the process is still there.
    pub fn is_running(&self) -> bool {
        self.exited(Duration::ZERO).is_none()
    }

    /// Everything the process said, for a failure message.
    pub fn said(&self) -> String {
        format!("--- stdout\n{}\n--- stderr\n{}\n--- log\n{}", self.stdout.text(), self.stderr.text(), self.log())
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Running> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exited(&self, patience: Duration) -> Option<ExitStatus> {
        let mut running = self.running();
        if running.status.is_none() && sys::wait_for_process(running.child.id(), patience) {
            running.status = running.child.wait().ok();
            // What was printed just before the end belongs to the result.
            self.stdout.wait_end(PATIENCE);
            self.stderr.wait_end(PATIENCE);
        }
        running.status
    }

    #[track_caller]
    fn wait_for_socket(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while Client::connect(&self.socket).is_err() {
            if let Some(status) = self.exited(Duration::ZERO) {
                panic!("the process ended ({status}) before its API answered\n{}", self.said());
            }
            if Instant::now() >= deadline {
                panic!("the API socket did not answer in {patience:?}\n{}", self.said());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let running = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        if running.status.is_none() {
            // Errors mean that it is gone already, which is what we want.
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}
