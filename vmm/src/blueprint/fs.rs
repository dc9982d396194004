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

    /// The file system as asked for now, if its backend is the one that was met already, for as many rings or more.
    pub fn met_again(&self, config: &FsConfig) -> Option<Self> {
        let old = &self.config;
        let same = old.socket() == config.socket() && old.num_queues() >= config.num_queues() && self.peer.is_there();
        let peer = same.then(|| self.peer.try_clone().ok()).flatten()?;
        Some(Self { config: config.clone(), peer })
    }
}
