//! What fences there are, for whoever audits the process from inside: there need not be a `/proc` where it runs.

use std::sync::{Mutex, PoisonError};

use super::filter::Program;
use super::landlock;
use crate::sys::process::{self, ThreadName};
use crate::threads::Role;

/// The fence of one thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadFence {
    /// The thread's name as the kernel knows it, `main` for the first one.
    pub name: String,
    /// What it is for.
    pub role: &'static str,
    /// Whether a seccomp filter is installed.
    pub seccomp: bool,
    /// Calls it lets through; unknown of a filter that was brought.
    pub rules: Option<usize>,
    /// Its length.
    pub instructions: usize,
    /// Whether it may open files.
    pub opens_files: bool,
}

/// All that is known.
#[derive(Debug, Clone)]
pub struct Report {
    /// Threads that entered a fence, in that order. One that has ended stays.
    pub threads: Vec<ThreadFence>,
    /// What Landlock can do here.
    pub landlock: landlock::State,
    /// Of the process.
    pub process: process::Standing,
}

static THREADS: Mutex<Vec<ThreadFence>> = Mutex::new(Vec::new());

pub(super) fn note(role: Role, program: Option<&Program>, opens_files: bool) {
    let fence = ThreadFence {
        name: ThreadName::of_this_thread().as_str().to_owned(),
        role: role.kind(),
        seccomp: program.is_some(),
        rules: program.and_then(Program::rules),
        instructions: program.map_or(0, Program::instructions),
        opens_files,
    };
    let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
    // A thread that enters another one has both; the last one is the narrower.
    threads.retain(|known| known.name != fence.name);
    threads.push(fence);
}

/// What there is now.
pub fn report() -> Report {
    Report {
        threads: THREADS.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        landlock: landlock::state(),
        process: process::standing(),
    }
}
