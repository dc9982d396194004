use std::fmt;

use super::{QueueCount, RateLimits, ResourceId};

/// Why a MAC address was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMac {
    /// Not six hexadecimal bytes joined by `:`.
    #[error("invalid MAC address `{0}`, expected six hexadecimal bytes such as 06:00:ac:10:00:02")]
    Syntax(String),
    /// A group address cannot be an interface's own.
    #[error("MAC address `{0}` is a multicast address; clear the lowest bit of its first byte")]
    Multicast(String),
}

/// An Ethernet address that an interface may own (unicast).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// The six bytes in wire order.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl TryFrom<&str> for MacAddr {
    type Error = BadMac;

    fn try_from(text: &str) -> Result<Self, BadMac> {
        let syntax = || BadMac::Syntax(text.chars().take(40).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(syntax)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(syntax());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| syntax())?;
        }
        if parts.next().is_some() {
            return Err(syntax());
        }
        if bytes[0] & 1 == 1 {
            return Err(BadMac::Multicast(text.to_owned()));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// One network interface (`PUT /network-interfaces/{id}`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Name of the interface.
    pub id: ResourceId,
    /// Tap on the host; created if it does not exist.
    pub host_dev_name: String,
    /// MAC offered to the guest; `None` lets the guest choose.
    pub guest_mac: Option<MacAddr>,
    /// MTU offered to the guest, 68 to 65535.
    pub mtu: Option<u16>,
    /// Bytes and frames per time towards the guest.
    pub rx_rate_limiter: RateLimits,
    /// Bytes and frames per time from the guest.
    pub tx_rate_limiter: RateLimits,
    /// Pairs of queues, if so many were asked for. See [`super::Transport::queues`].
    pub num_queues: Option<QueueCount>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs() {
        let mac = MacAddr::try_from("06:00:AC:10:00:02").unwrap();
        assert_eq!(mac.bytes(), [6, 0, 0xac, 0x10, 0, 2]);
        assert_eq!(mac.to_string(), "06:00:ac:10:00:02");
        for bad in
            ["", "06:00:ac:10:00", "06:00:ac:10:00:02:03", "6:0:ac:10:0:2", "06-00-ac-10-00-02", "+6:00:ac:10:00:02"]
        {
            assert!(matches!(MacAddr::try_from(bad), Err(BadMac::Syntax(_))), "{bad}");
        }
        assert!(matches!(MacAddr::try_from("01:00:5e:00:00:01"), Err(BadMac::Multicast(_))));
    }
}
