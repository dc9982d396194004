use super::Request;
use crate::actor::Vmm;
use crate::blueprint::BootSource;
use crate::config::BootSourceConfig;
use crate::error::Error;
use crate::lifecycle::Ask;

/// Opens kernel and initrd and checks the command line; replaces an earlier boot source.
#[derive(Debug)]
pub struct PutBootSource(pub BootSourceConfig);

impl Request for PutBootSource {
    type Reply = ();
    const ASK: Ask = Ask::Configure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        let source = BootSource::open(self.0)?;
        vmm.plan_mut().boot_source = Some(source);
        Ok(())
    }
}
