//! What requests make the VMM thread do to the machine.

use std::path::PathBuf;

use devices::virtio::any::AnyDevice;
use devices::virtio::cell::ConfigChange;

use super::vmm::Vmm;
use crate::blueprint::Drive;
use crate::config::ResourceId;
use crate::error::{Error, Kind, Subject};
use crate::lifecycle::Phase;
use crate::machine::{self, Machine, Surroundings};

impl Vmm {
    /// Builds the machine and runs it. If that fails nothing is left of it, and the plan can be changed and tried again.
    pub(crate) fn start(&mut self) -> Result<(), Error> {
        log::debug!("event_start: build microvm for boot");
        let surroundings = Surroundings { exit: self.exit().clone(), boot_timer: self.settings().boot_timer };
        let machine =
            machine::assemble(&self.plan, &surroundings, &mut self.events).inspect_err(|_| self.events.clear())?;
        log::debug!("event_end: build microvm for boot");
        machine.resume();
        self.machine = Some(machine);
        self.phase = Phase::Running;
        Ok(())
    }

    pub(crate) fn pause(&mut self) -> Result<(), Error> {
        if self.phase == Phase::Running {
            self.live_machine()?.pause();
            self.phase = Phase::Paused;
        }
        Ok(())
    }

    pub(crate) fn resume(&mut self) -> Result<(), Error> {
        if self.phase == Phase::Paused {
            self.live_machine()?.resume();
            self.phase = Phase::Running;
        }
        Ok(())
    }

    pub(crate) fn flush_metrics(&mut self) -> Result<(), Error> {
        Err(Error::new(
            Kind::Unsupported,
            Subject::None,
            "FlushMetrics needs a metrics file, and PUT /metrics is not supported yet by this version of Mayfly.",
        ))
    }

    pub(crate) fn send_ctrl_alt_del(&mut self) -> Result<(), Error> {
        match self.live_machine()?.press_ctrl_alt_del() {
            true => Ok(()),
            false => Err(Error::host(
                Subject::Internal,
                "Ctrl-Alt-Del was not sent: the guest does not read its keyboard, whose buffer is full.",
            )),
        }
    }

    pub(crate) fn patch_drive(&mut self, id: &ResourceId, path: Option<PathBuf>) -> Result<(), Error> {
        let refuse = |why: &dyn std::fmt::Display| {
            Error::invalid(
                Subject::Drive,
                format!("Unable to patch the block device: {why} Please verify the request arguments."),
            )
        };
        let Some(old) = self.plan.drive_mut(id) else {
            return Err(refuse(&format!("there is no drive `{id}`.")));
        };
        let Some(path) = path else {
            // What the reference says when a drive with a file is asked to re-read its back end's configuration.
            return Err(refuse(&"Running method expected different backend."));
        };
        let mut config = old.config.clone();
        config.path_on_host = path;
        let drive = Drive::open(config).map_err(|e| refuse(&e))?;
        let file = drive.file.try_clone().map_err(|e| refuse(&e))?;
        let cell = self.live_machine()?.drive(id).ok_or_else(|| refuse(&format!("there is no drive `{id}`.")))?;
        cell.reconfigure(|device| match device {
            AnyDevice::Block(block) => {
                block.replace_file(file).map(|()| ((), ConfigChange::Announce)).map_err(|e| refuse(&e))
            }
            AnyDevice::Net(_) => Err(refuse(&format!("`{id}` is not a drive."))),
        })?;
        if let Some(old) = self.plan.drive_mut(id) {
            *old = drive;
        }
        Ok(())
    }

    pub(crate) fn patch_net(&mut self, id: &ResourceId) -> Result<(), Error> {
        match self.plan.nets().iter().any(|n| &n.config.id == id) {
            true => Ok(()),
            false => Err(Error::invalid(
                Subject::Network,
                format!("Unable to update the network device: there is no network interface `{id}`."),
            )),
        }
    }

    fn live_machine(&self) -> Result<&Machine, Error> {
        self.machine.as_ref().ok_or_else(Error::gone)
    }
}
