use std::fs;
use std::os::unix::net::UnixListener;

use crate::config::VsockConfig;
use crate::error::{Error, Subject};

/// A socket device with its host socket bound. Dropping it removes the socket's file.
#[derive(Debug)]
pub struct Vsock {
    /// As asked for.
    pub config: VsockConfig,
    /// Where host programs connect.
    pub listener: UnixListener,
}

impl Vsock {
    /// Binds the host socket; nothing may be there yet.
    pub fn open(config: VsockConfig) -> Result<Self, Error> {
        let listener = UnixListener::bind(&config.uds_path).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        match listener {
            Ok(listener) => Ok(Self { config, listener }),
            Err(error) => {
                let path = config.uds_path.display();
                Err(Error::invalid(Subject::Vsock, format!("Cannot create the host socket uds_path {path}: {error}")))
            }
        }
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        // Someone else may have removed it; then there is nothing left to do.
        let _ = fs::remove_file(&self.config.uds_path);
    }
}
