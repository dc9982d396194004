//! Descriptor chains: read once, checked once, then plain host memory (virtio 1.3 §2.7.4 to §2.7.5).

use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ram::{self, GuestRam, Intent};
use crate::sys::iovec::GuestIoVec;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;
const DESCRIPTOR_LEN: u32 = 16;

/// A descriptor as it lies in guest memory.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// What is wrong with a chain a driver made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadChain {
    /// An index is not in the table.
    #[error("descriptor index {0} is outside its table")]
    Index(u16),
    /// More descriptors than the queue has entries: a loop, or against §2.7.5.
    #[error("the chain is longer than the queue")]
    TooLong,
    /// A buffer or indirect table is not in RAM, or the device should write where nothing can be written.
    #[error("address {0:#x} is not in RAM that can be used for this")]
    Address(u64),
    /// A device-readable buffer after a device-writable one (§2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// An indirect table that is not negotiated, nested, empty, of a bad length, or followed by another descriptor (§2.7.5.3.1).
    #[error("bad indirect descriptor")]
    Indirect,
    /// The buffers add up to more than 4 GiB.
    #[error("the chain holds more than 4 GiB")]
    TooLarge,
}

/// A chain taken from a ring: the buffers the device may read, then those it may write.
///
/// Descriptors were copied out of guest memory once and are never read again; the *contents* of the buffers may change at any time.
/// One `Chain` is reused for many chains, so taking one does not allocate.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    pieces: Vec<GuestIoVec>,
    /// How many of `pieces` the device may only read.
    readable: usize,
    writable_len: u32,
}

/// Where a chain's descriptors are and what its driver may do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub addr: GuestAddress,
    pub size: u16,
    pub indirect: bool,
}

impl Chain {
    /// An empty chain to be filled by a queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Index of the chain's first descriptor: its name when it is given back.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Buffers the device may read.
    pub fn readable(&self) -> &[GuestIoVec] {
        self.pieces.get(..self.readable).unwrap_or_default()
    }

    /// Buffers the device may write.
    pub fn writable(&self) -> &[GuestIoVec] {
        self.pieces.get(self.readable..).unwrap_or_default()
    }

    /// Total length in bytes of the readable buffers.
    pub fn readable_len(&self) -> usize {
        GuestIoVec::total(self.readable())
    }

    /// Total length in bytes of the writable buffers; fits `u32`.
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// Reads the chain that starts at `head`.
    pub(super) fn load(&mut self, ram: &GuestRam, table: Table, head: u16) -> Result<(), BadChain> {
        self.head = head;
        self.pieces.clear();
        self.readable = 0;
        self.writable_len = 0;
        let mut total = 0u32;
        let mut budget = table.size;
        let mut current = table;
        let mut in_indirect = false;
        let mut index = head;
        loop {
            if index >= current.size {
                return Err(BadChain::Index(index));
            }
            let at = u64::from(index).saturating_mul(DESCRIPTOR_LEN.into());
            let place = current.addr.0.checked_add(at).ok_or(BadChain::Address(current.addr.0))?;
            let mut descriptor = Descriptor::default();
            ram.read_slice(descriptor.as_mut_bytes(), GuestAddress(place)).map_err(|_| BadChain::Address(place))?;
            let Descriptor { addr, len, flags, next } = descriptor;

            if flags & F_INDIRECT != 0 {
                // §2.7.5.3.2 allows direct descriptors before the indirect one, nothing after it, no table inside a table.
                if !table.indirect || in_indirect || flags & F_NEXT != 0 || len == 0 || len % DESCRIPTOR_LEN != 0 {
                    return Err(BadChain::Indirect);
                }
                let entries = u16::try_from(len / DESCRIPTOR_LEN).map_err(|_| BadChain::Indirect)?;
                if !ram::contains(ram, addr, len.into()) {
                    return Err(BadChain::Address(addr));
                }
                current = Table { addr: GuestAddress(addr), size: entries, indirect: false };
                in_indirect = true;
                index = 0;
                continue;
            }

            budget = budget.checked_sub(1).ok_or(BadChain::TooLong)?;
            total = total.checked_add(len).ok_or(BadChain::TooLarge)?;
            let intent = if flags & F_WRITE != 0 { Intent::Write } else { Intent::Read };
            let piece = ram::piece_for(ram, GuestAddress(addr), len as usize, intent).ok_or(BadChain::Address(addr))?;
            if intent == Intent::Write {
                self.writable_len = self.writable_len.saturating_add(len);
            } else if self.readable == self.pieces.len() {
                self.readable = self.readable.saturating_add(1);
            } else {
                return Err(BadChain::Order);
            }
            self.pieces.push(piece);
            if flags & F_NEXT == 0 {
                return Ok(());
            }
            index = next;
        }
    }
}

/// Reads `out.len()` bytes from the start of `pieces`; `None` if they are shorter.
pub fn read_bytes(pieces: &[GuestIoVec], out: &mut [u8]) -> Option<()> {
    let mut rest = out;
    for piece in pieces {
        if rest.is_empty() {
            break;
        }
        let copied = piece.copy_to(rest);
        rest = rest.get_mut(copied..)?;
    }
    rest.is_empty().then_some(())
}

/// Writes all of `bytes` to the start of `pieces`; `None` if they are shorter (what fits is written).
pub fn write_bytes(pieces: &[GuestIoVec], bytes: &[u8]) -> Option<()> {
    let mut rest = bytes;
    for piece in pieces {
        if rest.is_empty() {
            break;
        }
        let copied = piece.copy_from(rest);
        rest = rest.get(copied..)?;
    }
    rest.is_empty().then_some(())
}

/// Appends to `out` the part of `pieces` that starts `skip` bytes in and is `len` bytes long; `None` if they are shorter.
pub fn cut(pieces: &[GuestIoVec], skip: usize, len: usize, out: &mut Vec<GuestIoVec>) -> Option<()> {
    let (mut skip, mut len) = (skip, len);
    for piece in pieces {
        if len == 0 {
            break;
        }
        if skip >= piece.len() {
            skip = skip.saturating_sub(piece.len());
            continue;
        }
        let (_, rest) = piece.split_at(skip);
        skip = 0;
        let (part, _) = rest.split_at(len);
        len = len.saturating_sub(part.len());
        out.push(part);
    }
    (len == 0).then_some(())
}

#[cfg(test)]
mod tests;
