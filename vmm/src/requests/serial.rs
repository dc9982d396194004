use super::Request;
use crate::actor::Vmm;
use crate::blueprint::SerialOutput;
use crate::config::SerialConfig;
use crate::error::Error;
use crate::lifecycle::Ask;

/// Opens the file the serial console writes to.
#[derive(Debug)]
pub struct PutSerial(pub SerialConfig);

impl Request for PutSerial {
    type Reply = ();
    const ASK: Ask = Ask::Configure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.plan_mut().serial = SerialOutput::open(self.0)?;
        Ok(())
    }
}
