//! The I/O APIC (Intel 82093AA) in user space, for KVM's split irqchip.
//!
//! It never carries an interrupt itself: it turns each unmasked redirection entry into an MSI and hands that to the [`IrqRouter`], so
//! that irqfds reach the local APICs inside KVM. Only a change of what a pin's MSI *is* reaches the router, because each update costs the
//! host a grace period.
//!
//! Edges on a masked pin are lost, and devices here raise edges only. Therefore whoever drives a pin is asked to repeat an interrupt
//! that is still unserved, when the pin is unmasked and, for pins a driver calls level-triggered, at the end of an interrupt.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::irq::Msi;

/// Number of pins, which are GSIs 0 to 23.
pub const PINS: usize = 24;

/// Version 0x11, and the number of the last redirection entry in bits 16 to 23.
const VERSION: u32 = 0x11 | ((PINS as u32 - 1) << 16);

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
const REG_FIRST_ENTRY: u8 = 0x10;

const ID_SHIFT: u32 = 24;
const ID_MASK: u8 = 0xf;

// Redirection entry (82093AA §3.2.4).
const LOGICAL: u64 = 1 << 11;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Vector, delivery mode, destination mode, polarity, trigger mode, mask and destination. The rest is reserved or read-only; the remote
/// IRR always reads as zero, because the interrupt itself passes by inside KVM.
const WRITABLE: u64 = 0xff00_0000_0001_afff;

/// First vector that is not reserved for exceptions (Intel SDM 3A §11.5.2).
const FIRST_VECTOR: u32 = 16;

/// Where the pins' interrupts are routed (KVM's GSI routing table in practice).
pub trait IrqRouter: Send + Sync {
    /// Edges on `gsi` become `msi` from now on; `None` drops them. Called with the I/O APIC's lock held, so that the last write of
    /// several vCPUs wins; must not call back into the I/O APIC.
    fn set(&self, gsi: u32, msi: Option<Msi>);

    /// The same for all pins at once.
    fn set_all(&self, routes: &[Option<Msi>; PINS]) {
        for (gsi, msi) in (0..).zip(routes) {
            self.set(gsi, *msi);
        }
    }
}

/// What a snapshot needs of an I/O APIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    /// APIC id, 4 bits.
    pub id: u8,
    /// Index register.
    pub select: u8,
    /// Redirection entries.
    pub entries: [u64; PINS],
}

impl Default for IoApicState {
    fn default() -> Self {
        Self { id: 0, select: 0, entries: [MASKED; PINS] }
    }
}

struct Inner {
    state: IoApicState,
    /// What the router was last told, for each pin.
    routes: [Option<Msi>; PINS],
}

type Repeat = Box<dyn Fn() + Send + Sync>;

/// An I/O APIC.
pub struct IoApic {
    router: Arc<dyn IrqRouter>,
    inner: Mutex<Inner>,
    repeaters: [OnceLock<Repeat>; PINS],
}

impl IoApic {
    /// Guest physical address of the window.
    pub const BASE: u64 = 0xfec0_0000;
    /// Length of the window in bytes.
    pub const LEN: u64 = 0x1000;

    /// All pins masked. The router must start without routes too.
    pub fn new(router: Arc<dyn IrqRouter>) -> Self {
        Self {
            router,
            inner: Mutex::new(Inner { state: IoApicState::default(), routes: [None; PINS] }),
            repeaters: [const { OnceLock::new() }; PINS],
        }
    }

    /// `repeat` raises the pin's line again if its device still has something unserved. Called on vCPU threads, without the I/O APIC's
    /// lock. One per pin: `false` if there is no such pin or it has one.
    pub fn connect(&self, pin: u32, repeat: impl Fn() + Send + Sync + 'static) -> bool {
        self.repeaters.get(pin as usize).is_some_and(|slot| slot.set(Box::new(repeat)).is_ok())
    }

    /// A vCPU ended a level-triggered interrupt with this vector (`KVM_EXIT_IOAPIC_EOI`).
    pub fn end_of_interrupt(&self, vector: u8) {
        let ended = {
            let inner = self.lock();
            inner.state.entries.map(|entry| entry & (MASKED | LEVEL) == LEVEL && entry as u8 == vector)
        };
        for (pin, _) in ended.iter().enumerate().filter(|(_, ended)| **ended) {
            self.repeat(pin);
        }
    }

    /// What a snapshot needs.
    pub fn save(&self) -> IoApicState {
        self.lock().state.clone()
    }

    /// Takes up a saved state and routes accordingly. Bits a guest could not have set are dropped.
    pub fn restore(&self, state: &IoApicState) {
        let mut inner = self.lock();
        inner.state = IoApicState {
            id: state.id & ID_MASK,
            select: state.select,
            entries: state.entries.map(|entry| entry & WRITABLE),
        };
        let routes = inner.state.entries.map(message);
        if routes != inner.routes {
            inner.routes = routes;
            self.router.set_all(&routes);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn repeat(&self, pin: usize) {
        if let Some(repeat) = self.repeaters.get(pin).and_then(OnceLock::get) {
            repeat();
        }
    }

    /// Brings the router up to date with one pin. Whether the pin was opened by that.
    fn route(&self, inner: &mut Inner, pin: usize) -> bool {
        let (Some(entry), Some(route)) = (inner.state.entries.get(pin), inner.routes.get_mut(pin)) else {
            return false;
        };
        let wanted = message(*entry);
        if wanted == *route {
            return false;
        }
        let opened = route.is_none();
        *route = wanted;
        self.router.set(pin as u32, wanted);
        opened
    }

    fn read_window(&self) -> u32 {
        let inner = self.lock();
        match inner.state.select {
            REG_ID | REG_ARBITRATION => u32::from(inner.state.id) << ID_SHIFT,
            REG_VERSION => VERSION,
            select => match entry_half(select).and_then(|(pin, high)| Some((inner.state.entries.get(pin)?, high))) {
                Some((entry, true)) => (entry >> 32) as u32,
                Some((entry, false)) => *entry as u32,
                None => 0,
            },
        }
    }

    fn write_window(&self, value: u32) {
        let mut inner = self.lock();
        let select = inner.state.select;
        if select == REG_ID {
            inner.state.id = (value >> ID_SHIFT) as u8 & ID_MASK;
        }
        let Some((pin, high)) = entry_half(select) else { return };
        let Some(entry) = inner.state.entries.get_mut(pin) else { return };
        let (low_bits, high_bits) = (*entry & 0xffff_ffff, *entry >> 32);
        let written = u64::from(value);
        *entry = WRITABLE & if high { (written << 32) | low_bits } else { (high_bits << 32) | written };
        let opened = self.route(&mut inner, pin);
        drop(inner);
        if opened {
            self.repeat(pin);
        }
    }
}

/// Which pin's entry a register belongs to, and whether it is the upper half.
fn entry_half(select: u8) -> Option<(usize, bool)> {
    let index = select.checked_sub(REG_FIRST_ENTRY)?;
    let pin = usize::from(index / 2);
    (pin < PINS).then_some((pin, index % 2 == 1))
}

/// The message an entry stands for. `None` if it is masked or means nothing on this machine: SMI, ExtINT (there is no PIC), reserved
/// delivery modes, and vectors that a local APIC refuses.
fn message(entry: u64) -> Option<Msi> {
    const FIXED: u32 = 0;
    const LOWEST_PRIORITY: u32 = 1;
    const NMI: u32 = 4;
    const INIT: u32 = 5;
    if entry & MASKED != 0 {
        return None;
    }
    let vector = entry as u32 & 0xff;
    let mode = (entry >> 8) as u32 & 7;
    let deliverable = match mode {
        FIXED | LOWEST_PRIORITY => vector >= FIRST_VECTOR,
        NMI | INIT => true,
        _ => false,
    };
    let destination = entry >> 56;
    let logical = u64::from(entry & LOGICAL != 0);
    // Level-triggered messages are asserts (bit 14) with bit 15 set.
    let trigger = if entry & LEVEL != 0 { 0b11 << 14 } else { 0 };
    deliverable.then_some(Msi {
        address: 0xfee0_0000 | (destination << 12) | (logical << 2),
        data: vector | (mode << 8) | trigger,
    })
}

impl BusDevice for IoApic {
    /// Registers are 32 bits wide; narrower reads see part of one, wider ones are padded with zeroes.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset & !3 {
            SELECT => self.lock().state.select.into(),
            WINDOW => self.read_window(),
            _ => 0,
        };
        let bytes = value.to_le_bytes();
        let mut from = bytes.iter().skip((offset & 3) as usize);
        data.fill_with(|| from.next().copied().unwrap_or(0));
    }

    /// The index register may be written with any width; the window only as a whole.
    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SELECT, [select, ..]) => self.lock().state.select = *select,
            (WINDOW, data) => {
                if let Ok(word) = <[u8; 4]>::try_from(data) {
                    self.write_window(u32::from_le_bytes(word));
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Routes(Mutex<Vec<(u32, Option<Msi>)>>);

    impl IrqRouter for Routes {
        fn set(&self, gsi: u32, msi: Option<Msi>) {
            self.0.lock().unwrap().push((gsi, msi));
        }

        fn set_all(&self, routes: &[Option<Msi>; PINS]) {
            let open = (0..).zip(routes).filter(|(_, msi)| msi.is_some()).map(|(gsi, msi)| (gsi, *msi));
            *self.0.lock().unwrap() = open.collect();
        }
    }

    fn new() -> (Arc<Routes>, IoApic) {
        let routes = Arc::new(Routes::default());
        (routes.clone(), IoApic::new(routes))
    }

    fn set(apic: &IoApic, register: u8, value: u32) {
        apic.write(0, &u32::from(register).to_le_bytes());
        apic.write(0x10, &value.to_le_bytes());
    }

    fn get(apic: &IoApic, register: u8) -> u32 {
        apic.write(0, &[register]);
        let mut word = [0; 4];
        apic.read(0x10, &mut word);
        u32::from_le_bytes(word)
    }

    #[test]
    fn registers() {
        let (_, apic) = new();
        assert_eq!(get(&apic, 1), 0x0017_0011);
        set(&apic, 0, 0xffff_ffff);
        assert_eq!((get(&apic, 0), get(&apic, 2)), (0x0f00_0000, 0x0f00_0000));
        set(&apic, 1, 0);
        assert_eq!(get(&apic, 1), 0x0017_0011);
        assert_eq!(get(&apic, 0x10), 0x0001_0000);
        set(&apic, 0x3f, 0xffff_ffff);
        set(&apic, 0x3e, 0xffff_ffff);
        assert_eq!((get(&apic, 0x3e), get(&apic, 0x3f)), (0x0001_afff, 0xff00_0000));
        set(&apic, 0x40, 1);
        assert_eq!(get(&apic, 0x40), 0);
    }

    #[test]
    fn entries_become_messages_once() {
        let (routes, apic) = new();
        set(&apic, 0x11 + 8, 3 << 24);
        set(&apic, 0x10 + 8, 0x34);
        set(&apic, 0x10 + 8, 0x34);
        // Polarity is not part of the message.
        set(&apic, 0x10 + 8, 0x2034);
        set(&apic, 0x10 + 8, 0x0834 | 0x8000 | 0x100);
        set(&apic, 0x10 + 8, 0x1_0834);
        set(&apic, 0x10 + 8, 0x1_0835);
        let msi = |address, data| Some(Msi { address, data });
        assert_eq!(*routes.0.lock().unwrap(), [(4, msi(0xfee0_3000, 0x34)), (4, msi(0xfee0_3004, 0xc134)), (4, None)]);
    }

    #[test]
    fn undeliverable_entries_are_as_good_as_masked() {
        let (routes, apic) = new();
        for entry in [0x00, 0x0f, 0x10f, 0x234, 0x334, 0x634, 0x734] {
            set(&apic, 0x10, entry);
        }
        assert!(routes.0.lock().unwrap().is_empty());
    }

    #[test]
    fn unmasking_and_ending_repeat_what_is_unserved() {
        let (_, apic) = new();
        let count = Arc::new(AtomicU32::new(0));
        let counted = count.clone();
        assert!(apic.connect(5, move || {
            counted.fetch_add(1, Ordering::Relaxed);
        }));
        assert!(!apic.connect(5, || {}));
        assert!(!apic.connect(24, || {}));
        let repeats = || count.load(Ordering::Relaxed);
        set(&apic, 0x1a, 0x40);
        assert_eq!(repeats(), 1);
        // Still open: nothing was lost.
        set(&apic, 0x1a, 0x41);
        // Edge-triggered: no end of interrupt.
        apic.end_of_interrupt(0x41);
        assert_eq!(repeats(), 1);
        set(&apic, 0x1a, 0x8041);
        apic.end_of_interrupt(0x40);
        assert_eq!(repeats(), 1);
        apic.end_of_interrupt(0x41);
        assert_eq!(repeats(), 2);
        set(&apic, 0x1a, 0x1_8041);
        apic.end_of_interrupt(0x41);
        assert_eq!(repeats(), 2);
    }

    #[test]
    fn a_restored_one_routes_alike() {
        let (routes, apic) = new();
        set(&apic, 0x12, 0x50);
        let (restored_routes, restored) = new();
        restored.restore(&apic.save());
        assert_eq!(*routes.0.lock().unwrap(), *restored_routes.0.lock().unwrap());
        assert_eq!(restored.save(), apic.save());
        restored.restore(&IoApicState { id: 0xff, select: 0xff, entries: [u64::MAX; PINS] });
        assert_eq!(restored.save().id, 0xf);
        assert!(restored_routes.0.lock().unwrap().is_empty());
    }

    #[test]
    fn odd_accesses_do_no_harm() {
        let (routes, apic) = new();
        apic.write(0, &[0x01]);
        let mut bytes = [0xee; 8];
        apic.read(0x10, &mut bytes);
        assert_eq!(bytes, [0x11, 0, 0x17, 0, 0, 0, 0, 0]);
        apic.read(0x12, &mut bytes[..1]);
        assert_eq!(bytes[0], 0x17);
        for offset in 0..0x40 {
            for len in 1..=8 {
                apic.read(offset, &mut bytes[..len]);
                if offset != 0x10 || len != 4 {
                    apic.write(offset, &[0xff; 8][..len]);
                }
            }
        }
        assert!(routes.0.lock().unwrap().is_empty());
    }
}
