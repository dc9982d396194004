//! The API socket's place in the file system.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;

use vmm::sys::socket;

use crate::identity::Identity;

/// A bound socket. Dropping it removes the path, if it still leads to this socket.
#[derive(Debug)]
pub(crate) struct Listener(socket::Listener);

/// Why the socket could not be opened; the first two sentences are the contract's.
#[derive(Debug, thiserror::Error)]
#[error("Failed to open the API socket at: {path}. Check that it is not already used.{hint}")]
pub(crate) struct CannotListen {
    path: String,
    hint: String,
}

impl Listener {
    /// Binds a path that must not exist yet.
    pub(crate) fn bind(path: &Path, identity: Identity) -> Result<Self, CannotListen> {
        let refused = |error: io::Error| CannotListen {
            path: path.display().to_string(),
            hint: match error.kind() {
                io::ErrorKind::AddrInUse => String::new(),
                _ => format!(" ({error})"),
            },
        };
        socket::Listener::bind(path, identity.socket_mode()).map(Self).map_err(refused)
    }

    /// The socket, for an event loop.
    pub(crate) fn socket(&self) -> io::Result<UnixListener> {
        self.0.socket().try_clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_socket_is_private_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let listener = Listener::bind(&path, Identity::Mayfly).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn whatever_is_there_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        fs::write(&path, "mine").unwrap();
        let text = Listener::bind(&path, Identity::Mayfly).unwrap_err().to_string();
        let expected =
            format!("Failed to open the API socket at: {}. Check that it is not already used.", path.display());
        assert_eq!(text, expected);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        assert_eq!(Listener::bind(&link, Identity::Mayfly).unwrap_err().hint, "");
        assert!(!dir.path().join("nowhere").exists());
        let missing = Listener::bind(&dir.path().join("no/api.sock"), Identity::Mayfly).unwrap_err().to_string();
        assert!(missing.ends_with("(No such file or directory (os error 2))"), "{missing}");
    }

    #[test]
    fn a_successor_at_the_same_path_survives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let first = Listener::bind(&path, Identity::Mayfly).unwrap();
        // The first socket's inode is still in use, so its number cannot come back.
        fs::rename(&path, dir.path().join("old.sock")).unwrap();
        let _second = Listener::bind(&path, Identity::Mayfly).unwrap();
        drop(first);
        assert!(path.exists());
    }
}
