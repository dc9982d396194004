use super::Request;
use crate::actor::Vmm;
use crate::config::VsockConfig;
use crate::error::Error;
use crate::lifecycle::Ask;

/// Binds the host socket of the socket device; replaces an earlier one.
#[derive(Debug)]
pub struct PutVsock(pub VsockConfig);

impl Request for PutVsock {
    type Reply = ();
    const ASK: Ask = Ask::Configure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.plan_mut().put_vsock(self.0)
    }
}
