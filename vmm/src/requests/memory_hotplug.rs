use super::{Answer, Request, Submit};
use crate::actor::Vmm;
use crate::config::MemoryHotplugConfig;
use crate::error::Error;
use crate::lifecycle::Ask;

/// Gives the machine hot-pluggable memory, or replaces what it was to have.
#[derive(Debug)]
pub struct PutMemoryHotplug(pub MemoryHotplugConfig);

impl Request for PutMemoryHotplug {
    type Reply = ();
    const ASK: Ask = Ask::Configure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.plan_mut().memory_hotplug = Some(self.0);
        Ok(())
    }
}

/// Asks the guest of a started machine to have that much of its hot-pluggable memory plugged. The device may be giving memory back to the
/// host, so that happens on its own thread.
#[derive(Debug)]
pub struct PatchMemoryHotplug {
    /// MiB, in whole blocks.
    pub requested_size_mib: u32,
}

impl Submit for PatchMemoryHotplug {
    type Reply = ();
    const ASK: Ask = Ask::Reconfigure;

    fn begin(self, vmm: &mut Vmm, answer: Answer<()>) {
        vmm.patch_memory_hotplug(self.requested_size_mib, answer);
    }
}

/// Reads how much of the hot-pluggable memory is plugged.
#[derive(Debug)]
pub struct GetMemoryHotplug;

/// Reply to [`GetMemoryHotplug`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryHotplugStatus {
    /// As configured.
    pub config: MemoryHotplugConfig,
    /// MiB that are plugged.
    pub plugged_size_mib: u32,
    /// MiB that should be plugged.
    pub requested_size_mib: u32,
}

impl Request for GetMemoryHotplug {
    type Reply = MemoryHotplugStatus;
    const ASK: Ask = Ask::Act;

    fn apply(self, vmm: &mut Vmm) -> Result<MemoryHotplugStatus, Error> {
        vmm.memory_hotplug_status()
    }
}
