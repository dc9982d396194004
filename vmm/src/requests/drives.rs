use std::path::PathBuf;

use super::{Answer, Submit};
use crate::actor::Vmm;
use crate::config::{DriveBackend, DriveConfig, RateLimitChange, ResourceId};
use crate::lifecycle::{Ask, Phase};

/// Opens the file of a drive, or meets the process that serves it, and adds the drive, or replaces the one of the same id. On a machine that runs it is
/// plugged, if it can be.
#[derive(Debug)]
pub struct PutDrive(pub DriveConfig);

impl Submit for PutDrive {
    type Reply = ();
    const ASK: Ask = Ask::Plug;

    fn begin(self, vmm: &mut Vmm, answer: Answer<()>) {
        match self.0.backend {
            DriveBackend::Socket(_) if vmm.phase() == Phase::Configuring => vmm.meet_drive(self.0, answer),
            _ => vmm.put_drive(self.0, answer),
        }
    }
}

/// Swaps the file behind a drive of a started machine and tells the guest of the new capacity, or changes its rate limiter. To open the
/// file and to finish what the drive is doing may take as long as the host's disks do, so that happens on the drive's own thread.
#[derive(Debug)]
pub struct PatchDrive {
    /// Which drive.
    pub id: ResourceId,
    /// The new file.
    pub path_on_host: Option<PathBuf>,
    /// What changes in the limiter. Neither a file nor this asks for a refresh, which only vhost-user drives have.
    pub rate_limiter: Option<RateLimitChange>,
}

impl Submit for PatchDrive {
    type Reply = ();
    const ASK: Ask = Ask::Reconfigure;

    fn begin(self, vmm: &mut Vmm, answer: Answer<()>) {
        vmm.patch_drive(self, answer);
    }
}
