//! The threads of the process: what they are called, and the one way to start one.
//!
//! Tools find threads by name (`ps -L`, `pidof`, regular expressions), so names are a contract. The process's main thread runs the VMM;
//! it has the name of the program, and in log lines it is `main`.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{Builder, JoinHandle};

use crate::confine::{Fence, Gate};
use crate::sys::process;
use crate::sys::signal_stack::SignalStack;

/// Whose names are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// `mayfly`, `api`, `vcpu 0`.
    Mayfly,
    /// `firecracker`, `fc_api`, `fc_vcpu 0`.
    Firecracker,
}

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Answers API requests.
    Api,
    /// Runs a VMM that does not run on the main thread.
    Vmm,
    /// Runs a vCPU.
    Vcpu(u8),
    /// Serves a device that may block.
    Io(usize),
    /// Opens files for devices that get another one, and writes snapshots.
    Files,
    /// Waits for the end of another process on which the machine depends.
    Watch,
    /// Brings memory from a file, and notes what is wanted.
    Pager,
    /// Brings memory that will be wanted.
    Prefetch,
}

static NAMES: OnceLock<Names> = OnceLock::new();

/// Decides which names threads get and names the calling one, the main thread, after the program. Without this they are Mayfly's.
pub fn use_names(names: Names) {
    // Fails only if called twice, and then the first call stands.
    let _ = NAMES.set(names);
    process::name_this_thread(match names {
        Names::Mayfly => c"mayfly",
        Names::Firecracker => c"firecracker",
    });
    // For the rest of the process. Without it std's has to do.
    std::mem::forget(SignalStack::of_this_thread());
}

impl Role {
    fn name(self, names: Names) -> String {
        match (self, names) {
            (Role::Api, Names::Mayfly) => "api".to_owned(),
            (Role::Api, Names::Firecracker) => "fc_api".to_owned(),
            (Role::Vmm, _) => "vmm".to_owned(),
            (Role::Vcpu(index), Names::Mayfly) => format!("vcpu {index}"),
            (Role::Vcpu(index), Names::Firecracker) => format!("fc_vcpu {index}"),
            (Role::Io(index), _) => format!("io {index}"),
            (Role::Files, _) => "files".to_owned(),
            (Role::Watch, _) => "watch".to_owned(),
            (Role::Pager, _) => "pager".to_owned(),
            (Role::Prefetch, _) => "prefetch".to_owned(),
        }
    }

    /// What the thread is called here.
    pub(crate) fn label(self) -> String {
        self.name(NAMES.get().copied().unwrap_or(Names::Mayfly))
    }

    /// The kind of thread, as reports call it.
    pub fn kind(self) -> &'static str {
        match self {
            Role::Api => "api",
            Role::Vmm => "vmm",
            Role::Vcpu(_) => "vcpu",
            Role::Io(_) => "io",
            Role::Files => "files",
            Role::Watch => "watch",
            Role::Pager => "pager",
            Role::Prefetch => "prefetch",
        }
    }
}

/// Starts a thread. A stack costs memory only as far as it is used; `stack_len` bounds it.
pub fn spawn(role: Role, stack_len: usize, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    Builder::new().name(role.label()).stack_size(stack_len).spawn(|| {
        let _stack = SignalStack::of_this_thread();
        body()
    })
}

/// Starts a thread that is behind its fence before it does anything. If it cannot be, the gate hears of it and the thread ends.
pub fn spawn_fenced(
    fence: Fence,
    gate: &Arc<Gate>,
    stack_len: usize,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let inner = gate.clone();
    let thread = spawn(fence.role(), stack_len, move || behind(&fence, &inner, body))?;
    gate.expect_one();
    Ok(thread)
}

/// Does something behind a fence, if it is to be had; the gate hears of it.
fn behind(fence: &Fence, gate: &Gate, body: impl FnOnce()) {
    let outcome = fence.enter();
    let entered = outcome.is_ok();
    gate.entered(outcome);
    if entered {
        body();
    }
}

type Errand = Box<dyn FnOnce() + Send>;

/// A thread that waits for what it is to do. Dropping it ends the thread. One that exists is soon at work, even where others keep processors
/// busy, whose turn a new one has to wait for.
#[derive(Debug)]
pub struct Parked {
    errand: Sender<Errand>,
    thread: JoinHandle<()>,
}

impl Parked {
    /// Starts it.
    pub fn start(role: Role, stack_len: usize) -> io::Result<Self> {
        let (errand, waiting) = channel::<Errand>();
        let thread = spawn(role, stack_len, move || {
            // An error: it is not needed.
            if let Ok(errand) = waiting.recv() {
                errand();
            }
        })?;
        Ok(Self { errand, thread })
    }

    /// The same as [`spawn_fenced`], with a thread that is there.
    pub fn send(self, fence: Fence, gate: &Arc<Gate>, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        gate.expect_one();
        let inner = gate.clone();
        // It waits for that, so it takes it.
        let _ = self.errand.send(Box::new(move || behind(&fence, &inner, body)));
        self.thread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_contracts_and_fit_the_kernels_15_bytes() {
        let firecracker = |role: Role| role.name(Names::Firecracker);
        assert_eq!(firecracker(Role::Api), "fc_api");
        assert_eq!(firecracker(Role::Vcpu(3)), "fc_vcpu 3");
        for role in [
            Role::Api,
            Role::Vmm,
            Role::Vcpu(u8::MAX),
            Role::Io(9999),
            Role::Files,
            Role::Watch,
            Role::Pager,
            Role::Prefetch,
        ] {
            for names in [Names::Mayfly, Names::Firecracker] {
                assert!(role.name(names).len() <= 15, "{role:?}");
            }
        }
    }
}
