use std::time::Duration;

use super::{Answer, Submit};
use crate::actor::Vmm;
use crate::lifecycle::Ask;
use crate::machine::DeviceName;

/// Takes a device away from a machine that runs. A guest whose driver has it is asked to let go of it first.
#[derive(Debug)]
pub struct Unplug {
    /// Which device.
    pub name: DeviceName,
    /// Without asking: what is in flight is finished, and the device is gone.
    pub force: bool,
    /// How long to wait for the guest.
    pub patience: Duration,
}

impl Unplug {
    /// As long as a guest may take to let go of a device.
    pub const PATIENCE: Duration = Duration::from_secs(10);
}

impl Submit for Unplug {
    type Reply = ();
    const ASK: Ask = Ask::Reconfigure;

    fn begin(self, vmm: &mut Vmm, answer: Answer<()>) {
        vmm.unplug(self, answer);
    }
}

/// Whether a request of this kind is allowed now.
#[derive(Debug)]
pub struct Permit(pub Ask);

impl super::Request for Permit {
    type Reply = ();
    const ASK: Ask = Ask::Look;

    fn apply(self, vmm: &mut Vmm) -> Result<(), crate::error::Error> {
        Ok(vmm.permit(self.0)?)
    }
}
