use std::net::Ipv4Addr;

use devices::mmds::{DEFAULT_ADDRESS, Manner, Protocol};

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

/// Why a configuration of the metadata service is refused. The texts are those of the v1 contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadMmds {
    /// Nobody could reach it.
    #[error("The list of network interface IDs that allow forwarding MMDS requests is empty.")]
    NoInterface,
    /// Some of the interfaces do not exist.
    #[error(
        "The list of network interface IDs provided contains at least one ID that does not correspond to any existing network interface."
    )]
    UnknownInterface,
    /// An address that other machines may have.
    #[error("The MMDS IPv4 address is not link local.")]
    Address,
}

/// The metadata service (`PUT /mmds/config`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MmdsConfig {
    network_interfaces: Vec<ResourceId>,
    version: MmdsVersion,
    ipv4_address: Ipv4Addr,
    imds_compat: bool,
}

impl MmdsConfig {
    /// A service behind `network_interfaces`, of which there is at least one, at a link-local address (169.254.169.254 if none is given).
    /// With `imds_compat` it answers in text whatever the client accepts.
    pub fn new(
        network_interfaces: Vec<ResourceId>,
        version: MmdsVersion,
        ipv4_address: Option<Ipv4Addr>,
        imds_compat: bool,
    ) -> Result<Self, BadMmds> {
        let ipv4_address = ipv4_address.unwrap_or(DEFAULT_ADDRESS);
        // RFC 3927 §2.1: the first and the last 256 addresses are reserved.
        if !ipv4_address.is_link_local() || matches!(ipv4_address.octets()[2], 0 | 255) {
            return Err(BadMmds::Address);
        }
        if network_interfaces.is_empty() {
            return Err(BadMmds::NoInterface);
        }
        Ok(Self { network_interfaces, version, ipv4_address, imds_compat })
    }

    /// Interfaces whose guests may talk to it.
    pub fn network_interfaces(&self) -> &[ResourceId] {
        &self.network_interfaces
    }

    /// The same without an interface that has gone; `None` if it was the last.
    pub(crate) fn without(mut self, id: &ResourceId) -> Option<Self> {
        self.network_interfaces.retain(|known| known != id);
        Some(self).filter(|config| !config.network_interfaces.is_empty())
    }

    /// See [`MmdsVersion`].
    pub fn version(&self) -> MmdsVersion {
        self.version
    }

    /// Its address.
    pub fn ipv4_address(&self) -> Ipv4Addr {
        self.ipv4_address
    }

    /// Whether it answers in text, whatever the client accepts.
    pub fn imds_compat(&self) -> bool {
        self.imds_compat
    }

    /// How the device side answers.
    pub(crate) fn manner(&self) -> Manner {
        let protocol = match self.version {
            MmdsVersion::V1 => Protocol::V1,
            MmdsVersion::V2 => Protocol::V2,
        };
        Manner { protocol, imds_compat: self.imds_compat }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(ids: &[&str], address: Option<&str>) -> Result<MmdsConfig, BadMmds> {
        let ids = ids.iter().map(|id| ResourceId::try_from(*id).unwrap()).collect();
        MmdsConfig::new(ids, MmdsVersion::V2, address.map(|a| a.parse().unwrap()), false)
    }

    #[test]
    fn the_address_is_link_local() {
        assert_eq!(new(&["a"], None).unwrap().ipv4_address(), Ipv4Addr::new(169, 254, 169, 254));
        for good in ["169.254.1.0", "169.254.169.250", "169.254.254.255"] {
            assert_eq!(new(&["a"], Some(good)).unwrap().ipv4_address().to_string(), good);
        }
        for bad in
            ["1.1.1.1", "169.253.1.1", "169.254.0.255", "169.254.255.0", "0.0.0.0", "255.255.255.255", "224.0.0.1"]
        {
            assert_eq!(new(&["a"], Some(bad)), Err(BadMmds::Address), "{bad}");
        }
    }

    #[test]
    fn somebody_can_reach_it() {
        assert_eq!(new(&[], None), Err(BadMmds::NoInterface));
        assert_eq!(new(&["a", "b"], None).unwrap().network_interfaces().len(), 2);
    }
}
