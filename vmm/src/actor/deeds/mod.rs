//! What requests make the VMM thread do to the machine: here its life, in one file each its devices.

mod backends;
mod balloon;
mod clones;
mod drives;
pub(super) mod hotplug;
mod limits;
mod memory_hotplug;
mod nets;
mod pmem;
mod reports;
pub(super) mod snapshots;
mod vcpu_hotplug;

use std::sync::Arc;
use std::time::Instant;

use devices::virtio::cell::VirtioCell;

use super::vmm::Vmm;
use crate::error::{Error, Subject};
use crate::lifecycle::Phase;
use crate::machine::{self, Assembled, DeviceName, Machine, Origin, Surroundings};
use crate::requests::Answer;
use crate::telemetry::{Group, LATENCIES, REGISTRY, microseconds};

impl Vmm {
    /// Builds the machine and runs it. If that fails nothing is left of it, and the plan can be changed and tried again.
    pub(crate) fn start(&mut self) -> Result<(), Error> {
        log::debug!("event_start: build microvm for boot");
        self.set_up(Origin::Boot)?;
        log::debug!("event_end: build microvm for boot");
        log::debug!("event_start: boot microvm");
        self.live_machine()?.resume();
        log::debug!("event_end: boot microvm");
        self.phase = Phase::Running;
        self.begin_reports();
        Ok(())
    }

    /// What a machine needs of this VMM.
    pub(super) fn surroundings(&self) -> Surroundings {
        let handle = self.handle();
        Surroundings {
            exit: self.exit().clone(),
            boot_timer: self.settings().boot_timer,
            mmds: self.mmds().clone(),
            seccomp: self.settings().seccomp.clone(),
            clonable: self.settings().clonable,
            pci: self.settings().pci,
            on_release: Arc::new(move || handle.send(Vmm::take_back_devices)),
        }
    }

    /// Builds the machine as planned, with all fences, and enters what it counts. It stands still.
    fn set_up(&mut self, origin: Origin<'_>) -> Result<(), Error> {
        let surroundings = self.surroundings();
        // It was laid for machines that ask for nothing else of KVM.
        let as_usual = self.plan.machine.cpu_template().capabilities().is_empty();
        let foundation = self.foundation.take().filter(|_| as_usual);
        let machine = machine::assemble(&self.plan, origin, &surroundings, &mut self.events, foundation)
            .and_then(Assembled::seal)
            .inspect_err(|_| self.events.clear())?;
        self.listen_to_ejects(&machine)?;
        machine.enter_metrics(&REGISTRY);
        REGISTRY.add("mmds", None, Group::Shared(self.mmds().metrics()));
        self.machine = Some(machine);
        // Whoever has a machine waits for none.
        self.waiting = None;
        self.handle().note_machine();
        Ok(())
    }

    /// Stops the machine. A device that is in the middle of something slow finishes it on its own thread; what must not happen meanwhile
    /// waits, and everyone else is served.
    pub(crate) fn pause(&mut self, answer: Answer<()>) {
        let Some(machine) = self.machine.as_ref().filter(|_| self.phase == Phase::Running) else {
            return answer(Ok(()));
        };
        let asked = Instant::now();
        let handle = self.handle();
        machine.pause(move || {
            handle.send(move |vmm| {
                vmm.phase = Phase::Paused;
                vmm.end_recording();
                LATENCIES.vmm_pause_vm.set(microseconds(asked.elapsed()));
                answer(Ok(()));
                vmm.serve_postponed();
            });
        });
        self.postpone();
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

    /// Has a file opened where that may still be done, which may take as long as the host's file systems do, and comes back here to go on
    /// with it.
    pub(super) fn open_and<T: Send + 'static>(
        &self,
        answer: Answer<()>,
        open: impl FnOnce() -> Result<T, Error> + Send + 'static,
        go_on: impl FnOnce(&mut Vmm, T, Answer<()>) + Send + 'static,
    ) {
        let Some(machine) = &self.machine else { return answer(Err(Error::gone())) };
        let handle = self.handle();
        machine.run_with_files(move || {
            let opened = open();
            handle.send(move |vmm| match opened {
                Ok(opened) => go_on(vmm, opened, answer),
                Err(refusal) => answer(Err(refusal)),
            });
        });
    }

    /// Has `work` done where the device called `name` is served, which may take as long as the host's disks do, and comes back here to
    /// `note` what came of it before the answer.
    pub(super) fn do_at_device<W: Send + 'static>(
        &self,
        name: DeviceName,
        answer: Answer<()>,
        work: impl FnOnce(&VirtioCell) -> Result<W, Error> + Send + 'static,
        note: impl FnOnce(&mut Vmm, W) + Send + 'static,
    ) {
        let Some(machine) = &self.machine else { return answer(Err(Error::gone())) };
        let Some(cell) = machine.device(&name).cloned() else { return answer(Err(Error::gone())) };
        let handle = self.handle();
        machine.run_at(&name, move || {
            let outcome = work(&cell);
            handle.send(move |vmm| answer(outcome.map(|done| note(vmm, done))));
        });
    }

    pub(super) fn live_machine(&self) -> Result<&Machine, Error> {
        self.machine.as_ref().ok_or_else(Error::gone)
    }
}
