//! When a report is due, and who writes it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

/// Time between two reports of a running machine (v1 contract).
const PERIOD: Duration = Duration::from_secs(60);

/// Writes reports. Called on the VMM's thread, between two events.
pub trait Reporter: Sync {
    /// Whether there is a place to write to, and so any point in being called.
    fn is_set_up(&self) -> bool;

    /// Writes one report without waiting for whoever reads it; succeeds if there is no place to write to.
    ///
    /// # Errors
    /// What the place says. The report is lost, and what it would have said is contained in the next one.
    fn report(&self) -> io::Result<()>;
}

static REPORTER: OnceLock<&'static dyn Reporter> = OnceLock::new();

/// From now on reports go to `reporter`. The first one stands.
pub fn report_to(reporter: &'static dyn Reporter) {
    // The first one stands.
    let _ = REPORTER.set(reporter);
}

/// Writes a report, if there is a place to write to.
///
/// # Errors
/// As [`Reporter::report`].
pub fn report() -> io::Result<()> {
    REPORTER.get().map_or(Ok(()), |reporter| reporter.report())
}

/// Says when a minute has passed. Costs nothing until it is started.
#[derive(Debug)]
pub(crate) struct Clock {
    timer: TimerFd,
    overdue: bool,
}

impl Clock {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { timer: TimerFd::new()?, overdue: false })
    }

    /// Starts it, if reports are wanted at all: a monitor without a metrics file need not wake up.
    pub(crate) fn start(&mut self) -> io::Result<()> {
        match REPORTER.get() {
            Some(reporter) if reporter.is_set_up() => Ok(self.timer.reset(PERIOD, Some(PERIOD))?),
            _ => Ok(()),
        }
    }

    /// The timer is readable. Whether a report is to be written; if it is not `allowed` now, it is overdue.
    pub(crate) fn tick(&mut self, allowed: bool) -> bool {
        // Reading makes it silent until the next period ends.
        let ticked = self.timer.wait().is_ok();
        self.overdue = ticked && !allowed;
        ticked && allowed
    }

    /// Whether a report is overdue; it is regarded as written then.
    pub(crate) fn overdue(&mut self) -> bool {
        std::mem::take(&mut self.overdue)
    }
}

impl AsRawFd for Clock {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_falls_due_in_a_pause_is_written_after_it() {
        let mut clock = Clock::new().unwrap();
        let soon = || Duration::from_millis(1);
        clock.timer.reset(soon(), None).unwrap();
        assert!(clock.tick(true), "waits for the timer");
        assert!(!clock.overdue());
        clock.timer.reset(soon(), None).unwrap();
        assert!(!clock.tick(false));
        assert!(clock.overdue());
        assert!(!clock.overdue(), "once");
    }
}
