//! When all threads of a machine are behind their fences.

use std::sync::{Condvar, Mutex, PoisonError};

use super::FenceError;

/// Counts threads that enter their fences. The guest runs no instruction before all have.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    expected: usize,
    entered: usize,
    failed: Option<FenceError>,
}

impl Gate {
    /// One more thread will come.
    pub fn expect_one(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).expected += 1;
    }

    /// A thread has entered its fence, or could not.
    pub fn entered(&self, outcome: Result<(), FenceError>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(()) => state.entered += 1,
            Err(error) => state.failed = Some(error),
        }
        self.changed.notify_all();
    }

    /// Waits until all have entered theirs.
    ///
    /// # Errors
    /// One of them could not.
    pub fn wait(&self) -> Result<(), FenceError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(error) = state.failed.take() {
                return Err(error);
            }
            if state.entered >= state.expected {
                return Ok(());
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
