use std::fs::File;

use super::file::open_disk;
use crate::config::DriveConfig;
use crate::error::{Error, Subject};

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
}
