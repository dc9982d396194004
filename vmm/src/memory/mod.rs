//! Guest memory: what is mapped, where the guest finds it, and by which slots KVM knows it.
//!
//! Called by the boot recipe, first thing: on some kernels a slot costs 0.05 ms before the interrupt chip exists and 7 ms after it,
//! because it then waits for an SRCU grace period that the registration of an in-kernel chip queued (kernel commit 7d9a0273c459).

mod dirty;
mod handler;
mod hotplug;
mod origin;
mod pager;
mod pmem;
mod slots;
mod source;

pub use dirty::DirtyMap;
pub use handler::{Faults, Handler, Watch};
pub use hotplug::{HotplugMemory, HotplugRegion};
pub use origin::{Layout, Mark, MemoryFile, Part, Run};
pub use pager::{Pager, Record, Touched};
pub use pmem::PmemRegion;
pub use slots::{Access, Slot, SlotError, Slots};
pub use source::{NotShared, Source, new_file, settle};

use std::io;
use std::sync::Arc;

use devices::ram::{self, DirtyPages, GuestRam, GuestRegion};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::arch::{cpuid, layout};
use crate::blueprint::Plan;
use crate::config::{HugePages, MachineConfig, ResourceId};
use crate::kvm::KvmError;
use crate::sys::advice;

/// Every x86 processor with virtualisation addresses this much: no need to ask for less.
const SURELY_ADDRESSABLE: u64 = 1 << 36;

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host does not give that much.
    #[error("Invalid Memory Configuration: Cannot create mmap region: {0}")]
    Map(io::Error),
    /// The regions cannot be combined.
    #[error("Invalid Memory Configuration: {0}")]
    Regions(String),
    /// A persistent-memory device has no memory.
    #[error("pmem {0}: {1}")]
    Pmem(String, String),
    /// The persistent-memory devices are too large together.
    #[error(
        "the pmem devices need {0} MiB of guest addresses together, {max} MiB are set aside for them: use smaller files",
        max = (layout::PMEM_END - layout::PMEM_START) >> 20
    )]
    PmemSpace(u64),
    /// The hot-pluggable memory cannot be had.
    #[error("hotplug memory: {0}")]
    Hotplug(String),
    /// KVM counts slots, and there would be too many.
    #[error(
        "hotplug memory of {0} MiB in slots of {1} MiB takes {2} of KVM's memory slots, and {3} are free on this host: use a larger slot_size_mib"
    )]
    HotplugSlots(u64, u64, u64, u32),
    /// The processor cannot address it.
    #[error(
        "guest memory would end at address {end:#x}, but guests of this host's processor have {bits} address bits and end at {limit:#x}: use less memory, and no pmem or hotplug memory"
    )]
    Reach {
        /// End of the last region.
        end: u64,
        /// Physical address bits.
        bits: u32,
        /// First address beyond them.
        limit: u64,
    },
    /// The file with a saved machine's memory cannot be used. The text is the v1 contract's.
    #[error("Error creating guest memory from file: Failed to load guest memory: {0}")]
    Saved(String),
    /// The page-fault handler cannot be used. The text is the v1 contract's.
    #[error("Error creating guest memory from uffd: {0}")]
    Handler(String),
    /// KVM does not say what it can do.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// KVM refuses a slot.
    #[error("Cannot register guest memory with KVM: {0}")]
    Slot(#[from] SlotError),
}

/// Where a saved machine's memory is.
#[derive(Debug)]
pub enum SavedMemory {
    /// In a file.
    File(MemoryFile),
    /// With another process, which brings it page by page.
    Handler(Handler),
    /// In a file from which a thread of ours brings it page by page, and notes which ones are wanted.
    Recorded(MemoryFile, Arc<Record>),
}

/// All the memory of a machine.
pub struct Memory {
    /// What the guest finds in its memory map and boots in.
    pub ram: GuestRam,
    /// That and everything else a device may be pointed to.
    pub everything: GuestRam,
    /// Which parts vCPUs reach.
    pub slots: Arc<Slots>,
    /// Persistent memory, in the order of the plan.
    pub pmems: Vec<PmemRegion>,
    /// Hot-pluggable memory, none of it plugged.
    pub hotplug: Option<HotplugRegion>,
    /// Pages that nobody has touched are zeroes: there is no file behind them, or one in memory.
    pub anonymous: bool,
    /// What keeps memory coming that another process brings.
    pub faults: Option<Faults>,
    /// What keeps memory coming from a file, until somebody runs it.
    pub pager: Option<Pager>,
    /// Bytes of a saved machine's memory that were copied.
    pub copied_len: u64,
    /// What is behind RAM, for whoever wants to share it with clones.
    pub source: Source,
}

impl Memory {
    /// Maps the memory that the plan asks for and makes it known to KVM. Nothing is touched, so nothing is paid for until the guest uses
    /// it. What `saved` holds is there from the beginning. What is `clonable` can be shared with clones later on. Of a machine that goes
    /// on, `pmem_starts` knows where persistent memory was.
    pub fn new(
        kvm: &Kvm,
        vm: &Arc<VmFd>,
        plan: &Plan,
        saved: Option<&SavedMemory>,
        clonable: bool,
        pmem_starts: &dyn Fn(&ResourceId) -> Option<u64>,
    ) -> Result<Self, MemoryError> {
        let size = plan.machine.mem_size_bytes();
        let size = usize::try_from(size).map_err(|e| MemoryError::Regions(format!("{size} bytes: {e}")))?;
        let shared = match plan.served_elsewhere().is_empty() {
            true => clonable && saved.is_none() && plan.machine.huge_pages() != HugePages::Hugetlbfs2M,
            false => true,
        };
        let ram = allocate(&layout::ram_regions(size), &plan.machine, shared)?;
        let mut everything = ram.clone();
        let mut pmems = Vec::with_capacity(plan.pmems().len());
        for (opened, start) in place_pmems(plan, pmem_starts)? {
            let (pmem, region) = opened.map(start)?;
            everything = with(&everything, region)?;
            pmems.push(pmem);
        }
        let mut hotplug = None;
        if let Some((described, region)) = hotplug::map(plan)? {
            everything = with(&everything, region)?;
            hotplug = Some(described);
        }
        let hotplug_start = hotplug.as_ref().map(|region| GuestAddress(region.shape.start));
        let (mut faults, mut pager, mut copied_len) = (None, None, 0);
        let source = match saved {
            None if shared => {
                let len = lay_out(&ram, hotplug.as_ref()).file_len();
                Source::shared(&ram, len, plan.machine.huge_pages())?
            }
            None => Source::Anonymous,
            Some(SavedMemory::File(file)) => {
                copied_len = file.put_behind(&everything, hotplug_start)?;
                if clonable { Source::below(file)? } else { Source::Anonymous }
            }
            Some(SavedMemory::Handler(handler)) => {
                faults = Some(handler.hand_over(&everything, plan.machine.huge_pages())?);
                Source::Handler
            }
            Some(SavedMemory::Recorded(file, record)) => {
                pager = Some(file.page_in(&everything, hotplug_start, record.clone())?);
                Source::Handler
            }
        };
        let anonymous = match saved {
            None => true,
            Some(SavedMemory::File(file)) => file.is_in_memory(),
            Some(SavedMemory::Handler(_) | SavedMemory::Recorded(..)) => false,
        };
        check_reach(kvm, &everything)?;
        let limit = u32::try_from(kvm.get_nr_memslots()).unwrap_or(u32::MAX);
        let slots = Arc::new(Slots::new(vm.clone(), everything.clone(), limit, plan.machine.track_dirty_pages()));
        for region in ram.iter() {
            slots.set(region.start_addr(), region.len(), Access::ReadWrite)?;
        }
        for (pmem, config) in pmems.iter_mut().zip(plan.pmems()) {
            pmem.show(&slots, config.read_only)?;
        }
        if let Some(HotplugRegion { shape, .. }) = &hotplug {
            let (wanted, room) = (shape.len.checked_div(shape.slot_len).unwrap_or(u64::MAX), slots.room());
            if wanted > room.into() {
                return Err(MemoryError::HotplugSlots(shape.len >> 20, shape.slot_len >> 20, wanted, room));
            }
        }
        Ok(Self { ram, everything, slots, pmems, hotplug, anonymous, faults, pager, copied_len, source })
    }
}

impl Memory {
    /// The parts, by their guest addresses, where what nobody has touched is zeroes: those without a file behind them.
    pub fn anonymous_parts(&self) -> Vec<u64> {
        let ram = self.ram.iter().map(|region| region.start_addr().0).filter(|_| self.anonymous);
        ram.chain(self.hotplug.as_ref().map(|region| region.shape.start)).collect()
    }

    /// What was written since this was last asked, by vCPUs and devices. `None` if nobody wanted to know.
    pub fn take_dirty(&self) -> Result<Option<DirtyMap>, SlotError> {
        if !self.slots.logs() {
            return Ok(None);
        }
        let mut dirty = DirtyMap::new(&self.layout());
        for (start, words) in self.slots.take_dirty()? {
            dirty.add(start.0, &words);
        }
        for region in self.everything.iter() {
            dirty.add(region.start_addr().0, &ram::take_dirty(region));
        }
        Ok(Some(dirty))
    }

    /// Where in a file each part of the guest's own memory goes.
    pub fn layout(&self) -> Layout {
        lay_out(&self.ram, self.hotplug.as_ref())
    }
}

fn lay_out(ram: &GuestRam, hotplug: Option<&HotplugRegion>) -> Layout {
    let hotplug = hotplug.map(|region| (GuestAddress(region.shape.start), region.shape.len));
    Layout::new(ram.iter().map(|region| (region.start_addr(), region.len())).chain(hotplug))
}

/// Opens the files of all persistent-memory devices, then says where each goes: where it was, or behind the others.
fn place_pmems<'p>(
    plan: &'p Plan,
    starts: &dyn Fn(&ResourceId) -> Option<u64>,
) -> Result<Vec<(pmem::Opened<'p>, GuestAddress)>, MemoryError> {
    let opened = plan.pmems().iter().map(pmem::open).collect::<Result<Vec<_>, _>>()?;
    let total = opened.iter().fold(0u64, |sum, pmem| sum.saturating_add(pmem.len));
    let mut taken = Vec::with_capacity(opened.len());
    for pmem in &opened {
        let known = starts(&pmem.config.id).filter(|start| layout::is_pmem_place(*start, pmem.len));
        let start = known.map(GuestAddress).or_else(|| layout::pmem_place(&taken, pmem.len));
        taken.push((start.ok_or(MemoryError::PmemSpace(total >> 20))?.0, pmem.len));
    }
    Ok(opened.into_iter().zip(taken.into_iter().map(|(start, _)| GuestAddress(start))).collect())
}

/// Maps anonymous regions, `shared` with whoever is given them.
fn allocate(regions: &[(GuestAddress, usize)], machine: &MachineConfig, shared: bool) -> Result<GuestRam, MemoryError> {
    let kind = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    let mapped = regions.iter().map(|(base, len)| anonymous(*base, *len, machine, kind)).collect::<Result<_, _>>()?;
    GuestRam::from_regions(mapped).map_err(|e| MemoryError::Regions(e.to_string()))
}

fn anonymous(
    base: GuestAddress,
    len: usize,
    machine: &MachineConfig,
    kind: libc::c_int,
) -> Result<GuestRegion, MemoryError> {
    let huge_pages = machine.huge_pages();
    let mut flags = kind | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    if huge_pages == HugePages::Hugetlbfs2M {
        flags |= libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
    }
    let dirty = if machine.track_dirty_pages() { DirtyPages::known(len) } else { DirtyPages::default() };
    let region = MmapRegionBuilder::new_with_bitmap(len, dirty)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags)
        .build()
        .map_err(|error| {
            MemoryError::Map(match error {
                MmapRegionError::Mmap(error) => error,
                other => io::Error::other(other.to_string()),
            })
        })?;
    advice::no_core_dump(&region);
    if huge_pages == HugePages::Transparent {
        advice::huge_pages(&region);
    }
    GuestRegion::new(region, base)
        .ok_or_else(|| MemoryError::Regions(format!("a region at {:#x} passes the end of the address space", base.0)))
}

fn with(memory: &GuestRam, region: GuestRegion) -> Result<GuestRam, MemoryError> {
    memory.insert_region(Arc::new(region)).map_err(|e| MemoryError::Regions(e.to_string()))
}

/// Refuses memory that the guest's processor has no addresses for: there, page tables that name it are malformed, which a guest would
/// find out the hard way.
fn check_reach(kvm: &Kvm, memory: &GuestRam) -> Result<(), MemoryError> {
    let end = memory.iter().map(|region| region.start_addr().0.saturating_add(region.len())).max().unwrap_or(0);
    if end <= SURELY_ADDRESSABLE {
        return Ok(());
    }
    let supported = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::call("KVM_GET_SUPPORTED_CPUID"))?;
    judge_reach(end, cpuid::physical_address_bits(&supported))
}

fn judge_reach(end: u64, bits: u32) -> Result<(), MemoryError> {
    let limit = 1u64.checked_shl(bits).unwrap_or(u64::MAX);
    if end > limit { Err(MemoryError::Reach { end, bits, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
