//! Guest memory as devices see it.

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::sys::iovec::GuestIoVec;

/// All of a guest's RAM. Cloning it is cheap (the regions are shared) and keeps the mappings alive.
pub type GuestRam = GuestMemoryMmap<()>;

/// The piece of RAM at `addr`, `len` bytes, if all of it lies in one region of RAM.
pub fn piece(ram: &GuestRam, addr: GuestAddress, len: usize) -> Option<GuestIoVec> {
    if len == 0 {
        return Some(GuestIoVec::empty());
    }
    ram.get_slice(addr, len).ok().map(|slice| GuestIoVec::new(&slice))
}

/// Whether `[addr, addr + len)` lies in one region of RAM.
pub fn contains(ram: &GuestRam, addr: u64, len: u64) -> bool {
    usize::try_from(len).is_ok_and(|len| ram.get_slice(GuestAddress(addr), len).is_ok())
}
