use super::Request;
use crate::actor::Vmm;
use crate::config::{NetConfig, ResourceId};
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

/// Updates an interface of a started machine. It has nothing to change but rate limiters, so until those exist it only checks the id.
#[derive(Debug)]
pub struct PatchNet(pub ResourceId);

impl Request for PatchNet {
    type Reply = ();
    const ASK: Ask = Ask::Reconfigure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.patch_net(&self.0)
    }
}
