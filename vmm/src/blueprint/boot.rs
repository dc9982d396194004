use std::fs::File;

use super::file::open_image;
use crate::boot::{CommandLine, cmdline};
use crate::config::BootSourceConfig;
use crate::error::{Error, Subject};

/// An opened boot source.
#[derive(Debug)]
pub struct BootSource {
    /// As asked for.
    pub config: BootSourceConfig,
    /// The kernel image.
    pub kernel: File,
    /// The initrd, if one was named.
    pub initrd: Option<File>,
    /// The command line, checked; the machine adds its own words at start.
    pub command_line: CommandLine,
}

impl BootSource {
    /// Opens the files and checks the command line.
    pub fn open(config: BootSourceConfig) -> Result<Self, Error> {
        let line = config.boot_args.as_deref().unwrap_or(cmdline::DEFAULT);
        let command_line = CommandLine::new(line)
            .map_err(|e| Error::invalid(Subject::BootSource, format!("The kernel command line is invalid: {e}")))?;
        let kernel = open_image(&config.kernel_image_path)
            .map_err(|e| Error::invalid(Subject::BootSource, format!("The kernel file cannot be opened: {e}")))?;
        let initrd = match &config.initrd_path {
            Some(path) => Some(open_image(path).map_err(|e| {
                Error::invalid(
                    Subject::BootSource,
                    format!("The initrd file cannot be opened due to invalid path or invalid permissions. {e}"),
                )
            })?),
            None => None,
        };
        Ok(Self { config, kernel, initrd, command_line })
    }
}
