use super::Request;
use crate::actor::Vmm;
use crate::config::{NetConfig, RateLimitChange, ResourceId};
use crate::error::Error;
use crate::lifecycle::Ask;

/// Opens the tap and adds the interface, or replaces the one of the same id.
#[derive(Debug)]
pub struct PutNet(pub NetConfig);

impl Request for PutNet {
    type Reply = ();
    const ASK: Ask = Ask::Configure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.plan_mut().put_net(self.0)
    }
}

/// Changes the rate limiters of a started machine's interface.
#[derive(Debug)]
pub struct PatchNet {
    /// Which interface.
    pub id: ResourceId,
    /// What changes for frames towards the guest.
    pub rx_rate_limiter: RateLimitChange,
    /// What changes for frames from the guest.
    pub tx_rate_limiter: RateLimitChange,
}

impl Request for PatchNet {
    type Reply = ();
    const ASK: Ask = Ask::Reconfigure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.patch_net(&self.id, self.rx_rate_limiter, self.tx_rate_limiter)
    }
}
