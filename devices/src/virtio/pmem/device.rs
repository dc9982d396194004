//! The persistent-memory device: answers flush requests.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::metrics::PmemMetrics;
use crate::event::{Interest, Source};
use crate::metrics::MetricGroup;
use crate::rate_limit::{RateLimitChange, RateLimiter, RateLimits};
use crate::sys::disk;
use crate::sys::iovec::GuestIoVec;
use crate::virtio::chain::{self, Chain};
use crate::virtio::config_space;
use crate::virtio::device::{Faults, Kind, Rings, VirtioDevice};
use crate::virtio::queue::{MAX_SIZE, RingError, Visit};
use crate::virtio::registers::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::virtio::state::{BadState, DeviceState};

/// VIRTIO_PMEM_REQ_TYPE_FLUSH (virtio 1.3 §5.19.6).
const T_FLUSH: u32 = 0;
/// The request was done.
const R_OK: i32 = 0;
/// It was not; the driver makes EIO of it.
const R_FAIL: i32 = -1;
/// Length of a request and of its answer in bytes.
const WORD_LEN: usize = 4;

/// What happened to a guest that ended because its memory was gone.
const SHORTER: &str =
    "its file became shorter while the machine ran: the guest lost what was there, and ends when it touches it";

/// Token of the rate limiter's timer.
const TOKENS_AGAIN: u32 = 0;
/// Token of the bell that the device rings for itself when the timer's visit left requests on the queue.
const MORE: u32 = 1;

/// What a persistent-memory device is made of.
#[derive(Debug)]
pub struct PmemSpec {
    /// The file whose pages are the guest's memory.
    pub file: File,
    /// The guest cannot write them.
    pub read_only: bool,
    /// Where the memory is in the guest's address space.
    pub start: u64,
    /// Its length there in bytes: that of the file, rounded up to what drivers can handle.
    pub len: u64,
    /// Most flushes per time; one flush counts as one operation and as all of the file's bytes.
    pub limits: RateLimits,
}

/// A request taken from the queue.
#[derive(Debug, Clone, Copy)]
struct Pending {
    head: u16,
    /// Where the answer goes; `None` if the driver left no room for one.
    answer: Option<[GuestIoVec; WORD_LEN]>,
    ask: Ask,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Flush,
    /// Nonsense.
    Refuse,
}

/// A persistent-memory device.
pub struct Pmem {
    file: File,
    file_len: u64,
    read_only: bool,
    start: u64,
    len: u64,
    limiter: RateLimiter,
    again: EventFd,
    metrics: Arc<PmemMetrics>,
    /// Emptied and filled again at every visit; kept for their room.
    chain: Chain,
    batch: Vec<Pending>,
    pieces: Vec<GuestIoVec>,
}

impl Pmem {
    /// A device for memory that is in the guest's address space already.
    pub fn new(spec: PmemSpec) -> io::Result<Self> {
        let PmemSpec { file, read_only, start, len, limits } = spec;
        let file_len = disk::len_bytes(&file)?;
        Ok(Self {
            file,
            file_len,
            read_only,
            start,
            len,
            limiter: RateLimiter::new(limits)?,
            again: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            metrics: Arc::default(),
            chain: Chain::new(),
            batch: Vec::with_capacity(MAX_SIZE.into()),
            pieces: Vec::with_capacity(MAX_SIZE.into()),
        })
    }

    /// The device's counters.
    pub fn metrics(&self) -> Arc<PmemMetrics> {
        self.metrics.clone()
    }

    /// Changes how many flushes are let through. Call it through [`crate::virtio::cell::VirtioCell::reconfigure`].
    pub fn change_limits(&mut self, change: RateLimitChange) {
        self.limiter.change(change);
    }

    /// Takes what is on the queue, then makes everything durable once for all of it: each request asks for what was written before it,
    /// and a flush that begins after the last of them was taken covers that.
    fn visit(&mut self, rings: &mut Rings) -> Result<Visit, RingError> {
        let Rings { ram, irq, queues } = rings;
        let Some(queue) = queues.first_mut() else { return Ok(Visit::Idle) };
        queue.disarm(ram)?;
        if !queue.has_available(ram)? {
            // Asked for a bell, the driver may have put a request there meanwhile without ringing it.
            return Ok(if queue.arm(ram)? { Visit::More } else { Visit::Idle });
        }
        if !self.limiter.take(self.file_len) {
            self.metrics.rate_limiter_throttled_events.inc();
            return Ok(Visit::Idle);
        }
        self.batch.clear();
        while self.batch.len() < usize::from(queue.size()) && queue.pop(ram, &mut self.chain)? {
            self.batch.push(judge(&self.chain, &mut self.pieces));
        }
        let wanted = self.batch.iter().any(|request| request.ask == Ask::Flush);
        let outcome = if wanted { self.synchronise() } else { R_FAIL };
        if !wanted {
            self.limiter.give_back(self.file_len);
        }
        for Pending { head, answer, ask } in self.batch.drain(..) {
            let result = if ask == Ask::Flush { outcome } else { R_FAIL };
            let counter = if result == R_OK { &self.metrics.flush_count } else { &self.metrics.event_fails };
            counter.inc();
            let sent = answer.and_then(|answer| chain::write_bytes(&answer, &result.to_le_bytes()));
            queue.complete(ram, head, sent.map_or(0, |()| WORD_LEN as u32))?;
        }
        queue.notify(ram, &**irq)?;
        Ok(if queue.arm(ram)? { Visit::More } else { Visit::Idle })
    }

    /// Makes everything the guest wrote durable. The file's pages are the guest's memory, so `fdatasync` finds what was written there
    /// just as `msync` would (mm/msync.c calls the same).
    fn synchronise(&self) -> i32 {
        if self.read_only {
            return R_OK;
        }
        let started = Instant::now();
        let result = self.file.sync_data();
        self.metrics.sync_count.inc();
        self.metrics.sync_agg.record(started.elapsed());
        match result {
            Ok(()) => R_OK,
            Err(error) => {
                crate::guest_warn!("pmem: a flush failed: {error}");
                R_FAIL
            }
        }
    }
}

/// Reads a request: its type, readable, then room for the answer, writable. Both may be cut into descriptors in any way (§2.7.4.3).
fn judge(chain: &Chain, pieces: &mut Vec<GuestIoVec>) -> Pending {
    let mut word = [0; WORD_LEN];
    let read = chain::read_bytes(chain.readable(), &mut word);
    pieces.clear();
    let room = chain::cut(chain.writable(), 0, WORD_LEN, pieces);
    let mut answer = [GuestIoVec::empty(); WORD_LEN];
    for (to, from) in answer.iter_mut().zip(pieces.iter().filter(|piece| !piece.is_empty())) {
        *to = *from;
    }
    let ask = match (read, room) {
        (Some(()), Some(())) if u32::from_le_bytes(word) == T_FLUSH => Ask::Flush,
        _ => Ask::Refuse,
    };
    Pending { head: chain.head(), answer: room.map(|()| answer), ask }
}

impl VirtioDevice for Pmem {
    fn kind(&self) -> Kind {
        Kind::Pmem
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[MAX_SIZE]
    }

    fn metrics(&self) -> Arc<dyn MetricGroup> {
        self.metrics.clone()
    }

    fn faults(&self) -> Faults<'_> {
        let metrics = &*self.metrics;
        Faults { activations: &metrics.activate_fails, registers: &metrics.cfg_fails, chains: &metrics.event_fails }
    }

    fn features(&self) -> u64 {
        // Without SHMEM_REGION the driver takes the place from the configuration space (§5.19.3).
        F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let place = u128::from(self.start) | u128::from(self.len) << 64;
        config_space::read(&place.to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        self.metrics.cfg_fails.inc();
    }

    fn activate(&mut self, _accepted: u64, _rings: &mut Rings) -> Result<(), String> {
        Ok(())
    }

    fn on_doorbell(&mut self, queue: u16, rings: &mut Rings) -> Result<Visit, RingError> {
        if queue != 0 {
            return Ok(Visit::Idle);
        }
        self.metrics.queue_event_count.inc();
        self.visit(rings).inspect_err(|_| self.metrics.event_fails.inc())
    }

    fn sources(&self) -> Vec<Source> {
        let again = Source { fd: self.again.as_raw_fd(), interest: Interest::Readable, token: MORE };
        vec![self.limiter.source(TOKENS_AGAIN), again]
    }

    fn on_source(&mut self, token: u32, rings: &mut Rings) -> Result<(), RingError> {
        if token == TOKENS_AGAIN {
            if !self.limiter.on_timer() {
                return Ok(());
            }
            self.metrics.rate_limiter_event_count.inc();
        }
        match self.visit(rings) {
            Ok(Visit::Idle) => Ok(()),
            Ok(Visit::More) => {
                // The bells are watched edge-triggered and never read.
                let _ = self.again.write(1);
                Ok(())
            }
            Err(error) => {
                self.metrics.event_fails.inc();
                Err(error)
            }
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Pmem { start: self.start, len: self.len, limiter: self.limiter.save() }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        let DeviceState::Pmem { start, len, limiter } = state else { return Err(BadState::Kind) };
        if (*start, *len) != (self.start, self.len) {
            // The driver mapped it long ago and does not look again.
            return Err(BadState::Impossible(format!(
                "persistent memory was {len:#x} bytes at {start:#x} and is {:#x} bytes at {:#x} here: give it a file of the size it had",
                self.len, self.start
            )));
        }
        self.limiter.restore(*limiter);
        Ok(())
    }

    fn reset(&mut self) {
        // Nothing is ever in flight between two calls.
        self.batch.clear();
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.read_only {
            self.file.sync_data()?;
        }
        if disk::len_bytes(&self.file)? < self.file_len { Err(io::Error::other(SHORTER)) } else { Ok(()) }
    }
}
