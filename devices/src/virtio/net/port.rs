//! A card's connection to the metadata service: frames that are for it leave the transmit path here and never see the tap; its frames take
//! turns with those of the tap on the way to the guest.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use crate::event::{Interest, Source};
use crate::mmds::{Checksum, Stack};
use crate::sys::iovec::GuestIoVec;
use crate::virtio::chain;

/// A timer that reports as soon as it can. Zero would stop it.
const AT_ONCE: Duration = Duration::from_nanos(1);

/// The service behind a card, with a timer that runs only while the service waits for something.
#[derive(Debug)]
pub(super) struct Port {
    stack: Stack,
    timer: TimerFd,
    /// When the timer reports.
    armed: Option<Instant>,
    /// The frame at hand, where the guest cannot change it any more.
    frame: Vec<u8>,
    /// The last frame the guest got came from the tap.
    due: bool,
}

/// The port of a card with several lanes: each sends, the first one receives. Locked for one frame at a time.
#[derive(Debug)]
pub(super) struct SharedPort(Mutex<Port>);

impl SharedPort {
    pub(super) fn new(stack: Stack) -> io::Result<Self> {
        Ok(Self(Mutex::new(Port::new(stack)?)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Port> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Port {
    fn new(stack: Stack) -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Self { stack, timer, armed: None, frame: Vec::new(), due: false })
    }

    pub(super) fn source(&self, token: u32) -> Source {
        Source { fd: self.timer.as_raw_fd(), interest: Interest::Readable, token }
    }

    /// Takes the frame of `len` bytes in `pieces` if it is for the service. `false` if it is for the tap.
    pub(super) fn take(&mut self, pieces: &[GuestIoVec], len: usize, checksum: Checksum) -> bool {
        let mut start = [0; Stack::START_LEN];
        let Some(start) = start.get_mut(..len.min(Stack::START_LEN)) else { return false };
        if chain::read_bytes(pieces, start).is_none() || !self.stack.concerns(start) {
            return false;
        }
        if len > Stack::MAX_FRAME_LEN {
            self.stack.refuse();
            return true;
        }
        self.frame.resize(len, 0);
        match chain::read_bytes(pieces, &mut self.frame) {
            Some(()) => self.stack.take(&self.frame, checksum, Instant::now()),
            None => self.stack.refuse(),
        }
        true
    }

    /// Whether there is a frame for the guest.
    pub(super) fn has_frames(&self) -> bool {
        self.stack.has_frames()
    }

    /// Whether there is one and the tap was first the last time.
    pub(super) fn is_due(&self) -> bool {
        self.due && self.has_frames()
    }

    /// The guest has got a frame of the tap.
    pub(super) fn tap_was_first(&mut self) {
        self.due = true;
    }

    /// The next frame for the guest.
    pub(super) fn front(&self) -> Option<&[u8]> {
        self.stack.front()
    }

    /// The guest has got the frame at the front, or lost it.
    pub(super) fn pop(&mut self, delivered: bool) {
        self.due = false;
        self.stack.pop(delivered, Instant::now());
    }

    /// The timer reports, or may have while the machine was paused.
    pub(super) fn on_timer(&mut self) {
        let now = Instant::now();
        if self.armed.is_some_and(|at| at <= now) {
            self.armed = None;
        }
        self.stack.wake(now);
    }

    /// Sees to it that the service is looked at when it wants to be. To be called after each visit.
    pub(super) fn settle(&mut self) {
        // Without connections there is nothing to wait for. A timer that still runs then reports once for nothing, which costs less than
        // to stop it for every connection.
        if self.stack.connections() == 0 {
            return;
        }
        let now = Instant::now();
        let Some(at) = self.stack.wake_at(now) else { return };
        if self.armed.is_none_or(|armed| at < armed) {
            let wait = at.saturating_duration_since(now).max(AT_ONCE);
            self.armed = self.timer.reset(wait, None).is_ok().then_some(at);
        }
    }

    /// The driver is gone.
    pub(super) fn reset(&mut self) {
        self.stack.reset();
        self.due = false;
    }
}
