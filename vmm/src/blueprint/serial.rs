use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use crate::config::SerialConfig;
use crate::error::{Error, Subject};

/// Where the serial console writes.
#[derive(Debug, Default)]
pub struct SerialOutput {
    /// As asked for.
    pub config: SerialConfig,
    /// The opened file; `None` means standard output.
    pub file: Option<File>,
}

impl SerialOutput {
    /// Opens the named file for appending without ever blocking; it is created if missing.
    pub fn open(config: SerialConfig) -> Result<Self, Error> {
        let Some(path) = &config.serial_out_path else { return Ok(Self { config, file: None }) };
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|e| {
                Error::invalid(
                    Subject::Serial,
                    format!("Cannot open serial_out_path {} for writing: {e}", path.display()),
                )
            })?;
        Ok(Self { config, file: Some(file) })
    }
}
