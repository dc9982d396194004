use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use serde::{Deserialize, Serialize};

use super::file::open_disk;
use crate::config::DriveConfig;
use crate::error::{Error, Subject};

/// What is behind a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Disk {
    /// A file, by the number of its file system and its own.
    File(u64, u64),
    /// A block device.
    Device(u64),
}

/// A drive with its file opened.
#[derive(Debug)]
pub struct Drive {
    /// As asked for.
    pub config: DriveConfig,
    /// The backing file or block device.
    pub file: File,
}

impl Drive {
    /// Opens the backing file.
    pub fn open(config: DriveConfig) -> Result<Self, Error> {
        let file = open_disk(&config.path_on_host, config.is_read_only).map_err(|e| {
            Error::invalid(
                Subject::Drive,
                format!(
                    "Unable to create the virtio block device: Virtio backend error: Error manipulating the backing file: {e} {}",
                    config.path_on_host.display()
                ),
            )
        })?;
        Ok(Self { config, file })
    }

    /// Which file or block device it is, whatever its path and whoever asks on this host.
    pub fn disk(&self) -> io::Result<Disk> {
        let about = self.file.metadata()?;
        Ok(match about.file_type().is_block_device() {
            true => Disk::Device(about.rdev()),
            false => Disk::File(about.dev(), about.ino()),
        })
    }
}
