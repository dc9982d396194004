use super::{Answer, Request, Submit};
use crate::actor::Vmm;
use crate::config::{NetConfig, RateLimitChange, ResourceId};
use crate::error::Error;
use crate::lifecycle::Ask;

/// Opens the tap and adds the interface, or replaces the one of the same id. On a machine that runs it is plugged, if it can be.
#[derive(Debug)]
pub struct PutNet(pub NetConfig);

impl Submit for PutNet {
    type Reply = ();
    const ASK: Ask = Ask::Plug;

    fn begin(self, vmm: &mut Vmm, answer: Answer<()>) {
        vmm.put_net(self.0, answer);
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
