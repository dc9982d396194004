use devices::virtio::any::AnyDevice;
use devices::virtio::block::{self, BackingFile};
use devices::virtio::cell::{ConfigChange, VirtioCell};

use crate::actor::Vmm;
use crate::blueprint::{Backing, Drive};
use crate::config::{DriveBackend, DriveConfig, RateLimitChange, ResourceId};
use crate::error::{Error, Subject};
use crate::machine::DeviceName;
use crate::requests::{Answer, PatchDrive};

/// What is to be done about a drive.
enum Change {
    /// It gets another file, and with it perhaps other limits.
    File(DriveConfig, RateLimitChange),
    /// It gets other limits.
    Limits(RateLimitChange),
    /// Its backend has news.
    Refresh,
}

fn refuse(why: &dyn std::fmt::Display) -> Error {
    let what = format!("Unable to patch the block device: {why} Please verify the request arguments.");
    Error::invalid(Subject::Drive, what)
}

impl Vmm {
    /// Judges the request here, does the slow part at the drive, and comes back to note what the drive is now.
    pub(crate) fn patch_drive(&mut self, patch: PatchDrive, answer: Answer<()>) {
        let id = patch.id.clone();
        match self.plan_drive_patch(patch) {
            Ok(Change::File(config, limits)) => self.swap_drive(id, config, limits, answer),
            // No slow part: a drive that waits for its file does not keep this waiting.
            Ok(Change::Limits(limits)) => answer(self.limit_drive(&id, limits)),
            Ok(Change::Refresh) => self.do_at_device(DeviceName::VhostUserDrive(id), answer, refresh, |_, ()| ()),
            Err(refusal) => answer(Err(refusal)),
        }
    }

    /// Opens the new file and puts it behind the live device, each where it may take its time.
    fn swap_drive(&self, id: ResourceId, config: DriveConfig, limits: RateLimitChange, answer: Answer<()>) {
        self.open_and(
            answer,
            move || open(config),
            move |vmm, (drive, file), answer| {
                vmm.do_at_device(
                    DeviceName::Drive(id.clone()),
                    answer,
                    move |cell| swap_file(cell, file).map(|()| drive),
                    move |vmm, drive| vmm.note_drive(&id, drive, limits),
                );
            },
        );
    }

    /// What is to be done about the drive.
    fn plan_drive_patch(&mut self, patch: PatchDrive) -> Result<Change, Error> {
        let PatchDrive { id, path_on_host, rate_limiter } = patch;
        let Some(drive) = self.plan.drive_mut(&id) else {
            return Err(refuse(&format!("there is no drive `{id}`.")));
        };
        match (&drive.backing, path_on_host, rate_limiter) {
            (Backing::File(_), Some(path), limits) => {
                let config = DriveConfig { backend: DriveBackend::File(path), ..drive.config.clone() };
                Ok(Change::File(config, limits.unwrap_or_default()))
            }
            (Backing::File(_), None, Some(limits)) => Ok(Change::Limits(limits)),
            (Backing::Peer(_), None, None) => Ok(Change::Refresh),
            // What the reference says when a drive with a file is asked to re-read its back end's configuration, and the other way round.
            (Backing::File(_), None, None) | (Backing::Peer(_), ..) => {
                Err(refuse(&"Running method expected different backend."))
            }
        }
    }

    /// Other requests to the drive may have been judged meanwhile, so only what changed is noted.
    fn note_drive(&mut self, id: &ResourceId, drive: Drive, limits: RateLimitChange) {
        let Some(noted) = self.plan.drive_mut(id) else { return };
        noted.config.backend = drive.config.backend;
        noted.backing = drive.backing;
        // Fails only if the machine has ended, and then the answer says so.
        let _ = self.limit_drive(id, limits);
    }

    fn limit_drive(&mut self, id: &ResourceId, change: RateLimitChange) -> Result<(), Error> {
        self.change_limits(&DeviceName::Drive(id.clone()), &[change])?;
        if let Some(noted) = self.plan.drive_mut(id) {
            noted.config.rate_limiter = noted.config.rate_limiter.changed(change);
        }
        Ok(())
    }
}

/// Opens the drive anew, and its file a second time for the device.
fn open(config: DriveConfig) -> Result<(Drive, BackingFile), Error> {
    let drive = Drive::open(config).map_err(|e| refuse(&e))?;
    let Backing::File(file) = &drive.backing else { return Err(refuse(&"it has no file.")) };
    let file = file.try_clone().and_then(BackingFile::new).map_err(|e| refuse(&e))?;
    Ok((drive, file))
}

/// Has the drive's backend tell its configuration space again. Runs where the drive is served.
fn refresh(cell: &VirtioCell) -> Result<(), Error> {
    cell.reconfigure_at_work(|device| match device {
        AnyDevice::VhostUser(device) => match device.refresh() {
            Ok(true) => Ok(((), ConfigChange::Announce)),
            Ok(false) => Ok(((), ConfigChange::Silent)),
            Err(why) => Err(refuse(&why)),
        },
        _ => Err(refuse(&format!("{} is not served by another process.", cell.name()))),
    })
}

/// Puts the file behind the live device. Runs where the drive is served.
fn swap_file(cell: &VirtioCell, file: BackingFile) -> Result<(), Error> {
    block::swap_file(cell, file).map_err(|e| refuse(&e))
}
