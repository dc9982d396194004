//! The virtio device in front of a backend: what the driver is shown, and whom the cell's calls concern.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::frontend::{Frontend, FrontendSpec};
use super::metrics::VhostUserMetrics;
use super::{block, fs};
use crate::event::Source;
use crate::metrics::MetricGroup;
use crate::virtio::config_space;
use crate::virtio::device::{Doorbells, Faults, Kind, Rings, VirtioDevice};
use crate::virtio::queue::{RingError, Visit};
use crate::virtio::registers::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::virtio::state::{BadState, DeviceState};

/// Features of the rings that a backend may offer and this frontend can pass on. Packed rings, memory behind an IOMMU and resets of single
/// rings would need more of us.
const RING_FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;

/// What the backend makes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Model {
    /// A drive.
    Block(block::BlockModel),
    /// A file system.
    Fs(fs::FsModel),
}

/// A device whose rings a backend serves.
pub struct VhostUser {
    frontend: Frontend,
    model: Model,
    /// Features offered. Fixed for the life of the device: a backend that is back with others does not change what a driver saw.
    features: u64,
    queue_sizes: Vec<u16>,
}

impl VhostUser {
    /// A device in front of a backend that was met. Fails if the process is out of descriptors.
    pub fn new(model: Model, spec: FrontendSpec) -> io::Result<Self> {
        let own = match &model {
            Model::Block(block) => block.features(),
            Model::Fs(_) => 0,
        };
        let features = spec.peer.offer().features & (RING_FEATURES | own);
        let queue_sizes = vec![spec.queue_size; spec.wishes.queues.into()];
        Ok(Self { frontend: Frontend::new(spec)?, model, features, queue_sizes })
    }

    /// Counters.
    pub fn metrics(&self) -> Arc<VhostUserMetrics> {
        self.frontend.metrics().clone()
    }

    /// Has the backend tell its configuration space again. Whether it is another one. Waits for a short time.
    ///
    /// # Errors
    /// A sentence that says why the backend did not.
    pub fn refresh(&mut self) -> Result<bool, String> {
        self.frontend.refresh()?;
        Ok(self.frontend.take_config_change())
    }
}

impl VirtioDevice for VhostUser {
    fn kind(&self) -> Kind {
        match self.model {
            Model::Block(_) => Kind::Block,
            Model::Fs(_) => Kind::Fs,
        }
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn metrics(&self) -> Arc<dyn MetricGroup> {
        self.frontend.metrics().clone()
    }

    fn faults(&self) -> Faults<'_> {
        let metrics = self.frontend.metrics();
        // Chains are looked at by the backend only.
        Faults { activations: &metrics.activate_fails, registers: &metrics.cfg_fails, chains: &metrics.cfg_fails }
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn take_doorbells(&mut self, bells: &[EventFd]) -> io::Result<Doorbells> {
        self.frontend.take_doorbells(bells).map(Doorbells::Taken)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        match &self.model {
            Model::Block(_) => config_space::read(&self.frontend.offer().config, offset, data),
            Model::Fs(fs) => config_space::read(&fs.config(), offset, data),
        }
    }

    fn activate(&mut self, accepted: u64, rings: &mut Rings) -> Result<(), String> {
        self.frontend.activate(accepted, rings);
        Ok(())
    }

    /// Doorbells are the backend's. Whoever comes here wants a machine that was paused to go on.
    fn on_doorbell(&mut self, _queue: u16, _rings: &mut Rings) -> Result<Visit, RingError> {
        self.frontend.go_on();
        Ok(Visit::Idle)
    }

    fn sources(&self) -> Vec<Source> {
        self.frontend.sources()
    }

    fn on_source(&mut self, token: u32, _rings: &mut Rings) -> Result<(), RingError> {
        self.frontend.on_source(token)
    }

    fn take_config_change(&mut self) -> bool {
        self.frontend.take_config_change()
    }

    fn quiesce(&mut self, _rings: &mut Rings) -> Result<(), RingError> {
        self.frontend.halt();
        Ok(())
    }

    /// Machines with such a device are not saved: what matters is with the backend.
    fn save(&self) -> DeviceState {
        DeviceState::Elsewhere
    }

    fn restore(&mut self, _state: &DeviceState) -> Result<(), BadState> {
        Err(BadState::Kind)
    }

    fn reset(&mut self) {
        self.frontend.reset();
    }

    /// What the backend has, it finishes without us.
    fn flush(&mut self) -> io::Result<()> {
        self.frontend.part();
        Ok(())
    }
}
