//! Devices that come and go while the machine runs.
//!
//! A device is made by a [`Maker`], on the thread that may open files, with the threads that serve it; the VMM thread then gives it its slot. One that
//! goes first leaves the bus, then finishes what it is doing where it is served, and is taken apart where it was made.

use std::os::fd::RawFd;
use std::sync::Arc;

use devices::event::Subscriber;
use devices::mmds::Mmds;
use devices::ram::GuestRam;
use devices::virtio::block::UringHub;
use devices::virtio::pmem::WriteTrap;

use super::Machine;
use super::attach::{Lanes, block, net, pmem};
use super::fences::Fences;
use super::pci::{Card, Workshop};
use super::roster::{DeviceName, Home, Seat};
use super::served::Served;
use super::spread::Spread;
use crate::blueprint::{self, Backing, Drive};
use crate::config::{DriveBackend, DriveConfig, IoEngine, MmdsConfig, NetConfig, PmemConfig, Transport};
use crate::error::{Error, Subject};
use crate::event_loop::EventLoop;
use crate::exit::ExitLatch;
use crate::memory::{PmemRegion, Slots};
use crate::threads::Role;

/// A device that was made for a machine that runs.
pub struct Plugged {
    seat: Seat,
    threads: Vec<Served>,
    pmem: Option<(PmemRegion, Option<Arc<WriteTrap>>)>,
}

/// Makes devices off the VMM thread.
pub struct Maker {
    workshop: Workshop,
    memory: GuestRam,
    slots: Arc<Slots>,
    fences: Arc<Fences>,
    exit: Arc<ExitLatch>,
    vcpus: u8,
    spread: Spread,
    slot: u8,
    /// Numbers of threads that exist.
    numbers: Vec<usize>,
    /// Where there is persistent memory already.
    pmems: Vec<(u64, u64)>,
}

fn fail(name: &DeviceName) -> impl Fn(&dyn std::fmt::Display) -> Error + '_ {
    move |e| Error::host(Subject::Pci, format!("{name}: {e}"))
}

impl Maker {
    /// A drive on a file.
    pub fn drive(self, config: DriveConfig) -> Result<(Drive, Plugged), Error> {
        let name = DeviceName::Drive(config.id.clone());
        let served = || {
            let what = "socket: a vhost-user drive can be there only from the start, because its backend shares all of the memory. Put it before InstanceStart, or use path_on_host.";
            Error::invalid(Subject::Drive, what)
        };
        // Nobody is met: this thread makes no sockets.
        if matches!(config.backend, DriveBackend::Socket(_)) {
            return Err(served());
        }
        let drive = Drive::open(config)?;
        let Backing::File(file) = &drive.backing else { return Err(served()) };
        let queues = Transport::Pci.queues(drive.config.num_queues, self.vcpus);
        let threads = self.spread.threads(queues.into());
        let hubs = match drive.config.io_engine {
            IoEngine::Sync => Vec::new(),
            IoEngine::Async => self.spread.rings([queues.into()]),
        };
        let made = block::Made::of(&drive, file, queues, threads, &hubs).map_err(|e| fail(&name)(&e))?;
        let plugged = self.seat(name, made.lanes, threads, hubs)?;
        made.seats.attach(&plugged.seat.cell);
        Ok((drive, plugged))
    }

    /// A network interface.
    pub fn net(
        self,
        config: NetConfig,
        service: Option<&MmdsConfig>,
        mmds: &Arc<Mmds>,
    ) -> Result<(blueprint::Net, Plugged), Error> {
        let name = DeviceName::Net(config.id.clone());
        let net = blueprint::Net::open(config)?;
        let taps = net.taps(Transport::Pci, self.vcpus)?;
        let threads = self.spread.threads(taps.len());
        let lanes = net::make(&net, taps, service, mmds)?;
        let plugged = self.seat(name, lanes, threads, Vec::new())?;
        Ok((net, plugged))
    }

    /// Persistent memory.
    pub fn pmem(self, config: &PmemConfig) -> Result<Plugged, Error> {
        let name = DeviceName::Pmem(config.id.clone());
        let fail = |e: &dyn std::fmt::Display| Error::host(Subject::Pmem, e);
        let mut region = PmemRegion::plug(&self.slots, config, &self.pmems).map_err(|e| fail(&e))?;
        let slots = self.slots.clone();
        let made = pmem::make(config, &region).map_err(|e| fail(&e)).and_then(|(first, trap)| {
            let lanes = Lanes { first, others: Vec::new(), home: pmem::HOME };
            Ok((self.seat(name, lanes, 1, Vec::new())?, trap))
        });
        match made {
            Ok((plugged, trap)) => Ok(Plugged { pmem: Some((region, trap)), ..plugged }),
            Err(error) => {
                region.hide(&slots);
                Err(error)
            }
        }
    }

    /// Makes a function of it, and starts its threads.
    fn seat(self, name: DeviceName, lanes: Lanes, threads: usize, hubs: Vec<Arc<UringHub>>) -> Result<Plugged, Error> {
        let Lanes { first, others, home } = lanes;
        let made = self.workshop.make(&name, first, others, self.memory.clone(), self.slot);
        let (cell, card) = made.map_err(|e| fail(&name)(&e))?;
        let seat = Seat { name, cell, home, threads, card: Some(card) };
        let served = if home == Home::Vmm { Ok(Vec::new()) } else { self.start(&seat, hubs) };
        match served {
            Ok(threads) => Ok(Plugged { seat, threads, pmem: None }),
            Err(error) => {
                seat.release();
                Err(error)
            }
        }
    }

    fn start(&self, seat: &Seat, hubs: Vec<Arc<UringHub>>) -> Result<Vec<Served>, Error> {
        let mut hubs = hubs.into_iter();
        let free = (0..).filter(|number| !self.numbers.contains(number));
        let threads = free.zip(0..seat.threads).map(|(number, nth)| {
            Served::start(number, &[seat], nth, hubs.next(), &self.fences, &self.exit).map_err(|e| fail(&seat.name)(&e))
        });
        let threads = threads.collect::<Result<Vec<_>, Error>>()?;
        // A thread without its fence has ended; the device must not wait for it.
        self.fences.gate.wait().map_err(|e| fail(&seat.name)(&e))?;
        Ok(threads)
    }
}

impl Seat {
    /// What its function takes of the machine is given back. Where devices are made.
    fn release(&self) {
        if let Some(Card { function, .. }) = &self.card {
            function.release();
        }
    }

    fn fds(&self) -> Vec<RawFd> {
        self.cell.sources().iter().map(|source| source.fd).collect()
    }
}

/// A device on its way out.
pub struct Leaving {
    seat: Seat,
    pmem: Option<PmemRegion>,
}

impl Machine {
    /// Whether devices can come and go.
    pub fn has_hotplug(&self) -> bool {
        self.hotpluggable
    }

    /// What makes a device for the lowest free slot.
    pub fn maker(&self, vcpus: u8) -> Result<Maker, Error> {
        let Some(pci) = &self.pci else { return Err(Error::gone()) };
        let slot = pci.bus.free_slot().map_err(|e| Error::invalid(Subject::Pci, e))?;
        let number = |served: &Served| match served.thread.role() {
            Role::Io(number) => Some(number),
            _ => None,
        };
        Ok(Maker {
            workshop: pci.workshop.clone(),
            memory: self.memory.everything.clone(),
            slots: self.memory.slots.clone(),
            fences: self.fences.clone(),
            exit: self.exit.clone(),
            vcpus,
            spread: self.spread,
            slot,
            numbers: self.io_threads.iter().filter_map(number).collect(),
            pmems: self.pmems.iter().map(|(_, region)| region.place()).collect(),
        })
    }

    /// Gives a device its slot, and tells the guest. Of a machine that stands still it stands still, too.
    pub fn plug(&mut self, plugged: Plugged, events: &mut EventLoop, paused: bool) -> Result<(), Error> {
        let Plugged { seat, threads, pmem } = plugged;
        let Some(pci) = &self.pci else { return Err(Error::gone()) };
        if paused {
            seat.cell.pause();
        }
        if seat.home == Home::Vmm {
            events.add(seat.cell.clone()).map_err(|e| fail(&seat.name)(&e))?;
        }
        if let Some((region, trap)) = pmem {
            if let Some(trap) = trap {
                pci.traps.set(region.start.0, region.len, trap);
            }
            self.pmems.push((seat.name.clone(), region));
        }
        if let Some(card) = &seat.card {
            pci.bus.insert(card.slot, card.function.clone()).map_err(|e| fail(&seat.name)(&e))?;
            pci.hotplug.fill(card.slot);
        }
        self.io_threads.extend(threads);
        self.seats.push(seat);
        Ok(())
    }

    /// Asks the guest to let go of a device; `false` if no driver has it.
    pub fn ask_for(&self, name: &DeviceName) -> bool {
        let seat = self.seats.iter().find(|seat| seat.name == *name);
        let (Some(pci), Some(card), Some(seat)) = (&self.pci, seat.and_then(|seat| seat.card.as_ref()), seat) else {
            return false;
        };
        // Not by its registers: a guest may be resetting it, which takes as long as the host's disk does.
        let used = seat.cell.is_driven();
        if used {
            pci.hotplug.ask_to_leave(card.slot);
        }
        used
    }

    /// The devices that the guest let go of since this was last asked.
    pub fn let_go(&self) -> Vec<DeviceName> {
        let Some(pci) = &self.pci else { return Vec::new() };
        let slots = pci.hotplug.take_ejected();
        let is_out = |card: &Card| slots & 1u32.checked_shl(card.slot.into()).unwrap_or(0) != 0;
        let out = self.seats.iter().filter(|seat| seat.card.as_ref().is_some_and(is_out));
        out.map(|seat| seat.name.clone()).collect()
    }

    /// Takes a device away from the guest: it is on the bus no more. `done` runs when it has finished what it was doing, on the thread that served it;
    /// [`Self::take_apart`] is to be called with what it gets.
    pub fn unplug(
        &mut self,
        name: &DeviceName,
        events: &mut EventLoop,
        done: impl FnOnce(Leaving) + Send + 'static,
    ) -> Result<(), Error> {
        let at = self.seats.iter().position(|seat| seat.name == *name && seat.card.is_some());
        let (Some(at), Some(pci)) = (at, &self.pci) else { return Err(Error::gone()) };
        let seat = self.seats.remove(at);
        if let Some(card) = &seat.card {
            pci.bus.remove(card.slot);
            pci.hotplug.emptied(card.slot);
        }
        if seat.home == Home::Vmm {
            events.forget(&seat.fds());
        }
        let pmem = self.pmems.iter().position(|(owner, _)| owner == name).map(|at| self.pmems.remove(at).1);
        let leaving = Leaving { seat, pmem };
        self.run_at(name, move || {
            if let Err(error) = leaving.seat.cell.retire() {
                log::error!("{}: not everything the guest wrote is durable: {error}", leaving.seat.name);
            }
            done(leaving);
        });
        Ok(())
    }

    /// Ends what served a device that has finished, and gives back what it took. `done` runs after that, on another thread.
    pub fn take_apart(&mut self, leaving: Leaving, done: impl FnOnce() + Send + 'static) {
        let Leaving { seat, pmem } = leaving;
        for served in &mut self.io_threads {
            let before = served.names.len();
            served.names.retain(|name| *name != seat.name);
            if served.names.len() < before && !served.names.is_empty() {
                served.thread.forget(seat.fds());
            }
        }
        let ended: Vec<Served> = self.io_threads.extract_if(.., |served| served.names.is_empty()).collect();
        let slots = self.memory.slots.clone();
        let traps = self.pci.as_ref().map(|pci| pci.traps.clone());
        self.run_with_files(move || {
            drop(ended);
            if let Some(mut region) = pmem {
                if let Some(traps) = traps {
                    traps.clear(region.start.0);
                }
                region.hide(&slots);
            }
            seat.release();
            drop(seat);
            done();
        });
    }
}
