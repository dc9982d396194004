use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use vmm::config::{self, BadMmds, ResourceId};
use vmm::{Error, Subject};

/// Body of `PUT /mmds/config`, and its echo, which shows the defaults.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MmdsConfig {
    pub(crate) version: Option<MmdsVersion>,
    pub(crate) network_interfaces: Vec<String>,
    pub(crate) ipv4_address: Option<Ipv4Addr>,
    pub(crate) imds_compat: Option<bool>,
}

/// See [`config::MmdsVersion`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) enum MmdsVersion {
    V1,
    V2,
}

impl MmdsConfig {
    /// Whether the version without tokens was asked for, if only by saying nothing.
    pub(crate) fn deprecated(&self) -> bool {
        self.version != Some(MmdsVersion::V2)
    }
}

impl TryFrom<MmdsConfig> for config::MmdsConfig {
    type Error = Error;

    fn try_from(wire: MmdsConfig) -> Result<Self, Error> {
        // An id that no interface can have is not that of an existing one.
        let ids = wire.network_interfaces.iter().map(|id| ResourceId::try_from(id.as_str()));
        let ids = ids.collect::<Result<_, _>>().map_err(|_| BadMmds::UnknownInterface);
        let version = match wire.version {
            Some(MmdsVersion::V2) => config::MmdsVersion::V2,
            Some(MmdsVersion::V1) | None => config::MmdsVersion::V1,
        };
        let compat = wire.imds_compat.unwrap_or(false);
        ids.and_then(|ids| Self::new(ids, version, wire.ipv4_address, compat))
            .map_err(|e| Error::invalid(Subject::MmdsConfig, e))
    }
}

impl From<config::MmdsConfig> for MmdsConfig {
    fn from(config: config::MmdsConfig) -> Self {
        let version = match config.version() {
            config::MmdsVersion::V1 => MmdsVersion::V1,
            config::MmdsVersion::V2 => MmdsVersion::V2,
        };
        Self {
            version: Some(version),
            network_interfaces: config.network_interfaces().iter().map(|id| id.as_str().to_owned()).collect(),
            ipv4_address: Some(config.ipv4_address()),
            imds_compat: Some(config.imds_compat()),
        }
    }
}
