//! A way to the log for signal handlers, which must neither lock nor allocate.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use super::poll::writable_now;

/// A descriptor of its own for the file that log lines go to; standard output until there is one.
///
/// It keeps its number for ever: another file replaces what is behind it in one step (dup3(2)), so a handler that interrupts the change
/// writes to one or the other and never to a descriptor that belongs to somebody else by now.
#[derive(Debug)]
pub struct Lifeline(AtomicI32);

const NONE: RawFd = -1;

impl Lifeline {
    /// To standard output.
    pub const fn new() -> Self {
        Self(AtomicI32::new(NONE))
    }

    /// To `file` from now on. Not to be called by two threads at once.
    ///
    /// # Errors
    /// No descriptor is left; then nothing has changed.
    pub fn follow(&self, file: &File) -> io::Result<()> {
        let place = self.0.load(Ordering::Relaxed);
        // SAFETY: no pointers; both descriptors are open, and `place` belongs to this object alone.
        let fd = unsafe {
            match place {
                NONE => libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, libc::STDERR_FILENO + 1),
                place => libc::dup3(file.as_raw_fd(), place, libc::O_CLOEXEC),
            }
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        self.0.store(fd, Ordering::Release);
        Ok(())
    }

    /// Writes with one system call and without waiting. Safe in signal handlers.
    ///
    /// # Errors
    /// What `write(2)` says; `WouldBlock` if standard output takes nothing now.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let fd = match self.0.load(Ordering::Acquire) {
            NONE => libc::STDOUT_FILENO,
            fd => fd,
        };
        // SAFETY: standard output is open as long as the process lives, and the other one is never closed.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        // A file was opened non-blocking; standard output may not have been.
        if fd == libc::STDOUT_FILENO && !writable_now(borrowed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // SAFETY: the pointer and length are those of a slice.
        let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }
}

impl Default for Lifeline {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_from_file_to_file_under_one_number() {
        let dir = tempfile::tempdir().unwrap();
        let line = Lifeline::new();
        let paths = ["a", "b"].map(|name| dir.path().join(name));
        let mut numbers = Vec::new();
        for path in &paths {
            line.follow(&File::create(path).unwrap()).unwrap();
            assert_eq!(line.write(b"words").unwrap(), 5);
            numbers.push(line.0.load(Ordering::Relaxed));
        }
        assert_eq!(numbers[0], numbers[1]);
        for path in paths {
            assert_eq!(std::fs::read(path).unwrap(), b"words");
        }
    }
}
