use devices::virtio::net::Tap;

use crate::config::NetConfig;
use crate::error::{Error, Subject};

/// A network interface with its tap opened.
#[derive(Debug)]
pub struct Net {
    /// As asked for.
    pub config: NetConfig,
    /// The tap.
    pub tap: Tap,
}

impl Net {
    /// Opens the tap, or creates it if there is none of that name.
    pub fn open(config: NetConfig) -> Result<Self, Error> {
        let tap = Tap::open(&config.host_dev_name).map_err(|e| {
            Error::invalid(
                Subject::Network,
                format!("Could not create the network device: Open tap device failed: {e}"),
            )
        })?;
        Ok(Self { config, tap })
    }
}
