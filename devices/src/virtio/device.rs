//! What a virtio device is, apart from transport, KVM and files on disk.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::queue::{RingError, VirtQueue, Visit};
use super::state::{BadState, DeviceState};
use crate::event::Source;
use crate::irq::VirtioIrq;
use crate::metrics::{Counter, MetricGroup};
use crate::ram::GuestRam;
use crate::rate_limit::LimitDial;

/// Device ids (virtio 1.3 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Network card (§5.1).
    Net = 1,
    /// Block device (§5.2).
    Block = 2,
    /// Entropy device (§5.4).
    Rng = 4,
    /// Traditional memory balloon (§5.5).
    Balloon = 5,
    /// Socket device (§5.10).
    Vsock = 19,
    /// Memory device (§5.15).
    Mem = 24,
    /// File system (§5.11).
    Fs = 26,
    /// Persistent memory (§5.19).
    Pmem = 27,
}

/// The rings of an active device, the memory they lie in and the interrupt they end in.
pub struct Rings {
    /// Guest memory.
    pub ram: GuestRam,
    /// Tells the driver.
    pub irq: Arc<dyn VirtioIrq>,
    /// The queues of the lane, by their order in the device: all, if there is one lane. Those the driver left out are present and always
    /// empty.
    pub queues: Vec<VirtQueue>,
}

/// Counters of what a driver does wrong and the cell notices, not the device itself.
#[derive(Debug, Clone, Copy)]
pub struct Faults<'a> {
    /// Drivers that said DRIVER_OK and whose rings, or whose wishes, cannot be.
    pub activations: &'a Counter,
    /// Register writes that made no sense and were ignored.
    pub registers: &'a Counter,
    /// Malformed descriptor chains, given back unserved.
    pub chains: &'a Counter,
}

/// Who hears the doorbells.
#[derive(Debug)]
pub enum Doorbells {
    /// The cell, which calls [`VirtioDevice::on_doorbell`].
    Watched,
    /// Another process, which serves the rings. The end of the machine does not wait for it: when this is rung, nor does the device.
    Taken(EventFd),
}

/// A virtio device, or a lane of one. Called with its lock held, from its event loop except where said otherwise.
///
/// A device whose queues are served side by side is made of several of these, see [`super::cell`]. The first lane speaks for all where it is
/// about the device: features, configuration space, metrics, dials, saved state and [`VirtioDevice::flush`].
pub trait VirtioDevice: Send {
    /// Which device it is.
    fn kind(&self) -> Kind;

    /// Largest size of each queue. Fixed for the life of the device.
    fn queue_max_sizes(&self) -> &[u16];

    /// Which lane serves the queue with this index, for a driver that accepted these features. A queue's doorbell rings where it is with all
    /// features. One that does not exist has no place.
    fn lane_of(&self, queue: u16, accepted: u64) -> usize {
        let _ = (queue, accepted);
        0
    }

    /// What it counts. The same object for the life of the device.
    fn metrics(&self) -> Arc<dyn MetricGroup>;

    /// Those of its counters that the cell keeps.
    fn faults(&self) -> Faults<'_>;

    /// Features offered, [`super::registers::F_VERSION_1`] included.
    fn features(&self) -> u64;

    /// Features without which the device does not work: a driver that does not accept them is refused at FEATURES_OK (§2.2.2).
    fn required_features(&self) -> u64 {
        super::registers::F_VERSION_1
    }

    /// What the driver will ring, by queue, before it does. A device whose rings are served elsewhere hands them on.
    fn take_doorbells(&mut self, bells: &[EventFd]) -> std::io::Result<Doorbells> {
        let _ = bells;
        Ok(Doorbells::Watched)
    }

    /// Fills `data` from the configuration space at `offset`; zeroes beyond its end. Called from vCPU threads.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the configuration space. Called from vCPU threads. Most devices have nothing to write.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is set up with these features. An error makes the device ask for a reset.
    fn activate(&mut self, accepted: u64, rings: &mut Rings) -> Result<(), String>;

    /// The driver rang for a queue, or the machine was resumed. `queue` is its place in [`Rings::queues`].
    fn on_doorbell(&mut self, queue: u16, rings: &mut Rings) -> Result<Visit, RingError>;

    /// Descriptors of the device's own to watch, with tokens below 2^16. Fixed for the life of the device.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// By what its rate limiters are changed while it works; which is which its kind says. Fixed for the life of the device.
    fn limit_dials(&self) -> Vec<LimitDial> {
        Vec::new()
    }

    /// One of [`Self::sources`] became ready while the device is active. The device reads or drains its descriptor itself.
    fn on_source(&mut self, token: u32, rings: &mut Rings) -> Result<(), RingError> {
        let _ = (token, rings);
        Ok(())
    }

    /// Whether the configuration space changed during the last call of [`Self::on_doorbell`] or [`Self::on_source`], on the device's own
    /// account. Asked after each; the driver is told.
    fn take_config_change(&mut self) -> bool {
        false
    }

    /// Finishes everything in flight and completes it on the rings. Nothing is in flight when it returns.
    fn quiesce(&mut self, rings: &mut Rings) -> Result<(), RingError> {
        let _ = rings;
        Ok(())
    }

    /// What of it outlives the process, apart from registers and rings. Called while the device stands still.
    fn save(&self) -> DeviceState;

    /// Takes up what was saved: of a device that was just made alike, and was activated again if it was at work.
    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState>;

    /// Back to the state before activation; everything in flight is finished or cancelled when it returns, and guest memory is no longer
    /// touched. Called from vCPU threads.
    fn reset(&mut self);

    /// Makes what the guest wrote durable, as far as the device promised. Called once at the end.
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
