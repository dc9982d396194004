//! The memory behind the hot-pluggable region.

use std::io;
use std::sync::Arc;

use devices::ram::{GuestRam, GuestRegion};
use devices::virtio::mem::{Backing, Levels, Shape};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{Access, MemoryError, Slot, Slots, anonymous};
use crate::arch::layout;
use crate::blueprint::Plan;
use crate::sys::advice;

/// The hot-pluggable memory of a machine.
#[derive(Debug, Clone)]
pub struct HotplugRegion {
    /// Where it is and how it is cut.
    pub shape: Shape,
    /// How much there should be and is.
    pub levels: Arc<Levels>,
}

/// Maps the region that the plan asks for, if it does. It costs addresses only: nothing is reserved, and nothing touched.
pub(super) fn map(plan: &Plan) -> Result<Option<(HotplugRegion, GuestRegion)>, MemoryError> {
    let Some(config) = plan.memory_hotplug else { return Ok(None) };
    let bytes = |mib: u32| u64::from(mib) << 20;
    let (len, block_len, slot_len) =
        (bytes(config.total_size_mib()), bytes(config.block_size_mib()), bytes(config.slot_size_mib()));
    let start = layout::hotplug_start(plan.machine.mem_size_bytes(), block_len)
        .ok_or_else(|| MemoryError::Hotplug("its addresses would pass the end of all addresses".to_owned()))?;
    let size = usize::try_from(len).map_err(|e| MemoryError::Hotplug(format!("{len} bytes: {e}")))?;
    let region = anonymous(start, size, &plan.machine, libc::MAP_PRIVATE)?;
    // The kernel joins neighbouring mappings that are alike; this one should be seen for what it is in `/proc/PID/smaps`.
    advice::no_fork(&region);
    let shape = Shape { start: start.0, len, block_len, slot_len };
    Ok(Some((HotplugRegion { shape, levels: Arc::default() }, region)))
}

/// What the memory device does with its region: slots are KVM's, pages the host's.
pub struct HotplugMemory {
    shape: Shape,
    memory: GuestRam,
    slots: Arc<Slots>,
    open: Vec<Option<Slot>>,
}

impl HotplugMemory {
    /// No slot open.
    pub fn new(shape: Shape, memory: GuestRam, slots: Arc<Slots>) -> Self {
        let count = shape.len.checked_div(shape.slot_len).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
        Self { shape, memory, slots, open: (0..count).map(|_| None).collect() }
    }

    fn slot(&mut self, slot: usize) -> io::Result<&mut Option<Slot>> {
        self.open.get_mut(slot).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Backing for HotplugMemory {
    fn open(&mut self, slot: usize) -> io::Result<()> {
        let start = GuestAddress(self.shape.start + self.shape.slot_len * slot as u64);
        if self.slot(slot)?.is_some() {
            return Ok(());
        }
        let set = self.slots.set(start, self.shape.slot_len, Access::ReadWrite).map_err(io::Error::other)?;
        *self.slot(slot)? = Some(set);
        Ok(())
    }

    fn close(&mut self, slot: usize) -> io::Result<()> {
        let Some(set) = self.slot(slot)?.take() else { return Ok(()) };
        self.slots.clear(set).map_err(|(kept, error)| {
            if let Some(place) = self.open.get_mut(slot) {
                *place = Some(kept);
            }
            error
        })
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let region = self.memory.find_region(GuestAddress(self.shape.start)).ok_or(io::ErrorKind::InvalidInput)?;
        let (offset, len) = (usize::try_from(offset), usize::try_from(len));
        match (offset, len) {
            (Ok(offset), Ok(len)) => advice::discard(region, offset, len),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}
