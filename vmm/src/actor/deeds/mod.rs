//! What requests make the VMM thread do to the machine: here its life, in one file each its devices.

mod drives;
mod nets;
mod reports;

use super::vmm::Vmm;
use std::time::Instant;

use crate::error::{Error, Subject};
use crate::lifecycle::Phase;
use crate::machine::{self, Machine, Surroundings};
use crate::telemetry::{LATENCIES, REGISTRY, microseconds};

impl Vmm {
    /// Builds the machine and runs it. If that fails nothing is left of it, and the plan can be changed and tried again.
    pub(crate) fn start(&mut self) -> Result<(), Error> {
        log::debug!("event_start: build microvm for boot");
        let surroundings = Surroundings { exit: self.exit().clone(), boot_timer: self.settings().boot_timer };
        let machine =
            machine::assemble(&self.plan, &surroundings, &mut self.events).inspect_err(|_| self.events.clear())?;
        log::debug!("event_end: build microvm for boot");
        log::debug!("event_start: boot microvm");
        machine.enter_metrics(&REGISTRY);
        machine.resume();
        log::debug!("event_end: boot microvm");
        self.machine = Some(machine);
        self.phase = Phase::Running;
        self.begin_reports();
        Ok(())
    }

    pub(crate) fn pause(&mut self) -> Result<(), Error> {
        if self.phase == Phase::Running {
            let asked = Instant::now();
            self.live_machine()?.pause();
            self.phase = Phase::Paused;
            LATENCIES.vmm_pause_vm.set(microseconds(asked.elapsed()));
        }
        Ok(())
    }

    pub(crate) fn resume(&mut self) -> Result<(), Error> {
        if self.phase == Phase::Paused {
            let asked = Instant::now();
            self.live_machine()?.resume();
            self.phase = Phase::Running;
            LATENCIES.vmm_resume_vm.set(microseconds(asked.elapsed()));
            self.catch_up_on_reports();
        }
        Ok(())
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

    pub(super) fn live_machine(&self) -> Result<&Machine, Error> {
        self.machine.as_ref().ok_or_else(Error::gone)
    }
}
