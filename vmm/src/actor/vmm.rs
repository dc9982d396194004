//! The VMM's state and its loop.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, sync_channel};
use std::time::Instant;

use devices::mmds::Mmds;
use devices::sys::random;
use vmm_sys_util::timerfd::TimerFd;

use super::deeds::hotplug::Asked;
use super::deeds::snapshots::Recording;
use super::handle::{Handle, Job, Mailbox};
use crate::blueprint::Plan;
use crate::config::InstanceId;
use crate::confine::Seccomp;
use crate::error::Error;
use crate::event_loop::EventLoop;
use crate::exit::{ExitLatch, ExitReason};
use crate::lifecycle::{Ask, Phase, Refusal, permit};
use crate::machine::{Foundation, Machine};
use crate::requests::{Answer, Submit};
use crate::snapshot::Progress;
use crate::sys::signals::TerminationSignals;
use crate::sys::socket::Listener;
use crate::telemetry::Clock;

/// What a VMM is started with, fixed for its life.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the machine.
    pub id: InstanceId,
    /// Give the guest the boot-timer byte at 0xC000_0000 and log when it is written.
    pub boot_timer: bool,
    /// Most JSON text the metadata service keeps, in bytes.
    pub mmds_size_limit: usize,
    /// Which filters threads get when the machine is built.
    pub seccomp: Seccomp,
    /// Clones may be made of the machine: its memory can be shared, and the thread that opens files may connect to those who wait to be one.
    pub clonable: bool,
    /// Machines have a PCI bus, and devices that come and go.
    pub pci: bool,
    /// Hears of it when the machine gets another name, by a load.
    pub on_rename: fn(&InstanceId),
}

const MAILBOX: u32 = 0;
const EXIT: u32 = 1;
const SIGNALS: u32 = 2;
const REPORT: u32 = 3;
const OFFER: u32 = 4;
const RECORDED: u32 = 5;
const UNPLUG: u32 = 7;
/// The guest gave a vCPU back.
pub(super) const EJECTED: u32 = 6;

/// The state of the VMM. Belongs to the thread that runs it; others reach it only through requests.
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
    /// The snapshot that is being written.
    pub(super) saving: Option<Arc<Progress>>,
    /// Clones that are being made, and whether they still are to be.
    pub(super) cloning: Option<Arc<Progress>>,
    /// What is to be done when they are made.
    pub(super) after_clones: Vec<Job>,
    /// Where others may hand over a machine, as long as there is none.
    pub(super) waiting: Option<Listener>,
    /// A working set that is being recorded.
    pub(super) recording: Option<Recording>,
    /// When that is enough.
    pub(super) record_clock: TimerFd,
    /// Devices that the guest was asked for.
    pub(super) asked: Vec<Asked>,
    /// When the first of those who wait for it has waited long enough.
    pub(super) unplug_clock: TimerFd,
    /// What a machine can stand on that is waited for.
    pub(super) foundation: Option<Foundation>,
    pub(super) report_clock: Clock,
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
        let report_clock = Clock::new()?;
        events.watch(report_clock.as_raw_fd(), REPORT)?;
        let record_clock = TimerFd::new()?;
        events.watch(record_clock.as_raw_fd(), RECORDED)?;
        let unplug_clock = TimerFd::new()?;
        events.watch(unplug_clock.as_raw_fd(), UNPLUG)?;
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
            saving: None,
            cloning: None,
            after_clones: Vec::new(),
            waiting: None,
            recording: None,
            record_clock,
            asked: Vec::new(),
            unplug_clock,
            foundation: None,
            report_clock,
        })
    }

    /// Waits for a machine that somebody hands over there. The socket goes when there is a machine.
    pub fn wait_at(&mut self, listener: Listener) -> io::Result<()> {
        self.events.watch(listener.socket().as_raw_fd(), OFFER)?;
        self.waiting = Some(listener);
        Ok(())
    }

    /// Gives the machine another name.
    pub(super) fn rename(&mut self, id: InstanceId) {
        (self.settings.on_rename)(&id);
        self.settings.id = id;
    }

    /// Serves until there is a reason to end, then ends in good order: vCPUs stop, devices finish and flush.
    pub fn run(mut self) -> ExitReason {
        if self.waiting.is_some() {
            // Whoever hands over a machine hears why it cannot be.
            self.foundation = Foundation::lay_ahead(&self.surroundings()).ok();
        }
        let reason = loop {
            if let Some(reason) = self.turn() {
                break reason;
            }
        };
        self.phase = Phase::Ended;
        self.events.clear();
        self.end_recording();
        for unfinished in [self.saving.take(), self.cloning.take()].into_iter().flatten() {
            unfinished.cancel();
        }
        if let Some(machine) = self.machine.take() {
            machine.shut_down();
        }
        self.report_at_last();
        if self.guest_panicked() { ExitReason::AfterPanic(Box::new(reason)) } else { reason }
    }

    /// Whether the guest has told that its kernel panicked.
    pub fn guest_panicked(&self) -> bool {
        self.exit.guest_panicked()
    }

    /// Waits for something to do and does it. A reason to end stays one in later turns.
    fn turn(&mut self) -> Option<ExitReason> {
        let (mut mail, mut signalled, mut report_due, mut offered) = (false, false, false, false);
        let (mut recorded, mut ejected, mut unplug_late) = (false, false, false);
        let turn = self.events.turn(|token| match token {
            MAILBOX => mail = true,
            SIGNALS => signalled = true,
            REPORT => report_due = true,
            OFFER => offered = true,
            RECORDED => recorded = true,
            UNPLUG => unplug_late = true,
            EJECTED => ejected = true,
            _ => {}
        });
        if let Err(error) = turn {
            self.exit.report(ExitReason::Lost(format!("the event loop failed: {error}")));
        }
        if signalled && let Some(number) = self.signals.next() {
            self.exit.report(ExitReason::Signal(number));
        }
        if let Some(reason) = self.exit.reason() {
            return Some(reason.clone());
        }
        if recorded {
            // Reading makes it silent: it rings once.
            let _ = self.record_clock.wait();
            self.end_recording();
        }
        if ejected && let Some(machine) = &self.machine {
            machine.settle_vcpus();
        }
        if unplug_late {
            // Reading makes it silent: it rings once.
            let _ = self.unplug_clock.wait();
            self.give_up_unplugs();
        }
        if report_due {
            self.report_on_time();
        }
        if offered && let Some(waiting) = &self.waiting {
            match waiting.socket().accept() {
                Ok((stream, _)) => self.take_over(stream),
                // Whoever it was has gone.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    log::error!("No machine can be handed over any more: {error}");
                    self.waiting = None;
                }
            }
        }
        if mail {
            // Cleared before the jobs are taken: a job that arrives later rings again.
            let _ = self.mailbox.bell().read();
            while let Some(job) = self.mailbox.next() {
                job(self);
            }
        }
        None
    }

    /// Does what is asked before [`Self::run`], on the same thread, and waits for the answer.
    pub fn call<R: Submit>(&mut self, request: R) -> Result<R::Reply, Error> {
        let (sender, receiver) = sync_channel(1);
        self.serve(
            request,
            Box::new(move |reply| {
                let _ = sender.send(reply);
            }),
        );
        loop {
            match receiver.try_recv() {
                Ok(reply) => return reply,
                Err(TryRecvError::Disconnected) => return Err(Error::gone()),
                // It is being done elsewhere, and the answer comes through the mailbox.
                Err(TryRecvError::Empty) => {
                    if self.turn().is_some() {
                        return Err(Error::gone());
                    }
                }
            }
        }
    }

    /// Judges a request by the phase table and applies it.
    pub(super) fn serve<R: Submit>(&mut self, request: R, answer: Answer<R::Reply>) {
        if let Some(postponed) = &mut self.postponed
            && R::ASK.changes_the_machine()
        {
            return postponed.push(Box::new(move |vmm| vmm.serve(request, answer)));
        }
        match self.permit(R::ASK) {
            Ok(()) => request.begin(self, answer),
            Err(refusal) => answer(Err(refusal.into())),
        }
    }

    /// Whether `ask` is allowed now. Devices come and go only on a machine that has a place for them.
    pub(crate) fn permit(&self, ask: Ask) -> Result<(), Refusal> {
        match ask {
            Ask::Plug if !self.plugs() => permit(self.phase, Ask::Configure),
            _ => permit(self.phase, ask),
        }
    }

    /// From here on, requests that change the machine wait for [`Self::serve_postponed`].
    pub(super) fn postpone(&mut self) {
        self.postponed = Some(Vec::new());
    }

    /// Does something that changes the machine, or has it wait with the others.
    pub(super) fn do_or_postpone(&mut self, job: Job) {
        match &mut self.postponed {
            Some(postponed) => postponed.push(job),
            None => job(self),
        }
    }

    /// Whether requests that change the machine wait.
    pub(super) fn postponed(&self) -> bool {
        self.postponed.is_some()
    }

    /// Serves what had to wait. One of them may start another wait, which the rest joins.
    pub(super) fn serve_postponed(&mut self) {
        for job in self.postponed.take().unwrap_or_default() {
            self.do_or_postpone(job);
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
