use serde::{Deserialize, Serialize};
use vmm::config::{MacAddr, NetConfig, RateLimitChange, ResourceId};
use vmm::{Error, Subject};

use super::object::object;
use super::queues;
use super::rate_limiter::{self, RateLimiter};

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
    #[serde(default, deserialize_with = "object")]
    pub(crate) rx_rate_limiter: Option<RateLimiter>,
    #[serde(default, deserialize_with = "object")]
    pub(crate) tx_rate_limiter: Option<RateLimiter>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) num_queues: Option<u64>,
}

/// Body of `PATCH /network-interfaces/{id}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetPatch {
    pub(crate) iface_id: String,
    #[serde(default, deserialize_with = "object")]
    pub(crate) rx_rate_limiter: Option<RateLimiter>,
    #[serde(default, deserialize_with = "object")]
    pub(crate) tx_rate_limiter: Option<RateLimiter>,
}

impl NetPatch {
    /// What changes in the limiters, towards the guest and from it.
    pub(crate) fn rate_limits(&self) -> (RateLimitChange, RateLimitChange) {
        (rate_limiter::change(self.rx_rate_limiter), rate_limiter::change(self.tx_rate_limiter))
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
            rx_rate_limiter: rate_limiter::limits(wire.rx_rate_limiter),
            tx_rate_limiter: rate_limiter::limits(wire.tx_rate_limiter),
            num_queues: queues::count(wire.num_queues, Subject::Network)?,
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
            rx_rate_limiter: rate_limiter::echo(config.rx_rate_limiter),
            tx_rate_limiter: rate_limiter::echo(config.tx_rate_limiter),
            num_queues: config.num_queues.map(|count| count.get().into()),
        }
    }
}
