//! The threads that serve devices.

use std::sync::Arc;

use devices::event::Subscriber;
use devices::virtio::block::UringHub;

use super::fences::Fences;
use super::roster::{DeviceName, Seat};
use crate::exit::ExitLatch;
use crate::io_thread::IoThread;

/// A thread, and whose devices it serves.
pub(super) struct Served {
    pub(super) names: Vec<DeviceName>,
    pub(super) thread: IoThread,
}

impl Served {
    /// Starts the thread of this number. Of each device it serves the lanes that are for the `nth` of its threads, and with them the io_uring
    /// that they are on.
    pub(super) fn start(
        number: usize,
        seats: &[&Seat],
        nth: usize,
        hub: Option<Arc<UringHub>>,
        fences: &Fences,
        exit: &Arc<ExitLatch>,
    ) -> Result<Self, String> {
        let fence = fences.of_io(number, seats.iter().copied()).map_err(|e| e.to_string())?;
        let hub = hub.map(|hub| hub as Arc<dyn Subscriber>);
        let subscribers = hub.into_iter().chain(seats.iter().flat_map(|seat| seat.lanes_of(nth))).collect();
        let thread = IoThread::start(fence, &fences.gate, subscribers, exit.clone())
            .map_err(|e| format!("cannot start a thread for devices: {e}"))?;
        Ok(Self { names: seats.iter().map(|seat| seat.name.clone()).collect(), thread })
    }
}
