//! Asking the guest for statistics (virtio 1.3 §5.5.6.3): the buffer it filled last is kept until it is to fill the next one.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use super::metrics::BalloonMetrics;
use super::stats::GuestStats;
use crate::event::{Interest, Source};
use crate::irq::VirtioIrq;
use crate::ram::GuestRam;
use crate::virtio::chain::Chain;
use crate::virtio::queue::{RingError, VirtQueue, Visit};

/// When to ask.
#[derive(Debug)]
struct Clock {
    interval: Duration,
    /// Runs once at a time: a periodic timer that nobody reads does not fire again (fs/timerfd.c).
    timer: TimerFd,
}

impl Clock {
    fn arm(&mut self) -> io::Result<()> {
        self.timer.reset(self.interval, None).map_err(io::Error::from)
    }

    fn disarm(&mut self) {
        // Cannot fail on a timer of ours; one that fires after all is ignored.
        let _ = self.timer.clear();
    }

    /// Not armed any more, so it fired.
    fn fired(&self) -> bool {
        self.timer.is_armed().is_ok_and(|armed| !armed)
    }
}

/// The buffer that waits.
#[derive(Debug, Clone, Copy)]
struct Parked {
    head: u16,
    /// Malformed chains the queue had seen.
    bad_chains: u64,
}

/// The statistics queue, and what came out of it.
#[derive(Debug)]
pub(super) struct Polling {
    latest: GuestStats,
    /// `None` if the guest is never asked.
    clock: Option<Clock>,
    parked: Option<Parked>,
    /// The next buffer is one that was put back: it has been counted.
    again: bool,
    chain: Chain,
}

impl Polling {
    /// Asks at this interval, once it is started.
    pub(super) fn new(interval: Option<Duration>) -> io::Result<Self> {
        let clock = |interval| TimerFd::new().map(|timer| Clock { interval, timer });
        Ok(Self {
            latest: GuestStats::default(),
            clock: interval.map(clock).transpose()?,
            parked: None,
            again: false,
            chain: Chain::new(),
        })
    }

    /// What the guest last said.
    pub(super) fn latest(&self) -> GuestStats {
        self.latest
    }

    /// The timer.
    pub(super) fn source(&self, token: u32) -> Option<Source> {
        let source = |clock: &Clock| Source { fd: clock.timer.as_raw_fd(), interest: Interest::Readable, token };
        self.clock.as_ref().map(source)
    }

    /// The buffer that waits on the ring, if there is one, has been counted.
    pub(super) fn has_counted(&self) -> bool {
        self.again
    }

    /// Takes that up from a saved state.
    pub(super) fn restore(&mut self, counted: bool) {
        self.again = counted;
    }

    /// From now on this interval; the next [`Self::ask`] asks.
    pub(super) fn set_interval(&mut self, interval: Duration) {
        if let Some(clock) = &mut self.clock {
            clock.interval = interval;
            clock.disarm();
        }
    }

    /// There is a driver to ask.
    pub(super) fn start(&mut self) -> Result<(), String> {
        let Some(clock) = &mut self.clock else { return Ok(()) };
        clock.arm().map_err(|e| format!("the timer of the statistics cannot be set to {:?}: {e}", clock.interval))
    }

    /// It is gone, and its numbers with it.
    pub(super) fn stop(&mut self) {
        self.latest = GuestStats::default();
        self.parked = None;
        self.again = false;
        if let Some(clock) = &mut self.clock {
            clock.disarm();
        }
    }

    /// Reads what the guest sent, and keeps the buffer. A driver must not have a second one; if it does, the first one goes back.
    pub(super) fn take_in(
        &mut self,
        queue: &mut VirtQueue,
        ram: &GuestRam,
        irq: &dyn VirtioIrq,
        metrics: &BalloonMetrics,
    ) -> Result<Visit, RingError> {
        queue.disarm(ram)?;
        let mut visit = Visit::More;
        for _ in 0..queue.size() {
            if !queue.pop(ram, &mut self.chain)? {
                if queue.arm(ram)? {
                    continue;
                }
                visit = Visit::Idle;
                break;
            }
            let makes_sense = self.latest.take_in(self.chain.readable());
            if std::mem::take(&mut self.again) {
                // Nothing new.
            } else if makes_sense {
                metrics.stats_updates_count.inc();
            } else {
                metrics.stats_update_fails.inc();
                crate::guest_warn!("balloon: statistics of {} bytes make no sense", self.chain.readable_len());
            }
            let parked = Parked { head: self.chain.head(), bad_chains: queue.bad_chains() };
            if let Some(earlier) = self.parked.replace(parked) {
                queue.complete(ram, earlier.head, 0)?;
            }
        }
        queue.notify(ram, irq)?;
        Ok(visit)
    }

    /// Asks, if it is time, by giving the buffer back.
    pub(super) fn ask(
        &mut self,
        queue: &mut VirtQueue,
        ram: &GuestRam,
        irq: &dyn VirtioIrq,
        metrics: &BalloonMetrics,
    ) -> Result<(), RingError> {
        let Some(clock) = self.clock.as_mut().filter(|clock| clock.fired()) else { return Ok(()) };
        if let Err(error) = clock.arm() {
            crate::guest_warn!("balloon: no more statistics, the timer does not run: {error}");
        }
        let Some(parked) = self.parked.take() else {
            // The driver has not answered the last time either.
            metrics.stats_update_fails.inc();
            return Ok(());
        };
        queue.complete(ram, parked.head, 0)?;
        queue.notify(ram, irq)
    }

    /// Keeps nothing: the buffer goes back on its ring, to be read again.
    pub(super) fn put_back(
        &mut self,
        queue: &mut VirtQueue,
        ram: &GuestRam,
        irq: &dyn VirtioIrq,
    ) -> Result<(), RingError> {
        let Some(parked) = self.parked.take() else { return Ok(()) };
        if queue.bad_chains() == parked.bad_chains {
            queue.put_back(1);
            self.again = true;
            return Ok(());
        }
        // Something malformed came after it, which must not come again. The driver will send another one.
        queue.complete(ram, parked.head, 0)?;
        queue.notify(ram, irq)
    }
}
