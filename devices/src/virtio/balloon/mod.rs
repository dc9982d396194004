//! Traditional memory balloon (virtio 1.3 §5.5): the guest hands memory over, and the host has it back at once.
//!
//! Three ways lead there: pages the guest puts into the balloon because the host asked (inflate), free pages it reports on its own
//! account (reporting), and free pages it names when the host asks (hinting). `release` gives back what a request names, `regions` knows
//! how, `roles` which queue is which, `hinting` whose turn it is. `stats` is what the guest says of its memory, `polling` when it is asked.
//!
//! All of it is advice from the guest: pages that cannot be given back stay, and the request is acknowledged all the same.

mod config_space;
mod device;
mod hinting;
mod metrics;
mod pfns;
mod polling;
mod regions;
mod release;
mod roles;
mod stats;
pub mod syscalls;
#[cfg(test)]
mod tests;

pub use device::{Balloon, BalloonSpec, NotActive};
pub use hinting::HintingStatus;
pub use metrics::BalloonMetrics;
pub use stats::{GuestStats, Stat};

/// Bytes of a page as the balloon counts them, whatever guest and host use (§5.5.6).
pub const PAGE_LEN: u64 = 1 << PAGE_SHIFT;
const PAGE_SHIFT: u32 = 12;
