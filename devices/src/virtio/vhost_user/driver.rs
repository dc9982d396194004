//! What a driver that is set up wants of the backend: its rings, and how far each is.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;
use zerocopy::IntoBytes;

use super::connection::{Broken, Connection};
use super::message::{InflightArea, Request, VringAddr, VringState};
use super::whereabouts::Whereabouts;
use crate::irq::VirtioIrq;
use crate::ram::GuestRam;
use crate::virtio::device::Rings;
use crate::virtio::queue::Geometry;

/// A ring that the driver uses.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) index: u16,
    geometry: Geometry,
    /// Where the backend goes on, while none serves the ring and if that is known: it said so, or the rings tell.
    pub(super) base: Option<u16>,
}

/// A driver.
pub(super) struct Driver {
    /// What it accepted.
    pub(super) features: u64,
    pub(super) rings: Vec<Ring>,
    ram: GuestRam,
    pub(super) irq: Arc<dyn VirtioIrq>,
    /// A backend has served it before: there may be used buffers of which it was not told.
    pub(super) served: bool,
    /// The rings stand still, until somebody comes back.
    pub(super) halted: bool,
    pub(super) since: Instant,
}

/// Memory in which a backend notes requests in flight.
#[derive(Debug)]
pub(super) struct Inflight {
    pub(super) area: InflightArea,
    pub(super) file: OwnedFd,
}

impl Driver {
    pub(super) fn new(features: u64, rings: &Rings) -> Self {
        let ready = rings.queues.iter().filter(|queue| queue.is_ready());
        let ring = |queue: &crate::virtio::queue::VirtQueue| Ring {
            index: queue.index(),
            geometry: queue.geometry(),
            base: Some(0),
        };
        Self {
            features,
            rings: ready.map(ring).collect(),
            ram: rings.ram.clone(),
            irq: rings.irq.clone(),
            served: false,
            halted: false,
            since: Instant::now(),
        }
    }

    /// A ring of which nobody knows how far it is.
    pub(super) fn lost_ring(&self) -> Option<u16> {
        self.rings.iter().find(|ring| ring.base.is_none()).map(|ring| ring.index)
    }

    /// Whether a request has no answer yet.
    pub(super) fn is_waiting(&self) -> bool {
        self.rings.iter().any(|ring| Whereabouts::look(&self.ram, &ring.geometry).open() != 0)
    }

    /// Whoever served the rings is gone; what was in flight is noted if it is `tracked`. Looked at now: what is asked from now on, nobody has
    /// seen.
    pub(super) fn is_left(&mut self, tracked: bool) {
        for Ring { geometry, base, .. } in &mut self.rings {
            let seen = Whereabouts::look(&self.ram, geometry);
            *base = if tracked { Some(seen.used) } else { seen.goes_on(&self.ram, geometry) };
        }
    }

    /// A backend said how far it is.
    pub(super) fn set_base(&mut self, state: VringState) -> Result<(), Broken> {
        let ring = self.rings.iter_mut().find(|ring| u32::from(ring.index) == state.index.get());
        let ring = ring.ok_or_else(|| Broken::nonsense(format!("ring {}, which is none", state.index)))?;
        // The upper half is for packed rings, which are not offered.
        ring.base = Some(state.number.get() as u16);
        Ok(())
    }

    /// Hands the rings to a backend, with bells for both directions.
    pub(super) fn hand_over(
        &mut self,
        connection: &mut Connection,
        kicks: &[EventFd],
        calls: &[EventFd],
    ) -> Result<(), Broken> {
        for Ring { index, geometry, base } in &mut self.rings {
            // The call is ours, and the event loop turns it into an interrupt. A transport whose interrupts are eventfds could have its own
            // handed over here.
            let bells = (kicks.get(usize::from(*index)), calls.get(usize::from(*index)));
            let ((Some(kick), Some(call)), Some(base)) = (bells, base.take()) else { continue };
            let state = |number| VringState::new(*index, number);
            connection.tell(Request::SetVringNum, state(geometry.size).as_bytes(), &[])?;
            connection.tell(Request::SetVringBase, state(base).as_bytes(), &[])?;
            connection.tell(Request::SetVringAddr, VringAddr::new(*index, geometry).as_bytes(), &[])?;
            let number = u64::from(*index).to_le_bytes();
            connection.tell(Request::SetVringCall, &number, &[call.as_raw_fd()])?;
            connection.tell(Request::SetVringKick, &number, &[kick.as_raw_fd()])?;
            connection.tell_and_hear(Request::SetVringEnable, state(1).as_bytes(), &[])?;
            // Whoever served the ring before may have heard the bell and not come to look.
            let _ = kick.write(1);
            if self.served {
                // Nor may it have told of all that it did.
                self.irq.queue(*index);
            }
        }
        Ok(())
    }
}
