//! How a guest switches itself off: the ACPI sleep registers (ACPI 6.5 §4.8.3.7), and whom the chips tell.

use std::sync::Arc;

use crate::bus::BusDevice;

/// What a guest asks of the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerEvent {
    /// Reset, which for a microVM is the end.
    Reset,
    /// Power off (S5).
    PowerOff,
}

/// Hears what the guest asks for. Called on a vCPU thread, which has not returned to the guest yet; may be called more than once.
pub trait PowerSink: Send + Sync {
    /// The guest asks for this.
    fn request(&self, event: PowerEvent);
}

/// SLP_EN of the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;
/// SLP_TYP is bits 2 to 4.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// The hardware-reduced sleep registers: control at offset 0, status at offset 1.
pub struct SleepRegisters {
    sink: Arc<dyn PowerSink>,
}

impl SleepRegisters {
    /// First port.
    pub const PORT: u64 = 0x600;
    /// Number of ports.
    pub const LEN: u64 = 2;
    /// SLP_TYP that means S5; what the DSDT's `_S5` must say.
    pub const S5: u8 = 5;

    /// Registers that report to `sink`.
    pub fn new(sink: Arc<dyn PowerSink>) -> Self {
        Self { sink }
    }
}

impl BusDevice for SleepRegisters {
    /// Control reads as zero (its fields are write-only in effect), and so does status: this machine never wakes from a sleep.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (0, Some(value)) = (offset, data.first()) else { return };
        let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
        if value & SLEEP_ENABLE != 0 && sleep_type == Self::S5 {
            self.sink.request(PowerEvent::PowerOff);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Keeps what was asked for.
    #[derive(Default)]
    pub(in crate::legacy) struct Heard(pub(in crate::legacy) Mutex<Vec<PowerEvent>>);

    impl PowerSink for Heard {
        fn request(&self, event: PowerEvent) {
            self.0.lock().unwrap().push(event);
        }
    }

    #[test]
    fn only_s5_with_enable_powers_off() {
        let heard = Arc::new(Heard::default());
        let registers = SleepRegisters::new(heard.clone());
        for value in 0..=u8::MAX {
            registers.write(1, &[value]);
            if value & 0x3c != 0x34 {
                registers.write(0, &[value]);
            }
        }
        registers.write(0, &[]);
        assert!(heard.0.lock().unwrap().is_empty());
        registers.write(0, &[0x34]);
        assert_eq!(*heard.0.lock().unwrap(), [PowerEvent::PowerOff]);
    }
}
