//! The PCI side of a machine: the bus, who sits in which slot, and what a function needs of KVM.
//!
//! Functions are made where that may take a while (at the start, or on the thread that opens files) and put into their slots on the VMM thread.

use std::sync::Arc;

use devices::bus::BusBuilder;
use devices::pci::bus::{BarWindow, CONFIG_PORT, CONFIG_PORTS, ConfigPorts, ECAM_BUS_LEN, Ecam, NoSlot, PciBus, SLOTS};
use devices::pci::hotplug::{HotplugPorts, HotplugState, PORTS};
use devices::ram::GuestRam;
use devices::virtio::any::AnyDevice;
use devices::virtio::cell::VirtioCell;
use devices::virtio::transport::pci::{BAR_LEN, PciIrq, PciState, VirtioPci};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::assemble::start_error;
use super::identity::Notice;
use super::roster::{DeviceName, Seat};
use super::traps::Traps;
use crate::arch::layout;
use crate::error::Error;
use crate::kvm::{Gsis, Lines, PciDoorbell, Routes};
use crate::snapshot::Section;

/// What of the bus outlives the process. Machines without one have none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPci {
    /// The old address port.
    pub address: u32,
    /// What the guest was not told.
    pub hotplug: HotplugState,
    /// Who sits where, by the devices' names as log lines have them.
    pub functions: Vec<(String, u8, PciState)>,
}

impl Section for SavedPci {
    const NAME: &'static str = "pci";
    const VERSION: u16 = 1;
}

impl SavedPci {
    /// Whether a machine could be so.
    pub fn check(&self) -> Result<(), String> {
        let mut taken = 1u32;
        for (name, slot, _) in &self.functions {
            let bit = Some(*slot).filter(|slot| *slot < SLOTS).map_or(0, |slot| 1 << slot);
            if bit == 0 || taken & bit != 0 {
                return Err(format!("{name} is in slot {slot}, which is taken or does not exist"));
            }
            taken |= bit;
        }
        Ok(())
    }

    fn of(&self, name: &DeviceName) -> Option<&(String, u8, PciState)> {
        let name = name.to_string();
        self.functions.iter().find(|(known, ..)| *known == name)
    }
}

/// A function and its slot.
#[derive(Clone)]
pub(super) struct Card {
    pub(super) slot: u8,
    pub(super) function: Arc<VirtioPci>,
}

/// What functions are made of. Other threads may have a copy.
#[derive(Clone)]
pub(super) struct Workshop {
    vm: Arc<VmFd>,
    routes: Arc<Routes>,
    gsis: Arc<Gsis>,
}

impl Workshop {
    /// Makes a function of a device, for a slot. Nothing of it is on the bus.
    pub(super) fn make(
        &self,
        name: &DeviceName,
        first: AnyDevice,
        others: Vec<AnyDevice>,
        memory: GuestRam,
        slot: u8,
    ) -> Result<(Arc<VirtioCell>, Card), String> {
        let queues = first.get().queue_max_sizes().len() as u16;
        let vectors = PciIrq::vectors(queues);
        let lines = Lines::new(self.vm.clone(), self.routes.clone(), self.gsis.clone(), vectors);
        let irq = Arc::new(PciIrq::new(queues, Arc::new(lines.map_err(|e| e.to_string())?)));
        let doorbell = Arc::new(PciDoorbell::new(self.vm.clone()));
        let cell = VirtioCell::with_lanes(name.to_string(), first, others, memory, irq.clone(), doorbell.clone());
        let cell = Arc::new(cell.map_err(|e| e.to_string())?.with_sized_queues());
        let base = layout::PCI_BARS_START + u64::from(slot) * BAR_LEN;
        let function = VirtioPci::new(cell.clone(), irq, base, move |base| doorbell.move_to(base));
        Ok((cell, Card { slot, function: Arc::new(function) }))
    }
}

/// The bus and its registers.
pub(super) struct Pci {
    pub(super) bus: Arc<PciBus>,
    ports: Arc<ConfigPorts>,
    pub(super) hotplug: Arc<HotplugPorts>,
    pub(super) workshop: Workshop,
    /// Read-only persistent memory.
    pub(super) traps: Arc<Traps>,
    notice: Arc<Notice<EventFd>>,
}

impl Pci {
    /// A bus with a host bridge, which answers on the machine's buses. `notice` interrupts the guest, `released` hears of a slot that it let
    /// go of.
    pub(super) fn new(
        vm: &Arc<VmFd>,
        routes: &Arc<Routes>,
        notice: Arc<Notice<EventFd>>,
        released: impl Fn() + Send + Sync + 'static,
        pio: &mut BusBuilder,
        mmio: &mut BusBuilder,
    ) -> Result<Self, Error> {
        let bars = layout::PCI_BARS_START..layout::PCI_BARS_START + layout::PCI_BARS_LEN;
        let bus = Arc::new(PciBus::new(bars.clone()));
        let ports = Arc::new(ConfigPorts::new(bus.clone()));
        let look = notice.clone();
        let hotplug = Arc::new(HotplugPorts::new(move || look.give(), released));
        pio.insert(CONFIG_PORT.into(), CONFIG_PORTS.into(), ports.clone()).map_err(start_error)?;
        pio.insert(layout::PCI_HOTPLUG_PORT.into(), PORTS.into(), hotplug.clone()).map_err(start_error)?;
        let ecam = Arc::new(Ecam(bus.clone()));
        mmio.insert(layout::PCI_MMCONFIG_START.0, ECAM_BUS_LEN, ecam).map_err(start_error)?;
        let window = Arc::new(BarWindow(bus.clone()));
        mmio.insert(bars.start, layout::PCI_BARS_LEN, window).map_err(start_error)?;
        let traps = Arc::new(Traps::new(layout::PMEM_START));
        mmio.insert(layout::PMEM_START, layout::PMEM_END - layout::PMEM_START, traps.clone()).map_err(start_error)?;
        let workshop = Workshop { vm: vm.clone(), routes: routes.clone(), gsis: Arc::default() };
        Ok(Self { bus, ports, hotplug, workshop, traps, notice })
    }

    /// Puts functions into their slots: those of a machine that was saved as they were.
    pub(super) fn fill(&self, seats: &[Seat], saved: Option<&SavedPci>) -> Result<(), Error> {
        if let Some(saved) = saved {
            self.ports.set_address(saved.address);
            self.hotplug.restore(saved.hotplug);
        }
        for seat in seats {
            let Some(card) = &seat.card else { continue };
            if let Some((name, _, state)) = saved.and_then(|saved| saved.of(&seat.name)) {
                card.function.restore(state).map_err(|e| start_error(format!("{name}: {e}")))?;
            }
            self.bus.insert(card.slot, card.function.clone()).map_err(start_error)?;
        }
        Ok(())
    }

    pub(super) fn save(&self, seats: &[Seat]) -> SavedPci {
        let functions = seats.iter().filter_map(|seat| {
            let Card { slot, function } = seat.card.as_ref()?;
            Some((seat.name.to_string(), *slot, function.save()))
        });
        SavedPci { address: self.ports.address(), hotplug: self.hotplug.save(), functions: functions.collect() }
    }

    /// The machine ends.
    pub(super) fn abandon(&self) {
        self.workshop.gsis.abandon();
    }

    /// The guest hears that there is something to look at, if there is.
    pub(super) fn remind(&self) {
        if self.hotplug.is_pending() {
            self.notice.give();
        }
    }
}

/// Which slot a machine's devices get that it has from the start: one after the other, or those they had.
pub(super) struct SlotPlan<'a> {
    saved: Option<&'a SavedPci>,
    next: u8,
}

impl<'a> SlotPlan<'a> {
    pub(super) fn new(saved: Option<&'a SavedPci>) -> Self {
        Self { saved, next: 1 }
    }

    pub(super) fn of(&mut self, name: &DeviceName) -> Result<u8, String> {
        if let Some(saved) = self.saved {
            let found = saved.of(name).map(|(_, slot, _)| *slot);
            return found.ok_or_else(|| "the state of the PCI bus does not say in which slot it is".to_owned());
        }
        let slot = Some(self.next).filter(|slot| *slot < SLOTS).ok_or_else(|| NoSlot::Full.to_string())?;
        self.next += 1;
        Ok(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_given_once() {
        let mut plan = SlotPlan::new(None);
        let slots: Vec<u8> = (0..31).map(|_| plan.of(&DeviceName::Rng).unwrap()).collect();
        assert_eq!(slots, (1..32).collect::<Vec<_>>());
        assert_eq!(
            plan.of(&DeviceName::Rng),
            Err("Could not find an available device slot on the PCI bus.".to_owned())
        );
    }

    #[test]
    fn a_saved_bus_is_judged() {
        let state = |name: &str, slot| {
            let msix = devices::pci::msix::MsixState { control: 0, entries: Vec::new(), pending: Vec::new() };
            (name.to_owned(), slot, PciState { config: Vec::new(), msix, config_vector: 0, queue_vectors: Vec::new() })
        };
        let saved = |functions| SavedPci { address: 0, hotplug: HotplugState::default(), functions };
        assert_eq!(saved(vec![state("vsock", 1), state("balloon", 31)]).check(), Ok(()));
        for slots in [[0, 1], [1, 1], [5, 32], [255, 2]] {
            let bad = saved(slots.map(|slot| state("vsock", slot)).to_vec());
            assert!(bad.check().is_err(), "{slots:?}");
        }
        let bus = saved(vec![state("entropy device", 7)]);
        let mut plan = SlotPlan::new(Some(&bus));
        assert_eq!(plan.of(&DeviceName::Rng), Ok(7));
        assert!(plan.of(&DeviceName::Vsock).is_err());
    }
}
