//! Unix stream sockets that never block, read into and written from guest memory.

use std::ffi::c_int;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::{mem, ptr};

use super::iovec::GuestIoVec;

/// Most pieces one system call takes (`UIO_MAXIOV` of linux/uio.h).
pub const MAX_PIECES: usize = 1024;

/// A connected Unix stream socket. None of its calls blocks.
#[derive(Debug)]
pub struct HostStream(UnixStream);

impl HostStream {
    /// Takes a connected socket.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self(stream))
    }

    /// The next program that waits at `listener`.
    pub fn accept(listener: &UnixListener) -> io::Result<Self> {
        // SAFETY: no address is asked for.
        let fd = unsafe {
            libc::accept4(
                listener.as_raw_fd(),
                ptr::null_mut(),
                ptr::null_mut(),
                libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            )
        };
        // SAFETY: the kernel just made this descriptor and nobody else has it.
        owned(fd).map(|fd| Self(fd.into()))
    }

    /// Connects to the socket at `path`. A listener whose backlog is full refuses with `WouldBlock`; there is nothing to wait for then.
    pub fn connect(path: &Path) -> io::Result<Self> {
        // SAFETY: all zeroes is a valid `sockaddr_un`.
        let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
        let bytes = path.as_os_str().as_bytes();
        // The last byte stays zero. A path that begins with a zero byte would be no path (unix(7), abstract sockets).
        if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
            let what = format!("a socket's path has 1 to {} bytes", address.sun_path.len().saturating_sub(1));
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in address.sun_path.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        // SAFETY: no pointers.
        let fd =
            unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
        let fd = owned(fd)?;
        let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        // SAFETY: `address` is a `sockaddr_un` of `len` bytes.
        match unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len) } {
            0 => Ok(Self(fd.into())),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads into `pieces` (at most [`MAX_PIECES`] of them). Nothing read means that the other side will send no more.
    pub fn receive(&self, pieces: &[GuestIoVec]) -> io::Result<usize> {
        let mut message = message(pieces);
        // SAFETY: the message holds pieces of mapped guest memory; without room for control data the kernel drops what comes with it.
        retry(|| unsafe { libc::recvmsg(self.0.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) })
    }

    /// Writes from `pieces` (at most [`MAX_PIECES`] of them), as much as fits.
    pub fn send(&self, pieces: &[GuestIoVec]) -> io::Result<usize> {
        let message = message(pieces);
        // SAFETY: the message holds pieces of mapped guest memory and no control data.
        retry(|| unsafe { libc::sendmsg(self.0.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
    }

    /// Writes from `bytes`, as much as fits.
    pub fn send_bytes(&self, bytes: &[u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: `bytes` is valid for reads of its length.
        retry(|| unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) })
    }

    /// Copies what can be read to `bytes` and leaves it to be read again.
    pub fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
        // SAFETY: `bytes` is valid for writes of its length.
        retry(|| unsafe { libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), flags) })
    }

    /// Reads to `bytes`.
    pub fn receive_bytes(&self, bytes: &mut [u8]) -> io::Result<usize> {
        // SAFETY: `bytes` is valid for writes of its length.
        retry(|| unsafe { libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) })
    }

    /// Closes one or both directions.
    pub fn shut_down(&self, how: Shutdown) {
        // Fails only for a socket that is not connected any more.
        let _ = self.0.shutdown(how);
    }
}

impl AsRawFd for HostStream {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<HostStream> for OwnedFd {
    fn from(stream: HostStream) -> Self {
        stream.0.into()
    }
}

fn message(pieces: &[GuestIoVec]) -> libc::msghdr {
    let pieces = GuestIoVec::as_iovecs(pieces);
    // SAFETY: all zeroes is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = pieces.as_ptr().cast_mut();
    message.msg_iovlen = pieces.len().min(MAX_PIECES);
    message
}

/// Makes a call that counts bytes, again if a signal came in between.
pub(super) fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn owned(fd: c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: callers pass a descriptor the kernel just made, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn connecting_never_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert_eq!(HostStream::connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
        let ours = HostStream::connect(&path).unwrap();
        let mut theirs = listener.accept().unwrap().0;
        theirs.write_all(b"hello").unwrap();
        let mut bytes = [0; 8];
        assert_eq!(ours.peek(&mut bytes).unwrap(), 5);
        assert_eq!(ours.receive_bytes(&mut bytes[..2]).unwrap(), 2);
        assert_eq!(ours.peek(&mut bytes).unwrap(), 3);
        assert_eq!(bytes[..3], *b"llo");
        ours.shut_down(Shutdown::Write);
        assert_eq!(theirs.read(&mut bytes).unwrap(), 0);
        drop(listener);
        assert_eq!(HostStream::connect(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);

        let full = UnixListener::bind(dir.path().join("full")).unwrap();
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::listen(full.as_raw_fd(), 0) }, 0);
        let mut waiting = Vec::new();
        let error = loop {
            match HostStream::connect(&dir.path().join("full")) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(HostStream::accept(&full).is_ok());
        HostStream::connect(&dir.path().join("full")).unwrap();
    }

    #[test]
    fn a_path_is_a_path() {
        for bad in ["", "\0abstract", "mid\0dle", &"x".repeat(108)] {
            let error = HostStream::connect(Path::new(bad)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{bad:?}");
        }
        assert_eq!(HostStream::connect(Path::new(&"x".repeat(107))).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
