//! The fences of this process: the one of the thread that serves the API, and what is told of all of them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm::confine::{Fence, FenceError, FilterError, Filters, Seccomp, calls, landlock};
use vmm::sys::process;
use vmm::threads::Role;

use crate::syscalls::{ALWAYS, BEFORE_THE_START};

/// Both fences of the thread that serves the API.
#[derive(Debug)]
pub(crate) struct ApiFences {
    /// Until the guest runs.
    pub(crate) before: Fence,
    /// From then on. Made when it is needed.
    after: AfterStart,
    /// The second one is up.
    narrowed: AtomicBool,
}

#[derive(Debug)]
struct AfterStart(Seccomp);

impl AfterStart {
    fn fence(&self) -> Result<Fence, FilterError> {
        self.0.fence(Role::Api, &[calls::EVERY, calls::EVENT_LOOP, ALWAYS], false)
    }
}

impl ApiFences {
    /// As the operator wants filters.
    pub(crate) fn new(seccomp: &Seccomp) -> Result<Self, FilterError> {
        let lists = [calls::EVERY, calls::EVENT_LOOP, ALWAYS, BEFORE_THE_START];
        let before = seccomp.fence(Role::Api, &lists, true)?;
        Ok(Self { before, after: AfterStart(seccomp.clone()), narrowed: AtomicBool::new(false) })
    }

    /// None, for tests.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { before: Fence::none(Role::Api), after: AfterStart(Seccomp::Off), narrowed: AtomicBool::new(false) }
    }

    /// The fence for a machine that runs already.
    pub(crate) fn running(self) -> Result<Self, FilterError> {
        Ok(Self { before: self.after.fence()?, after: self.after, narrowed: AtomicBool::new(true) })
    }

    /// There is a machine, and its guest may be hostile: the calling thread, which serves the API, opens no more files.
    pub(crate) fn narrow(&self) {
        if self.narrowed.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.after.fence().map_err(FenceError::from).and_then(|fence| fence.enter()) {
            log::error!("The API server stays less confined than it should be: {error}");
        }
    }
}

/// First thing of a process that will run a machine.
pub(crate) fn begin() {
    process::be_confined();
    landlock::forbid_the_unneeded();
}

/// The filters of a file.
pub(crate) fn bring(path: &Path) -> Result<Seccomp, String> {
    let bytes =
        std::fs::read(path).map_err(|e| format!("The seccomp filters {} cannot be read: {e}", path.display()))?;
    match Filters::parse(&bytes) {
        Ok(filters) => Ok(Seccomp::Brought(Arc::new(filters))),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}
