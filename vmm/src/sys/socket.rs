//! Sockets in the file system, with the rights they are meant to have from their first moment.

use std::io;
use std::mem::{offset_of, size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many clients may wait to be accepted, as std has it.
const BACKLOG: libc::c_int = 128;

/// A bound socket, which does not block. Dropping it removes the path, if it still leads to this socket.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    file: Option<FileId>,
}

/// Device and inode of a file.
type FileId = (u64, u64);

fn file_id(path: &Path) -> Option<FileId> {
    std::fs::symlink_metadata(path).ok().map(|about| (about.dev(), about.ino()))
}

impl Listener {
    /// Binds a path where nothing is yet, see [`bind_with_mode`].
    pub fn bind(path: &Path, mode: libc::mode_t) -> io::Result<Self> {
        let socket = bind_with_mode(path, mode)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path: path.to_owned(), file: file_id(path) })
    }

    /// The socket.
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }

    /// Whether `path` leads to it.
    pub fn is_at(&self, path: &Path) -> bool {
        let now = file_id(path);
        now.is_some() && now == self.file
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Someone else may have removed it, or put something of their own in its place.
        if self.is_at(&self.path) {
            // Nothing to be done about a failure.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds and listens like [`UnixListener::bind`], but the file has no more rights than `mode` (and the umask) leaves, not even for a
/// moment. Linux gives the file the mode that the socket itself has when it is bound (net/unix/af_unix.c, `unix_bind_bsd`), so nothing of
/// the whole process, as the umask is, need change.
pub fn bind_with_mode(path: &Path, mode: libc::mode_t) -> io::Result<UnixListener> {
    let (address, length) = address(path)?;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: just opened by us and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a valid descriptor, no pointers.
    check(unsafe { libc::fchmod(socket.as_raw_fd(), mode) })?;
    // SAFETY: `address` is valid for the call, and `length` does not exceed its size.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // SAFETY: a valid descriptor, no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket.into())
}

/// Connects to the socket at `path`. That, and each later read or write, takes no longer than `limit`.
pub fn connect_within(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let (address, length) = address(path)?;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: just opened by us and owned by nobody else.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    // Before it is connected: a listener whose clients wait already would keep us waiting, too.
    socket.set_write_timeout(Some(limit))?;
    socket.set_read_timeout(Some(limit))?;
    // SAFETY: `address` is valid for the call, and `length` does not exceed its size.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

/// Whether the other side has hung up, and left nothing to be read.
pub fn has_hung_up(stream: &UnixStream) -> bool {
    let mut byte = 0u8;
    // SAFETY: a byte to write to, and its length.
    let count = unsafe {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        libc::recv(stream.as_raw_fd(), (&raw mut byte).cast(), 1, flags)
    };
    count == 0
}

/// The address of a path, which must leave room for the zero at its end.
fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: plain data, for which all zeroes is a value.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    let wrong = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    match bytes {
        // It would be given a name that is not in the file system.
        [] => return wrong("the path must not be empty"),
        _ if bytes.contains(&0) => return wrong("the path must not contain a zero byte"),
        _ if bytes.len() >= address.sun_path.len() => return wrong("the path must be shorter than 108 bytes"),
        _ => {}
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let length = offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    debug_assert!(length <= size_of::<libc::sockaddr_un>());
    Ok((address, length as libc::socklen_t))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_socket_has_the_mode_it_is_given() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o700, 0o400] {
            let path = dir.path().join(format!("{mode:o}"));
            let listener = bind_with_mode(&path, mode).unwrap();
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode);
            let _client = UnixStream::connect(&path).unwrap();
            listener.accept().unwrap();
        }
    }

    #[test]
    fn paths_that_are_no_addresses_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["", "a\0b", &"a".repeat(108)] {
            let error = bind_with_mode(Path::new(path), 0o600).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path:?}");
        }
        let taken = dir.path().join("taken");
        std::fs::write(&taken, b"").unwrap();
        assert_eq!(bind_with_mode(&taken, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        // The longest one fits.
        let longest = dir.path().join("a".repeat(106 - dir.path().as_os_str().len()));
        assert_eq!(longest.as_os_str().len(), 107);
        bind_with_mode(&longest, 0o600).unwrap();
        assert!(longest.exists());
    }
}
