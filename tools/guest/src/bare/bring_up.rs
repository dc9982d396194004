//! Device initialisation (virtio 1.3 §3.1.1).

use crate::clock::Clock;
use crate::mmio::{Window, status};

/// Feature bits every device may have.
pub mod feature {
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
}

/// How long a device may take for anything, in milliseconds.
pub const PATIENCE_MS: u64 = 5000;

/// Why a device did not come up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The status did not read zero after a reset.
    Reset,
    /// FEATURES_OK did not stick.
    Features,
    /// DRIVER_OK did not stick, or came with DEVICE_NEEDS_RESET.
    Start,
}

/// Resets the device and waits until it says so.
pub fn reset(window: Window, clock: Clock) -> Result<(), Refusal> {
    window.write(crate::mmio::reg::STATUS, 0);
    let deadline = clock.deadline_ms(PATIENCE_MS);
    while window.status() != 0 {
        if deadline.passed() {
            return Err(Refusal::Reset);
        }
    }
    Ok(())
}

/// Steps 1 to 6: reset, acknowledge, and agree on `wanted` as far as offered.
/// VERSION_1 is always wanted. Returns the features in force.
pub fn negotiate(window: Window, wanted: u64, clock: Clock) -> Result<u64, Refusal> {
    reset(window, clock)?;
    set_status(window, status::ACKNOWLEDGE);
    set_status(window, status::ACKNOWLEDGE | status::DRIVER);
    let features = window.offered() & (wanted | feature::VERSION_1);
    window.want(features);
    set_status(window, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    if window.status() & status::FEATURES_OK == 0 {
        return Err(Refusal::Features);
    }
    Ok(features)
}

/// Step 8: DRIVER_OK.
pub fn start(window: Window) -> Result<(), Refusal> {
    let up = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    set_status(window, up);
    if window.status() == up { Ok(()) } else { Err(Refusal::Start) }
}

fn set_status(window: Window, value: u32) {
    window.write(crate::mmio::reg::STATUS, value);
}
