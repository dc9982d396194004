//! The port and memory-mapped I/O buses: which device answers at which address.
//!
//! A bus is filled by a [`BusBuilder`] and frozen before any vCPU runs, so that vCPUs look up addresses without a lock.

use std::sync::Arc;

/// A device that answers at a range of addresses. Called from vCPU threads, concurrently.
///
/// Accesses that make no sense (width, offset) are answered with zeroes or ignored; the guest must not be able to do harm with them.
pub trait BusDevice: Send + Sync {
    /// Fills `data` (1 to 8 bytes) with what is at `offset` in the device's range.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes `data` (1 to 8 bytes) written at `offset` in the device's range.
    fn write(&self, offset: u64, data: &[u8]);
}

struct Entry {
    base: u64,
    /// Last address of the range.
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// The range is taken, empty, or passes the end of the address space.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bus range {base:#x}+{len:#x} is empty, too long or overlaps another device")]
pub struct BadRange {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A bus being filled.
#[derive(Default)]
pub struct BusBuilder {
    entries: Vec<Entry>,
}

impl BusBuilder {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `[base, base + len)`.
    pub fn insert(&mut self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BadRange> {
        let bad = BadRange { base, len };
        let last = len.checked_sub(1).and_then(|l| base.checked_add(l)).ok_or(bad.clone())?;
        let at = self.entries.partition_point(|e| e.base < base);
        let next_overlaps = self.entries.get(at).is_some_and(|next| next.base <= last);
        let previous_overlaps = at.checked_sub(1).and_then(|p| self.entries.get(p)).is_some_and(|p| p.last >= base);
        if next_overlaps || previous_overlaps {
            return Err(bad);
        }
        self.entries.insert(at, Entry { base, last, device });
        Ok(())
    }

    /// The finished bus.
    pub fn freeze(self) -> Bus {
        Bus { entries: self.entries.into_boxed_slice() }
    }
}

/// A frozen bus.
pub struct Bus {
    entries: Box<[Entry]>,
}

impl Bus {
    /// The device whose range holds all of `[addr, addr + len)`, and the offset in it.
    fn find(&self, addr: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let at = self.entries.partition_point(|e| e.base <= addr).checked_sub(1)?;
        let entry = self.entries.get(at)?;
        let last = addr.checked_add((len as u64).checked_sub(1)?)?;
        (last <= entry.last).then(|| (&*entry.device, addr.wrapping_sub(entry.base)))
    }

    /// Reads; where nothing answers the guest sees all ones, as on a real bus.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        match self.find(addr, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes; where nothing answers the write is lost.
    pub fn write(&self, addr: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(addr, data.len()) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Default)]
    struct Last(AtomicU64);

    impl BusDevice for Last {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.store(offset << 8 | u64::from(data[0]), Ordering::Relaxed);
        }
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bus = BusBuilder::new();
        let device = Arc::new(Last::default());
        bus.insert(0x1000, 0x1000, device.clone()).unwrap();
        for (base, len) in [(0x1000, 1), (0xfff, 2), (0x1fff, 1), (0x0, 0x5000), (0x3000, 0), (u64::MAX, 2)] {
            assert_eq!(bus.insert(base, len, device.clone()), Err(BadRange { base, len }));
        }
        bus.insert(0x2000, 8, device.clone()).unwrap();
        bus.insert(0xff8, 8, device).unwrap();
    }

    #[test]
    fn accesses_reach_one_device_or_none() {
        let mut bus = BusBuilder::new();
        let device = Arc::new(Last::default());
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        let bus = bus.freeze();
        let mut byte = [0];
        bus.read(0x100f, &mut byte);
        assert_eq!(byte, [0xf]);
        for (addr, len) in [(0xfff, 1), (0x1010, 1), (0x100f, 2), (0xffe, 4), (u64::MAX, 8)] {
            let mut data = vec![0; len];
            bus.read(addr, &mut data);
            assert!(data.iter().all(|b| *b == 0xff), "{addr:#x}+{len}");
        }
        bus.write(0x1003, &[7]);
        assert_eq!(device.0.load(Ordering::Relaxed), 0x307);
        bus.write(0x1010, &[9]);
        assert_eq!(device.0.load(Ordering::Relaxed), 0x307);
    }
}
