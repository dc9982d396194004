use crate::config::VsockConfig;
use crate::error::{Error, Subject};
use crate::sys::socket::Listener;

/// Whoever the umask does not keep away may connect, as in v1.
const MODE: u32 = 0o777;

/// A socket device with its host socket bound. Dropping it removes the socket's file.
#[derive(Debug)]
pub struct Vsock {
    /// As asked for.
    pub config: VsockConfig,
    /// Where host programs connect.
    pub listener: Listener,
}

impl Vsock {
    /// Binds the host socket; nothing may be there yet.
    pub fn open(config: VsockConfig) -> Result<Self, Error> {
        match Listener::bind(config.uds_path(), MODE) {
            Ok(listener) => Ok(Self { config, listener }),
            Err(error) => {
                let path = config.uds_path().display();
                Err(Error::invalid(Subject::Vsock, format!("Cannot create the host socket uds_path {path}: {error}")))
            }
        }
    }

    /// The device as now asked for. Its own socket may be asked for again; another one must be free, and this one is removed.
    pub(super) fn replaced_by(mut self, config: VsockConfig) -> Result<Self, (Self, Error)> {
        if self.listener.is_at(config.uds_path()) {
            self.config = config;
            return Ok(self);
        }
        Self::open(config).map_err(|refusal| (self, refusal))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

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
