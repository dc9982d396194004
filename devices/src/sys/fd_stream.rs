//! Unix stream sockets that carry file descriptors beside bytes (unix(7), SCM_RIGHTS). Only [`FdStream::wait`] ever waits.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;
use std::{mem, ptr};

use vmm_sys_util::eventfd::EventFd;

use super::unix_stream::{HostStream, retry};

/// Most descriptors that are taken from one message, or sent with it.
pub const MAX_FDS: usize = 8;
/// Room for them and their header, 8 bytes a piece so that it is aligned (cmsg(3)).
const CONTROL_WORDS: usize = 8;

/// Why a wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// There may be something to receive.
    Readable,
    /// Nobody wants to wait any more.
    Ended,
    /// It took too long.
    TimeOver,
}

/// A connected Unix stream socket.
#[derive(Debug)]
pub struct FdStream(OwnedFd);

impl FdStream {
    /// Connects to the socket at `path`, without waiting: a listener whose backlog is full refuses with `WouldBlock`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        HostStream::connect(path).map(|stream| Self(stream.into()))
    }

    /// Two sockets that are connected with each other: ours, and one to give away.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let mut fds: [c_int; 2] = [-1; 2];
        // SAFETY: room for two descriptors.
        let made =
            unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) };
        if made != 0 {
            return Err(io::Error::last_os_error());
        }
        let [ours, theirs] = fds;
        // SAFETY: the kernel just made both, and nobody else has them.
        Ok(unsafe { (Self(OwnedFd::from_raw_fd(ours)), OwnedFd::from_raw_fd(theirs)) })
    }

    /// The same socket once more.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Sends as much as fits, and with the first byte `fds` (at most [`MAX_FDS`]).
    pub fn send(&self, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
        let mut piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast::<c_void>(), iov_len: bytes.len() };
        let mut control = [0u64; CONTROL_WORDS];
        let fds_len = mem::size_of_val(fds);
        // SAFETY: all zeroes is a valid `msghdr`.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        if !fds.is_empty() {
            if fds.len() > MAX_FDS {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            message.msg_control = control.as_mut_ptr().cast();
            // SAFETY: arithmetic only. With at most MAX_FDS descriptors both fit into `control`, as the test below holds.
            message.msg_controllen = unsafe { libc::CMSG_SPACE(fds_len as u32) } as usize;
            // SAFETY: the control buffer is aligned and holds one header and the descriptors behind it.
            unsafe {
                let header = libc::CMSG_FIRSTHDR(&raw const message);
                (*header).cmsg_level = libc::SOL_SOCKET;
                (*header).cmsg_type = libc::SCM_RIGHTS;
                (*header).cmsg_len = libc::CMSG_LEN(fds_len as u32) as usize;
                ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), fds_len);
            }
        }
        // SAFETY: the message points to what is alive until the call returns; the kernel only reads it.
        retry(|| unsafe {
            libc::sendmsg(self.0.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
        })
    }

    /// Receives into `bytes` what is there, and adds to `fds` the descriptors that come with it. 0 is the end of the stream.
    pub fn receive(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let mut control = [0u64; CONTROL_WORDS];
        // SAFETY: all zeroes is a valid `msghdr`.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        let count = retry(|| {
            message.msg_iov = &raw mut piece;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = mem::size_of_val(&control);
            // SAFETY: the message points to buffers of these lengths, which are alive and ours.
            unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, flags) }
        })?;
        // SAFETY: the kernel filled in a well-formed list of control messages within the buffer; CMSG_LEN is arithmetic.
        unsafe {
            let mut header = libc::CMSG_FIRSTHDR(&raw const message);
            while !header.is_null() {
                if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                    let len = (*header).cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
                    let data = libc::CMSG_DATA(header).cast::<RawFd>();
                    for index in 0..len / mem::size_of::<RawFd>() {
                        fds.push(OwnedFd::from_raw_fd(ptr::read_unaligned(data.add(index))));
                    }
                }
                header = libc::CMSG_NXTHDR(&raw const message, header);
            }
        }
        Ok(count)
    }

    /// Waits until something can be received, or the stream has ended; not longer than `limit`, and not when `end` is rung.
    pub fn wait(&self, limit: Duration, end: Option<&EventFd>) -> io::Result<Readiness> {
        let ms = c_int::try_from(limit.as_millis()).unwrap_or(c_int::MAX);
        let watch = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // A negative descriptor is passed over.
        let mut fds = [watch(self.0.as_raw_fd()), watch(end.map_or(-1, AsRawFd::as_raw_fd))];
        // SAFETY: two entries, which are ours.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), 2, ms) };
        let [_, ended] = fds;
        match ready {
            0 => Ok(Readiness::TimeOver),
            1.. if ended.revents != 0 => Ok(Readiness::Ended),
            1.. => Ok(Readiness::Readable),
            _ => match io::Error::last_os_error() {
                // The caller looks at its clock and waits again.
                error if error.kind() == io::ErrorKind::Interrupted => Ok(Readiness::Readable),
                error => Err(error),
            },
        }
    }

    /// Whether the other side has not ended it, or there is something left to receive.
    pub fn is_open(&self) -> bool {
        let mut byte = 0u8;
        let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
        // SAFETY: room for one byte.
        let count = retry(|| unsafe { libc::recv(self.0.as_raw_fd(), (&raw mut byte).cast(), 1, flags) });
        count.map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |count| count > 0)
    }

    /// Ends both directions, for whoever has the same socket, too.
    pub fn shut_down(&self) {
        // SAFETY: a call without pointers. It fails only for a socket that is not connected any more.
        unsafe { libc::shutdown(self.0.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

impl AsRawFd for FdStream {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<OwnedFd> for FdStream {
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn bytes_and_descriptors_arrive_together() {
        let (ours, theirs) = FdStream::pair().unwrap();
        let theirs = FdStream::from(theirs);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"from afar").unwrap();
        let fds = [file.as_raw_fd(); MAX_FDS];
        assert_eq!(ours.send(b"hello", &fds).unwrap(), 5);
        assert!(ours.send(b"hello", &[0; MAX_FDS + 1]).is_err());
        let (mut bytes, mut received) = ([0; 16], Vec::new());
        assert!(theirs.is_open());
        assert_eq!(theirs.wait(Duration::from_secs(5), None).unwrap(), Readiness::Readable);
        assert_eq!(theirs.receive(&mut bytes, &mut received).unwrap(), 5);
        assert_eq!(received.len(), MAX_FDS);
        let mut text = String::new();
        let mut copy = File::from(received.remove(3));
        copy.rewind().unwrap();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "from afar");
        assert_eq!(theirs.receive(&mut bytes, &mut received).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(theirs.wait(Duration::ZERO, None).unwrap(), Readiness::TimeOver);
        let end = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        assert_eq!(theirs.wait(Duration::ZERO, Some(&end)).unwrap(), Readiness::TimeOver);
        end.write(1).unwrap();
        assert_eq!(theirs.wait(Duration::from_secs(3600), Some(&end)).unwrap(), Readiness::Ended);
        assert!(theirs.is_open());
        ours.try_clone().unwrap().shut_down();
        assert_eq!(theirs.receive(&mut bytes, &mut received).unwrap(), 0);
        assert!(!theirs.is_open());
    }
}
