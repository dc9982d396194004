//! The boot timer: a byte by which a guest says that it is up.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::bus::BusDevice;

/// What a guest writes when it is up.
const UP: u8 = 123;

/// Calls back once, when the guest first writes 123 at offset 0.
pub struct BootTimer {
    rang: AtomicBool,
    on_boot: Box<dyn Fn() + Send + Sync>,
}

impl BootTimer {
    /// Guest physical address of the byte.
    pub const BASE: u64 = 0xc000_0000;
    /// Length of the device's window in bytes.
    pub const LEN: u64 = 0x1000;

    /// `on_boot` is called on the vCPU thread that writes the byte.
    pub fn new(on_boot: impl Fn() + Send + Sync + 'static) -> Self {
        Self { rang: AtomicBool::new(false), on_boot: Box::new(on_boot) }
    }
}

impl BusDevice for BootTimer {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    /// Guests write the byte alone or as the low byte of a wider word.
    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 0 && data.first() == Some(&UP) && !self.rang.swap(true, Ordering::Relaxed) {
            (self.on_boot)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn rings_once_for_the_right_byte() {
        let count = Arc::new(AtomicU32::new(0));
        let counted = count.clone();
        let timer = BootTimer::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        timer.write(0, &[122]);
        timer.write(1, &[123]);
        timer.write(0, &[]);
        assert_eq!(count.load(Ordering::Relaxed), 0);
        timer.write(0, &[123, 0, 0, 0]);
        timer.write(0, &[123]);
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }
}
