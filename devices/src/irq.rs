//! Interrupts as devices see them.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

crate::metric_group! {
    /// Interrupts of all virtio devices.
    pub struct InterruptMetrics {
        /// Interrupts raised.
        triggers: Counter,
        /// Times a route from a device to a CPU was changed.
        config_updates: Counter,
    }
}

/// Counts over the whole process.
pub static INTERRUPTS: InterruptMetrics = InterruptMetrics::new();

/// A message-signalled interrupt (Intel SDM 3A §11.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msi {
    /// Address the message is written to.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// Raises one edge on an interrupt line. An irqfd in practice.
pub trait IrqLine: Send + Sync {
    /// One edge.
    fn raise(&self);
}

impl IrqLine for EventFd {
    fn raise(&self) {
        // Fails only if 2^64 edges are pending; one of them will do.
        let _ = self.write(1);
    }
}

impl<T: IrqLine + ?Sized> IrqLine for Arc<T> {
    fn raise(&self) {
        (**self).raise();
    }
}

/// How a virtio device tells its driver that something happened, whichever the transport.
pub trait VirtioIrq: Send + Sync {
    /// Used buffers were added to a queue.
    fn queue(&self, index: u16);

    /// The configuration space changed, or the device needs a reset.
    fn config(&self);

    /// What the driver has not acknowledged, in the transport's own form; for a saved state.
    fn pending(&self) -> u32 {
        0
    }

    /// Takes up what was pending, and interrupts for it again: the driver bears an interrupt too many, but not one too few.
    fn renew(&self, pending: u32) {
        let _ = pending;
    }
}
