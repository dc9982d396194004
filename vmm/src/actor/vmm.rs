//! The VMM thread's state and its loop.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use devices::mmds::Mmds;

use super::handle::{Handle, Job, Mailbox};
use crate::blueprint::Plan;
use crate::config::InstanceId;
use crate::event_loop::EventLoop;
use crate::exit::{ExitLatch, ExitReason};
use crate::lifecycle::{Phase, permit};
use crate::machine::Machine;
use crate::requests::{Answer, Submit};
use crate::sys::random;
use crate::sys::signals::TerminationSignals;

/// What a VMM is started with, fixed for its life.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the machine.
    pub id: InstanceId,
    /// Give the guest the boot-timer byte at 0xC000_0000 and log when it is written.
    pub boot_timer: bool,
    /// Most JSON text the metadata service keeps, in bytes.
    pub mmds_size_limit: usize,
}

const MAILBOX: u32 = 0;
const EXIT: u32 = 1;
const SIGNALS: u32 = 2;

/// The state of the VMM thread. Reached by others only through requests.
pub struct Vmm {
    settings: Settings,
    mailbox: Mailbox,
    /// The other end of the mailbox, for work that comes back from other threads.
    handle: Handle,
    signals: TerminationSignals,
    exit: Arc<ExitLatch>,
    pub(super) events: EventLoop,
    pub(super) phase: Phase,
    pub(super) plan: Plan,
    mmds: Arc<Mmds>,
    pub(super) machine: Option<Machine>,
    /// While the machine is on its way to a standstill: what has to wait for that, in order.
    postponed: Option<Vec<Job>>,
}

impl Vmm {
    pub(super) fn new(settings: Settings, mailbox: Mailbox, handle: Handle) -> io::Result<Self> {
        let signals = TerminationSignals::take_over()?;
        let exit = Arc::new(ExitLatch::new()?);
        let events = EventLoop::new()?;
        let mmds = Mmds::new(random::bytes()?, settings.mmds_size_limit, Instant::now());
        events.watch(mailbox.bell().as_raw_fd(), MAILBOX)?;
        events.watch(exit.wake().as_raw_fd(), EXIT)?;
        events.watch(signals.as_raw_fd(), SIGNALS)?;
        Ok(Self {
            settings,
            mailbox,
            handle,
            signals,
            exit,
            events,
            phase: Phase::Configuring,
            plan: Plan::default(),
            mmds: Arc::new(mmds),
            machine: None,
            postponed: None,
        })
    }

    /// Serves until there is a reason to end, then ends in good order: vCPUs stop, devices finish and flush.
    pub(super) fn run(mut self) -> ExitReason {
        let reason = loop {
            let (mut mail, mut signalled) = (false, false);
            let turn = self.events.turn(|token| match token {
                MAILBOX => mail = true,
                SIGNALS => signalled = true,
                _ => {}
            });
            if let Err(error) = turn {
                self.exit.report(ExitReason::Lost(format!("the event loop failed: {error}")));
            }
            if signalled && let Some(number) = self.signals.next() {
                self.exit.report(ExitReason::Signal(number));
            }
            if let Some(reason) = self.exit.reason() {
                break reason.clone();
            }
            if mail {
                // Cleared before the jobs are taken: a job that arrives later rings again.
                let _ = self.mailbox.bell().read();
                while let Some(job) = self.mailbox.next() {
                    job(&mut self);
                }
            }
        };
        self.phase = Phase::Ended;
        self.events.clear();
        if let Some(machine) = self.machine.take() {
            machine.shut_down();
        }
        if self.guest_panicked() { ExitReason::AfterPanic(Box::new(reason)) } else { reason }
    }

    /// Whether the guest has told that its kernel panicked.
    pub fn guest_panicked(&self) -> bool {
        self.exit.guest_panicked()
    }

    /// Judges a request by the phase table and applies it.
    pub(super) fn serve<R: Submit>(&mut self, request: R, answer: Answer<R::Reply>) {
        if let Some(postponed) = &mut self.postponed
            && R::ASK.changes_the_machine()
        {
            return postponed.push(Box::new(move |vmm| vmm.serve(request, answer)));
        }
        match permit(self.phase, R::ASK) {
            Ok(()) => request.begin(self, answer),
            Err(refusal) => answer(Err(refusal.into())),
        }
    }

    /// From here on, requests that change the machine wait for [`Self::serve_postponed`].
    pub(super) fn postpone(&mut self) {
        self.postponed = Some(Vec::new());
    }

    /// Serves what had to wait. One of them may start another wait, which the rest joins.
    pub(super) fn serve_postponed(&mut self) {
        for job in self.postponed.take().unwrap_or_default() {
            job(self);
        }
    }

    /// How other threads reach this one.
    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// What this VMM was started with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where the machine is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The plan of the machine.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) fn plan_mut(&mut self) -> &mut Plan {
        &mut self.plan
    }

    /// What the metadata service says.
    pub fn mmds(&self) -> &Arc<Mmds> {
        &self.mmds
    }

    pub(super) fn exit(&self) -> &Arc<ExitLatch> {
        &self.exit
    }
}
