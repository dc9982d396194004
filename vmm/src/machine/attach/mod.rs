//! Attaching virtio devices: from a plan's opened resources to live cells, in windows or on the PCI bus. One file per kind of device.

mod balloon;
pub(super) mod block;
mod memory;
pub(super) mod net;
pub(super) mod pmem;
mod rng;
mod vhost_user;
mod vsock;

use std::sync::Arc;

use devices::bus::BusBuilder;
use devices::legacy::ioapic::IoApic;
use devices::mmds::Mmds;
use devices::virtio::any::AnyDevice;
use devices::virtio::block::UringHub;
use devices::virtio::cell::VirtioCell;
use devices::virtio::transport::mmio::{MmioIrq, MmioWindow, WINDOW_LEN};
use kvm_ioctls::VmFd;
use vm_memory::GuestAddress;

use super::assemble::irq_line;
use super::pci::{Pci, SlotPlan};
use super::placement::{Place, Placement};
use super::roster::{DeviceName, Home, Seat};
use super::spread::Spread;
use crate::arch::acpi::VirtioNode;
use crate::blueprint::{Backing, Plan};
use crate::boot::CommandLine;
use crate::config::Transport;
use crate::error::{Error, Subject};
use crate::kvm::Doorbell;
use crate::memory::Memory;

/// A device that was made, with all its lanes, and where it is to be served.
pub(super) struct Lanes {
    pub(super) first: AnyDevice,
    pub(super) others: Vec<AnyDevice>,
    pub(super) home: Home,
}

/// How devices appear to the guest.
pub(super) enum Places<'a> {
    /// Each in a window of its own.
    Mmio(Placement),
    /// Each in a slot.
    Pci(&'a Pci, SlotPlan<'a>),
}

impl Places<'_> {
    pub(super) fn transport(&self) -> Transport {
        match self {
            Self::Mmio(_) => Transport::Mmio,
            Self::Pci(..) => Transport::Pci,
        }
    }
}

/// Where devices are attached.
pub(super) struct Board<'a> {
    pub(super) vm: &'a Arc<VmFd>,
    pub(super) memory: &'a Memory,
    pub(super) ioapic: &'a Arc<IoApic>,
    pub(super) mmio: &'a mut BusBuilder,
    pub(super) line: &'a mut CommandLine,
    pub(super) transport: Transport,
    places: Places<'a>,
    spread: Spread,
    seats: Vec<Seat>,
    nodes: Vec<VirtioNode>,
}

impl<'a> Board<'a> {
    /// An empty board.
    pub(super) fn new(
        vm: &'a Arc<VmFd>,
        memory: &'a Memory,
        ioapic: &'a Arc<IoApic>,
        mmio: &'a mut BusBuilder,
        line: &'a mut CommandLine,
        places: Places<'a>,
        spread: Spread,
    ) -> Self {
        let transport = places.transport();
        Self { vm, memory, ioapic, mmio, line, transport, places, spread, seats: Vec::new(), nodes: Vec::new() }
    }

    /// Gives a device its place, and describes it to the guest.
    fn put(&mut self, name: DeviceName, home: Home, device: AnyDevice) -> Result<Arc<VirtioCell>, Error> {
        self.put_lanes(name, home, device, Vec::new())
    }

    /// The same of a device with several lanes.
    fn put_lanes(
        &mut self,
        name: DeviceName,
        home: Home,
        first: AnyDevice,
        others: Vec<AnyDevice>,
    ) -> Result<Arc<VirtioCell>, Error> {
        let fail = |e: &dyn std::fmt::Display| Error::host(Subject::Start, format!("{name}: {e}"));
        let (cell, card) = match &mut self.places {
            Places::Mmio(placement) => {
                let place = placement.next().map_err(|e| fail(&e))?;
                (self.open_window(&name, first, others, place)?, None)
            }
            Places::Pci(pci, slots) => {
                let slot = slots.of(&name).map_err(|e| fail(&e))?;
                let made = pci.workshop.make(&name, first, others, self.memory.everything.clone(), slot);
                let (cell, card) = made.map_err(|e| fail(&e))?;
                (cell, Some(card))
            }
        };
        let threads = self.spread.threads(cell.lane_count());
        self.seats.push(Seat { name, cell: cell.clone(), home, threads, card });
        Ok(cell)
    }

    fn open_window(
        &mut self,
        name: &DeviceName,
        first: AnyDevice,
        others: Vec<AnyDevice>,
        place: Place,
    ) -> Result<Arc<VirtioCell>, Error> {
        let fail = |e: &dyn std::fmt::Display| Error::host(Subject::Start, format!("{name}: {e}"));
        let irq = Arc::new(MmioIrq::new(irq_line(self.vm, place.gsi)?));
        let repeat = irq.clone();
        self.ioapic.connect(place.gsi, move || repeat.repeat());
        let doorbell = Arc::new(Doorbell::new(self.vm.clone(), place.window));
        let ram = self.memory.everything.clone();
        let cell = VirtioCell::with_lanes(name.to_string(), first, others, ram, irq.clone(), doorbell);
        let cell = Arc::new(cell.map_err(|e| fail(&e))?);
        let window = Arc::new(MmioWindow::new(cell.clone(), irq));
        self.mmio.insert(place.window, WINDOW_LEN, window).map_err(|e| fail(&e))?;
        self.line.push_virtio_mmio(GuestAddress(place.window), place.gsi).map_err(|e| fail(&e))?;
        let base = u32::try_from(place.window).map_err(|e| fail(&e))?;
        self.nodes.push(VirtioNode { base, len: WINDOW_LEN as u32, gsi: place.gsi });
        Ok(cell)
    }

    /// Attaches the plan's devices. The order is a contract: balloon, drives (root first), network interfaces, pmem, vsock, entropy, memory;
    /// behind what the contract knows, file systems.
    pub(super) fn attach_all(&mut self, plan: &Plan, hubs: &[Arc<UringHub>], mmds: &Arc<Mmds>) -> Result<(), Error> {
        if let Some(config) = &plan.balloon {
            balloon::attach(self, config)?;
        }
        for drive in plan.drives() {
            match &drive.backing {
                Backing::File(file) => block::attach(self, drive, file, plan.machine.vcpu_count(), hubs)?,
                Backing::Peer(peer) => vhost_user::attach_drive(self, drive, peer)?,
            }
        }
        for interface in plan.nets() {
            net::attach(self, interface, plan.machine.vcpu_count(), plan.mmds(), mmds)?;
        }
        for (index, (config, region)) in plan.pmems().iter().zip(&self.memory.pmems).enumerate() {
            pmem::attach(self, index, config, region)?;
        }
        if let Some(device) = &plan.vsock {
            vsock::attach(self, device)?;
        }
        if let Some(config) = &plan.entropy {
            rng::attach(self, config)?;
        }
        if let Some(region) = &self.memory.hotplug {
            memory::attach(self, region)?;
        }
        for fs in plan.file_systems() {
            vhost_user::attach_fs(self, fs)?;
        }
        Ok(())
    }

    /// What is on the board, and how the guest finds it.
    pub(super) fn done(self) -> (Vec<Seat>, Vec<VirtioNode>) {
        (self.seats, self.nodes)
    }
}
