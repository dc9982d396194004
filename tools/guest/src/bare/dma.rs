//! Guest-physical memory: what devices see and what the loader left behind.
//!
//! The address space is an identity map, so a physical address is a pointer.
//! All accesses to memory that a device may change go through [`Dma`], bounds
//! checked and volatile; the arena hands out memory behind the program image.

use core::{ptr, slice};

use crate::cpu::DEVICE_SPACE;
use crate::tables::FAR;

unsafe extern "C" {
    /// First byte after the image and its zeroed tail; from the linker script.
    static image_end: u8;
}

/// A stretch of guest RAM that a device or the loader shares with us.
#[derive(Clone, Copy)]
pub struct Dma {
    address: u64,
    len: u64,
}

macro_rules! access {
    ($read:ident, $write:ident, $int:ty) => {
        /// Reads an aligned little-endian integer of this width.
        pub fn $read(self, offset: u64) -> $int {
            let at = self.part(offset, size_of::<$int>() as u64).address as *const $int;
            assert!(at.is_aligned());
            // SAFETY: in bounds and aligned; every bit pattern is a value.
            unsafe { at.read_volatile() }
        }

        /// Writes an aligned little-endian integer of this width.
        pub fn $write(self, offset: u64, value: $int) {
            let at = self.part(offset, size_of::<$int>() as u64).address as *mut $int;
            assert!(at.is_aligned());
            // SAFETY: in bounds and aligned.
            unsafe { at.write_volatile(value) }
        }
    };
}

impl Dma {
    /// What the loader put at `address` (command line, memory map, tables).
    pub fn left_by_loader(address: u64, len: u64) -> Self {
        assert!(address != 0 && address < DEVICE_SPACE && len <= DEVICE_SPACE - address);
        Self { address, len }
    }

    /// Memory above 4 GiB that a device announced. Panics when it is not in what
    /// is mapped there.
    pub fn far(address: u64, len: u64) -> Self {
        let holds = |(start, size): (u64, u64)| address >= start && len <= size && address - start <= size - len;
        assert!(FAR.into_iter().any(holds), "memory at {address:#x}+{len:#x} is not mapped");
        Self { address, len }
    }

    /// The guest-physical address of the first byte.
    pub fn address(self) -> u64 {
        self.address
    }

    /// Length in bytes.
    pub fn len(self) -> u64 {
        self.len
    }

    /// A part of this stretch; panics when it does not fit.
    pub fn part(self, offset: u64, len: u64) -> Self {
        assert!(offset <= self.len && len <= self.len - offset);
        Self { address: self.address + offset, len }
    }

    access!(read8, write8, u8);
    access!(read16, write16, u16);
    access!(read32, write32, u32);
    access!(read64, write64, u64);

    /// Copies `bytes` to the start of this stretch.
    pub fn put(self, offset: u64, bytes: &[u8]) {
        let at = self.part(offset, bytes.len() as u64).address as *mut u8;
        // SAFETY: in bounds, and the arena overlaps no Rust object.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) }
    }

    /// Sets every byte.
    pub fn fill(self, byte: u8) {
        // SAFETY: in bounds, and the arena overlaps no Rust object.
        unsafe { ptr::write_bytes(self.address as *mut u8, byte, self.len as usize) }
    }

    /// The bytes as they are now. Only for memory no device is writing.
    pub fn bytes(self) -> &'static [u8] {
        // SAFETY: in bounds; mapped for the whole life of the program.
        unsafe { slice::from_raw_parts(self.address as *const u8, self.len as usize) }
    }

    /// The bytes, writable. Only for memory no device is using.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: in bounds; callers do not hold two views at a time.
        unsafe { slice::from_raw_parts_mut(self.address as *mut u8, self.len as usize) }
    }

    /// The same as whole 32-bit words.
    pub fn words_mut(&mut self) -> &mut [u32] {
        let first = self.address as *mut u32;
        assert!(first.is_aligned());
        // SAFETY: as above, and aligned.
        unsafe { slice::from_raw_parts_mut(first, self.len as usize / 4) }
    }
}

/// Hands out zeroed memory behind the image and never takes it back.
pub struct Arena {
    next: u64,
    end: u64,
}

impl Arena {
    /// The RAM from the end of the image to `ram_end`.
    pub fn behind_image(ram_end: u64) -> Self {
        Self { next: (&raw const image_end).addr() as u64, end: ram_end.min(DEVICE_SPACE) }
    }

    /// `len` bytes at a multiple of `align` (a power of two). Panics when RAM
    /// is used up. Fresh RAM is zero, and nothing is handed out twice, except
    /// after [`Arena::rewind`].
    pub fn take(&mut self, len: u64, align: u64) -> Dma {
        let address = (self.next + align - 1) & !(align - 1);
        assert!(address + len <= self.end, "the guest needs more RAM");
        self.next = address + len;
        Dma { address, len }
    }

    /// Where the next piece would come from.
    pub fn mark(&self) -> u64 {
        self.next
    }

    /// Forgets everything taken since `mark`, and zeroes it again.
    pub fn rewind(&mut self, mark: u64) {
        assert!(mark <= self.next);
        Dma { address: mark, len: self.next - mark }.fill(0);
        self.next = mark;
    }
}
