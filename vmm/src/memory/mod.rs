//! Guest memory: one anonymous mapping per region, registered with KVM.

use std::io;

use devices::ram::GuestRam;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::config::HugePages;
use crate::sys::advice;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host does not give that much.
    #[error("Invalid Memory Configuration: Cannot create mmap region: {0}")]
    Map(io::Error),
    /// The regions cannot be combined.
    #[error("Invalid Memory Configuration: {0}")]
    Regions(String),
    /// KVM refuses a memory slot.
    #[error("Cannot register memory slot {0} with KVM: {1}")]
    Slot(u32, io::Error),
}

/// Maps the regions. Nothing is touched, so nothing is paid for until the guest uses it.
pub fn allocate(regions: &[(GuestAddress, usize)], huge_pages: HugePages) -> Result<GuestRam, MemoryError> {
    let mut flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    if huge_pages == HugePages::Hugetlbfs2M {
        flags |= libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
    }
    let mut mapped = Vec::with_capacity(regions.len());
    for (base, len) in regions {
        let region = MmapRegionBuilder::new(*len)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(flags)
            .build()
            .map_err(|error| {
                MemoryError::Map(match error {
                    vm_memory::mmap::MmapRegionError::Mmap(error) => error,
                    other => io::Error::other(other.to_string()),
                })
            })?;
        advice::no_core_dump(&region);
        if huge_pages == HugePages::Transparent {
            advice::huge_pages(&region);
        }
        let region = GuestRegionMmap::new(region, *base).ok_or_else(|| {
            MemoryError::Regions(format!("a region at {:#x} passes the end of the address space", base.0))
        })?;
        mapped.push(region);
    }
    GuestRam::from_regions(mapped).map_err(|e| MemoryError::Regions(e.to_string()))
}

/// Registers each region as a slot. Must come before the irqchip exists: on some kernels a slot costs 0.05 ms before and 7 ms after it,
/// because it then waits for an SRCU grace period that the registration of an in-kernel chip queued (kernel commit 7d9a0273c459).
pub fn register(vm: &VmFd, ram: &GuestRam) -> Result<(), MemoryError> {
    for (slot, region) in (0u32..).zip(ram.iter()) {
        let host = ram.get_host_address(region.start_addr()).map_err(|e| MemoryError::Regions(e.to_string()))?;
        let memory = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the range is a mapping owned by `ram`, which the machine keeps for as long as the VM exists.
        unsafe { vm.set_user_memory_region(memory) }.map_err(|e| MemoryError::Slot(slot, e.into()))?;
    }
    Ok(())
}
