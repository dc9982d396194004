use std::net::Ipv4Addr;

use super::ResourceId;

/// How guests talk to the metadata service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MmdsVersion {
    /// Plain GET.
    #[default]
    V1,
    /// GET with a session token.
    V2,
}

/// The metadata service (`PUT /mmds/config`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MmdsConfig {
    /// Interfaces whose guests may talk to it; not empty.
    pub network_interfaces: Vec<ResourceId>,
    /// See [`MmdsVersion`].
    pub version: MmdsVersion,
    /// Its address, link-local.
    pub ipv4_address: Ipv4Addr,
    /// Answer in text by default, whatever the client accepts.
    pub imds_compat: bool,
}
