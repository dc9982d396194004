//! Processes that serve devices: QEMU's storage daemon, and its virtiofsd.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::PATIENCE;

/// Where Debian's qemu-system-common puts it.
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
/// How often it is looked whether a process listens, of which there is no event.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// `__SO_ACCEPTCON` in `/proc/net/unix`: somebody listens (include/linux/net.h).
const LISTENS: &str = " 00010000 ";

/// A process that serves a device. Dropping it kills it.
#[derive(Debug)]
pub struct Backend {
    child: Child,
    socket: PathBuf,
}

impl Backend {
    /// Serves the file at `disk` as a drive.
    ///
    /// # Panics
    /// When qemu-storage-daemon is not there, or ends.
    #[track_caller]
    pub fn storage(disk: &Path, socket: &Path, writable: bool) -> Self {
        let writable = if writable { "on" } else { "off" };
        let mut command = Command::new("qemu-storage-daemon");
        command.arg("--blockdev").arg(format!("file,node-name=file,filename={}", disk.display()));
        command.arg("--export").arg(format!(
            "vhost-user-blk,id=export,node-name=file,addr.type=unix,addr.path={},writable={writable}",
            socket.display()
        ));
        Self::start(command, socket)
    }

    /// Serves the directory as a file system.
    ///
    /// # Panics
    /// When virtiofsd is not there, or ends.
    #[track_caller]
    pub fn directory(directory: &Path, socket: &Path) -> Self {
        let mut command = Command::new(VIRTIOFSD);
        command.arg(format!("--socket-path={}", socket.display()));
        command.arg("-o").arg(format!("source={}", directory.display())).arg("-f");
        Self::start(command, socket)
    }

    #[track_caller]
    fn start(mut command: Command, socket: &Path) -> Self {
        // One that was killed leaves it.
        let _ = std::fs::remove_file(socket);
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
        let child = child.unwrap_or_else(|e| panic!("cannot start {command:?}: {e}: install qemu-system-common"));
        let mut backend = Self { child, socket: socket.to_owned() };
        let deadline = Instant::now() + PATIENCE;
        while !backend.listens().expect("/proc/net/unix") {
            if let Some(status) = backend.child.try_wait().expect("our own child") {
                let mut said = String::new();
                let _ = backend.child.stderr.take().expect("it is piped").read_to_string(&mut said);
                panic!("{command:?} ended with {status}: {said}");
            }
            assert!(Instant::now() < deadline, "{command:?} does not listen");
            std::thread::sleep(LOOK_AGAIN);
        }
        backend
    }

    fn listens(&self) -> io::Result<bool> {
        let path = format!(" {}", self.socket.display());
        let sockets = std::fs::read_to_string("/proc/net/unix")?;
        Ok(sockets.lines().any(|line| line.ends_with(&path) && line.contains(LISTENS)))
    }

    /// Ends it without a word.
    pub fn kill(mut self) {
        self.end();
    }

    /// Stops it: it neither works nor answers, and keeps its connections.
    ///
    /// # Panics
    /// When there is no such process.
    pub fn freeze(&self) {
        crate::sys::kill(self.child.id(), libc::SIGSTOP).expect("our own child");
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.end();
    }
}
