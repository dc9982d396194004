//! On how many threads the lanes of a device are served, and with how many io_urings.

use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use devices::virtio::block::UringHub;

/// More threads than this do not make a device faster than its guest can ask.
const MOST: usize = 4;

/// The threads for devices with several lanes. One lane is served by one thread, the lane after it by the next.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spread {
    host_cpus: usize,
}

impl Spread {
    /// Over the processors that this process may use. They are counted only if that matters.
    pub(super) fn here(several_lanes: bool) -> Self {
        let count = || thread::available_parallelism().map_or(1, NonZero::get);
        Self { host_cpus: if several_lanes { count() } else { 1 } }
    }

    /// Threads for a device of so many lanes: never more than there are processors, because what only waits for another's turn is slower
    /// than one that does the work of both.
    pub(super) fn threads(self, lanes: usize) -> usize {
        lanes.min(self.host_cpus).clamp(1, MOST)
    }

    /// The io_urings for drives with so many lanes each, one for each thread that serves some; none if the host allows none.
    pub(super) fn rings(self, drives: impl IntoIterator<Item = usize>) -> Vec<Arc<UringHub>> {
        // How many lanes each thread will have.
        let mut per_thread = Vec::new();
        for lanes in drives {
            let threads = self.threads(lanes);
            per_thread.resize(per_thread.len().max(threads), 0);
            (0..lanes).for_each(|lane| per_thread[lane % threads] += 1);
        }
        let hubs: Result<Vec<_>, _> = per_thread.into_iter().map(UringHub::new).collect();
        hubs.unwrap_or_else(|error| {
            log::warn!("io_uring is not available ({error}); drives with io_engine Async use the Sync engine instead");
            Vec::new()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_threads_than_lanes_processors_and_reason() {
        let threads = |host_cpus, lanes| Spread { host_cpus }.threads(lanes);
        assert_eq!([threads(8, 1), threads(8, 2), threads(8, 16), threads(2, 16), threads(1, 2)], [1, 2, 4, 2, 1]);
        assert_eq!(Spread::here(false).threads(1), 1);
        assert!((1..=MOST).contains(&Spread::here(true).threads(16)));
    }
}
