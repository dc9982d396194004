//! The machine: everything between "configured" and "gone".
//!
//! [`assemble`] is the boot recipe; `placement` says where devices go; this file is what can be done with a machine that exists.

mod assemble;
mod attach;
mod cpus;
mod fences;
mod foundation;
mod identity;
mod pci;
mod placement;
mod plug;
mod prefetch;
mod roster;
mod saved;
mod served;
mod spread;
mod traps;

pub use assemble::{Assembled, Origin, Surroundings, assemble};
pub use cpus::HotplugCpus;
pub use fences::rules;
pub use foundation::Foundation;
pub use identity::IdentityError;
pub use pci::SavedPci;
pub use plug::{Leaving, Maker, Plugged};
pub use roster::DeviceName;
pub use saved::{Devices, Platform, Saved, State, Vcpus};

use cpus::Cpus;
use fences::Fences;
use identity::Identity;
use pci::Pci;
use prefetch::Prefetch;
use roster::Seat;
use served::Served;
use spread::Spread;

use std::sync::{Arc, Mutex, PoisonError};

use devices::legacy::i8042::I8042;
use devices::legacy::ioapic::IoApic;
use devices::legacy::pvpanic::{PvPanic, PvPanicMetrics};
use devices::legacy::serial::Com1;
use devices::sys::terminal::RawTerminal;
use devices::virtio::cell::VirtioCell;
use devices::virtio::mem::Levels;
use kvm_ioctls::{Kvm, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::config::ResourceId;
use crate::exit::ExitLatch;
use crate::io_thread::IoThread;
use crate::memory::{DirtyMap, Memory, PmemRegion, SlotError, Source, Watch};
use crate::telemetry::{Group, Registry};
use crate::vcpu::Crew;

/// A machine whose guest can run. vCPUs stand still until [`Machine::resume`].
///
/// Fields are dropped in order: first the threads that run the guest, last the memory they run in.
pub struct Machine {
    crew: Crew,
    seats: Vec<Seat>,
    /// Threads of devices that may block, by the devices' names.
    io_threads: Vec<Served>,
    /// Opens files, and writes snapshots.
    files: IoThread,
    /// Waits for the end of the page-fault handler, if there is one.
    watch: Option<(IoThread, Arc<Watch>)>,
    /// Brings memory that will be wanted, if that is known.
    prefetch: Option<Prefetch>,
    keyboard: Arc<I8042>,
    serial: Arc<Com1>,
    pvpanic: Arc<PvPanic>,
    ioapic: Arc<IoApic>,
    identity: Identity<EventFd>,
    /// vCPUs that come and go, if they do.
    cpus: Option<Cpus>,
    /// The PCI bus, if the machine has one.
    pci: Option<Pci>,
    /// This process was told that devices may come and go: its threads may do what that takes.
    hotpluggable: bool,
    /// On how many threads the lanes of a device are served.
    spread: Spread,
    /// Persistent memory, by the devices' names.
    pmems: Vec<(DeviceName, PmemRegion)>,
    /// For threads that come with devices.
    fences: Arc<Fences>,
    exit: Arc<ExitLatch>,
    /// The terminal on standard input is raw while the machine exists.
    _terminal: Option<RawTerminal>,
    /// Brings memory from a file that is missing there, if it comes so.
    _pager: Option<IoThread>,
    kvm: Kvm,
    vm: Arc<VmFd>,
    memory: Memory,
    /// Pages that were written since the last snapshot, as far as they were asked for.
    unsaved: DirtyMap,
    /// Pages that were written since what is behind memory was put there, likewise.
    over_base: DirtyMap,
}

impl Machine {
    /// Lets devices and vCPUs run. A device that may block looks at what it missed on its own thread.
    pub fn resume(&self) {
        for seat in &self.seats {
            let cell = seat.cell.clone();
            self.run_at(&seat.name, move || cell.resume());
        }
        self.crew.run();
    }

    /// Stops vCPUs, then devices. `done` runs when nothing moves any more, on the thread of the device that was last.
    pub fn pause(&self, done: impl FnOnce() + Send + 'static) {
        self.crew.pause();
        let done = Arc::new(WhenDropped(Mutex::new(Some(done))));
        for seat in &self.seats {
            let (cell, done) = (seat.cell.clone(), done.clone());
            self.run_at(&seat.name, move || {
                cell.pause();
                drop(done);
            });
        }
    }

    /// Enters everything the machine counts.
    pub fn enter_metrics(&self, registry: &Registry) {
        registry.add("i8042", None, Group::Shared(self.keyboard.metrics()));
        registry.add("uart", None, Group::Shared(self.serial.metrics()));
        if let Some(cpus) = &self.cpus {
            registry.add("vcpu_hotplug", None, Group::Shared(cpus.metrics()));
        }
        for (index, metrics) in self.crew.metrics().iter().enumerate() {
            registry.add("vcpu", Some(&index.to_string()), Group::Shared(metrics.clone()));
        }
        for seat in &self.seats {
            let (family, id) = seat.name.family();
            registry.add(family, id.map(ResourceId::as_str), Group::Shared(seat.cell.metrics()));
        }
    }

    /// Types Ctrl-Alt-Del; `false` if the guest has not emptied the keyboard's buffer.
    pub fn press_ctrl_alt_del(&self) -> bool {
        self.keyboard.press_ctrl_alt_del()
    }

    /// Counts what the guest told about panics.
    pub fn panic_metrics(&self) -> Arc<PvPanicMetrics> {
        self.pvpanic.metrics()
    }

    /// Its memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Pages that were written since the last snapshot, if the machine was told to log them. The machine stands still.
    pub fn unsaved(&mut self) -> Result<Option<&DirtyMap>, SlotError> {
        Ok(self.look_at_log()?.then_some(&self.unsaved))
    }

    /// Pages that were written since what is behind memory was put there, likewise.
    pub fn over_base(&mut self) -> Result<Option<&DirtyMap>, SlotError> {
        Ok(self.look_at_log()?.then_some(&self.over_base))
    }

    /// Enters what was written since this was last called; `false` if nobody keeps a log.
    fn look_at_log(&mut self) -> Result<bool, SlotError> {
        let Some(fresh) = self.memory.take_dirty()? else { return Ok(false) };
        self.unsaved.merge(&fresh);
        self.over_base.merge(&fresh);
        Ok(true)
    }

    /// Something else is behind memory from now on, with all that was written until now. The machine stands still.
    pub fn has_another_base(&mut self, source: Source) -> Result<(), SlotError> {
        self.look_at_log()?;
        self.memory.source = source;
        self.over_base = assemble::nothing_written(&self.memory);
        Ok(())
    }

    /// A snapshot was written, and what comes is compared with it.
    pub fn was_saved(&mut self) {
        self.unsaved = assemble::nothing_written(&self.memory);
    }

    /// Bytes of its memory that a restored machine shares with no other one of the same file when it begins.
    pub fn private_len(&self) -> u64 {
        self.memory.copied_len + Identity::<EventFd>::WRITTEN_LEN
    }

    /// It is put together, and was told who it is: nothing of ours waits for its memory any more.
    pub fn is_loaded(&self) {
        if let Some((_, watch)) = &self.watch {
            watch.machine_is_loaded();
        }
    }

    /// Begins to bring memory that will be wanted, if it is known what that is.
    pub fn bring_what_is_wanted(&self) {
        if let Some(prefetch) = &self.prefetch {
            prefetch.begin(&self.memory);
        }
    }

    /// Tells the guest that it was restored from a snapshot and so may exist more than once. Call it before [`Self::resume`].
    pub fn renew_identity(&self) -> Result<(), IdentityError> {
        self.identity.renew()
    }

    /// Tells the guest once more of what it has not heard: an interrupt may have got lost on the way. Call it before [`Self::resume`].
    pub fn remind(&self) {
        if let Some(cpus) = &self.cpus {
            cpus.remind();
        }
        if let Some(pci) = &self.pci {
            pci.remind();
        }
    }

    /// The cell of a device, if the machine has it.
    pub fn device(&self, name: &DeviceName) -> Option<&Arc<VirtioCell>> {
        self.seats.iter().find(|seat| seat.name == *name).map(|seat| &seat.cell)
    }

    /// What a device that a request names is called here: drives that other processes serve have a name of their own.
    pub fn known_as(&self, name: DeviceName) -> DeviceName {
        let DeviceName::Drive(id) = name else { return name };
        let served = DeviceName::VhostUserDrive(id.clone());
        if self.device(&served).is_some() { served } else { DeviceName::Drive(id) }
    }

    /// How much of the hot-pluggable memory should be and is plugged, if the machine has any.
    pub fn hotplug_levels(&self) -> Option<&Levels> {
        self.memory.hotplug.as_ref().map(|region| &*region.levels)
    }

    /// Runs `work` where the device called `name` is served: for a device that may block, on its thread, after what it is doing; else
    /// here and now. Whoever wants to know the outcome has `work` send it.
    pub fn run_at(&self, name: &DeviceName, work: impl FnOnce() + Send + 'static) {
        match self.io_threads.iter().find(|served| served.names.contains(name)) {
            Some(served) => served.thread.run(work),
            None => work(),
        }
    }

    /// Runs `work` where files may still be opened. Whoever wants to know the outcome has `work` send it.
    pub fn run_with_files(&self, work: impl FnOnce() + Send + 'static) {
        self.files.run(work);
    }

    /// Ends the guest: vCPU threads end, devices finish what is in flight and make it durable.
    pub fn shut_down(self) {
        let Self { crew, seats, io_threads, files, serial, watch, pci, .. } = self;
        for seat in &seats {
            seat.cell.hurry();
        }
        drop(crew);
        if let Some(pci) = &pci {
            pci.abandon();
        }
        drop(files);
        drop(io_threads);
        for seat in &seats {
            if let Err(error) = seat.cell.shut_down() {
                log::error!("{}: not everything the guest wrote is durable: {error}", seat.name);
            }
        }
        serial.finish();
        if let Some((_thread, watch)) = &watch {
            watch.machine_is_gone();
        }
    }
}

/// Calls what is in it as soon as nobody holds it any more.
struct WhenDropped<F: FnOnce()>(Mutex<Option<F>>);

impl<F: FnOnce()> Drop for WhenDropped<F> {
    fn drop(&mut self) {
        if let Some(call) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            call();
        }
    }
}
