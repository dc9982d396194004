//! The jailer with the real VMM in it, as root and without.

mod attacks;
mod clones;
mod layout;
mod life;
mod readme;
mod rootless;

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mayfly_tests::{Client, Lines, PATIENCE, binary};
use tempfile::TempDir;

/// Whom machines run as here.
const UID: u32 = 61_001;
const GID: u32 = 61_002;

/// A directory of jails, and one jail in it.
struct Place {
    base: TempDir,
    id: String,
}

/// A jailer that has become, or has started, a VMM.
struct Jailed {
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

impl Place {
    /// With an id that nobody else has, not even an earlier run.
    fn new(id: &str) -> Self {
        Self::with_id(&format!("{id}-{}", std::process::id()))
    }

    fn with_id(id: &str) -> Self {
        binary::require_root();
        binary::require_kvm();
        // Others must get through to what is theirs.
        let base = tempfile::Builder::new()
            .prefix("jails-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir();
        Self { base: base.unwrap(), id: id.to_owned() }
    }

    fn name(&self) -> String {
        binary::mayfly().canonicalize().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
    }

    fn jail(&self) -> PathBuf {
        self.base.path().join(self.name()).join(&self.id)
    }

    fn root(&self) -> PathBuf {
        self.jail().join("root")
    }

    fn socket(&self) -> PathBuf {
        self.root().join("run/api.sock")
    }

    fn pid_file(&self) -> PathBuf {
        self.root().join(format!("{}.pid", self.name()))
    }

    /// The process in the jail, as the host numbers it.
    #[track_caller]
    fn pid(&self) -> u32 {
        std::fs::read_to_string(self.pid_file()).expect("a pid file").trim().parse().unwrap()
    }

    fn command(&self, options: &[&str]) -> Command {
        self.command_as(UID, options)
    }

    fn command_as(&self, uid: u32, options: &[&str]) -> Command {
        let mut command = Command::new(binary::jailer());
        command.arg("--id").arg(&self.id).arg("--exec-file").arg(binary::mayfly());
        command.args(["--uid", &uid.to_string(), "--gid", &GID.to_string()]);
        command.arg("--chroot-base-dir").arg(self.base.path()).args(options);
        command
    }

    /// Starts a VMM in the jail and waits until its API answers.
    #[track_caller]
    fn start(&self, options: &[&str]) -> Jailed {
        let mut command = self.command(options);
        command.args(["--", "--api-sock", "/run/api.sock"]);
        let jailed = spawn(&mut command);
        self.wait_for_api(&jailed);
        jailed
    }

    #[track_caller]
    fn wait_for_api(&self, jailed: &Jailed) {
        let deadline = Instant::now() + PATIENCE;
        while self.try_get("/").is_none() {
            assert!(Instant::now() < deadline, "no answer\n{}", jailed.said());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket()).expect("the socket accepts")
    }

    fn try_get(&self, path: &str) -> Option<serde_json::Value> {
        Some(Client::connect(&self.socket()).ok()?.request("GET", path, None).ok()?.expect_200())
    }

    #[track_caller]
    fn put(&self, path: &str, body: &serde_json::Value) {
        self.client().request("PUT", path, Some(&body.to_string())).unwrap().expect_204();
    }

    /// What the jailer says when it refuses; nothing is left of it then.
    #[track_caller]
    fn refused(&self, options: &[&str]) -> String {
        let before = everything(self.base.path());
        let output = self.command(options).args(["--", "--api-sock", "/run/api.sock"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(everything(self.base.path()), before, "something was left, or taken\n{said}");
        said
    }

    /// Kills the process in the jail.
    fn kill(&self) {
        // A test may have put something else there.
        if self.pid_file().is_file()
            && let Ok(text) = std::fs::read_to_string(self.pid_file())
            && let Ok(pid) = text.trim().parse::<i32>()
        {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
        }
    }

    /// Waits until the process in the jail is no more, or only waits to be collected.
    #[track_caller]
    fn wait_until_dead(&self) {
        let deadline = Instant::now() + PATIENCE;
        let executable = format!("/proc/{}/exe", self.pid());
        while std::fs::read_link(&executable).is_ok() {
            assert!(Instant::now() < deadline, "it goes on");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until all jails of this base are gone: nothing is there but what was before, no process works there, and nothing is mounted.
    #[track_caller]
    fn wait_until_only(&self, before: &[String]) {
        let base = self.base.path();
        let deadline = Instant::now() + PATIENCE;
        while everything(base) != before || jailers(self) > 0 {
            assert!(Instant::now() < deadline, "{:?}, {} processes", everything(base), jailers(self));
            std::thread::sleep(Duration::from_millis(5));
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert_eq!(mounts.lines().filter(|line| line.contains(base.to_str().unwrap())).count(), 0, "{mounts}");
    }

    /// Waits until nothing is left.
    #[track_caller]
    fn wait_until_gone(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.jail().exists() {
            assert!(Instant::now() < deadline, "{:?} is left", everything(&self.jail()));
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.kill();
    }
}

#[track_caller]
fn spawn(command: &mut Command) -> Jailed {
    // A process group of its own, so that a signal meant for it reaches nobody else.
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
    let stdout = Lines::capture(child.stdout.take().unwrap());
    let stderr = Lines::capture(child.stderr.take().unwrap());
    Jailed { child, stdout, stderr }
}

impl Jailed {
    fn said(&self) -> String {
        format!("--- stdout\n{}\n--- stderr\n{}", self.stdout.text(), self.stderr.text())
    }

    /// The exit code.
    #[track_caller]
    fn wait(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "it goes on\n{}", self.said());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every path below a directory, with kind, mode, owner and length.
fn everything(top: &Path) -> Vec<String> {
    let output = Command::new("find").arg(top).args(["-printf", "%P %y %m %U:%G %n %s %l\n"]).output().unwrap();
    let mut lines: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    // The length of a directory is the file system's affair.
    lines
        .iter_mut()
        .filter(|line| line.contains(" d "))
        .for_each(|line| *line = line.rsplitn(3, ' ').last().unwrap().to_owned());
    lines.sort();
    lines
}

/// Puts the bare-metal guest's kernel where a jail can have it.
fn kernel(place: &Place) -> PathBuf {
    let path = place.base.path().join("guest.elf");
    std::fs::write(&path, guest::ELF).unwrap();
    path
}

fn run(program: impl AsRef<OsStr>, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program).args(arguments).output().unwrap();
    (
        output.status.code(),
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
    )
}

/// The directory of this machine's group, for a controller: of version 1 where the host has that.
fn cgroup(place: &Place, controller: &str) -> PathBuf {
    let one = Path::new("/sys/fs/cgroup").join(controller);
    let top = if one.is_dir() { one } else { "/sys/fs/cgroup".into() };
    top.join(place.name()).join(&place.id)
}

fn is_v1() -> bool {
    Path::new("/sys/fs/cgroup/cpu").is_dir()
}

/// A value that the host's version has, and the file it is in.
fn weight() -> (&'static str, &'static str) {
    if is_v1() { ("cpu.shares", "345") } else { ("cpu.weight", "34") }
}

/// Processes whose command line names the directory of these jails: jailers, and who waits for machines to end.
fn jailers(place: &Place) -> usize {
    let base = place.base.path().to_str().unwrap();
    let lines =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(base)).count()
}
