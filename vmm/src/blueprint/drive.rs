use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use devices::virtio::vhost_user::{BlockModel, Peer};
use serde::{Deserialize, Serialize};

use super::file::open_disk;
use crate::config::{DriveBackend, DriveConfig};
use crate::error::{Error, Subject};

/// What is behind a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Disk {
    /// A file, by the number of its file system and its own.
    File(u64, u64),
    /// A block device.
    Device(u64),
}

/// What is behind a drive, at hand.
#[derive(Debug)]
pub enum Backing {
    /// The backing file or block device, open.
    File(File),
    /// The process that serves it, met.
    Peer(Box<Peer>),
}

/// A drive with what is behind it.
#[derive(Debug)]
pub struct Drive {
    /// As asked for.
    pub config: DriveConfig,
    /// What is behind it.
    pub backing: Backing,
}

impl Drive {
    /// Opens the backing file, or meets the backend, which may take some seconds.
    pub fn open(config: DriveConfig) -> Result<Self, Error> {
        let refuse =
            |what: String| Error::invalid(Subject::Drive, format!("Unable to create the virtio block device: {what}"));
        let backing = match &config.backend {
            DriveBackend::File(path) => {
                let file = open_disk(path, config.is_read_only).map_err(|e| {
                    refuse(format!("Virtio backend error: Error manipulating the backing file: {e} {}", path.display()))
                })?;
                Backing::File(file)
            }
            DriveBackend::Socket(socket) => {
                let peer = Peer::meet(socket, BlockModel::WISHES)
                    .map_err(|e| refuse(format!("Vhost-user backend error: socket {}: {e}", socket.display())))?;
                Backing::Peer(Box::new(peer))
            }
        };
        Ok(Self { config, backing })
    }

    /// The drive as asked for now, if its backend is the one that was met already.
    pub fn met_again(&self, config: &DriveConfig) -> Option<Self> {
        let Backing::Peer(peer) = &self.backing else { return None };
        let same = self.config.backend == config.backend && peer.is_there();
        let peer = same.then(|| peer.try_clone().ok()).flatten()?;
        Some(Self { config: config.clone(), backing: Backing::Peer(Box::new(peer)) })
    }

    /// Whether the guest may only read it.
    pub fn is_read_only(&self) -> bool {
        match &self.backing {
            Backing::File(_) => self.config.is_read_only,
            Backing::Peer(peer) => BlockModel::is_read_only(peer.offer()),
        }
    }

    /// Which file or block device it is, whatever its path and whoever asks on this host. Of another process nobody knows.
    pub fn disk(&self) -> io::Result<Option<Disk>> {
        let Backing::File(file) = &self.backing else { return Ok(None) };
        let about = file.metadata()?;
        Ok(Some(match about.file_type().is_block_device() {
            true => Disk::Device(about.rdev()),
            false => Disk::File(about.dev(), about.ino()),
        }))
    }
}
