//! pvpanic: a port by which a guest kernel tells that it panicked (QEMU's `docs/specs/pvpanic.rst`; Linux `drivers/misc/pvpanic`).
//!
//! The machine goes on as it is: what a panicked guest does next is its own affair. The host only learns of it.

use std::sync::Arc;

use crate::bus::BusDevice;

/// What a guest tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestPanic {
    /// The kernel panicked.
    Panicked,
    /// The kernel panicked, and a crash kernel it had loaded takes over.
    CrashLoaded,
}

/// Bit 0: the kernel panicked.
const PANICKED: u8 = 1 << 0;
/// Bit 1: a crash kernel takes over.
const CRASH_LOADED: u8 = 1 << 1;
/// What a read returns: the events this device knows. Bit 2, an orderly shutdown, is left to ACPI.
const EVENTS: u8 = PANICKED | CRASH_LOADED;

crate::metric_group! {
    /// What guests told about panics.
    pub struct PvPanicMetrics {
    }
    beyond v1 {
        /// Panics.
        panicked_count: Counter,
        /// Panics that a crash kernel takes care of.
        crash_loaded_count: Counter,
    }
}

/// The port.
pub struct PvPanic {
    metrics: Arc<PvPanicMetrics>,
    on_panic: Box<dyn Fn(GuestPanic) + Send + Sync>,
}

impl PvPanic {
    /// The traditional port. Wider accesses than a byte do not fit and reach nobody.
    pub const PORT: u16 = 0x505;
    /// Number of ports.
    pub const PORTS: u8 = 1;

    /// `on_panic` is called on the vCPU thread that tells, as often as it tells.
    pub fn new(on_panic: impl Fn(GuestPanic) + Send + Sync + 'static) -> Self {
        Self { metrics: Arc::default(), on_panic: Box::new(on_panic) }
    }

    /// Counts what guests told.
    pub fn metrics(&self) -> Arc<PvPanicMetrics> {
        self.metrics.clone()
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = EVENTS;
        }
    }

    /// Unknown bits are ignored, as the specification has it.
    fn write(&self, _offset: u64, data: &[u8]) {
        let Some(events) = data.first() else { return };
        let known = [
            (PANICKED, GuestPanic::Panicked, &self.metrics.panicked_count, ""),
            (CRASH_LOADED, GuestPanic::CrashLoaded, &self.metrics.crash_loaded_count, "; its crash kernel takes over"),
        ];
        for (_, event, counter, next) in known.into_iter().filter(|(bit, ..)| events & bit != 0) {
            counter.inc();
            crate::guest_warn!("the guest's kernel panicked{next}");
            (self.on_panic)(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn device() -> (PvPanic, Arc<Mutex<Vec<GuestPanic>>>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = heard.clone();
        (PvPanic::new(move |event| hears.lock().unwrap().push(event)), heard)
    }

    #[test]
    fn a_read_says_which_events_are_known() {
        let mut byte = [0xff];
        device().0.read(0, &mut byte);
        assert_eq!(byte, [0b11]);
        // Not that the bus would let these through.
        let mut wide = [0xff; 8];
        device().0.read(0, &mut wide);
        assert_eq!(wide, [0b11, 0, 0, 0, 0, 0, 0, 0]);
        device().0.read(0, &mut []);
    }

    #[test]
    fn each_known_bit_is_told_and_counted_and_others_are_not() {
        use GuestPanic::{CrashLoaded, Panicked};
        let (device, heard) = device();
        for value in 0..=u8::MAX {
            device.write(0, &[value]);
            let expected: &[_] = match value & 3 {
                0 => &[],
                1 => &[Panicked],
                2 => &[CrashLoaded],
                _ => &[Panicked, CrashLoaded],
            };
            assert_eq!(std::mem::take(&mut *heard.lock().unwrap()), expected, "{value:#x}");
        }
        device.write(0, &[]);
        let metrics = device.metrics();
        assert_eq!((metrics.panicked_count.get(), metrics.crash_loaded_count.get()), (128, 128));
    }
}
