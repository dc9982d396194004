//! What of virtio devices outlives the process: plain data, taken while a device stands still and taken up by one that was just made.
//!
//! Whoever takes it up believes none of it: rings, features and status are judged as if a driver had written them. What is not here is
//! made anew: host sockets, timers, random bytes in store, requests in flight (there are none while a device stands still).

use serde::{Deserialize, Serialize};

use super::queue::{Geometry, Position};
use crate::rate_limit::LimiterState;

/// How far a driver has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// No driver, or not yet set up.
    Idle,
    /// It said DRIVER_OK, and the device has not heard it yet.
    Activating,
    /// At work.
    Live,
    /// The device waits for a reset.
    NeedsReset,
}

/// A device in its cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellState {
    /// What was negotiated.
    pub registers: RegistersState,
    /// How far the driver has come.
    pub progress: Progress,
    /// Where each queue stands. Empty unless the device is at work.
    pub positions: Vec<Position>,
    /// Interrupts that the driver has not acknowledged, as its transport shows them.
    pub interrupts: u32,
    /// The configuration space: a device that shows another one here tells its driver.
    pub config: Vec<u8>,
    /// The device's own.
    pub device: DeviceState,
}

/// What a driver negotiates, see [`super::registers::Registers`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistersState {
    /// Features that the driver accepted.
    pub accepted: u64,
    /// Which half of the device's features is looked at.
    pub device_features_page: u32,
    /// Which half of the driver's features is written.
    pub driver_features_page: u32,
    /// The queue that registers are about.
    pub queue_select: u32,
    /// Every queue as the driver set it.
    pub queues: Vec<Geometry>,
    /// The status field.
    pub status: u32,
    /// Of the configuration space.
    pub generation: u32,
}

/// What only the device itself knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// A drive.
    Block(LimiterState),
    /// A network card.
    Net {
        /// Towards the guest.
        rx: LimiterState,
        /// From the guest.
        tx: LimiterState,
    },
    /// An entropy device.
    Rng(LimiterState),
    /// Hot-pluggable memory.
    Mem {
        /// Bytes the operator wants the guest to use.
        requested: u64,
        /// A bit for each block that is plugged.
        plugged: Vec<u64>,
    },
    /// Persistent memory.
    Pmem {
        /// Guest address of the region.
        start: u64,
        /// Its length in bytes.
        len: u64,
        /// The one for flushes.
        limiter: LimiterState,
    },
    /// A balloon.
    Balloon(BalloonState),
    /// A socket device: its connections end with the process.
    Vsock {
        /// Where the next host program's port is looked for. The guest may remember those before it.
        next_host_port: u32,
    },
    /// A network card with several pairs of queues.
    NetPairs {
        /// Towards the guest.
        rx: LimiterState,
        /// From the guest.
        tx: LimiterState,
        /// Pairs that the driver uses.
        in_use: u16,
    },
    /// A device that another process serves, which has what there is to know. Machines with one are not saved.
    Elsewhere,
}

/// Of a balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Pages it should have.
    pub target_pages: u32,
    /// Pages it has, says the driver.
    pub actual_pages: u32,
    /// Runs of hinting.
    pub hinting: HintingState,
    /// The statistics that wait on the ring have been counted.
    pub counted: bool,
}

/// Runs of hinting, see [`super::balloon::Balloon::start_hinting`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HintingState {
    /// The command that the driver is shown.
    pub host: u32,
    /// The one it sent last.
    pub guest: Option<u32>,
    /// The run it is in.
    pub run: Option<u32>,
    /// The last run that was started.
    pub last: u32,
    /// The driver has its pages back when it has named them all.
    pub acknowledge: bool,
}

/// Why a saved state is not taken up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadState {
    /// It is another device's.
    #[error("the saved state is that of another kind of device")]
    Kind,
    /// The guest's driver uses features that this device does not offer.
    #[error(
        "the guest's driver uses features {missing:#x} that the device does not have here (accepted {accepted:#x}, offered {offered:#x}): restore it with the options and on a host like those it was saved with"
    )]
    Features {
        /// What the driver accepted.
        accepted: u64,
        /// What is offered here.
        offered: u64,
        /// Features of the former that are not among the latter.
        missing: u64,
    },
    /// No driver could have brought it about.
    #[error("{0}")]
    Impossible(String),
}
