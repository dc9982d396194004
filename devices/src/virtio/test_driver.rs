//! A driver for tests: lays a queue out in guest memory, makes chains by hand and looks at what comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{Bytes, GuestAddress};

use super::device::Rings;
use super::queue::{Geometry, VirtQueue};
use crate::irq::VirtioIrq;
use crate::ram::GuestRam;

/// Counts interrupts.
#[derive(Debug, Default)]
pub struct CountingIrq {
    /// Queue interrupts.
    pub queue: AtomicU32,
    /// Configuration interrupts.
    pub config: AtomicU32,
}

impl VirtioIrq for CountingIrq {
    fn queue(&self, _index: u16) {
        self.queue.fetch_add(1, Ordering::Relaxed);
    }

    fn config(&self) {
        self.config.fetch_add(1, Ordering::Relaxed);
    }
}

/// A descriptor as a test writes it down.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    /// Guest address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// The device may write it.
    pub writable: bool,
}

/// The driver's side of one queue.
pub struct DriverQueue {
    /// Where the queue is.
    pub geometry: Geometry,
    next_descriptor: u16,
    available: u16,
    used_seen: u16,
}

/// Guest memory with some queues at its start, and free space from [`TestDriver::FREE`] on.
pub struct TestDriver {
    /// Guest memory.
    pub ram: GuestRam,
    /// Counts interrupts.
    pub irq: Arc<CountingIrq>,
    /// Queues.
    pub queues: Vec<DriverQueue>,
}

impl TestDriver {
    /// First address tests may use as they like.
    pub const FREE: u64 = 0x10_0000;
    /// Bytes of guest memory.
    pub const RAM_LEN: usize = 16 << 20;

    /// Memory with `count` queues of `size` entries.
    pub fn new(count: u16, size: u16) -> Self {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), Self::RAM_LEN)]).unwrap();
        let queues = (0..u64::from(count))
            .map(|i| {
                let base = 0x1_0000 * (i + 1);
                DriverQueue {
                    geometry: Geometry {
                        size,
                        ready: true,
                        descriptors: base,
                        available: base + 0x4000,
                        used: base + 0x8000,
                    },
                    next_descriptor: 0,
                    available: 0,
                    used_seen: 0,
                }
            })
            .collect();
        Self { ram, irq: Arc::default(), queues }
    }

    /// The device's side, with these features negotiated.
    pub fn rings(&self, event_idx: bool, indirect: bool) -> Rings {
        let queues = (0u16..)
            .zip(&self.queues)
            .map(|(i, q)| VirtQueue::new(i, q.geometry.size, q.geometry, event_idx, indirect, &self.ram).unwrap())
            .collect();
        Rings { ram: self.ram.clone(), irq: self.irq.clone(), queues }
    }

    /// Writes descriptor `index` of a table at `table`.
    pub fn write_descriptor(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = GuestAddress(table + 16 * u64::from(index));
        self.ram.write_obj(addr, at).unwrap();
        self.ram.write_obj(len, GuestAddress(at.0 + 8)).unwrap();
        self.ram.write_obj(flags, GuestAddress(at.0 + 12)).unwrap();
        self.ram.write_obj(next, GuestAddress(at.0 + 14)).unwrap();
    }

    /// Makes a chain of `buffers` available on `queue` and returns its head.
    pub fn offer(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let (table, size) = (self.queues[queue].geometry.descriptors, self.queues[queue].geometry.size);
        let head = self.queues[queue].next_descriptor;
        for (i, buffer) in buffers.iter().enumerate() {
            let index = self.queues[queue].next_descriptor;
            let next = (index + 1) % size;
            let more = u16::from(i + 1 < buffers.len());
            let flags = more | if buffer.writable { 2 } else { 0 };
            self.write_descriptor(table, index, buffer.addr, buffer.len, flags, next);
            self.queues[queue].next_descriptor = next;
        }
        self.offer_head(queue, head);
        head
    }

    /// Makes `head` available as it is.
    pub fn offer_head(&mut self, queue: usize, head: u16) {
        let q = &mut self.queues[queue];
        let slot = q.geometry.available + 4 + 2 * u64::from(q.available % q.geometry.size);
        self.ram.write_obj(head, GuestAddress(slot)).unwrap();
        q.available = q.available.wrapping_add(1);
        self.ram.write_obj(q.available, GuestAddress(q.geometry.available + 2)).unwrap();
    }

    /// The next chain that came back: its head and how much was written.
    pub fn take_used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let q = &mut self.queues[queue];
        let used: u16 = self.ram.read_obj(GuestAddress(q.geometry.used + 2)).unwrap();
        if used == q.used_seen {
            return None;
        }
        let slot = q.geometry.used + 4 + 8 * u64::from(q.used_seen % q.geometry.size);
        q.used_seen = q.used_seen.wrapping_add(1);
        let id: u32 = self.ram.read_obj(GuestAddress(slot)).unwrap();
        let len: u32 = self.ram.read_obj(GuestAddress(slot + 4)).unwrap();
        Some((id as u16, len))
    }

    /// Queue interrupts so far.
    pub fn interrupts(&self) -> u32 {
        self.irq.queue.load(Ordering::Relaxed)
    }
}
