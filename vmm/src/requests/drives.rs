use std::path::PathBuf;

use super::Request;
use crate::actor::Vmm;
use crate::config::{DriveConfig, ResourceId};
use crate::error::Error;
use crate::lifecycle::Ask;

/// Opens the file of a drive and adds the drive, or replaces the one of the same id.
#[derive(Debug)]
pub struct PutDrive(pub DriveConfig);

impl Request for PutDrive {
    type Reply = ();
    const ASK: Ask = Ask::Configure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.plan_mut().put_drive(self.0)
    }
}

/// Swaps the file behind a drive of a started machine and tells the guest of the new capacity.
#[derive(Debug)]
pub struct PatchDrive {
    /// Which drive.
    pub id: ResourceId,
    /// The new file; `None` asks for a refresh, which only vhost-user drives have.
    pub path_on_host: Option<PathBuf>,
}

impl Request for PatchDrive {
    type Reply = ();
    const ASK: Ask = Ask::Reconfigure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        vmm.patch_drive(&self.id, self.path_on_host)
    }
}
