use devices::virtio::block::{self, BackingFile};
use devices::virtio::cell::VirtioCell;

use crate::actor::Vmm;
use crate::blueprint::Drive;
use crate::config::{DriveConfig, RateLimitChange, ResourceId};
use crate::error::{Error, Subject};
use crate::machine::DeviceName;
use crate::requests::{Answer, PatchDrive};

fn refuse(why: &dyn std::fmt::Display) -> Error {
    let what = format!("Unable to patch the block device: {why} Please verify the request arguments.");
    Error::invalid(Subject::Drive, what)
}

impl Vmm {
    /// Judges the request here, does the slow part at the drive, and comes back to note what the drive is now.
    pub(crate) fn patch_drive(&mut self, patch: PatchDrive, answer: Answer<()>) {
        let id = patch.id.clone();
        match self.plan_drive_patch(patch) {
            Ok((Some(config), limits)) => self.swap_drive(id, config, limits, answer),
            // No slow part: a drive that waits for its file does not keep this waiting.
            Ok((None, limits)) => answer(self.limit_drive(&id, limits)),
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

    /// The drive as configured with its new file, if it gets one, and what changes in its limiter.
    fn plan_drive_patch(&mut self, patch: PatchDrive) -> Result<(Option<DriveConfig>, RateLimitChange), Error> {
        let PatchDrive { id, path_on_host, rate_limiter } = patch;
        let Some(drive) = self.plan.drive_mut(&id) else {
            return Err(refuse(&format!("there is no drive `{id}`.")));
        };
        if path_on_host.is_none() && rate_limiter.is_none() {
            // What the reference says when a drive with a file is asked to re-read its back end's configuration.
            return Err(refuse(&"Running method expected different backend."));
        }
        let moved = path_on_host.map(|path_on_host| DriveConfig { path_on_host, ..drive.config.clone() });
        Ok((moved, rate_limiter.unwrap_or_default()))
    }

    /// Other requests to the drive may have been judged meanwhile, so only what changed is noted.
    fn note_drive(&mut self, id: &ResourceId, drive: Drive, limits: RateLimitChange) {
        let Some(noted) = self.plan.drive_mut(id) else { return };
        noted.config.path_on_host = drive.config.path_on_host;
        noted.file = drive.file;
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
    let file = drive.file.try_clone().and_then(BackingFile::new).map_err(|e| refuse(&e))?;
    Ok((drive, file))
}

/// Puts the file behind the live device. Runs where the drive is served.
fn swap_file(cell: &VirtioCell, file: BackingFile) -> Result<(), Error> {
    block::swap_file(cell, file).map_err(|e| refuse(&e))
}
