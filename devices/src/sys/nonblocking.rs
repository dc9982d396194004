//! Reading and writing a descriptor that others share, without ever blocking and without changing it for them.
//!
//! `O_NONBLOCK` belongs to the open file description, which a standard stream shares with the shell or with whoever started us. So
//! pipes and character devices are opened once more through `/proc`; where that is not possible (a chroot without `/proc`, a terminal of
//! another user) each access is preceded by a `poll` and kept small.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

/// What a writer that only `poll` protects may hand over at once: at most `PIPE_BUF`, and little enough for a terminal's buffer.
const POLLED_WRITE_LEN: usize = 256;

/// How a descriptor is kept from blocking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A regular file, which never blocks for long, or a description that is non-blocking already.
    Plain,
    /// A socket: the flag goes with each call.
    Socket,
    /// `poll` first.
    Polled,
}

/// A descriptor that is read or written without blocking.
#[derive(Debug)]
pub struct NonBlocking {
    fd: OwnedFd,
    mode: Mode,
    pollable: bool,
}

impl NonBlocking {
    /// For reading from whatever `fd` is.
    pub fn reader(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Self::new(fd, OpenOptions::new().read(true))
    }

    /// For writing to whatever `fd` is.
    pub fn writer(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Self::new(fd, OpenOptions::new().write(true))
    }

    fn new(fd: BorrowedFd<'_>, access: &mut OpenOptions) -> io::Result<Self> {
        let own = fd.try_clone_to_owned()?;
        let kind = File::from(own.try_clone()?).metadata()?.file_type();
        // A second description of a regular file would have a position of its own and overwrite the first one's output.
        let (fd, mode) = if kind.is_file() || is_nonblocking(&own) {
            (own, Mode::Plain)
        } else if kind.is_socket() {
            (own, Mode::Socket)
        } else {
            let again = format!("/proc/self/fd/{}", own.as_raw_fd());
            match access.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(again) {
                Ok(file) => (file.into(), Mode::Plain),
                Err(_) => (own, Mode::Polled),
            }
        };
        let pollable = is_pollable(&fd);
        Ok(Self { fd, mode, pollable })
    }

    /// Whether epoll can watch it. What it cannot watch (regular files, `/dev/null`) is always ready.
    pub fn is_pollable(&self) -> bool {
        self.pollable
    }

    /// Reads what there is. [`io::ErrorKind::WouldBlock`] if there is nothing, 0 at the end.
    pub fn read(&self, out: &mut [u8]) -> io::Result<usize> {
        self.wait_not(libc::POLLIN)?;
        let (to, len) = (out.as_mut_ptr().cast(), out.len());
        let read = match self.mode {
            // SAFETY: `to` is valid for writes of `len` bytes.
            Mode::Socket => unsafe { libc::recv(self.fd.as_raw_fd(), to, len, libc::MSG_DONTWAIT) },
            // SAFETY: as above.
            Mode::Plain | Mode::Polled => unsafe { libc::read(self.fd.as_raw_fd(), to, len) },
        };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// Writes what fits. [`io::ErrorKind::WouldBlock`] if nothing does.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.wait_not(libc::POLLOUT)?;
        let from = bytes.as_ptr().cast();
        let written = match self.mode {
            // SAFETY: `from` is valid for reads of `bytes.len()` bytes.
            Mode::Plain => unsafe { libc::write(self.fd.as_raw_fd(), from, bytes.len()) },
            // SAFETY: as above.
            Mode::Polled => unsafe { libc::write(self.fd.as_raw_fd(), from, bytes.len().min(POLLED_WRITE_LEN)) },
            // SAFETY: as above.
            Mode::Socket => unsafe {
                libc::send(self.fd.as_raw_fd(), from, bytes.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            },
        };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    /// Refuses what would block, in the mode that needs it.
    fn wait_not(&self, event: i16) -> io::Result<()> {
        if self.mode != Mode::Polled || wait(self.fd.as_raw_fd(), event, 0)? {
            Ok(())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    /// Waits until something can be written, at most `timeout_ms`. `false` if nothing can be.
    pub fn wait_writable(&self, timeout_ms: i32) -> io::Result<bool> {
        wait(self.fd.as_raw_fd(), libc::POLLOUT, timeout_ms)
    }
}

impl AsRawFd for NonBlocking {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Waits for `events` on `fd`, at most `timeout_ms`. `false` if they did not come.
pub(crate) fn wait(fd: RawFd, events: i16, timeout_ms: i32) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one valid pollfd.
    match unsafe { libc::poll(&mut poll, 1, timeout_ms) } {
        -1 => Err(io::Error::last_os_error()),
        // Errors and hang-ups count as ready: the access itself will tell.
        count => Ok(count > 0),
    }
}

fn is_nonblocking(fd: &OwnedFd) -> bool {
    // SAFETY: F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    flags >= 0 && flags & libc::O_NONBLOCK != 0
}

/// epoll refuses with EPERM what has no readiness.
fn is_pollable(fd: &OwnedFd) -> bool {
    // SAFETY: no pointers.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    if epoll < 0 {
        return false;
    }
    // SAFETY: a descriptor just made and owned by nobody else.
    let epoll = unsafe { OwnedFd::from_raw_fd(epoll) };
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
    // SAFETY: `event` is valid; the epoll instance is dropped before it could be asked about it.
    unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &mut event) == 0 }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_full_pipe_does_not_block_nor_change_for_others() {
        let (mut reader, writer) = io::pipe().unwrap();
        let ours = NonBlocking::writer(writer.as_fd()).unwrap();
        assert!(ours.is_pollable());
        let mut total = 0;
        let error = loop {
            match ours.write(&[7; 1000]) {
                Ok(written) => total += written,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(!is_nonblocking(&writer.as_fd().try_clone_to_owned().unwrap()));
        assert!(!ours.wait_writable(0).unwrap());
        let mut read = vec![0; total];
        reader.read_exact(&mut read).unwrap();
        assert!(ours.wait_writable(0).unwrap());
    }

    #[test]
    fn polled_pipes_do_not_block_either() {
        let (reader, mut writer) = io::pipe().unwrap();
        let blocking = |fd: BorrowedFd<'_>| NonBlocking {
            fd: fd.try_clone_to_owned().unwrap(),
            mode: Mode::Polled,
            pollable: true,
        };
        let (input, output) = (blocking(reader.as_fd()), blocking(writer.as_fd()));
        let mut byte = [0];
        assert_eq!(input.read(&mut byte).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        writer.write_all(b"x").unwrap();
        assert_eq!((input.read(&mut byte).unwrap(), byte), (1, *b"x"));
        while let Ok(written) = output.write(&[0; 4096]) {
            assert!(written <= POLLED_WRITE_LEN);
        }
    }

    #[test]
    fn sockets_and_files() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = NonBlocking::writer(ours.as_fd()).unwrap();
        assert_eq!(socket.mode, Mode::Socket);
        while socket.write(&[1; 4096]).is_ok() {}
        drop(theirs);
        assert_eq!(socket.write(&[1]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);

        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before ").unwrap();
        let output = NonBlocking::writer(file.as_fd()).unwrap();
        assert!(!output.is_pollable());
        assert_eq!(output.write(b"after").unwrap(), 5);
        assert_eq!(file.metadata().unwrap().len(), 12);
    }
}
