//! Asking a descriptor what it would do, without doing it.

use std::os::fd::{AsRawFd, BorrowedFd};

/// Whether a write of up to `PIPE_BUF` bytes to `fd` would go through at once.
pub fn writable_now(fd: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid pollfd for the length of the call, which with timeout 0 returns at once.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    // A pipe whose reader is gone polls writable, too, and with an error.
    ready == 1 && poll.revents & (libc::POLLOUT | libc::POLLERR | libc::POLLHUP) == libc::POLLOUT
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write, pipe};
    use std::os::fd::AsFd;

    #[test]
    fn a_full_pipe_is_not_writable() {
        let (mut reader, mut writer) = pipe().unwrap();
        let block = [0; 4096];
        while writable_now(writer.as_fd()) {
            writer.write_all(&block).unwrap();
        }
        let mut taken = [0; 4096];
        reader.read_exact(&mut taken).unwrap();
        assert!(writable_now(writer.as_fd()));
        drop(reader);
        assert!(!writable_now(writer.as_fd()), "nobody reads any more");
    }
}
