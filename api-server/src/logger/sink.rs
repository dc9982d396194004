//! Where log lines go, without ever waiting for it.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use vmm::sys::poll::writable_now;
use vmm::telemetry::LOGGER;

/// A pipe that polls writable takes this much at once (Linux `PIPE_BUF`).
const PIECE_BYTES: usize = 4096;

/// An open log and the count of lines it did not take.
#[derive(Debug)]
pub(super) struct Sink {
    /// `None` is standard output.
    file: Option<File>,
    lost: u64,
}

/// Opens a log file or FIFO. Reading too keeps the open of a FIFO without a reader from blocking or failing (fifo(7)).
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

impl Sink {
    pub(super) const fn new() -> Self {
        Self { file: None, lost: 0 }
    }

    pub(super) fn write_to(&mut self, file: File) {
        self.file = Some(file);
    }

    /// Writes one line or counts it as lost. Earlier losses are reported first, in a line made by `report`.
    pub(super) fn put(&mut self, line: &str, report: impl FnOnce(u64) -> String) {
        if self.lost > 0 && self.write(&report(self.lost)).is_ok() {
            self.lost = 0;
        }
        if self.write(line).is_err() {
            LOGGER.missed_log_count.inc();
            self.lost = self.lost.saturating_add(1);
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(line.as_bytes()),
            // Standard output is shared with other processes, so it cannot be made non-blocking; it is asked first instead.
            None => {
                let mut out = io::stdout().lock();
                for piece in line.as_bytes().chunks(PIECE_BYTES) {
                    if !writable_now(out.as_fd()) {
                        return Err(ErrorKind::WouldBlock.into());
                    }
                    out.write_all(piece)?;
                }
                out.flush()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn fifo() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        (dir, path)
    }

    #[test]
    fn a_full_fifo_loses_lines_counts_them_and_says_so_later() {
        let (_dir, path) = fifo();
        let mut sink = Sink::new();
        sink.write_to(open(&path).unwrap());
        let line = format!("{}\n", "x".repeat(1023));
        for _ in 0..100 {
            sink.put(&line, |lost| format!("lost {lost}\n"));
        }
        let lost = sink.lost;
        assert!(lost > 0, "a FIFO holds 64 KiB by default, 100 KiB were written");
        let mut reader = open(&path).unwrap();
        let mut taken = vec![0; 64 << 10];
        let mut count = reader.read(&mut taken).unwrap();
        assert_eq!(count as u64, (100 - lost) * 1024);
        sink.put("next\n", |lost| format!("lost {lost}\n"));
        assert_eq!(sink.lost, 0);
        count = reader.read(&mut taken).unwrap();
        assert_eq!(String::from_utf8_lossy(&taken[..count]), format!("lost {lost}\nnext\n"));
    }

    #[test]
    fn a_full_disk_loses_lines() {
        let mut sink = Sink::new();
        sink.write_to(open(Path::new("/dev/full")).unwrap());
        sink.put("a\n", |_| String::new());
        sink.put("b\n", |_| "report\n".to_owned());
        assert_eq!(sink.lost, 2);
    }

    #[test]
    fn existing_lines_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "old\n").unwrap();
        let mut sink = Sink::new();
        sink.write_to(open(&path).unwrap());
        sink.put("new\n", |_| String::new());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old\nnew\n");
    }

    #[test]
    fn a_directory_is_not_a_log() {
        assert!(open(tempfile::tempdir().unwrap().path()).is_err());
    }
}
