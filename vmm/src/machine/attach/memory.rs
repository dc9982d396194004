use devices::virtio::any::AnyDevice;
use devices::virtio::mem::{Mem, MemSpec};

use super::Board;
use crate::error::{Error, Subject};
use crate::machine::roster::{DeviceName, Home};
use crate::memory::{HotplugMemory, HotplugRegion};

/// Attaches the device that plugs and unplugs memory.
pub(super) fn attach(board: &mut Board<'_>, region: &HotplugRegion) -> Result<(), Error> {
    let memory = HotplugMemory::new(region.shape, board.memory.everything.clone(), board.memory.slots.clone());
    let device = Mem::new(MemSpec { shape: region.shape, backing: Box::new(memory), levels: region.levels.clone() })
        .map_err(|e| Error::host(Subject::Start, format!("{}: {e}", DeviceName::Memory)))?;
    // Giving gigabytes back to the host takes its time.
    board.put(DeviceName::Memory, Home::Own, AnyDevice::Mem(Box::new(device)))?;
    Ok(())
}
