//! Interrupt routes and doorbells: how irqfds reach local APICs and how queue notifications reach eventfds.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use devices::irq::{INTERRUPTS, Msi};
use devices::legacy::ioapic::IrqRouter;
use devices::virtio::cell::DoorbellBinder;
use devices::virtio::transport::mmio::QUEUE_NOTIFY;
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::layout::IOAPIC_PINS;

/// Turns what the guest programs into the IOAPIC into KVM's routing table. A pin without a route is masked: its edges are lost.
pub struct Routes {
    vm: Arc<VmFd>,
    table: Mutex<[Option<Msi>; IOAPIC_PINS as usize]>,
}

impl Routes {
    /// No routes.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, table: Mutex::new([None; IOAPIC_PINS as usize]) }
    }
}

impl Routes {
    /// Tells KVM all of the table.
    fn tell(&self, table: &[Option<Msi>], what: &dyn std::fmt::Display) {
        let entries: Vec<kvm_irq_routing_entry> =
            (0u32..).zip(table).filter_map(|(gsi, msi)| msi.map(|msi| entry(gsi, msi))).collect();
        // At most 24 entries, far below the wrapper's limit.
        let Ok(routing) = KvmIrqRouting::from_entries(&entries) else { return };
        INTERRUPTS.config_updates.inc();
        if let Err(error) = self.vm.set_gsi_routing(&routing) {
            devices::guest_warn!("interrupt route of {what} not set: {error}");
        }
    }
}

impl IrqRouter for Routes {
    fn set(&self, gsi: u32, msi: Option<Msi>) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        match table.get_mut(gsi as usize) {
            Some(route) => *route = msi,
            None => return,
        }
        self.tell(&*table, &format_args!("GSI {gsi}"));
    }

    fn set_all(&self, routes: &[Option<Msi>; IOAPIC_PINS as usize]) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        *table = *routes;
        self.tell(&*table, &"all GSIs");
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
}
