//! Devices that come and go while the machine runs: who judges, who waits for whom.
//!
//! While one comes or goes, whatever else changes the machine waits; a guest that is asked to let go of one keeps nobody waiting but who asked.

use std::time::{Duration, Instant};

use crate::actor::Vmm;
use crate::blueprint::Plan;
use crate::config::{DriveConfig, NetConfig, PmemConfig, ResourceId};
use crate::error::{Error, Subject};
use crate::lifecycle::Phase;
use crate::machine::{DeviceName, Maker, Plugged};
use crate::requests::{Answer, Unplug};
use crate::telemetry::{Group, REGISTRY};

/// A device that the guest was asked for.
pub(in crate::actor) struct Asked {
    name: DeviceName,
    until: Instant,
    answer: Answer<()>,
}

fn refuse(what: impl std::fmt::Display) -> Error {
    Error::invalid(Subject::None, what)
}

/// Registry entries go by these.
fn entry(name: &DeviceName) -> (&'static str, Option<&str>) {
    let (family, id) = name.family();
    (family, id.map(ResourceId::as_str))
}

impl Vmm {
    /// Whether requests for devices are for a machine that runs.
    pub(in crate::actor) fn plugs(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Paused)
            && self.machine.as_ref().is_some_and(|machine| machine.has_hotplug())
    }

    /// Adds a drive: to the plan, or to the machine if there is one.
    pub(crate) fn put_drive(&mut self, config: DriveConfig, answer: Answer<()>) {
        if !self.plugs() {
            return answer(self.plan.put_drive(config));
        }
        let name = DeviceName::Drive(config.id.clone());
        let check = self.plan.check_drive(&config).and_then(|()| not_a_root(config.is_root_device));
        self.plug(name, check, move |maker| maker.drive(config), |vmm, drive| vmm.plan.add_drive(drive), answer);
    }

    /// The same of a network interface.
    pub(crate) fn put_net(&mut self, config: NetConfig, answer: Answer<()>) {
        if !self.plugs() {
            return answer(self.plan.put_net(config));
        }
        let name = DeviceName::Net(config.id.clone());
        let check = self.plan.check_net(&config);
        let (service, mmds) = (self.plan.mmds().cloned(), self.mmds().clone());
        let make = move |maker: Maker| maker.net(config, service.as_ref(), &mmds);
        self.plug(name, check, make, |vmm, net| vmm.plan.add_net(net), answer);
    }

    /// The same of persistent memory.
    pub(crate) fn put_pmem(&mut self, config: PmemConfig, answer: Answer<()>) {
        if !self.plugs() {
            return answer(self.plan.put_pmem(config));
        }
        let name = DeviceName::Pmem(config.id.clone());
        let check = self.plan.check_pmem(&config).and_then(|()| not_a_root(config.root_device));
        let make = move |maker: Maker| maker.pmem(&config).map(|plugged| (config, plugged));
        self.plug(name, check, make, |vmm, config| vmm.plan.put_pmem(config), answer);
    }

    /// Has a device made where files may be opened, and comes back here to put it into its slot and to `note` it.
    fn plug<T: Send + 'static>(
        &mut self,
        name: DeviceName,
        check: Result<(), Error>,
        make: impl FnOnce(Maker) -> Result<(T, Plugged), Error> + Send + 'static,
        note: impl FnOnce(&mut Vmm, T) -> Result<(), Error> + Send + 'static,
        answer: Answer<()>,
    ) {
        let vcpus = self.plan.machine.vcpu_count();
        let Some(machine) = &self.machine else { return answer(Err(Error::gone())) };
        let is_there = machine.device(&machine.known_as(name.clone())).is_some();
        let free = || if is_there { Err(refuse("Device ID in use")) } else { Ok(()) };
        let maker = match check.and_then(|()| free()).and_then(|()| machine.maker(vcpus)) {
            Ok(maker) => maker,
            Err(refusal) => return answer(Err(refusal)),
        };
        let handle = self.handle();
        machine.run_with_files(move || {
            let made = make(maker);
            handle.send(move |vmm| {
                let outcome = made.and_then(|(thing, plugged)| vmm.seat(&name, plugged).map(|()| thing));
                answer(outcome.and_then(|thing| note(vmm, thing)));
                vmm.serve_postponed();
            });
        });
        self.postpone();
    }

    fn seat(&mut self, name: &DeviceName, plugged: Plugged) -> Result<(), Error> {
        let paused = self.phase == Phase::Paused;
        let machine = self.machine.as_mut().ok_or_else(Error::gone)?;
        machine.plug(plugged, &mut self.events, paused)?;
        if let Some(cell) = machine.device(name) {
            let (family, id) = entry(name);
            REGISTRY.add(family, id, Group::Shared(cell.metrics()));
        }
        log::info!("{name} was plugged.");
        Ok(())
    }

    /// Takes a device away: at once by force or if no driver has it, else when the guest lets go of it.
    pub(crate) fn unplug(&mut self, ask: Unplug, answer: Answer<()>) {
        let Unplug { name, force, patience } = ask;
        let Some(machine) = &self.machine else { return answer(Err(Error::gone())) };
        if !machine.has_hotplug() {
            return answer(Err(refuse("PCI is not enabled")));
        }
        let name = machine.known_as(name);
        if machine.device(&name).is_none() {
            return answer(Err(refuse("Device not found")));
        }
        if is_root(&self.plan, &name) {
            return answer(Err(refuse("Cannot unplug root device")));
        }
        if force || !machine.ask_for(&name) {
            return self.take_away(name, answer);
        }
        self.asked.push(Asked { name, until: Instant::now() + patience, answer });
        self.wind_unplug_clock();
    }

    /// The guest has let go of devices.
    pub(super) fn take_back_devices(&mut self) {
        self.do_or_postpone(Box::new(|vmm| {
            let names = vmm.machine.as_ref().map(|machine| machine.let_go()).unwrap_or_default();
            for name in names {
                vmm.do_or_postpone(Box::new(move |vmm| vmm.take_away(name, Box::new(|_| ()))));
            }
        }));
    }

    fn take_away(&mut self, name: DeviceName, answer: Answer<()>) {
        let handle = self.handle();
        let Some(machine) = self.machine.as_mut().filter(|machine| machine.device(&name).is_some()) else {
            // It was taken away meanwhile, or all of it was.
            return answer(Ok(()));
        };
        let gone = name.clone();
        let unplugged = machine.unplug(&name, &mut self.events, move |leaving| {
            let again = handle.clone();
            handle.send(move |vmm| {
                let Some(machine) = &mut vmm.machine else { return answer(Err(Error::gone())) };
                machine.take_apart(leaving, move || {
                    again.send(move |vmm| {
                        let (family, id) = entry(&gone);
                        REGISTRY.remove(family, id);
                        log::info!("{gone} was unplugged.");
                        answer(Ok(()));
                        vmm.answer_who_asked_for(&gone);
                        vmm.serve_postponed();
                    });
                });
            });
        });
        match unplugged {
            Ok(()) => {
                // From now on nobody is told that it is there.
                forget(&mut self.plan, &name);
                self.postpone();
            }
            Err(error) => log::error!("{name} cannot be taken away: {error}"),
        }
    }

    fn answer_who_asked_for(&mut self, name: &DeviceName) {
        self.asked.extract_if(.., |asked| asked.name == *name).for_each(|asked| (asked.answer)(Ok(())));
        self.wind_unplug_clock();
    }

    /// Tells those who waited long enough.
    pub(in crate::actor) fn give_up_unplugs(&mut self) {
        let now = Instant::now();
        for Asked { name, answer, .. } in self.asked.extract_if(.., |asked| asked.until <= now) {
            answer(Err(refuse(format!(
                "The guest has not let go of {name}: it was asked by ACPI and uses the device still. If it lets go later, the device goes then. Ask again, have the guest unmount or release it first, or take it away by force (DELETE with ?force=true)."
            ))));
        }
        self.wind_unplug_clock();
    }

    fn wind_unplug_clock(&mut self) {
        let next = self.asked.iter().map(|asked| asked.until).min();
        let in_time = next.map(|until| until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        let wound = match in_time {
            Some(wait) => self.unplug_clock.reset(wait, None),
            None => self.unplug_clock.clear(),
        };
        if let Err(error) = wound {
            log::error!("The clock for devices that are asked for cannot be set: {error}");
        }
    }
}

fn is_root(plan: &Plan, name: &DeviceName) -> bool {
    match name {
        DeviceName::Drive(id) | DeviceName::VhostUserDrive(id) => plan.is_root_drive(id),
        DeviceName::Pmem(id) => plan.is_root_pmem(id),
        _ => false,
    }
}

fn forget(plan: &mut Plan, name: &DeviceName) {
    match name {
        DeviceName::Drive(id) | DeviceName::VhostUserDrive(id) => plan.remove_drive(id),
        DeviceName::Net(id) => plan.remove_net(id),
        DeviceName::Pmem(id) => plan.remove_pmem(id),
        _ => {}
    }
}

fn not_a_root(is_root: bool) -> Result<(), Error> {
    match is_root {
        true => Err(refuse(
            "A device that comes while the machine runs cannot be its root device: set is_root_device (root_device) to false.",
        )),
        false => Ok(()),
    }
}
