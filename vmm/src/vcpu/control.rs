//! What the VMM thread wants of the vCPU threads, and how it waits for them.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kvm_ioctls::{VcpuFd, VmFd};

use super::metrics::VcpuMetrics;
use super::run::Vcpu;
use super::sys;
use crate::confine::{Fence, Gate};
use crate::threads::{self, Parked, Role};

/// Enough for an exit and the devices behind it; of it only what is touched costs memory.
const STACK_LEN: usize = 256 << 10;

/// What all vCPUs should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Run the guest.
    Run,
    /// Stand still.
    Pause,
    /// End the thread.
    End,
}

#[derive(Debug)]
struct Shared {
    wanted: Wanted,
    /// How many vCPUs do what is wanted: stand still, or have ended.
    still: usize,
}

/// Where vCPU threads look up what is wanted of them.
#[derive(Debug)]
pub(super) struct Board {
    shared: Mutex<Shared>,
    changed: Condvar,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wanted now. Waits while a pause is wanted; `on_pause` runs once at the beginning of it.
    pub(super) fn wanted(&self, on_pause: impl FnOnce()) -> Wanted {
        let mut shared = self.lock();
        if shared.wanted == Wanted::Pause {
            on_pause();
            shared.still += 1;
            self.changed.notify_all();
            while shared.wanted == Wanted::Pause {
                shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
            }
            shared.still -= 1;
        }
        shared.wanted
    }
}

/// All vCPU threads of a machine. Dropping it ends them.
pub struct Crew {
    board: Arc<Board>,
    threads: Vec<JoinHandle<()>>,
    metrics: Vec<Arc<VcpuMetrics>>,
    /// The vCPUs once more, for looking at them while they stand still.
    seen: Vec<VcpuFd>,
}

impl Crew {
    /// A thread for the first vCPU of a machine that is not there yet.
    pub fn park() -> io::Result<Parked> {
        Parked::start(Role::Vcpu(0), STACK_LEN)
    }

    /// Starts a thread for each vCPU, behind a fence like this one. They stand still until [`Self::run`].
    /// The first one may be `parked` already, see [`Self::park`].
    pub fn muster(
        vm: &VmFd,
        vcpus: Vec<Vcpu>,
        fence: &Fence,
        gate: &Arc<Gate>,
        mut parked: Option<Parked>,
    ) -> io::Result<Self> {
        sys::install_kick_handler()?;
        let board =
            Arc::new(Board { shared: Mutex::new(Shared { wanted: Wanted::Pause, still: 0 }), changed: Condvar::new() });
        let metrics = vcpus.iter().map(Vcpu::metrics).collect();
        let seen = vcpus.iter().map(|vcpu| vcpu.look_at(vm)).collect::<io::Result<_>>()?;
        let mut crew = Self { board: board.clone(), threads: Vec::with_capacity(vcpus.len()), metrics, seen };
        for vcpu in vcpus {
            let board = board.clone();
            let fence = fence.for_role(Role::Vcpu(vcpu.index()));
            let body = move || vcpu.live(&board);
            crew.threads.push(match parked.take() {
                Some(parked) => parked.send(fence, gate, body),
                None => threads::spawn_fenced(fence, gate, STACK_LEN, body)?,
            });
        }
        Ok(crew)
    }

    /// What each vCPU counts, by index.
    pub fn metrics(&self) -> &[Arc<VcpuMetrics>] {
        &self.metrics
    }

    /// The vCPUs, by index, to be looked at while they stand still.
    pub fn seen(&self) -> &[VcpuFd] {
        &self.seen
    }

    /// Lets the guest run.
    pub fn run(&self) {
        self.board.lock().wanted = Wanted::Run;
        self.board.changed.notify_all();
    }

    /// Makes every vCPU stand still; returns when all do. The caller holds no lock a vCPU might want.
    pub fn pause(&self) {
        self.board.lock().wanted = Wanted::Pause;
        for thread in &self.threads {
            sys::kick(thread);
        }
        let mut shared = self.board.lock();
        while shared.still < self.threads.iter().filter(|t| !t.is_finished()).count() {
            // A thread that ends by itself (the guest is dead) does not notify, so look again now and then.
            let wait = std::time::Duration::from_millis(1);
            shared = self.board.changed.wait_timeout(shared, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.board.lock().wanted = Wanted::End;
        self.board.changed.notify_all();
        for thread in self.threads.drain(..) {
            sys::kick(&thread);
            // A thread that panicked has already been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
