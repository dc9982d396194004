use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::config::VsockConfig;
use vmm::{Error, Subject};

/// Body of `PUT /vsock`, and its echo.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vsock {
    /// There is only one, so its name never meant anything.
    #[serde(skip_serializing)]
    pub(crate) vsock_id: Option<String>,
    pub(crate) guest_cid: u32,
    pub(crate) uds_path: PathBuf,
}

impl Vsock {
    /// Whether a deprecated field was sent.
    pub(crate) fn deprecated(&self) -> bool {
        self.vsock_id.is_some()
    }
}

impl TryFrom<Vsock> for VsockConfig {
    type Error = Error;

    fn try_from(wire: Vsock) -> Result<Self, Error> {
        Self::new(wire.guest_cid, wire.uds_path).map_err(|e| Error::invalid(Subject::Vsock, e))
    }
}

impl From<VsockConfig> for Vsock {
    fn from(config: VsockConfig) -> Self {
        Self { vsock_id: None, guest_cid: config.guest_cid(), uds_path: config.uds_path().to_owned() }
    }
}
