/// Smallest and default block: a huge page of x86.
pub const MIN_BLOCK_MIB: u32 = 2;
/// Smallest and default slot.
pub const MIN_SLOT_MIB: u32 = 128;

/// Why hot-pluggable memory was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMemoryHotplug {
    /// Block below the smallest.
    #[error("block_size_mib is {0}: Block size must not be lower than {MIN_BLOCK_MIB} MiB")]
    BlockTooSmall(u32),
    /// Block not a power of two.
    #[error("block_size_mib is {0}: Block size must be a power of 2")]
    BlockNotPowerOfTwo(u32),
    /// Slot below the smallest.
    #[error("slot_size_mib is {0}: Slot size must not be lower than {MIN_SLOT_MIB} MiB")]
    SlotTooSmall(u32),
    /// Slot with a broken block at its end.
    #[error("slot_size_mib is {0}: Slot size must be a multiple of block size ({1} MiB)")]
    SlotNotInBlocks(u32, u32),
    /// Less than one slot.
    #[error("total_size_mib is {0}: Total size must not be lower than slot size ({1} MiB)")]
    TotalTooSmall(u32, u32),
    /// A broken slot at the end.
    #[error("total_size_mib is {0}: Total size must be a multiple of slot size ({1} MiB)")]
    TotalNotInSlots(u32, u32),
    /// More wanted than there is.
    #[error("requested_size_mib is {0}: Requested size must not be larger than total size ({1} MiB)")]
    RequestTooLarge(u32, u32),
    /// A broken block wanted.
    #[error("requested_size_mib is {0}: Requested size must be a multiple of block size ({1} MiB)")]
    RequestNotInBlocks(u32, u32),
}

/// Hot-pluggable memory (`PUT /hotplug/memory`). Sizes are in MiB. Made only by [`MemoryHotplugConfig::new`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryHotplugConfig {
    total_size_mib: u32,
    block_size_mib: u32,
    slot_size_mib: u32,
}

impl MemoryHotplugConfig {
    /// The block is a power of two from 2 MiB, the slot a multiple of it from 128 MiB, the total a multiple of the slot and not 0.
    pub fn new(total_size_mib: u32, block_size_mib: u32, slot_size_mib: u32) -> Result<Self, BadMemoryHotplug> {
        use BadMemoryHotplug as Bad;
        if block_size_mib < MIN_BLOCK_MIB {
            Err(Bad::BlockTooSmall(block_size_mib))
        } else if !block_size_mib.is_power_of_two() {
            Err(Bad::BlockNotPowerOfTwo(block_size_mib))
        } else if slot_size_mib < MIN_SLOT_MIB {
            Err(Bad::SlotTooSmall(slot_size_mib))
        } else if !slot_size_mib.is_multiple_of(block_size_mib) {
            Err(Bad::SlotNotInBlocks(slot_size_mib, block_size_mib))
        } else if total_size_mib < slot_size_mib {
            Err(Bad::TotalTooSmall(total_size_mib, slot_size_mib))
        } else if !total_size_mib.is_multiple_of(slot_size_mib) {
            Err(Bad::TotalNotInSlots(total_size_mib, slot_size_mib))
        } else {
            Ok(Self { total_size_mib, block_size_mib, slot_size_mib })
        }
    }

    /// Whether the guest can be asked to have `requested_size_mib` of it plugged.
    pub fn check_request(&self, requested_size_mib: u32) -> Result<(), BadMemoryHotplug> {
        if requested_size_mib > self.total_size_mib {
            Err(BadMemoryHotplug::RequestTooLarge(requested_size_mib, self.total_size_mib))
        } else if !requested_size_mib.is_multiple_of(self.block_size_mib) {
            Err(BadMemoryHotplug::RequestNotInBlocks(requested_size_mib, self.block_size_mib))
        } else {
            Ok(())
        }
    }

    /// Most memory that can be plugged.
    pub fn total_size_mib(&self) -> u32 {
        self.total_size_mib
    }

    /// What the guest plugs and unplugs at a time.
    pub fn block_size_mib(&self) -> u32 {
        self.block_size_mib
    }

    /// What KVM maps and unmaps at a time.
    pub fn slot_size_mib(&self) -> u32 {
        self.slot_size_mib
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BadMemoryHotplug as Bad;

    #[test]
    fn sizes_fit_into_each_other() {
        assert!(MemoryHotplugConfig::new(1024, 2, 128).is_ok());
        assert!(MemoryHotplugConfig::new(256, 128, 256).is_ok());
        assert!(MemoryHotplugConfig::new(u32::MAX - 127, 2, 128).is_ok());
        for (total, block, slot, why) in [
            (1024, 0, 128, Bad::BlockTooSmall(0)),
            (1024, 1, 128, Bad::BlockTooSmall(1)),
            (1024, 3, 128, Bad::BlockNotPowerOfTwo(3)),
            (1024, 2, 126, Bad::SlotTooSmall(126)),
            (1024, 4, 130, Bad::SlotNotInBlocks(130, 4)),
            (0, 2, 128, Bad::TotalTooSmall(0, 128)),
            (1000, 2, 128, Bad::TotalNotInSlots(1000, 128)),
            (u32::MAX, 2, 128, Bad::TotalNotInSlots(u32::MAX, 128)),
        ] {
            assert_eq!(MemoryHotplugConfig::new(total, block, slot), Err(why));
        }
    }

    #[test]
    fn what_can_be_asked_for() {
        let memory = MemoryHotplugConfig::new(256, 4, 128).unwrap();
        for mib in [0, 4, 256] {
            assert_eq!(memory.check_request(mib), Ok(()));
        }
        assert_eq!(memory.check_request(260), Err(Bad::RequestTooLarge(260, 256)));
        assert_eq!(memory.check_request(2), Err(Bad::RequestNotInBlocks(2, 4)));
    }
}
