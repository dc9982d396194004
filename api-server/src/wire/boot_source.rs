use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::config::BootSourceConfig;

/// Body of `PUT /boot-source`, and its echo.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootSource {
    pub(crate) kernel_image_path: PathBuf,
    pub(crate) initrd_path: Option<PathBuf>,
    pub(crate) boot_args: Option<String>,
}

impl From<BootSource> for BootSourceConfig {
    fn from(wire: BootSource) -> Self {
        Self { kernel_image_path: wire.kernel_image_path, initrd_path: wire.initrd_path, boot_args: wire.boot_args }
    }
}

impl From<BootSourceConfig> for BootSource {
    fn from(config: BootSourceConfig) -> Self {
        Self {
            kernel_image_path: config.kernel_image_path,
            initrd_path: config.initrd_path,
            boot_args: config.boot_args,
        }
    }
}
