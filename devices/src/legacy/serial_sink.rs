//! Where a console's output goes: a descriptor that is never waited for, behind a bounded buffer.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::serial::UartMetrics;
use crate::rate_limit::{Bucket, BucketSpec};
use crate::sys::nonblocking::NonBlocking;

/// Bytes kept while the descriptor takes none.
pub const BUFFER_LEN: usize = 64 << 10;
/// An unfinished line this long is written at once.
const LINE_LEN: usize = 512;
/// An unfinished line, such as a prompt, is written after this time at the latest.
const LINE_DELAY: Duration = Duration::from_millis(2);
/// How long [`SerialSink::finish`] waits for a slow reader, in all.
const FINISH_TIMEOUT: Duration = Duration::from_millis(100);

/// A console's output.
///
/// Bytes are gathered into lines, because a guest hands them over one by one. What cannot be written is kept up to [`BUFFER_LEN`]; beyond
/// that, or if writing fails, it is dropped and counted. So is what a rate limit does not let through: the guest never waits.
#[derive(Debug)]
pub struct SerialSink {
    out: NonBlocking,
    waiting: VecDeque<u8>,
    /// The last write did not take everything: the descriptor will say when it can be written.
    stuck: bool,
    /// Ends the wait for the rest of a line.
    timer: TimerFd,
    timer_is_set: bool,
    limit: Option<Bucket>,
    metrics: std::sync::Arc<UartMetrics>,
}

impl SerialSink {
    /// Writes to standard output.
    pub fn stdout() -> io::Result<Self> {
        Self::new(NonBlocking::writer(io::stdout().as_fd())?)
    }

    /// Writes to `file`: a regular file, or a FIFO or device that may or may not be opened with `O_NONBLOCK`.
    pub fn file(file: &File) -> io::Result<Self> {
        Self::new(NonBlocking::writer(file.as_fd())?)
    }

    fn new(out: NonBlocking) -> io::Result<Self> {
        Ok(Self {
            out,
            waiting: VecDeque::new(),
            stuck: false,
            timer: TimerFd::new().map_err(io::Error::from)?,
            timer_is_set: false,
            limit: None,
            metrics: std::sync::Arc::default(),
        })
    }

    /// Takes no more bytes in a time than this.
    #[must_use]
    pub fn limited(mut self, limit: Option<BucketSpec>) -> Self {
        self.limit = limit.map(|spec| Bucket::new(spec, Instant::now()));
        self
    }

    /// Counts into `metrics` from now on.
    pub(super) fn count_into(&mut self, metrics: std::sync::Arc<UartMetrics>) {
        self.metrics = metrics;
    }

    /// To be watched for writability, if the descriptor has such a thing.
    pub(super) fn watched_fd(&self) -> Option<RawFd> {
        self.out.is_pollable().then(|| self.out.as_raw_fd())
    }

    /// To be watched for readability.
    pub(super) fn timer_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// The rest of a line has been waited for.
    pub(super) fn on_timer(&mut self) {
        self.timer_is_set = false;
        if !self.stuck {
            self.write_out();
        }
    }

    /// The descriptor may take bytes again.
    pub(super) fn on_writable(&mut self) {
        if std::mem::take(&mut self.stuck) {
            self.write_out();
        }
    }

    /// Takes bytes from the guest.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let bytes = match &mut self.limit {
            Some(bucket) => {
                let allowed = bucket.take_up_to(bytes.len() as u64, Instant::now());
                let (allowed, refused) = bytes.split_at(bytes.len().min(allowed as usize));
                self.metrics.rate_limiter_dropped_bytes.add(refused.len() as u64);
                allowed
            }
            None => bytes,
        };
        if bytes.is_empty() {
            return;
        }
        let room = BUFFER_LEN.saturating_sub(self.waiting.len());
        let (kept, dropped) = bytes.split_at(bytes.len().min(room));
        self.waiting.extend(kept);
        self.drop_count(dropped.len());
        if self.stuck {
            return;
        }
        if kept.contains(&b'\n') || self.waiting.len() >= LINE_LEN {
            self.write_out();
        } else if !self.timer_is_set {
            match self.timer.reset(LINE_DELAY, None) {
                Ok(()) => self.timer_is_set = true,
                Err(_) => self.write_out(),
            }
        }
    }

    fn drop_count(&self, bytes: usize) {
        if bytes > 0 {
            self.metrics.error_count.inc();
            self.metrics.dropped_bytes.add(bytes as u64);
        }
    }

    /// Writes what is waiting, as far as it goes.
    fn write_out(&mut self) {
        while !self.waiting.is_empty() {
            let (front, _) = self.waiting.as_slices();
            match self.out.write(front) {
                Ok(written) if written > 0 => {
                    self.metrics.flush_count.inc();
                    self.waiting.drain(..written.min(self.waiting.len()));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stuck = true;
                    return;
                }
                // The reader is gone, the disk is full: it will be tried again with what comes next.
                Ok(_) | Err(_) => {
                    self.drop_count(self.waiting.len());
                    self.waiting.clear();
                }
            }
        }
        // A guest that flooded the console once should not keep the memory for ever.
        if self.waiting.capacity() > BUFFER_LEN / 4 {
            self.waiting.shrink_to(LINE_LEN);
        }
    }

    /// Writes everything that is waiting, but waits no longer than a moment for a slow reader. For the end of the machine.
    pub(super) fn finish(&mut self) {
        let started = Instant::now();
        self.write_out();
        while !self.waiting.is_empty() && started.elapsed() < FINISH_TIMEOUT {
            let left = FINISH_TIMEOUT.saturating_sub(started.elapsed()).as_millis();
            if !self.out.wait_writable(left as i32).unwrap_or(false) {
                break;
            }
            self.write_out();
        }
        self.drop_count(self.waiting.len());
        self.waiting.clear();
    }
}

/// For the chip, which writes byte by byte and flushes after each.
impl Write for SerialSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
