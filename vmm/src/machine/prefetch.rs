//! Bringing memory that the guest will want, beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::io_thread::IoThread;
use crate::memory::Memory;
use crate::snapshot::WorkingSet;

/// What brings memory. It is given up when the machine ends.
pub(super) struct Prefetch {
    stop: Arc<AtomicBool>,
    _thread: IoThread,
}

impl Prefetch {
    /// Has `thread` bring what is `wanted`.
    pub(super) fn begin(thread: IoThread, wanted: WorkingSet, memory: &Memory) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (ram, layout, given_up) = (memory.everything.clone(), memory.layout(), stop.clone());
        thread.run(move || wanted.bring(&ram, &layout, &given_up));
        Self { stop, _thread: thread }
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
