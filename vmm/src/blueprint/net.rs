use devices::virtio::net::{Tap, TapError};

use crate::config::{NetConfig, QueueCount, Transport};
use crate::error::{Error, Subject};

/// A network interface with its tap opened.
#[derive(Debug)]
pub struct Net {
    /// As asked for.
    pub config: NetConfig,
    /// The tap.
    pub tap: Tap,
    /// Its other queues, of an interface that was asked to have several.
    more: Vec<Tap>,
}

fn refuse(e: TapError) -> Error {
    let what = format!("Could not create the network device: Open tap device failed: {e}");
    Error::invalid(Subject::Network, what)
}

impl Net {
    /// Opens the tap, or creates it if there is none of that name.
    pub fn open(config: NetConfig) -> Result<Self, Error> {
        let name = &config.host_dev_name;
        let (tap, more) = match config.num_queues.map_or(1, QueueCount::get) {
            1 => (Tap::open(name).map_err(refuse)?, Vec::new()),
            count => {
                let mut taps = Tap::open_queues(name, count).map_err(refuse)?;
                (taps.remove(0), taps)
            }
        };
        Ok(Self { config, tap, more })
    }

    /// As another interface on the same tap: that stays open rather than to be closed and opened again, which for a temporary tap would
    /// destroy it; but for one with another number of queues.
    /// If that fails it is there as it was, unless somebody else took its tap meanwhile.
    pub fn become_another(self, config: NetConfig) -> (Option<Self>, Result<(), Error>) {
        let queues = |config: &NetConfig| config.num_queues.map_or(1, QueueCount::get);
        if queues(&config) == queues(&self.config) {
            return (Some(Self { config, ..self }), Ok(()));
        }
        let Self { config: old, tap, more } = self;
        drop((tap, more));
        match Self::open(config) {
            Ok(net) => (Some(net), Ok(())),
            Err(error) => (Self::open(old).ok(), Err(error)),
        }
    }

    /// The taps for a machine with so many vCPUs: one for each pair of queues. Where more than one is only what is usual, one will do.
    pub fn taps(&self, transport: Transport, vcpus: u8) -> Result<Vec<Tap>, Error> {
        let host = |e: &dyn std::fmt::Display| Error::host(Subject::Start, format!("tap {}: {e}", self.tap.name()));
        let mut taps = Vec::new();
        for tap in std::iter::once(&self.tap).chain(&self.more) {
            taps.push(tap.try_clone().map_err(|e| host(&e))?);
        }
        let usual = transport.queues(self.config.num_queues, vcpus);
        if self.config.num_queues.is_none() && self.tap.is_multi_queue() && usual > 1 {
            taps.extend(self.tap.open_more(usual - 1).map_err(|e| host(&e))?);
        }
        Ok(taps)
    }
}
