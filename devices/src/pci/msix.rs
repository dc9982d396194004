//! MSI-X (PCI 3.0 §6.8.2): a table of messages that a guest fills, and what is pending while one is masked.
//!
//! Raising an interrupt takes no lock: a device thread never waits for a vCPU that is having a route changed. The two sides meet in two
//! flags of a vector: the device says "pending" and then looks whether the vector is open, the guest opens it and then looks whether
//! something is pending; so one of them sees the other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::irq::Msi;

/// Bytes of an entry of the table.
pub const ENTRY_LEN: u64 = 16;
/// The table's entries are on, says the guest.
const CONTROL_ENABLE: u16 = 1 << 15;
/// All of them are masked.
const CONTROL_MASK: u16 = 1 << 14;
/// Bit 0 of an entry's last word.
const ENTRY_MASKED: u32 = 1;

/// Where messages to local APICs go (Intel SDM 3A §11.11.1). A message to any other place would be a write to memory.
const APIC_WINDOW: u64 = 0xfee0_0000;
const APIC_WINDOW_LEN: u64 = 0x10_0000;

/// The vectors of one function on their way to a processor: irqfds and their routes in practice.
pub trait Vectors: Send + Sync {
    /// An interrupt of `vector` is this message from now on. Called with the table's lock held.
    fn route(&self, vector: u16, msi: Msi);

    /// One interrupt of `vector`.
    fn raise(&self, vector: u16);

    /// There will be no more: what the vectors take of the machine is given back.
    fn release(&self);
}

#[derive(Debug, Default)]
struct Flags {
    /// The guest wants to hear of it now.
    open: AtomicBool,
    /// It was not told yet.
    pending: AtomicBool,
}

/// An entry of the table as the guest wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where the message goes.
    pub address: u64,
    /// The message.
    pub data: u32,
    /// The entry's mask.
    pub masked: bool,
}

/// As after a reset.
const BLANK: Entry = Entry { address: 0, data: 0, masked: true };

struct Table {
    entries: Vec<Entry>,
    control: u16,
    /// What was routed last.
    routed: Vec<Option<Msi>>,
    /// The vectors were given back: they may be another function's by now.
    released: bool,
}

/// A function's MSI-X state.
pub struct Msix {
    vectors: Arc<dyn Vectors>,
    flags: Box<[Flags]>,
    table: Mutex<Table>,
}

/// What outlives the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// Message control, as the guest wrote it.
    pub control: u16,
    /// The table.
    pub entries: Vec<Entry>,
    /// Whether something is pending, for each entry.
    pub pending: Vec<bool>,
}

impl Msix {
    /// With `count` entries, all masked.
    pub fn new(count: u16, vectors: Arc<dyn Vectors>) -> Self {
        let count = usize::from(count);
        Self {
            vectors,
            flags: (0..count).map(|_| Flags::default()).collect(),
            table: Mutex::new(Table {
                entries: vec![BLANK; count],
                control: 0,
                routed: vec![None; count],
                released: false,
            }),
        }
    }

    /// How many entries there are.
    pub fn count(&self) -> u16 {
        self.flags.len() as u16
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An interrupt of `vector`, now or when the guest opens it. One that does not exist is none.
    pub fn trigger(&self, vector: u16) {
        let Some(flags) = self.flags.get(usize::from(vector)) else { return };
        flags.pending.store(true, Ordering::SeqCst);
        self.deliver(vector, flags);
    }

    fn deliver(&self, vector: u16, flags: &Flags) {
        if flags.open.load(Ordering::SeqCst) && flags.pending.swap(false, Ordering::SeqCst) {
            self.vectors.raise(vector);
        }
    }

    /// The function is gone for good. A vCPU that found it before may still write its table: that routes nothing any more.
    pub fn release(&self) {
        let mut table = self.lock();
        table.released = true;
        for flags in &self.flags {
            flags.open.store(false, Ordering::SeqCst);
        }
        self.vectors.release();
    }

    /// Forgets what is pending: the device was reset.
    pub fn clear_pending(&self) {
        for flags in &self.flags {
            flags.pending.store(false, Ordering::SeqCst);
        }
    }

    /// The guest wrote message control.
    pub fn set_control(&self, control: u16) {
        let mut table = self.lock();
        let control = control & (CONTROL_ENABLE | CONTROL_MASK);
        if table.control == control {
            return;
        }
        table.control = control;
        if control & CONTROL_ENABLE == 0 {
            self.clear_pending();
        }
        self.settle_all(&mut table);
    }

    fn settle_all(&self, table: &mut Table) {
        for vector in 0..self.count() {
            self.settle(table, vector);
        }
    }

    /// Opens or closes a vector as the table says.
    fn settle(&self, table: &mut Table, vector: u16) {
        let at = usize::from(vector);
        let Table { entries, control, routed, released } = table;
        let (Some(flags), Some(entry), Some(routed)) = (self.flags.get(at), entries.get(at), routed.get_mut(at)) else {
            return;
        };
        let on = !*released && *control & (CONTROL_ENABLE | CONTROL_MASK) == CONTROL_ENABLE && !entry.masked;
        let to_an_apic = entry.address.wrapping_sub(APIC_WINDOW) < APIC_WINDOW_LEN;
        if on && !to_an_apic {
            crate::guest_warn!("MSI-X vector {vector} goes nowhere: {:#x} is no local APIC's address", entry.address);
        }
        if !(on && to_an_apic) {
            return flags.open.store(false, Ordering::SeqCst);
        }
        let msi = Msi { address: entry.address, data: entry.data };
        if *routed != Some(msi) {
            // Before it is open: an interrupt must not take the old way.
            self.vectors.route(vector, msi);
            *routed = Some(msi);
        }
        flags.open.store(true, Ordering::SeqCst);
        self.deliver(vector, flags);
    }

    /// Reads the table at `offset`: aligned words and double words (§6.8.2); zeroes otherwise and behind its end.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let table = self.lock();
        for (at, word) in (offset..).step_by(4).zip(data.chunks_exact_mut(4)) {
            let Some(entry) = table.entries.get(usize::try_from(at / ENTRY_LEN).unwrap_or(usize::MAX)) else {
                continue;
            };
            let value = match at % ENTRY_LEN {
                0 => entry.address as u32,
                4 => (entry.address >> 32) as u32,
                8 => entry.data,
                _ => u32::from(entry.masked),
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Writes the table at `offset`, likewise. `false` if the write makes no sense.
    pub fn write_table(&self, offset: u64, data: &[u8]) -> bool {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return false;
        }
        let Ok(vector) = u16::try_from(offset / ENTRY_LEN) else { return false };
        let mut table = self.lock();
        let Some(entry) = table.entries.get_mut(usize::from(vector)) else { return false };
        for (at, word) in (offset..).step_by(4).zip(data.chunks_exact(4)) {
            let value = word.try_into().map_or(0, u32::from_le_bytes);
            match at % ENTRY_LEN {
                // The lowest two bits are always zero.
                0 => entry.address = (entry.address & !0xffff_ffff) | u64::from(value & !3),
                4 => entry.address = (entry.address & 0xffff_ffff) | (u64::from(value) << 32),
                8 => entry.data = value,
                _ => entry.masked = value & ENTRY_MASKED != 0,
            }
        }
        self.settle(&mut table, vector);
        true
    }

    /// Reads the pending bits at `offset`.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let first = usize::try_from(at.saturating_mul(8)).unwrap_or(usize::MAX);
            let bits = self.flags.iter().skip(first).take(8);
            *byte = bits.enumerate().fold(0, |byte, (bit, flags)| {
                byte | (u8::from(flags.pending.load(Ordering::SeqCst)) << (bit as u32 & 7))
            });
        }
    }

    /// What outlives the process.
    pub fn save(&self) -> MsixState {
        let table = self.lock();
        MsixState {
            control: table.control,
            entries: table.entries.clone(),
            pending: self.flags.iter().map(|flags| flags.pending.load(Ordering::SeqCst)).collect(),
        }
    }

    /// Takes up what was saved; `false` if it is of a function with another number of vectors.
    pub fn restore(&self, state: &MsixState) -> bool {
        if state.entries.len() != self.flags.len() || state.pending.len() != self.flags.len() {
            return false;
        }
        let mut table = self.lock();
        table.control = state.control & (CONTROL_ENABLE | CONTROL_MASK);
        table.entries.clone_from(&state.entries);
        for (flags, pending) in self.flags.iter().zip(&state.pending) {
            flags.pending.store(*pending, Ordering::SeqCst);
        }
        self.settle_all(&mut table);
        true
    }
}

#[cfg(test)]
mod tests;
