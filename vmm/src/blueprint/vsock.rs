use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::config::VsockConfig;
use crate::error::{Error, Subject};

/// A socket device with its host socket bound. Dropping it removes the socket's file.
#[derive(Debug)]
pub struct Vsock {
    /// As asked for.
    pub config: VsockConfig,
    /// Where host programs connect.
    pub listener: UnixListener,
    /// What was bound, so that nothing else is taken for it.
    file: FileId,
}

/// Device and inode of a file.
type FileId = (u64, u64);

fn file_id(path: &Path) -> io::Result<FileId> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

fn bind(path: &Path) -> io::Result<(UnixListener, FileId)> {
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok((listener, file_id(path)?))
}

impl Vsock {
    /// Binds the host socket; nothing may be there yet.
    pub fn open(config: VsockConfig) -> Result<Self, Error> {
        match bind(config.uds_path()) {
            Ok((listener, file)) => Ok(Self { config, listener, file }),
            Err(error) => {
                let path = config.uds_path().display();
                Err(Error::invalid(Subject::Vsock, format!("Cannot create the host socket uds_path {path}: {error}")))
            }
        }
    }

    /// The device as now asked for. Its own socket may be asked for again; another one must be free, and this one is removed.
    pub(super) fn replaced_by(mut self, config: VsockConfig) -> Result<Self, (Self, Error)> {
        if file_id(config.uds_path()).is_ok_and(|file| file == self.file) {
            self.config = config;
            return Ok(self);
        }
        Self::open(config).map_err(|refusal| (self, refusal))
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        // Someone else may have removed it, or put something of their own in its place; then there is nothing left to do.
        if file_id(self.config.uds_path()).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(self.config.uds_path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cid: u32, path: &Path) -> VsockConfig {
        VsockConfig::new(cid, path.to_owned()).unwrap()
    }

    #[test]
    fn the_socket_goes_with_its_device_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let vsock = Vsock::open(config(3, &path)).unwrap();
        assert!(path.exists());
        drop(vsock);
        assert!(!path.exists());

        let vsock = Vsock::open(config(3, &path)).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        drop(vsock);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        assert!(Vsock::open(config(3, &path)).is_err());
    }

    #[test]
    fn a_replaced_socket_is_removed_only_if_its_replacement_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second, taken] = ["1", "2", "3"].map(|name| dir.path().join(name));
        fs::write(&taken, "").unwrap();
        let vsock = Vsock::open(config(3, &first)).unwrap();
        let (vsock, _) = vsock.replaced_by(config(4, &taken)).unwrap_err();
        assert!(first.exists() && vsock.config.guest_cid() == 3);
        // The same file by another name.
        let vsock = vsock.replaced_by(config(5, &dir.path().join("./1"))).unwrap();
        assert!(first.exists() && vsock.config.guest_cid() == 5);
        let vsock = vsock.replaced_by(config(6, &second)).unwrap();
        assert!(!first.exists() && second.exists());
        drop(vsock);
        assert!(!second.exists());
    }
}
