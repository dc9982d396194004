//! Bus 0 of segment 0: 32 slots, and the three ways a guest gets at them.
//!
//! Slots are filled and emptied while vCPUs run. A vCPU holds the lock of the slots only to look one up: what it then does at a function may
//! take as long as a device takes to reset. Whoever moves a BAR does so one after the other.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::config::{self, ConfigSpace, Identity};
use crate::bus::BusDevice;

/// How many slots a bus has.
pub const SLOTS: u8 = 32;
/// Bytes of a function's configuration space in the memory-mapped one (PCI Express 5.0 §7.2.2): 8 functions in each of 32 slots.
const ECAM_FUNCTION_LEN: u64 = 0x1000;
const ECAM_SLOT_LEN: u64 = ECAM_FUNCTION_LEN * 8;
/// Length of the memory-mapped configuration space of one bus.
pub const ECAM_BUS_LEN: u64 = ECAM_SLOT_LEN * SLOTS as u64;

/// What sits in a slot: function 0, and the only one.
pub trait Function: Send + Sync {
    /// Fills `data` from the configuration space. All bytes are in one aligned double word, and below 256.
    fn read_config(&self, at: usize, data: &mut [u8]);

    /// Writes the configuration space, likewise. Several vCPUs may do so at the same time.
    fn write_config(&self, at: usize, data: &[u8]);

    /// Where its BAR says that its memory is, if it answers there.
    fn bar(&self) -> Option<u64>;

    /// Length of that memory in bytes.
    fn bar_len(&self) -> u64;

    /// Its memory is at `base` from now on, or nowhere. Called one after the other.
    fn move_to(&self, base: Option<u64>);

    /// Reads its memory.
    fn read_bar(&self, offset: u64, data: &mut [u8]);

    /// Writes its memory.
    fn write_bar(&self, offset: u64, data: &[u8]);
}

struct Seat {
    function: Arc<dyn Function>,
    /// Where its BAR said that its memory is, when that was last looked at.
    wanted: Option<u64>,
    /// Where its memory is.
    window: Option<u64>,
}

impl Seat {
    fn range(&self) -> Option<Range<u64>> {
        let base = self.window?;
        Some(base..base.checked_add(self.function.bar_len())?)
    }
}

#[derive(Default)]
struct Slots([Option<Seat>; SLOTS as usize]);

impl Slots {
    fn get(&self, slot: u8) -> Option<&Seat> {
        self.0.get(usize::from(slot))?.as_ref()
    }

    /// Whose memory is at `addr`, and the offset in it.
    fn at(&self, addr: u64) -> Option<(Arc<dyn Function>, u64)> {
        self.0.iter().flatten().find_map(|seat| {
            let range = seat.range().filter(|range| range.contains(&addr))?;
            Some((seat.function.clone(), addr.checked_sub(range.start)?))
        })
    }
}

/// A function cannot be put where it should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoSlot {
    /// All slots are filled. The text is the v1 contract's.
    #[error("Could not find an available device slot on the PCI bus.")]
    Full,
    /// That one is.
    #[error("slot {0} of the PCI bus is not free")]
    Taken(u8),
}

/// The bus.
pub struct PciBus {
    /// Where the memory of functions may be.
    space: Range<u64>,
    slots: RwLock<Slots>,
    /// Held while a BAR is moved, from the guest's write to the last doorbell.
    moving: Mutex<()>,
}

impl PciBus {
    /// A bus whose functions have their memory in `space`, with a host bridge in slot 0.
    pub fn new(space: Range<u64>) -> Self {
        let mut slots = Slots::default();
        if let Some(first) = slots.0.first_mut() {
            *first = Some(Seat {
                function: Arc::new(HostBridge(ConfigSpace::new(HOST_BRIDGE))),
                wanted: None,
                window: None,
            });
        }
        Self { space, slots: RwLock::new(slots), moving: Mutex::new(()) }
    }

    fn read_slots(&self) -> RwLockReadGuard<'_, Slots> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_slots(&self) -> RwLockWriteGuard<'_, Slots> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lowest slot that is free.
    pub fn free_slot(&self) -> Result<u8, NoSlot> {
        let slots = self.read_slots();
        (0..SLOTS).find(|slot| slots.get(*slot).is_none()).ok_or(NoSlot::Full)
    }

    /// Puts a function into a slot.
    pub fn insert(&self, slot: u8, function: Arc<dyn Function>) -> Result<(), NoSlot> {
        let mut slots = self.write_slots();
        let seat = slots.0.get_mut(usize::from(slot)).ok_or(NoSlot::Taken(slot))?;
        if seat.is_some() {
            return Err(NoSlot::Taken(slot));
        }
        // One that was saved may answer already; of others the guest has yet to say so. Whoever fills a slot beside a running guest must not wait
        // for vCPUs.
        let answers = function.bar().is_some();
        *seat = Some(Seat { function, wanted: None, window: None });
        drop(slots);
        if answers {
            self.settle(slot);
        }
        Ok(())
    }

    /// Empties a slot: from now on nobody gets at what was in it who is not at it already. Doorbells are for whoever retires the device.
    pub fn remove(&self, slot: u8) {
        if let Some(seat) = self.write_slots().0.get_mut(usize::from(slot)) {
            *seat = None;
        }
    }

    fn function(&self, slot: u8) -> Option<Arc<dyn Function>> {
        Some(self.read_slots().get(slot)?.function.clone())
    }

    /// Puts a function's memory where its BAR says, if that is free. Whoever comes last sees what the BAR says in the end.
    fn settle(&self, slot: u8) {
        let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        let looked = self.read_slots().get(slot).map(|seat| (seat.function.clone(), seat.wanted));
        let Some((function, before)) = looked else { return };
        let wanted = function.bar();
        if wanted == before {
            return;
        }
        let placed = wanted.filter(|base| self.is_free(slot, *base, function.bar_len()));
        if wanted.is_some() && placed.is_none() {
            crate::guest_warn!(
                "PCI slot {slot}: a BAR at {:#x} is outside the bus or on another one, and answers nowhere",
                wanted.unwrap_or(0)
            );
        }
        {
            let mut slots = self.write_slots();
            let Some(Some(seat)) = slots.0.get_mut(usize::from(slot)) else { return };
            if !Arc::ptr_eq(&seat.function, &function) {
                return;
            }
            seat.wanted = wanted;
            if seat.window == placed {
                return;
            }
            seat.window = placed;
        }
        function.move_to(placed);
    }

    fn is_free(&self, slot: u8, base: u64, len: u64) -> bool {
        let Some(end) = base.checked_add(len) else { return false };
        let inside = base >= self.space.start && end <= self.space.end;
        let slots = self.read_slots();
        let others = (0..SLOTS).filter(|other| *other != slot).filter_map(|other| slots.get(other)?.range());
        inside && others.into_iter().all(|range| range.end <= base || end <= range.start)
    }

    /// Reads the configuration space of `function` in `slot`. Where nobody is, all bits are set.
    fn read_config(&self, slot: u8, function: u8, at: u64, data: &mut [u8]) {
        let seat = if function == 0 { self.function(slot) } else { None };
        match (seat, usize::try_from(at)) {
            (Some(seat), Ok(at)) if at < config::LEN && in_one_word(at, data.len()) => seat.read_config(at, data),
            // There are no extended capabilities.
            (Some(_), Ok(at)) if in_one_word(at, data.len()) => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    fn write_config(&self, slot: u8, function: u8, at: u64, data: &[u8]) {
        let Ok(at) = usize::try_from(at) else { return };
        if function != 0 || at >= config::LEN || !in_one_word(at, data.len()) {
            return;
        }
        let Some(seat) = self.function(slot) else { return };
        seat.write_config(at, data);
        if at < config::HEADER_LEN {
            self.settle(slot);
        }
    }
}

/// §7.2.2.1: an access that crosses a double word is not one that has to work.
fn in_one_word(at: usize, len: usize) -> bool {
    matches!(len, 1 | 2 | 4) && at.is_multiple_of(len)
}

/// What guests expect in slot 0 (the v1 contract's).
const HOST_BRIDGE: Identity =
    Identity { vendor: 0x8086, device: 0x0d57, class: [6, 0, 0], revision: 0, subsystem_vendor: 0, subsystem: 0 };

/// It only has a name.
struct HostBridge(ConfigSpace);

impl Function for HostBridge {
    fn read_config(&self, at: usize, data: &mut [u8]) {
        self.0.read(at, data);
    }

    fn write_config(&self, _at: usize, _data: &[u8]) {}

    fn bar(&self) -> Option<u64> {
        None
    }

    fn bar_len(&self) -> u64 {
        0
    }

    fn move_to(&self, _base: Option<u64>) {}

    fn read_bar(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_bar(&self, _offset: u64, _data: &[u8]) {}
}

/// The memory-mapped configuration space of the bus.
pub struct Ecam(pub Arc<PciBus>);

impl Ecam {
    fn place(offset: u64) -> (u8, u8, u64) {
        let slot = (offset / ECAM_SLOT_LEN) as u8;
        let function = (offset % ECAM_SLOT_LEN / ECAM_FUNCTION_LEN) as u8;
        (slot, function, offset % ECAM_FUNCTION_LEN)
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (slot, function, at) = Self::place(offset);
        self.0.read_config(slot, function, at, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (slot, function, at) = Self::place(offset);
        self.0.write_config(slot, function, at, data);
    }
}

/// First of the ports of [`ConfigPorts`].
pub const CONFIG_PORT: u16 = 0xcf8;
/// How many there are.
pub const CONFIG_PORTS: u16 = 8;
/// The address port holds an address.
const ADDRESS_ENABLE: u32 = 1 << 31;

/// The old way to the configuration space (PCI 3.0 §3.2.2.3.2): an address port and a data port.
pub struct ConfigPorts {
    bus: Arc<PciBus>,
    address: Mutex<u32>,
}

impl ConfigPorts {
    /// The ports of a bus.
    pub fn new(bus: Arc<PciBus>) -> Self {
        Self { bus, address: Mutex::new(0) }
    }

    /// The address port, for a saved state.
    pub fn address(&self) -> u32 {
        *self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets it.
    pub fn set_address(&self, address: u32) {
        // Reserved bits are zero.
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address & 0x80ff_fffc;
    }

    /// Slot, function and offset that the data port at `port` stands for now, if it stands for any on this bus.
    fn place(&self, port: u64) -> Option<(u8, u8, u64)> {
        let address = self.address();
        let bus = address >> 16 & 0xff;
        let data = port.checked_sub(4)?;
        (address & ADDRESS_ENABLE != 0 && bus == 0).then(|| {
            ((address >> 11) as u8 & 31, (address >> 8) as u8 & 7, u64::from(address & 0xfc).saturating_add(data))
        })
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset < 4 {
            let address = self.address().to_le_bytes();
            data.fill(0xff);
            for (to, from) in data.iter_mut().zip(address.iter().skip(offset as usize)) {
                *to = *from;
            }
            return;
        }
        match self.place(offset) {
            Some((slot, function, at)) => self.bus.read_config(slot, function, at, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset < 4 {
            // Only a double word is an address; other accesses are to whatever else an old machine has there.
            if let (0, Ok(address)) = (offset, <[u8; 4]>::try_from(data)) {
                self.set_address(u32::from_le_bytes(address));
            }
            return;
        }
        if let Some((slot, function, at)) = self.place(offset) {
            self.bus.write_config(slot, function, at, data);
        }
    }
}

/// The part of the address space in which functions have their memory.
pub struct BarWindow(pub Arc<PciBus>);

impl BarWindow {
    fn find(&self, offset: u64, len: usize) -> Option<(Arc<dyn Function>, u64)> {
        let addr = self.0.space.start.checked_add(offset)?;
        let (function, offset) = self.0.read_slots().at(addr)?;
        (offset.checked_add(len as u64)? <= function.bar_len()).then_some((function, offset))
    }
}

impl BusDevice for BarWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.find(offset, data.len()) {
            Some((function, offset)) => function.read_bar(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, offset)) = self.find(offset, data.len()) {
            function.write_bar(offset, data);
        }
    }
}

#[cfg(test)]
mod tests;
