//! What the VMM thread wants of the vCPU threads, and how it waits for them.
//!
//! A vCPU that the guest does not have is parked: its thread stands on the board whatever is wanted of the others, and never enters the guest.
//! Nothing that other vCPUs do to it (INIT, start-up interrupts) can change that.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use devices::legacy::cpu_hotplug::CpuSet;
use kvm_ioctls::{VcpuFd, VmFd};

use super::hotplug;
use super::metrics::VcpuMetrics;
use super::run::Vcpu;
use super::sys;
use crate::confine::{Fence, Gate};
use crate::kvm::KvmError;
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
    /// vCPUs that the guest has. The others stand still whatever is wanted.
    admitted: CpuSet,
    /// vCPUs that stand still.
    still: CpuSet,
}

impl Shared {
    fn wanted_of(&self, index: u8) -> Wanted {
        match self.wanted {
            Wanted::Run if !self.admitted.has(index) => Wanted::Pause,
            wanted => wanted,
        }
    }
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

    /// What is wanted now. Waits while this vCPU is to stand still; `on_pause` runs once at the beginning of a pause of all.
    pub(super) fn wanted(&self, index: u8, on_pause: impl FnOnce()) -> Wanted {
        let me = CpuSet::one(index);
        let mut shared = self.lock();
        if shared.wanted_of(index) == Wanted::Pause {
            if shared.admitted.has(index) {
                on_pause();
            }
            shared.still = shared.still.and(me);
            self.changed.notify_all();
            while shared.wanted_of(index) == Wanted::Pause {
                shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
            }
            shared.still = shared.still.without(me);
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

    /// Starts a thread for each vCPU, behind a fence like this one. They stand still until [`Self::run`], and those that are not `admitted`
    /// until [`Self::admit`]. The first one's may be `parked` already, see [`Self::park`].
    pub fn muster(
        vm: &VmFd,
        vcpus: Vec<Vcpu>,
        admitted: CpuSet,
        fence: &Fence,
        gate: &Arc<Gate>,
        mut parked: Option<Parked>,
    ) -> io::Result<Self> {
        sys::install_kick_handler()?;
        let shared = Shared { wanted: Wanted::Pause, admitted, still: CpuSet::default() };
        let board = Arc::new(Board { shared: Mutex::new(shared), changed: Condvar::new() });
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
        self.wait_for(CpuSet::first(CpuSet::MAX));
    }

    /// Returns when each of these vCPUs stands still, or its thread has ended.
    fn wait_for(&self, vcpus: CpuSet) {
        let moves = |shared: &Shared| {
            let threads = (0..).zip(&self.threads).filter(|(index, _)| vcpus.has(*index));
            threads.into_iter().any(|(index, thread)| !shared.still.has(index) && !thread.is_finished())
        };
        let mut shared = self.board.lock();
        while moves(&shared) {
            // A thread that ends by itself (the guest is dead) does not notify, so look again now and then.
            let wait = std::time::Duration::from_millis(1);
            shared = self.board.changed.wait_timeout(shared, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The vCPUs that the guest has.
    pub fn admitted(&self) -> CpuSet {
        self.board.lock().admitted
    }

    /// Lets these vCPUs run, too, as far as any may. They wait for an INIT and a start-up interrupt, whatever they were sent while they were
    /// parked.
    pub fn admit(&self, vcpus: CpuSet) -> Result<(), KvmError> {
        let new = vcpus.without(self.admitted());
        // One that was expelled stands still already; one that was just started may not have got so far.
        self.wait_for(new);
        for fd in new.iter().filter_map(|index| self.seen.get(usize::from(index))) {
            hotplug::reset(fd)?;
        }
        let mut shared = self.board.lock();
        shared.admitted = shared.admitted.and(new);
        drop(shared);
        self.board.changed.notify_all();
        Ok(())
    }

    /// Parks these vCPUs; returns when they stand still. The caller holds no lock a vCPU might want.
    pub fn expel(&self, vcpus: CpuSet) -> Result<(), KvmError> {
        let gone = {
            let mut shared = self.board.lock();
            let gone = vcpus.within(shared.admitted);
            shared.admitted = shared.admitted.without(gone);
            gone
        };
        for index in gone.iter() {
            if let Some(thread) = self.threads.get(usize::from(index)) {
                sys::kick(thread);
            }
        }
        self.wait_for(gone);
        gone.iter().filter_map(|index| self.seen.get(usize::from(index))).try_for_each(hotplug::quiesce)
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
