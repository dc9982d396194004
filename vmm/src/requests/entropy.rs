use super::Request;
use crate::actor::Vmm;
use crate::config::EntropyConfig;
use crate::error::Error;
use crate::lifecycle::Ask;

/// Gives the machine an entropy device, or replaces the one it was to have.
#[derive(Debug)]
pub struct PutEntropy(pub EntropyConfig);

impl Request for PutEntropy {
    type Reply = ();
    const ASK: Ask = Ask::Configure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.plan_mut().entropy = Some(self.0);
        Ok(())
    }
}
