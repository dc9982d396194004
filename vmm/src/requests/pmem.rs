use super::{Answer, Submit};
use crate::actor::Vmm;
use crate::config::{PmemConfig, RateLimitChange, ResourceId};
use crate::lifecycle::Ask;

/// Adds a persistent-memory device, or replaces the one of the same id. Its file is opened at the start; on a
/// machine that runs at once, and the device is plugged, if it can be.
#[derive(Debug)]
pub struct PutPmem(pub PmemConfig);

impl Submit for PutPmem {
    type Reply = ();
    const ASK: Ask = Ask::Plug;

    fn begin(self, vmm: &mut Vmm, answer: Answer<()>) {
        vmm.put_pmem(self.0, answer);
    }
}

/// Changes the rate limiter of a persistent-memory device. The device may be waiting for the host's disk, so that happens on its own
/// thread.
#[derive(Debug)]
pub struct PatchPmem {
    /// Which device.
    pub id: ResourceId,
    /// What changes.
    pub rate_limiter: RateLimitChange,
}

impl Submit for PatchPmem {
    type Reply = ();
    const ASK: Ask = Ask::Reconfigure;

    fn begin(self, vmm: &mut Vmm, answer: Answer<()>) {
        vmm.patch_pmem(self, answer);
    }
}
