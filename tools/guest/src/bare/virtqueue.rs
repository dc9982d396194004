//! The driver's side of a split virtqueue (virtio 1.3 §2.7), polled.

use core::sync::atomic::{Ordering, compiler_fence};

use crate::cpu;
use crate::dma::{Arena, Dma};
use crate::mmio::{Window, reg};

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
/// Bytes of a descriptor.
pub const DESCRIPTOR: u64 = 16;
/// In `avail.flags`: do not interrupt.
const NO_INTERRUPT: u16 = 1;
/// In `used.flags`: do not notify.
const NO_NOTIFY: u16 = 1;

/// One buffer of a chain.
#[derive(Clone, Copy)]
pub struct Piece {
    pub address: u64,
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Piece {
    /// Memory the device reads.
    pub fn readable(memory: Dma) -> Self {
        Self { address: memory.address(), len: memory.len() as u32, writable: false }
    }

    /// Memory the device writes.
    pub fn writable(memory: Dma) -> Self {
        Self { writable: true, ..Self::readable(memory) }
    }
}

/// An element of the used ring.
#[derive(Clone, Copy)]
pub struct Used {
    pub head: u16,
    pub len: u32,
}

/// One queue: three areas in RAM and the indices this side keeps.
pub struct Queue {
    window: Window,
    pub index: u32,
    /// Number of descriptors.
    pub size: u16,
    pub descriptors: Dma,
    pub avail: Dma,
    pub used: Dma,
    event_idx: bool,
    /// Next free slot of the available ring, as a running count.
    pub next_avail: u16,
    /// What the device was last told about.
    kicked: u16,
    last_used: u16,
    /// Doorbells rung.
    pub kicks: u64,
}

impl Queue {
    /// Allocates the three areas without telling the device.
    pub fn allocate(window: Window, index: u32, size: u16, event_idx: bool, arena: &mut Arena) -> Self {
        let slots = u64::from(size);
        let queue = Self {
            window,
            index,
            size,
            descriptors: arena.take(DESCRIPTOR * slots, 4096),
            avail: arena.take(6 + 2 * slots, 64),
            used: arena.take(6 + 8 * slots, 64),
            event_idx,
            next_avail: 0,
            kicked: 0,
            last_used: 0,
            kicks: 0,
        };
        if event_idx {
            // "Interrupt me when you pass an index you will never reach."
            queue.avail.write16(4 + 2 * slots, u16::MAX);
        } else {
            queue.avail.write16(0, NO_INTERRUPT);
        }
        queue
    }

    /// Writes size and addresses to the device and makes the queue ready.
    pub fn announce(&self) {
        let w = self.window;
        w.write(reg::QUEUE_SEL, self.index);
        w.write(reg::QUEUE_NUM, self.size.into());
        w.write_address(reg::QUEUE_DESC, self.descriptors.address());
        w.write_address(reg::QUEUE_DRIVER, self.avail.address());
        w.write_address(reg::QUEUE_DEVICE, self.used.address());
        w.write(reg::QUEUE_READY, 1);
    }

    /// Writes one descriptor of this queue's table.
    pub fn describe(&self, slot: u16, piece: Piece, flags: u16, next: u16) {
        describe(self.descriptors, slot, piece, flags, next);
    }

    /// Writes a chain to consecutive descriptors from `head`.
    pub fn chain(&self, head: u16, pieces: &[Piece]) {
        chain(self.descriptors, head, pieces);
    }

    /// Writes a chain to an indirect table and points descriptor `head` to it.
    pub fn chain_indirect(&self, head: u16, table: Dma, pieces: &[Piece]) {
        chain(table, 0, pieces);
        let whole = table.part(0, DESCRIPTOR * pieces.len() as u64);
        self.describe(head, Piece::readable(whole), INDIRECT, 0);
    }

    /// Puts a chain on the available ring; the device sees it at the next kick.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        self.avail.write16(4 + 2 * slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Publishes what was offered, and rings the doorbell if the device wants it.
    pub fn kick(&mut self) {
        if self.next_avail == self.kicked {
            return;
        }
        compiler_fence(Ordering::Release);
        self.avail.write16(2, self.next_avail);
        // The device reads the index after it writes its wish; we the other way round.
        cpu::fence();
        let wanted = if self.event_idx {
            let event = self.used.read16(4 + 8 * u64::from(self.size));
            let since = self.next_avail.wrapping_sub(self.kicked);
            self.next_avail.wrapping_sub(event).wrapping_sub(1) < since
        } else {
            self.used.read16(0) & NO_NOTIFY == 0
        };
        self.kicked = self.next_avail;
        if wanted {
            self.ring();
        }
    }

    /// The device's registers are somewhere else from now on.
    pub fn move_to(&mut self, window: Window) {
        self.window = window;
    }

    /// Rings the doorbell in any case.
    pub fn ring(&mut self) {
        self.kicks += 1;
        self.window.write(reg::QUEUE_NOTIFY, self.index);
    }

    /// The device's index in the used ring.
    pub fn used_index(&self) -> u16 {
        self.used.read16(2)
    }

    /// The next completed chain.
    pub fn poll(&mut self) -> Option<Used> {
        if self.used_index() == self.last_used {
            return None;
        }
        compiler_fence(Ordering::Acquire);
        let at = 4 + 8 * u64::from(self.last_used % self.size);
        self.last_used = self.last_used.wrapping_add(1);
        if self.event_idx {
            // Keep the interrupt threshold out of the device's reach.
            self.avail.write16(4 + 2 * u64::from(self.size), self.last_used.wrapping_sub(1));
        }
        Some(Used { head: self.used.read32(at) as u16, len: self.used.read32(at + 4) })
    }
}

/// Writes one descriptor of any table.
pub fn describe(table: Dma, slot: u16, piece: Piece, flags: u16, next: u16) {
    let entry = table.part(DESCRIPTOR * u64::from(slot), DESCRIPTOR);
    entry.write64(0, piece.address);
    entry.write32(8, piece.len);
    entry.write16(12, flags | if piece.writable { WRITE } else { 0 });
    entry.write16(14, next);
}

/// Writes a chain to consecutive descriptors of any table.
pub fn chain(table: Dma, first: u16, pieces: &[Piece]) {
    for (slot, piece) in (first..).zip(pieces) {
        let last = usize::from(slot - first) + 1 == pieces.len();
        let (flags, next) = if last { (0, 0) } else { (NEXT, slot + 1) };
        describe(table, slot, *piece, flags, next);
    }
}
