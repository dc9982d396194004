//! Bringing memory that the guest will want, beside it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::io_thread::IoThread;
use crate::memory::Memory;
use crate::snapshot::WorkingSet;

/// What brings memory. It is given up when the machine ends.
pub(super) struct Prefetch {
    stop: Arc<AtomicBool>,
    /// Taken when it begins.
    wanted: Mutex<Option<WorkingSet>>,
    thread: IoThread,
}

impl Prefetch {
    /// Has `thread` bring what is `wanted`, as soon as [`Self::begin`] says so.
    pub(super) fn new(thread: IoThread, wanted: WorkingSet) -> Self {
        Self { stop: Arc::default(), wanted: Mutex::new(Some(wanted)), thread }
    }

    /// Begins, if it has not. Not while the machine is put together: the kernel changes mappings for nobody while it brings pages.
    pub(super) fn begin(&self, memory: &Memory) {
        let Some(wanted) = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let (ram, layout, given_up) = (memory.everything.clone(), memory.layout(), self.stop.clone());
        self.thread.run(move || wanted.bring(&ram, &layout, &given_up));
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
