//! KVM's memory slots: which parts of the guest's memory its vCPUs reach, and by which number KVM knows them.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::ram::{GuestRam, GuestRegion};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Why a part of memory is not a slot.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// KVM's numbers are used up.
    #[error("this host's KVM has room for {0} memory slots, and all are in use")]
    Full(u32),
    /// There is no memory of ours at this place.
    #[error("guest addresses {0:#x}+{1:#x} are not in one region of memory")]
    NoMemory(u64, u64),
    /// KVM does not tell what was written.
    #[error("KVM does not tell which pages of guest memory {0:#x}+{1:#x} were written: {2}")]
    Log(u64, u64, io::Error),
    /// KVM refuses.
    #[error("KVM refuses guest memory {0:#x}+{1:#x}: {2}")]
    Kvm(u64, u64, io::Error),
}

/// Who may do what in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The guest reads and writes.
    ReadWrite,
    /// The guest reads; its writes become exits.
    ReadOnly,
}

/// A number KVM knows a part of memory by.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot(u32);

struct Numbers {
    /// Never used so far.
    next: u32,
    /// Used once and free again.
    returned: Vec<u32>,
    /// Those whose pages KVM logs: number, start, length in bytes.
    logged: Vec<(u32, GuestAddress, usize)>,
}

/// Hands out slots of one VM. It holds the memory behind them, so that no slot outlives its mapping.
///
/// KVM keeps a VM and its slots as long as one of its vCPUs is open. Whoever owns the slots therefore lets go of the vCPUs first.
pub struct Slots {
    vm: Arc<VmFd>,
    memory: GuestRam,
    limit: u32,
    /// KVM logs which pages of slots are written.
    log: bool,
    numbers: Mutex<Numbers>,
}

impl Slots {
    /// No slots yet, of `limit` (`KVM_CAP_NR_MEMSLOTS`), for all the memory a guest can ever have. With `log`, KVM logs which pages of
    /// them vCPUs write to.
    pub fn new(vm: Arc<VmFd>, memory: GuestRam, limit: u32, log: bool) -> Self {
        let numbers = Numbers { next: 0, returned: Vec::new(), logged: Vec::new() };
        Self { vm, memory, limit, log, numbers: Mutex::new(numbers) }
    }

    /// Whether KVM logs written pages.
    pub fn logs(&self) -> bool {
        self.log
    }

    /// The pages that vCPUs wrote to since this was last asked: for each slot its start and a bit for each page, the first one lowest.
    pub fn take_dirty(&self) -> Result<Vec<(GuestAddress, Vec<u64>)>, SlotError> {
        let logged = self.numbers().logged.clone();
        let log = |(slot, start, len): (u32, GuestAddress, usize)| {
            let bits = self.vm.get_dirty_log(slot, len).map_err(|e| SlotError::Log(start.0, len as u64, e.into()))?;
            Ok((start, bits))
        };
        logged.into_iter().map(log).collect()
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many more slots there can be.
    pub fn room(&self) -> u32 {
        let numbers = self.numbers();
        let returned = u32::try_from(numbers.returned.len()).unwrap_or(u32::MAX);
        self.limit.saturating_sub(numbers.next).saturating_add(returned)
    }

    /// Lets vCPUs reach `len` bytes of memory at `start`. Both are multiples of the page size.
    pub fn set(&self, start: GuestAddress, len: u64, access: Access) -> Result<Slot, SlotError> {
        let region = self.memory.find_region(start).ok_or(SlotError::NoMemory(start.0, len))?;
        self.set_in(region, start, len, access)
    }

    /// The same for memory that came later, all of it. Whoever has it keeps it until the slot is cleared.
    pub fn set_region(&self, region: &GuestRegion, access: Access) -> Result<Slot, SlotError> {
        self.set_in(region, region.start_addr(), region.len(), access)
    }

    fn set_in(&self, part: &GuestRegion, start: GuestAddress, len: u64, access: Access) -> Result<Slot, SlotError> {
        let no_memory = || SlotError::NoMemory(start.0, len);
        let count = usize::try_from(len).ok().filter(|count| *count > 0).ok_or_else(no_memory)?;
        let offset = part.to_region_addr(start).ok_or_else(no_memory)?;
        let place = part.get_slice(offset, count).map_err(|_| no_memory())?;
        // A file keeps what is written to it by itself.
        let is_file = part.file_offset().is_some();
        let mut numbers = self.numbers();
        let slot = match numbers.returned.pop() {
            Some(slot) => slot,
            None if numbers.next < self.limit => {
                numbers.next += 1;
                numbers.next - 1
            }
            None => return Err(SlotError::Full(self.limit)),
        };
        let region = kvm_userspace_memory_region {
            slot,
            flags: match access {
                Access::ReadOnly => KVM_MEM_READONLY,
                Access::ReadWrite if self.log && !is_file => KVM_MEM_LOG_DIRTY_PAGES,
                Access::ReadWrite => 0,
            },
            guest_phys_addr: start.0,
            memory_size: len,
            userspace_addr: place.ptr_guard_mut().as_ptr() as u64,
        };
        // SAFETY: the range was just found in a mapping that `memory`, or whoever brought it, keeps alive as long as the slot is set, and we
        // live longer than the vCPUs (see `Slots`).
        match unsafe { self.vm.set_user_memory_region(region) } {
            Ok(()) => {
                if region.flags & KVM_MEM_LOG_DIRTY_PAGES != 0 {
                    numbers.logged.push((slot, start, count));
                }
                Ok(Slot(slot))
            }
            Err(error) => {
                numbers.returned.push(slot);
                Err(SlotError::Kvm(start.0, len, error.into()))
            }
        }
    }

    /// Takes a slot's memory away from vCPUs: when this returns, none of them reaches it any more. If KVM refuses, the slot stays, and is
    /// given back.
    pub fn clear(&self, slot: Slot) -> Result<(), (Slot, io::Error)> {
        let none = kvm_userspace_memory_region { slot: slot.0, ..Default::default() };
        // SAFETY: a slot of length zero refers to no memory.
        match unsafe { self.vm.set_user_memory_region(none) } {
            Ok(()) => {
                let mut numbers = self.numbers();
                numbers.returned.push(slot.0);
                numbers.logged.retain(|(logged, ..)| *logged != slot.0);
                Ok(())
            }
            Err(error) => Err((slot, error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm;

    fn slots(limit: u32) -> Slots {
        let vm = Arc::new(kvm::create_vm(&kvm::open(&[]).expect("this test needs /dev/kvm")).unwrap());
        let ranges = [(GuestAddress(0), 0x10_0000), (GuestAddress(0x20_0000), 0x10_0000)];
        Slots::new(vm, GuestRam::from_ranges(&ranges).unwrap(), limit, false)
    }

    #[test]
    fn numbers_are_used_again_and_run_out() {
        let slots = slots(2);
        let low = slots.set(GuestAddress(0), 0x10_0000, Access::ReadWrite).unwrap();
        let high = slots.set(GuestAddress(0x20_0000), 0x8_0000, Access::ReadOnly).unwrap();
        assert_eq!((&low, &high, slots.room()), (&Slot(0), &Slot(1), 0));
        let full = slots.set(GuestAddress(0x28_0000), 0x8_0000, Access::ReadWrite);
        assert!(matches!(full, Err(SlotError::Full(2))), "{full:?}");
        slots.clear(low).unwrap();
        assert_eq!(slots.set(GuestAddress(0x28_0000), 0x8_0000, Access::ReadWrite).unwrap(), Slot(0));
    }

    #[test]
    fn only_memory_that_is_there_becomes_a_slot() {
        let slots = slots(8);
        for (start, len) in
            [(0x10_0000, 0x1000), (0, 0x20_0000), (0x2f_f000, 0x2000), (u64::MAX - 0xfff, 0x1000), (0, 0)]
        {
            let refused = slots.set(GuestAddress(start), len, Access::ReadWrite);
            assert!(matches!(refused, Err(SlotError::NoMemory(..))), "{start:#x}+{len:#x}: {refused:?}");
        }
        // Overlapping slots are for KVM to refuse; the number is free again.
        let _low = slots.set(GuestAddress(0), 0x2000, Access::ReadWrite).unwrap();
        let twice = slots.set(GuestAddress(0x1000), 0x2000, Access::ReadWrite);
        assert!(matches!(twice, Err(SlotError::Kvm(..))), "{twice:?}");
        assert_eq!(slots.room(), 7);
    }
}
