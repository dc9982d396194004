//! Time limits of connections: one timer for all of them, armed only while there is a limit.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::seats::Ticket;
use crate::event::{Interest, Source};

/// Time limits by who has them. The time in which the machine stands still does not count.
#[derive(Debug)]
pub struct Deadlines {
    timer: TimerFd,
    due: BTreeSet<(Instant, Ticket)>,
    /// When the timer will report; limits that were lifted leave it armed.
    armed: Option<Instant>,
    paused_since: Option<Instant>,
    /// How long the machine stood still so far.
    paused: Duration,
}

impl Deadlines {
    /// None yet. Fails if the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Self { timer, due: BTreeSet::new(), armed: None, paused_since: None, paused: Duration::ZERO })
    }

    /// The timer as a source.
    pub fn source(&self, token: u32) -> Source {
        Source { fd: self.timer.as_raw_fd(), interest: Interest::Readable, token }
    }

    /// The time, less that in which the machine stood still.
    pub fn now(&self) -> Instant {
        let now = Instant::now();
        now.checked_sub(self.paused).unwrap_or(now)
    }

    /// Gives `ticket` a limit `after` from now. What is returned is needed to lift it.
    pub fn set(&mut self, ticket: Ticket, after: Duration) -> Instant {
        let now = self.now();
        let at = now.checked_add(after).unwrap_or(now);
        self.due.insert((at, ticket));
        if self.armed.is_none_or(|armed| at < armed) {
            self.arm(at, now);
        }
        at
    }

    /// Lifts a limit.
    pub fn lift(&mut self, ticket: Ticket, at: Instant) {
        self.due.remove(&(at, ticket));
    }

    /// Lifts all limits.
    pub fn clear(&mut self) {
        self.due.clear();
    }

    /// Whose time is over. To be called until there is nobody when the timer reports.
    pub fn next_expired(&mut self) -> Option<Ticket> {
        let (at, ticket) = *self.due.first()?;
        let now = self.now();
        if at > now {
            self.arm(at, now);
            return None;
        }
        self.armed = None;
        self.due.pop_first();
        Some(ticket)
    }

    fn arm(&mut self, at: Instant, now: Instant) {
        // A timer set to zero would be off.
        let wait = at.saturating_duration_since(now).max(Duration::from_millis(1));
        // Setting a timer to a time this near cannot fail.
        self.armed = self.timer.reset(wait, None).is_ok().then_some(at);
    }

    /// The machine stands still.
    pub fn pause(&mut self) {
        self.paused_since.get_or_insert_with(Instant::now);
    }

    /// The machine goes on, if it stood still.
    pub fn resume(&mut self) {
        if let Some(since) = self.paused_since.take() {
            self.paused = self.paused.saturating_add(since.elapsed());
            if let Some((at, _)) = self.due.first() {
                self.arm(*at, self.now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

    use super::*;

    fn reports(deadlines: &Deadlines, timeout_ms: i32) -> bool {
        let epoll = Epoll::new().unwrap();
        epoll.ctl(ControlOperation::Add, deadlines.source(0).fd, EpollEvent::new(EventSet::IN, 0)).unwrap();
        epoll.wait(timeout_ms, &mut [EpollEvent::default()]).unwrap() == 1
    }

    #[test]
    fn limits_expire_in_order_and_lifted_ones_never() {
        let mut deadlines = Deadlines::new().unwrap();
        let tickets = [Ticket::new(1, 0), Ticket::new(2, 0), Ticket::new(3, 0)];
        deadlines.set(tickets[0], Duration::from_millis(30));
        let lifted = deadlines.set(tickets[1], Duration::from_millis(10));
        deadlines.set(tickets[2], Duration::from_millis(20));
        deadlines.lift(tickets[1], lifted);
        let mut seen = Vec::new();
        while seen.len() < 2 {
            assert!(reports(&deadlines, 5000));
            while let Some(ticket) = deadlines.next_expired() {
                seen.push(ticket);
            }
        }
        assert_eq!(seen, [tickets[2], tickets[0]]);
        assert_eq!(deadlines.next_expired(), None);
    }

    #[test]
    fn standing_still_does_not_count() {
        let mut deadlines = Deadlines::new().unwrap();
        deadlines.set(Ticket::new(1, 0), Duration::from_millis(200));
        deadlines.pause();
        assert!(reports(&deadlines, 5000), "the timer runs on, and nobody looks");
        deadlines.resume();
        assert_eq!(deadlines.next_expired(), None);
        assert!(reports(&deadlines, 5000));
        while deadlines.next_expired().is_none() {
            assert!(reports(&deadlines, 5000));
        }
    }
}
