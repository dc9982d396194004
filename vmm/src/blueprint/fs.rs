use devices::virtio::vhost_user::{FsModel, Peer};

use crate::config::FsConfig;
use crate::error::{Error, Subject};

/// A file system with the process that serves it.
#[derive(Debug)]
pub struct Fs {
    /// As asked for.
    pub config: FsConfig,
    /// The backend, met.
    pub peer: Peer,
}

impl Fs {
    /// Meets the backend, which may take some seconds.
    pub fn open(config: FsConfig) -> Result<Self, Error> {
        let socket = config.socket();
        let peer = Peer::meet(socket, FsModel::wishes(config.num_queues())).map_err(|e| {
            Error::invalid(Subject::Fs, format!("the backend at socket {} is of no use: {e}", socket.display()))
        })?;
        Ok(Self { config, peer })
    }
}
