use serde::{Deserialize, Serialize};
use vmm::config::RateLimits;
use vmm::config::{MacAddr, NetConfig, ResourceId};
use vmm::{Error, Subject};

use super::Later;
use super::drive::{limits, serialize_none};
use super::rate_limiter::RateLimiter;

/// Smallest MTU a link may have (RFC 791).
const MIN_MTU: u16 = 68;

/// Body of `PUT /network-interfaces/{id}`, and its echo.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Net {
    pub(crate) iface_id: String,
    pub(crate) host_dev_name: String,
    pub(crate) guest_mac: Option<String>,
    pub(crate) mtu: Option<u16>,
    #[serde(serialize_with = "serialize_none")]
    pub(crate) rx_rate_limiter: Option<RateLimiter>,
    #[serde(serialize_with = "serialize_none")]
    pub(crate) tx_rate_limiter: Option<RateLimiter>,
}

/// Body of `PATCH /network-interfaces/{id}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetPatch {
    pub(crate) iface_id: String,
    pub(crate) rx_rate_limiter: Option<RateLimiter>,
    pub(crate) tx_rate_limiter: Option<RateLimiter>,
}

fn later(rx: &Option<RateLimiter>, tx: &Option<RateLimiter>) -> Option<Later> {
    if limits(rx) { Some(Later("rx_rate_limiter")) } else { limits(tx).then_some(Later("tx_rate_limiter")) }
}

impl Net {
    /// What this version does not do.
    pub(crate) fn later(&self) -> Option<Later> {
        later(&self.rx_rate_limiter, &self.tx_rate_limiter)
    }
}

impl NetPatch {
    /// What this version does not do.
    pub(crate) fn later(&self) -> Option<Later> {
        later(&self.rx_rate_limiter, &self.tx_rate_limiter)
    }
}

impl TryFrom<Net> for NetConfig {
    type Error = Error;

    fn try_from(wire: Net) -> Result<Self, Error> {
        let guest_mac = match wire.guest_mac {
            Some(text) => Some(MacAddr::try_from(text.as_str()).map_err(|e| Error::invalid(Subject::Network, e))?),
            None => None,
        };
        if let Some(mtu) = wire.mtu
            && mtu < MIN_MTU
        {
            return Err(Error::invalid(
                Subject::Network,
                format!("The MTU {mtu} is too small: it must be between {MIN_MTU} and {}.", u16::MAX),
            ));
        }
        Ok(Self {
            id: ResourceId::try_from(wire.iface_id.as_str()).map_err(|e| Error::invalid(Subject::None, e))?,
            host_dev_name: wire.host_dev_name,
            guest_mac,
            mtu: wire.mtu,
            rx_rate_limiter: RateLimits::default(),
            tx_rate_limiter: RateLimits::default(),
        })
    }
}

impl From<NetConfig> for Net {
    fn from(config: NetConfig) -> Self {
        Self {
            iface_id: config.id.as_str().to_owned(),
            host_dev_name: config.host_dev_name,
            guest_mac: config.guest_mac.map(|mac| mac.to_string()),
            mtu: config.mtu,
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        }
    }
}
