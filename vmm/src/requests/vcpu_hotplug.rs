use super::Request;
use crate::actor::Vmm;
use crate::error::Error;
use crate::lifecycle::Ask;

/// Gives the guest of a started machine more vCPUs, or asks it for some.
#[derive(Debug)]
pub struct PatchVcpus {
    /// How many it should have.
    pub vcpu_count: u8,
}

impl Request for PatchVcpus {
    type Reply = ();
    const ASK: Ask = Ask::Reconfigure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.patch_vcpus(self.vcpu_count)
    }
}

/// Reads how many vCPUs are plugged.
#[derive(Debug)]
pub struct GetVcpus;

/// Reply to [`GetVcpus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuStatus {
    /// vCPUs that should be plugged.
    pub vcpu_count: u8,
    /// vCPUs that are: the guest has not given them back, and they may run.
    pub plugged_vcpu_count: u8,
    /// Most vCPUs.
    pub max_vcpus: u8,
}

impl Request for GetVcpus {
    type Reply = VcpuStatus;
    const ASK: Ask = Ask::Act;

    fn apply(self, vmm: &mut Vmm) -> Result<VcpuStatus, Error> {
        vmm.vcpu_status()
    }
}
