//! The balloon: serves its five queues a little at a time.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zerocopy::little_endian::U32;

use super::config_space::ConfigSpace;
use super::hinting::{Hinting, HintingStatus};
use super::metrics::BalloonMetrics;
use super::polling::Polling;
use super::regions::Regions;
use super::release::{Named, Outcome, Progress, Release};
use super::roles::{self, Role, Roles};
use super::stats::GuestStats;
use crate::event::Source;
use crate::irq::VirtioIrq;
use crate::metrics::MetricGroup;
use crate::ram::GuestRam;
use crate::virtio::chain;
use crate::virtio::device::{Faults, Kind, Rings, VirtioDevice};
use crate::virtio::queue::{RingError, Served, VirtQueue, Visit};
use crate::virtio::registers::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::virtio::state::{BadState, BalloonState, DeviceState};

/// VIRTIO_BALLOON_F_* (virtio 1.3 §5.5.3). MUST_TELL_HOST is not needed, since pages come back by themselves; without PAGE_POISON, a Linux
/// that relies on what is in free pages does not report them.
pub(super) const F_STATS_VQ: u64 = 1 << 1;
pub(super) const F_DEFLATE_ON_OOM: u64 = 1 << 2;
pub(super) const F_FREE_PAGE_HINT: u64 = 1 << 3;
pub(super) const F_PAGE_REPORTING: u64 = 1 << 5;

/// It is time to ask for statistics.
const STATS_TIMER: u32 = 0;
/// After so long, others have their turn.
const VISIT: Duration = Duration::from_millis(2);

/// What a balloon is made of.
#[derive(Debug, Clone, Default)]
pub struct BalloonSpec {
    /// Pages (of [`super::PAGE_LEN`]) it should have.
    pub target_pages: u32,
    /// Let the guest take pages back rather than kill a process.
    pub deflate_on_oom: bool,
    /// Ask for statistics this often.
    pub stats_interval: Option<Duration>,
    /// Offer free-page hinting.
    pub hinting: bool,
    /// Offer free-page reporting.
    pub reporting: bool,
}

/// No driver is at work that accepted the feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest has no driver at work that can do it")]
pub struct NotActive;

/// The request at hand of each queue that names memory to give back.
#[derive(Debug, Default)]
struct Jobs {
    inflate: Release,
    hint: Release,
    report: Release,
}

impl Jobs {
    fn of(&mut self, role: Role) -> &mut Release {
        match role {
            Role::Hint => &mut self.hint,
            Role::Report => &mut self.report,
            _ => &mut self.inflate,
        }
    }
}

/// A balloon.
#[derive(Debug)]
pub struct Balloon {
    features: u64,
    config: ConfigSpace,
    config_changed: bool,
    hinting: Hinting,
    polling: Polling,
    jobs: Jobs,
    /// Features the driver accepted; 0 while there is none.
    accepted: u64,
    roles: Roles,
    regions: Regions,
    /// How long a visit may last.
    visit: Duration,
    pub(super) metrics: Arc<BalloonMetrics>,
}

impl Balloon {
    /// A balloon. Fails if the process is out of descriptors.
    pub fn new(spec: BalloonSpec) -> io::Result<Self> {
        let BalloonSpec { target_pages, deflate_on_oom, stats_interval, hinting, reporting } = spec;
        let optional = [
            (deflate_on_oom, F_DEFLATE_ON_OOM),
            (stats_interval.is_some(), F_STATS_VQ),
            (hinting, F_FREE_PAGE_HINT),
            (reporting, F_PAGE_REPORTING),
        ];
        let chosen = optional.iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, feature)| all | feature);
        Ok(Self {
            features: F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | chosen,
            config: ConfigSpace { num_pages: U32::new(target_pages), ..ConfigSpace::default() },
            config_changed: false,
            hinting: Hinting::default(),
            polling: Polling::new(stats_interval)?,
            jobs: Jobs::default(),
            accepted: 0,
            roles: Roles::default(),
            regions: Regions::default(),
            visit: VISIT,
            metrics: Arc::default(),
        })
    }

    /// The balloon's counters.
    pub fn metrics(&self) -> Arc<BalloonMetrics> {
        self.metrics.clone()
    }

    /// Visits of the shortest length: one step each.
    #[cfg(test)]
    pub(super) fn hurry(&mut self) {
        self.visit = Duration::ZERO;
    }

    /// Pages it should have.
    pub fn target_pages(&self) -> u32 {
        self.config.num_pages.get()
    }

    /// Pages it has, says the driver.
    pub fn actual_pages(&self) -> u32 {
        self.config.actual.get()
    }

    /// Changes how many pages it should have. The configuration space changes: the driver must hear of it.
    pub fn set_target(&mut self, pages: u32) {
        self.config.num_pages = U32::new(pages);
    }

    /// What the guest last said of its memory.
    pub fn stats(&self) -> GuestStats {
        self.polling.latest()
    }

    /// Changes how often the guest is asked; it is also asked now, at the visit that follows a
    /// [`crate::virtio::cell::VirtioCell::reconfigure`]. Nothing happens if it is never asked.
    pub fn set_stats_interval(&mut self, interval: Duration) {
        self.polling.set_interval(interval);
    }

    /// Starts a run of hinting. With `acknowledge`, the guest has its pages back as soon as it has named them all. The configuration space
    /// changes.
    pub fn start_hinting(&mut self, acknowledge: bool) -> Result<(), NotActive> {
        self.hinting_driver()?;
        self.hinting.start(acknowledge);
        self.show_command();
        Ok(())
    }

    /// Ends a run of hinting. The configuration space changes.
    pub fn stop_hinting(&mut self) -> Result<(), NotActive> {
        self.hinting_driver()?;
        self.hinting.stop();
        self.show_command();
        Ok(())
    }

    /// How hinting goes.
    pub fn hinting(&self) -> HintingStatus {
        self.hinting.status()
    }

    fn hinting_driver(&self) -> Result<(), NotActive> {
        if self.accepted & F_FREE_PAGE_HINT != 0 { Ok(()) } else { Err(NotActive) }
    }

    fn show_command(&mut self) {
        self.config.free_page_hint_cmd_id = U32::new(self.hinting.status().host_cmd);
    }

    fn serve(&mut self, role: Role, rings: &mut Rings) -> Result<Visit, RingError> {
        let Some(index) = self.roles.queue(role) else { return Ok(Visit::Idle) };
        let Rings { ram, irq, queues } = &mut *rings;
        let Some(queue) = queues.get_mut(index) else { return Ok(Visit::Idle) };
        match role {
            Role::Deflate => queue.serve(ram, &**irq, |_| {
                self.metrics.deflate_count.inc();
                Served::Done { written: 0 }
            }),
            Role::Stats => self.polling.take_in(queue, ram, &**irq, &self.metrics),
            Role::Inflate | Role::Hint | Role::Report => self.release(role, queue, ram, &**irq),
        }
    }

    /// Serves a queue of memory to give back until it is empty or the time is up.
    fn release(
        &mut self,
        role: Role,
        queue: &mut VirtQueue,
        ram: &GuestRam,
        irq: &dyn VirtioIrq,
    ) -> Result<Visit, RingError> {
        let until = Instant::now().checked_add(self.visit);
        let mut chains = queue.size();
        queue.disarm(ram)?;
        let visit = loop {
            let release = self.jobs.of(role);
            if !release.is_busy() {
                if chains == 0 {
                    break Visit::More;
                }
                chains = chains.saturating_sub(1);
                if !queue.pop(ram, &mut release.chain)? {
                    if queue.arm(ram)? {
                        continue;
                    }
                    break Visit::Idle;
                }
                self.begin(role);
            }
            match self.jobs.of(role).step(ram, &self.regions) {
                Progress::Finished => queue.complete(ram, self.jobs.of(role).chain.head(), 0)?,
                Progress::Numbers { idle } => self.metrics.inflate_ignored_pages.add(idle),
                Progress::Range(outcome) => self.count(role, &outcome),
                Progress::Going => {}
            }
            if until.is_none_or(|until| Instant::now() >= until) {
                break Visit::More;
            }
        };
        queue.notify(ram, irq)?;
        Ok(visit)
    }

    /// Looks at a request that was just taken from its queue.
    fn begin(&mut self, role: Role) {
        match role {
            Role::Hint => {
                let wanted = self.hear_command();
                self.jobs.hint.begin(Named::AsBuffers, &self.regions);
                if !wanted {
                    self.jobs.hint.drop_ranges();
                }
            }
            Role::Report => self.jobs.report.begin(Named::AsBuffers, &self.regions),
            _ => {
                self.metrics.inflate_count.inc();
                self.jobs.inflate.begin(Named::ByNumber, &self.regions);
            }
        }
    }

    /// Takes in the command of a hint, if it has one. Returns whether its pages are wanted.
    fn hear_command(&mut self) -> bool {
        let chain = &self.jobs.hint.chain;
        let mut command = [0; 4];
        match chain.readable_len() {
            0 => {}
            4 if chain::read_bytes(chain.readable(), &mut command).is_some() => {
                if self.hinting.guest_said(u32::from_le_bytes(command)) {
                    self.show_command();
                    self.config_changed = true;
                }
            }
            len => {
                self.metrics.free_page_hint_fails.inc();
                crate::guest_warn!("balloon: a hinting command of {len} bytes, not 4");
            }
        }
        if self.hinting.wants_pages() {
            return true;
        }
        // Those of a run that the host has ended are merely late.
        if !self.hinting.is_over() && !self.jobs.hint.chain.writable().is_empty() {
            self.metrics.free_page_hint_fails.inc();
        }
        false
    }

    fn count(&self, role: Role, outcome: &Outcome) {
        let metrics = &self.metrics;
        if let Some(error) = &outcome.error {
            crate::guest_warn!("balloon: {role:?}: memory stays with the guest: {error}");
        }
        let failed = u64::from(outcome.kept > 0);
        match role {
            Role::Hint => {
                metrics.free_page_hint_count.inc();
                metrics.free_page_hint_freed.add(outcome.given);
                metrics.free_page_hint_fails.add(failed);
            }
            Role::Report => {
                metrics.free_page_report_count.inc();
                metrics.free_page_report_freed.add(outcome.given);
                metrics.free_page_report_fails.add(failed);
            }
            _ => {
                metrics.inflate_bytes.add(outcome.given);
                match outcome.error {
                    Some(_) => metrics.inflate_fails.inc(),
                    None => metrics.inflate_ignored_pages.add(outcome.kept_pages()),
                }
            }
        }
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> Kind {
        Kind::Balloon
    }

    fn queue_max_sizes(&self) -> &[u16] {
        roles::queue_sizes(self.features)
    }

    fn metrics(&self) -> Arc<dyn MetricGroup> {
        self.metrics.clone()
    }

    fn faults(&self) -> Faults<'_> {
        let metrics = &*self.metrics;
        Faults { activations: &metrics.activate_fails, registers: &metrics.cfg_fails, chains: &metrics.event_fails }
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if !self.config.write(offset, data) {
            self.metrics.cfg_fails.inc();
        }
    }

    fn activate(&mut self, accepted: u64, rings: &mut Rings) -> Result<(), String> {
        let ready: Vec<bool> = rings.queues.iter().map(VirtQueue::is_ready).collect();
        self.roles = Roles::of(accepted, &ready);
        self.regions = Regions::of(&rings.ram);
        if self.roles.queue(Role::Stats).is_some() {
            self.polling.start()?;
        }
        self.accepted = accepted;
        Ok(())
    }

    fn on_doorbell(&mut self, queue: u16, rings: &mut Rings) -> Result<Visit, RingError> {
        let Some(role) = self.roles.role(queue) else { return Ok(Visit::Idle) };
        self.serve(role, rings).inspect_err(|_| self.metrics.event_fails.inc())
    }

    fn sources(&self) -> Vec<Source> {
        self.polling.source(STATS_TIMER).into_iter().collect()
    }

    fn on_source(&mut self, token: u32, rings: &mut Rings) -> Result<(), RingError> {
        let stats = self.roles.queue(Role::Stats).and_then(|index| rings.queues.get_mut(index));
        match (token, stats) {
            (STATS_TIMER, Some(queue)) => {
                let asked = self.polling.ask(queue, &rings.ram, &*rings.irq, &self.metrics);
                asked.inspect_err(|_| self.metrics.event_fails.inc())
            }
            _ => Ok(()),
        }
    }

    fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    /// What is not finished goes back on its ring, to be done again: no driver uses these pages before it has the request back. Except for
    /// hints, whose pages may be in use any time (§5.5.6.6.1): they are let go.
    fn quiesce(&mut self, rings: &mut Rings) -> Result<(), RingError> {
        let Rings { ram, irq, queues } = rings;
        for role in [Role::Inflate, Role::Report, Role::Hint] {
            let Some(queue) = self.roles.queue(role).and_then(|index| queues.get_mut(index)) else { continue };
            let release = self.jobs.of(role);
            if !release.is_busy() {
                continue;
            }
            release.forget();
            if role == Role::Hint {
                queue.complete(ram, release.chain.head(), 0)?;
                queue.notify(ram, &**irq)?;
            } else {
                queue.put_back(1);
            }
        }
        match self.roles.queue(Role::Stats).and_then(|index| queues.get_mut(index)) {
            Some(queue) => self.polling.put_back(queue, ram, &**irq),
            None => Ok(()),
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon(BalloonState {
            target_pages: self.config.num_pages.get(),
            actual_pages: self.config.actual.get(),
            hinting: self.hinting.save(),
            counted: self.polling.has_counted(),
        })
    }

    /// What the guest said of its memory is forgotten: it says it again at once.
    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        let DeviceState::Balloon(state) = state else { return Err(BadState::Kind) };
        self.config.num_pages = U32::new(state.target_pages);
        self.config.actual = U32::new(state.actual_pages);
        self.hinting.restore(state.hinting);
        self.show_command();
        self.polling.restore(state.counted);
        Ok(())
    }

    fn reset(&mut self) {
        self.accepted = 0;
        self.roles = Roles::default();
        self.regions = Regions::default();
        self.polling.stop();
        for role in [Role::Inflate, Role::Hint, Role::Report] {
            self.jobs.of(role).forget();
        }
        self.hinting.reset();
        self.show_command();
        self.config_changed = false;
        // What was in the balloon is the next driver's to use.
        self.config.actual = U32::ZERO;
    }
}
