//! Where lines go, without ever waiting for it.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The file or FIFO. A line is there whole or not at all: if only its beginning could be written, the rest goes before the next one.
#[derive(Debug)]
pub(super) struct MetricsFile {
    file: File,
    /// Bytes of the last line that were written.
    written: usize,
    /// Whether some of them are still to be written.
    cut: bool,
}

impl MetricsFile {
    /// Opens it as the contract has it: created if missing, never truncated, written from its beginning, never waited for. Reading too
    /// keeps the open of a FIFO without a reader from failing (fifo(7)).
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        Ok(Self { file, written: 0, cut: false })
    }

    /// Writes what is missing of `last`, the line of the last [`Self::write`].
    ///
    /// # Errors
    /// It is still not whole.
    pub(super) fn finish(&mut self, last: &[u8]) -> io::Result<()> {
        if self.cut {
            self.go_on(last)?;
            self.cut = false;
        }
        Ok(())
    }

    /// Writes a new line, or its beginning; then it counts as written.
    ///
    /// # Errors
    /// Nothing of it could be written.
    pub(super) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.written = 0;
        let outcome = self.go_on(line);
        self.cut = outcome.is_err() && self.written > 0;
        if self.cut { Ok(()) } else { outcome }
    }

    fn go_on(&mut self, line: &[u8]) -> io::Result<()> {
        while let Some(rest) = line.get(self.written..).filter(|rest| !rest.is_empty()) {
            match self.file.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_full_fifo_never_holds_half_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut file = MetricsFile::open(&path).unwrap();
        let line = |n: usize| format!("{n:06}{}\n", "x".repeat(9_000)).into_bytes();
        let mut taken = Vec::new();
        let mut last = Vec::new();
        for n in 0..20 {
            if file.finish(&last).is_ok() && file.write(&line(n)).is_ok() {
                taken.push(n);
                last = line(n);
            }
        }
        assert!(taken.len() < 20 && file.cut, "a FIFO holds 64 KiB by default: {taken:?}");
        let mut reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let mut read = vec![0; 128 << 10];
        let mut len = reader.read(&mut read).unwrap();
        file.finish(&last).unwrap();
        file.write(&line(99)).unwrap();
        len += reader.read(&mut read[len..]).unwrap();
        taken.push(99);
        assert_eq!(read[..len], taken.into_iter().flat_map(line).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_there_is_overwritten_and_not_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "old contents").unwrap();
        let mut file = MetricsFile::open(&path).unwrap();
        file.write(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new contents");
    }

    #[test]
    fn a_full_disk_loses_lines() {
        let mut file = MetricsFile::open(Path::new("/dev/full")).unwrap();
        assert!(file.write(b"line\n").is_err() && !file.cut);
        assert!(MetricsFile::open(tempfile::tempdir().unwrap().path()).is_err());
    }
}
