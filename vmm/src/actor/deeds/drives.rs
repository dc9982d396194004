use devices::virtio::any::AnyDevice;
use devices::virtio::cell::{ConfigChange, VirtioCell};

use crate::actor::Vmm;
use crate::blueprint::Drive;
use crate::config::DriveConfig;
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
        match self.plan_drive_patch(patch) {
            Ok((config, name)) => {
                let handle = self.handle();
                let work = |machine: &crate::machine::Machine| {
                    let Some(cell) = machine.device(&name).cloned() else { return answer(Err(Error::gone())) };
                    machine.run_at(&name, move || {
                        let outcome = swap_file(&cell, config);
                        handle.send(move |vmm| answer(outcome.map(|drive| vmm.note_drive(drive))));
                    });
                };
                match self.live_machine() {
                    Ok(machine) => work(machine),
                    Err(gone) => drop(gone),
                }
            }
            Err(refusal) => answer(Err(refusal)),
        }
    }

    fn plan_drive_patch(&mut self, patch: PatchDrive) -> Result<(DriveConfig, DeviceName), Error> {
        let PatchDrive { id, path_on_host } = patch;
        let Some(drive) = self.plan.drive_mut(&id) else {
            return Err(refuse(&format!("there is no drive `{id}`.")));
        };
        let Some(path) = path_on_host else {
            // What the reference says when a drive with a file is asked to re-read its back end's configuration.
            return Err(refuse(&"Running method expected different backend."));
        };
        let mut config = drive.config.clone();
        config.path_on_host = path;
        Ok((config, DeviceName::Drive(id)))
    }

    fn note_drive(&mut self, drive: Drive) {
        if let Some(old) = self.plan.drive_mut(&drive.config.id) {
            *old = drive;
        }
    }
}

/// Opens the drive anew and puts its file behind the live device. Runs where the drive is served.
fn swap_file(cell: &VirtioCell, config: DriveConfig) -> Result<Drive, Error> {
    let drive = Drive::open(config).map_err(|e| refuse(&e))?;
    let file = drive.file.try_clone().map_err(|e| refuse(&e))?;
    cell.reconfigure(|device| match device {
        AnyDevice::Block(block) => {
            block.replace_file(file).map(|()| ((), ConfigChange::Announce)).map_err(|e| refuse(&e))
        }
        _ => Err(refuse(&format!("{} is not a drive.", cell.name()))),
    })?;
    Ok(drive)
}
