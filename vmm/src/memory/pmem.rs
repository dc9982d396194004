//! Files in the guest's address space.

use std::fs::File;

use devices::ram::GuestRegion;
use devices::sys::disk;
use vm_memory::{FileOffset, GuestAddress};

use super::MemoryError;
use super::slots::{Access, Slot, SlotError, Slots};
use crate::arch::layout::{self, PMEM_ALIGN};
use crate::blueprint::open_disk;
use crate::config::PmemConfig;
use crate::sys::{advice, map};

/// The memory of one persistent-memory device.
#[derive(Debug)]
pub struct PmemRegion {
    /// The backing file.
    pub file: File,
    /// Where it is.
    pub start: GuestAddress,
    /// Its length in bytes: that of the file, rounded up to [`PMEM_ALIGN`].
    pub len: u64,
    /// What vCPUs reach it by.
    slot: Option<Slot>,
    /// What is behind it, if it came while the machine ran. Devices reach only memory that was there from the start, so nobody can have data moved
    /// into it or out of it but by vCPUs.
    mapping: Option<GuestRegion>,
}

impl PmemRegion {
    /// Start and length.
    pub fn place(&self) -> (u64, u64) {
        (self.start.0, self.len)
    }

    /// Lets vCPUs reach it.
    pub(super) fn show(&mut self, slots: &Slots, read_only: bool) -> Result<(), SlotError> {
        let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
        self.slot = Some(match &self.mapping {
            Some(mapping) => slots.set_region(mapping, access)?,
            None => slots.set(self.start, self.len, access)?,
        });
        Ok(())
    }

    /// Maps the file of a device that comes while the machine runs, beside those that are there, and lets vCPUs reach it.
    pub fn plug(slots: &Slots, config: &PmemConfig, taken: &[(u64, u64)]) -> Result<Self, MemoryError> {
        let opened = open(config)?;
        let len = opened.len;
        let start = layout::pmem_place(taken, len).ok_or(MemoryError::PmemSpace(len >> 20))?;
        let (mut region, mapping) = opened.map(start)?;
        region.mapping = Some(mapping);
        region.show(slots, config.read_only)?;
        Ok(region)
    }

    /// Takes it away from vCPUs: none of them reaches it when this returns.
    pub fn hide(&mut self, slots: &Slots) {
        let Some(slot) = self.slot.take() else { return };
        if let Err((slot, error)) = slots.clear(slot) {
            // Then its mapping must stay, too.
            log::error!("Memory of a pmem device that was unplugged stays with the guest: {error}");
            self.slot = Some(slot);
            std::mem::forget(self.mapping.take());
        }
    }
}

/// A backing file, opened and measured.
pub(super) struct Opened<'a> {
    pub(super) config: &'a PmemConfig,
    pub(super) file: File,
    file_len: u64,
    pub(super) len: u64,
}

fn refuse(config: &PmemConfig, why: impl std::fmt::Display) -> MemoryError {
    MemoryError::Pmem(config.id.to_string(), format!("{why} ({})", config.path_on_host.display()))
}

/// Opens the backing file: a regular file or a block device, not empty.
pub(super) fn open(config: &PmemConfig) -> Result<Opened<'_>, MemoryError> {
    let file = open_disk(&config.path_on_host, config.read_only)
        .map_err(|e| refuse(config, format!("Error accessing backing file: {e}")))?;
    let file_len = disk::len_bytes(&file).map_err(|e| refuse(config, format!("Error accessing backing file: {e}")))?;
    if file_len == 0 {
        return Err(refuse(config, "Error backing file size is 0"));
    }
    let too_large = || refuse(config, format!("the backing file is too large for an address space: {file_len} bytes"));
    let len = file_len.checked_next_multiple_of(PMEM_ALIGN).ok_or_else(too_large)?;
    Ok(Opened { config, file, file_len, len })
}

impl Opened<'_> {
    /// Maps the file, so that what the guest writes is in it.
    ///
    /// Guests want the region to be a multiple of 2 MiB (the unit in which Linux adds `struct page`s), files are not. Behind the last page
    /// of the file the region therefore consists of private zeroes: touching a shared mapping behind the end of its file would be SIGBUS.
    /// What a guest writes there is gone with the machine.
    pub(super) fn map(self, start: GuestAddress) -> Result<(PmemRegion, GuestRegion), MemoryError> {
        let Self { config, file, file_len, len } = self;
        let cannot = |e: &dyn std::fmt::Display| refuse(config, format!("Cannot map the backing file: {e}"));
        let tag = FileOffset::new(file.try_clone().map_err(|e| cannot(&e))?, 0);
        let size = usize::try_from(len).map_err(|e| cannot(&e))?;
        let file_size = usize::try_from(file_len).map_err(|e| cannot(&e))?;
        let mapping = map::file_with_zeroes_behind(tag, file_size, size, config.read_only).map_err(|e| cannot(&e))?;
        advice::no_core_dump(&mapping);
        let region = GuestRegion::new(mapping, start).ok_or_else(|| cannot(&"it passes the end of all addresses"))?;
        Ok((PmemRegion { file, start, len, slot: None, mapping: None }, region))
    }
}
