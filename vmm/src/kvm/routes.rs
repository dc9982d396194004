//! Interrupt routes and doorbells: how irqfds reach local APICs and how queue notifications reach eventfds.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::irq::{INTERRUPTS, Msi};
use devices::legacy::ioapic::IrqRouter;
use devices::virtio::cell::DoorbellBinder;
use devices::virtio::transport::mmio::QUEUE_NOTIFY;
use devices::virtio::transport::pci;
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::layout::IOAPIC_PINS;

/// KVM's routing table: which message an edge on a GSI becomes. A GSI without a route is masked: its edges are lost.
///
/// The first GSIs are the I/O APIC's pins, see [`IrqRouter`]; those behind them are handed out to MSI-X vectors, see `kvm::vectors`.
pub struct Routes {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    pins: [Option<Msi>; IOAPIC_PINS as usize],
    vectors: BTreeMap<u32, Msi>,
    /// While it is not zero, KVM is told later: each telling replaces all of its table, and it waits for those who read the old one.
    held: u32,
}

impl Routes {
    /// No routes.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, table: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Edges on these GSIs, which are no pins, become these messages from now on; `None` drops them.
    pub fn set_vectors(&self, routes: impl IntoIterator<Item = (u32, Option<Msi>)>) {
        let mut table = self.lock();
        for (gsi, msi) in routes {
            match msi {
                Some(msi) => table.vectors.insert(gsi, msi),
                None => table.vectors.remove(&gsi),
            };
        }
        self.tell(&table, &"MSI-X vectors");
    }

    /// Does something that sets many routes, and tells KVM of them together at its end.
    pub fn together<T>(&self, work: impl FnOnce() -> T) -> T {
        self.lock().held += 1;
        let outcome = work();
        let mut table = self.lock();
        table.held -= 1;
        self.tell(&table, &"a machine that goes on");
        outcome
    }

    /// Tells KVM all of the table.
    fn tell(&self, table: &Table, what: &dyn std::fmt::Display) {
        if table.held > 0 {
            return;
        }
        let pins = (0u32..).zip(&table.pins).filter_map(|(gsi, msi)| msi.map(|msi| (gsi, msi)));
        let vectors = table.vectors.iter().map(|(gsi, msi)| (*gsi, *msi));
        let entries: Vec<kvm_irq_routing_entry> = pins.chain(vectors).map(|(gsi, msi)| entry(gsi, msi)).collect();
        // At most as many as there are GSIs, which is the wrapper's limit.
        let Ok(routing) = KvmIrqRouting::from_entries(&entries) else { return };
        INTERRUPTS.config_updates.inc();
        if let Err(error) = self.vm.set_gsi_routing(&routing) {
            devices::guest_warn!("interrupt route of {what} not set: {error}");
        }
    }
}

impl IrqRouter for Routes {
    fn set(&self, gsi: u32, msi: Option<Msi>) {
        let mut table = self.lock();
        match table.pins.get_mut(gsi as usize) {
            Some(route) => *route = msi,
            None => return,
        }
        self.tell(&table, &format_args!("GSI {gsi}"));
    }

    fn set_all(&self, routes: &[Option<Msi>; IOAPIC_PINS as usize]) {
        let mut table = self.lock();
        table.pins = *routes;
        self.tell(&table, &"all GSIs");
    }
}

fn entry(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: msi.address as u32,
                address_hi: (msi.address >> 32) as u32,
                data: msi.data,
                ..Default::default()
            },
        },
        ..Default::default()
    }
}

/// Binds the doorbells of one virtio-mmio window by ioeventfds.
pub struct Doorbell {
    vm: Arc<VmFd>,
    window: u64,
}

impl Doorbell {
    /// Doorbells of the window at guest address `window`.
    pub fn new(vm: Arc<VmFd>, window: u64) -> Self {
        Self { vm, window }
    }
}

impl DoorbellBinder for Doorbell {
    fn bind(&self, index: u16, bell: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(self.window.saturating_add(QUEUE_NOTIFY));
        Ok(self.vm.register_ioevent(bell, &address, u32::from(index))?)
    }

    fn unbind(&self, index: u16, bell: &EventFd) {
        let address = IoEventAddress::Mmio(self.window.saturating_add(QUEUE_NOTIFY));
        if let Err(error) = self.vm.unregister_ioevent(bell, &address, u32::from(index)) {
            log::warn!("doorbell {index} stays bound: {error}");
        }
    }
}

/// Binds the doorbells of a PCI function by ioeventfds, wherever its BAR is.
pub struct PciDoorbell {
    vm: Arc<VmFd>,
    /// Where the BAR is. `NOWHERE` while the function does not answer.
    bar: AtomicU64,
}

/// No BAR is there: it would be aligned.
const NOWHERE: u64 = u64::MAX;

impl PciDoorbell {
    /// Of a function that does not answer yet.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, bar: AtomicU64::new(NOWHERE) }
    }

    /// The BAR is there from now on. No doorbell is bound meanwhile.
    pub fn move_to(&self, bar: Option<u64>) {
        self.bar.store(bar.unwrap_or(NOWHERE), Ordering::Relaxed);
    }

    fn address(&self, index: u16) -> Option<IoEventAddress> {
        let bar = Some(self.bar.load(Ordering::Relaxed)).filter(|bar| *bar != NOWHERE)?;
        Some(IoEventAddress::Mmio(bar.checked_add(pci::doorbell(index))?))
    }
}

impl DoorbellBinder for PciDoorbell {
    fn bind(&self, index: u16, bell: &EventFd) -> io::Result<()> {
        match self.address(index) {
            Some(address) => Ok(self.vm.register_ioevent(bell, &address, NoDatamatch)?),
            None => Ok(()),
        }
    }

    fn unbind(&self, index: u16, bell: &EventFd) {
        let Some(address) = self.address(index) else { return };
        if let Err(error) = self.vm.unregister_ioevent(bell, &address, NoDatamatch) {
            log::warn!("doorbell {index} stays bound: {error}");
        }
    }
}
