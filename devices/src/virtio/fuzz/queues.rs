//! A device of several queues behind its register window, and its driver.

use super::*;

/// Where a queue's rings are.
pub(super) fn ring(queue: usize) -> u64 {
    0x1_0000 * (queue as u64 + 1)
}

/// Where [`Queues::chain`] looks for buffers, behind the rings.
pub(super) const BUFFERS: u64 = 0x8_0000;

/// A machine whose device has `N` queues, and the driver's ends of them.
pub(super) struct Queues<const N: usize> {
    pub(super) machine: Machine,
    available: [u16; N],
}

impl<const N: usize> Queues<N> {
    pub(super) fn new(machine: Machine) -> Self {
        Self { machine, available: [0; N] }
    }

    /// What a proper driver does that accepts these features.
    pub(super) fn bring_up(&mut self, accept: u64) {
        self.bring_up_some(accept, u8::MAX);
    }

    /// The same with the queues only whose bits are set.
    pub(super) fn bring_up_some(&mut self, accept: u64, ready: u8) {
        let machine = &self.machine;
        for status in [0, 1, 3] {
            machine.write(0x70, status);
        }
        for (page, bits) in [(0, accept as u32), (1, 1)] {
            machine.write(0x14, page);
            let mut offered = [0; 4];
            machine.window.read(0x10, &mut offered);
            machine.write(0x24, page);
            machine.write(0x20, bits & u32::from_le_bytes(offered));
        }
        machine.write(0x70, 11);
        self.available = [0; N];
        for queue in (0..N).filter(|queue| ready >> queue & 1 != 0) {
            let base = ring(queue);
            let _ = machine.ram.write_slice(&[0; 0x3000], GuestAddress(base));
            machine.write(0x30, queue as u32);
            machine.write(0x38, 256);
            for (offset, address) in [(0x80, base), (0x90, base + 0x1000), (0xa0, base + 0x2000)] {
                machine.write(offset, address as u32);
                machine.write(offset + 4, 0);
            }
            machine.write(0x44, 1);
        }
        machine.write(0x70, 15);
        machine.turn();
    }

    pub(super) fn offer(&mut self, queue: usize, head: u16) {
        let base = ring(queue) + 0x1000;
        let at = &mut self.available[queue];
        let _ = self.machine.ram.write_obj(head, GuestAddress(base + 4 + 2 * u64::from(*at % 256)));
        *at = at.wrapping_add(1);
        let _ = self.machine.ram.write_obj(*at, GuestAddress(base + 2));
    }

    /// A chain of a few descriptors, with a few things wrong now and then.
    pub(super) fn chain(&mut self, queue: usize, input: &mut Input<'_>, writable: bool) {
        let first = u16::from(input.byte());
        let pieces = u16::from(input.byte() % 5) + 1;
        for n in 0..pieces {
            let slot = first.wrapping_add(n) % 256;
            let len = match input.byte() {
                0..=20 => input.u32(),
                21..=40 => 0,
                41..=120 => u32::from(input.byte()),
                _ => u32::from(input.u16() % 4096),
            };
            let addr = if input.byte() < 20 { input.address() } else { BUFFERS + u64::from(input.u16()) * 4 };
            let odd = if input.byte() < 10 { input.u16() & 7 } else { 0 };
            let more = u16::from(n + 1 < pieces);
            let flags = (more | u16::from(writable) << 1) ^ odd;
            let at = ring(queue) + 16 * u64::from(slot);
            self.machine.descriptor(at, addr, len, flags, (slot + 1) % 256);
        }
        self.offer(queue, first);
    }
}
