//! The block device: takes requests from the queue, hands work to the engine, answers.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config_space::{ConfigSpace, SECTOR_LEN};
use super::engine::{self, Disk, Finished, Submitted, UringHub, Work};
use super::metrics::BlockMetrics;
use super::request::{self, Ask, ID_LEN, Limits, Reply, S_IOERR, S_OK};
use crate::event::Source;
use crate::metrics::MetricGroup;
use crate::ram::GuestRam;
use crate::rate_limit::{LimitDial, RateLimiter, RateLimits};
use crate::sys::disk;
use crate::sys::iovec::GuestIoVec;
use crate::virtio::chain::{self, Chain};
use crate::virtio::device::{Faults, Kind, Rings, VirtioDevice};
use crate::virtio::queue::{MAX_SIZE, RingError, Served, Visit};
use crate::virtio::registers::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::virtio::state::{BadState, DeviceState};

/// VIRTIO_BLK_F_* (virtio 1.3 §5.2.3).
pub(super) const F_SEG_MAX: u64 = 1 << 2;
pub(super) const F_RO: u64 = 1 << 5;
pub(super) const F_BLK_SIZE: u64 = 1 << 6;
pub(super) const F_FLUSH: u64 = 1 << 9;
pub(super) const F_TOPOLOGY: u64 = 1 << 10;
pub(super) const F_MQ: u64 = 1 << 12;
pub(super) const F_DISCARD: u64 = 1 << 13;
pub(super) const F_WRITE_ZEROES: u64 = 1 << 14;

/// Token by which the Async engine's pump says that work has completed.
pub(super) const COMPLETIONS: u32 = 0;
/// Token of the rate limiter.
pub(super) const LIMITER: u32 = 1;

/// Most queues a drive can have.
pub const MAX_QUEUES: u16 = 16;
const QUEUE_SIZES: [u16; MAX_QUEUES as usize] = [MAX_SIZE; MAX_QUEUES as usize];

/// One visit moves about so much, then others have their turn.
const VISIT_BYTES: u64 = 8 << 20;

/// How requests reach the file.
#[derive(Debug, Clone)]
pub enum Engine {
    /// At once, one system call per request.
    Sync,
    /// By the machine's io_uring, one system call per batch.
    Async(Arc<UringHub>),
}

impl Engine {
    fn on(self, file: Arc<File>) -> io::Result<Box<dyn Disk>> {
        Ok(match self {
            Engine::Sync => Box::new(engine::Sync::new(file)),
            Engine::Async(hub) => Box::new(engine::Uring::new(hub, file)?),
        })
    }
}

/// What a drive is made of.
#[derive(Debug)]
pub struct BlockSpec {
    /// The backing file or block device, opened for writing unless `read_only`. Always raw.
    pub file: File,
    /// Refuse to write, whatever the driver negotiates.
    pub read_only: bool,
    /// Offer FLUSH and make flushed data durable. Otherwise the host's page cache decides.
    pub writeback: bool,
    /// How requests reach the file.
    pub engine: Engine,
    /// Queues, at most [`MAX_QUEUES`].
    pub queues: u16,
    /// Bytes of data and requests per time. Every request is an operation, also one that is refused.
    pub limits: RateLimits,
}

/// A request in flight.
#[derive(Debug, Clone, Copy)]
struct Slot {
    ask: Ask,
    reply: Reply,
    /// When its visit came to it.
    begun: Instant,
}

/// What is to happen with a chain.
enum Outcome {
    Served(Served),
    /// The rate limiter has no tokens for it.
    Throttled,
    /// Its head is in flight already, which no working driver does.
    Duplicate,
}

/// Tells how long requests take with few looks at the clock: what is served after another begins where that one ended, and requests that
/// go to the engine together begin together.
#[derive(Default)]
struct Stopwatch(Option<Instant>);

impl Stopwatch {
    fn begun(&mut self) -> Instant {
        *self.0.get_or_insert_with(Instant::now)
    }

    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now.saturating_duration_since(self.0.replace(now).unwrap_or(now))
    }
}

/// A file that a drive can be on, and what there is to know of it.
#[derive(Debug)]
pub struct BackingFile {
    file: Arc<File>,
    backing: Backing,
}

/// What the drive's file is, read before the device gets it.
#[derive(Debug, Clone, Copy)]
struct Backing {
    capacity_sectors: u64,
    id: [u8; ID_LEN],
}

impl BackingFile {
    /// Looks at a file or block device that is opened as a drive needs it.
    pub fn new(file: File) -> io::Result<Self> {
        disk::make_blocking(&file)?;
        let len = disk::len_bytes(&file)?;
        if len % SECTOR_LEN != 0 {
            log::warn!(
                "drive: the file is {len} bytes long, not a multiple of {SECTOR_LEN}; the guest cannot reach the tail"
            );
        }
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(disk::identity(&file)?.bytes()) {
            *to = from;
        }
        Ok(Self { file: file.into(), backing: Backing { capacity_sectors: len / SECTOR_LEN, id } })
    }
}

/// A block device, or a lane of one: each queue is a lane, with an engine of its own on the file that all share.
pub struct Block {
    disk: Box<dyn Disk>,
    queues: u16,
    backing: Backing,
    config: ConfigSpace,
    read_only: bool,
    writeback: bool,
    limiter: RateLimiter,
    metrics: Arc<BlockMetrics>,
    /// Requests in flight, by the head of their chain, which is what makes duplicates impossible.
    slots: Box<[Option<Slot>]>,
    /// Emptied and filled again at every visit; kept for their room.
    pieces: Vec<GuestIoVec>,
    finished: Vec<Finished>,
    /// Keeps guest memory mapped while requests are in flight. After `disk`, which drains when it is dropped.
    ram: Option<GuestRam>,
}

impl Block {
    /// A drive on a file.
    pub fn new(spec: BlockSpec) -> io::Result<Self> {
        let BlockSpec { file, read_only, writeback, engine, queues, limits } = spec;
        let BackingFile { file, backing } = BackingFile::new(file)?;
        let queues = queues.clamp(1, MAX_QUEUES);
        Ok(Self {
            disk: engine.on(file)?,
            queues,
            config: ConfigSpace::new(backing.capacity_sectors, queues),
            backing,
            read_only,
            writeback,
            limiter: RateLimiter::new(limits)?,
            metrics: Arc::default(),
            slots: vec![None; MAX_SIZE.into()].into(),
            pieces: Vec::with_capacity(MAX_SIZE.into()),
            finished: Vec::with_capacity(MAX_SIZE.into()),
            ram: None,
        })
    }

    /// Another lane of the same drive, for its next queue.
    pub fn lane(&self, engine: Engine) -> io::Result<Self> {
        Ok(Self {
            disk: engine.on(self.disk.file().clone())?,
            queues: self.queues,
            config: self.config.clone(),
            backing: self.backing,
            read_only: self.read_only,
            writeback: self.writeback,
            limiter: self.limiter.share()?,
            metrics: self.metrics.clone(),
            slots: vec![None; MAX_SIZE.into()].into(),
            pieces: Vec::with_capacity(MAX_SIZE.into()),
            finished: Vec::with_capacity(MAX_SIZE.into()),
            ram: None,
        })
    }

    /// The drive's place on the io_uring, if it has the Async engine.
    pub fn uring_seat(&self) -> Option<usize> {
        self.disk.seat()
    }

    /// The drive's counters.
    pub fn metrics(&self) -> Arc<BlockMetrics> {
        self.metrics.clone()
    }

    /// Size as the guest sees it, in bytes.
    pub fn capacity_bytes(&self) -> u64 {
        self.backing.capacity_sectors.saturating_mul(SECTOR_LEN)
    }

    /// Goes on with another file, in all of the drive's lanes, see [`super::swap_file`]. After an error the old file is still in use.
    pub(super) fn replace_file(&mut self, others: &mut [&mut Self], file: BackingFile) -> io::Result<()> {
        let BackingFile { file, backing } = file;
        let old = self.disk.file().clone();
        let swapped = (|| {
            if self.writeback {
                // What the guest was told is durable must not depend on a file that nobody will flush any more.
                self.disk.sync_now()?;
            }
            self.disk.replace(file.clone())?;
            others.iter_mut().try_for_each(|lane| lane.disk.replace(file.clone()))
        })();
        match swapped {
            Ok(()) => {
                let config = ConfigSpace::new(backing.capacity_sectors, self.queues);
                for lane in others {
                    lane.config = config.clone();
                    lane.backing = backing;
                }
                self.config = config;
                self.backing = backing;
                self.metrics.update_count.inc();
                Ok(())
            }
            Err(error) => {
                // All lanes are on one file, always. Where the old one was a moment ago it has its place again.
                self.metrics.update_fails.inc();
                for lane in std::iter::once(self).chain(others.iter_mut().map(|lane| &mut **lane)) {
                    if let Err(error) = lane.disk.replace(old.clone()) {
                        log::error!("a drive cannot go back to its file: {error}");
                    }
                }
                Err(error)
            }
        }
    }

    fn limits(&self) -> Limits {
        Limits { capacity_bytes: self.capacity_bytes(), read_only: self.read_only, flush: self.writeback }
    }

    /// Serves one chain.
    fn serve(&mut self, chain: &Chain, watch: &mut Stopwatch) -> Outcome {
        let request = request::read(chain, self.limits(), &mut self.pieces);
        let bytes = match request {
            Some((Ask::Read { len, .. } | Ask::Write { len, .. }, _)) => len.into(),
            _ => 0,
        };
        if !self.limiter.take(bytes) {
            return Outcome::Throttled;
        }
        let Some((ask, reply)) = request else {
            self.metrics.invalid_reqs_count.inc();
            crate::guest_warn!("drive: a request without a status byte");
            return Outcome::Served(Served::Done { written: 0 });
        };
        let pieces = self.pieces.as_slice();
        let work = match ask {
            Ask::Read { offset, .. } => Work::Read { offset, pieces },
            Ask::Write { offset, .. } => Work::Write { offset, pieces },
            Ask::Flush => Work::Flush,
            Ask::Discard { offset, len } => Work::Discard { offset, len },
            Ask::Zero { offset, len, unmap } => Work::Zero { offset, len, unmap },
            Ask::GetId => {
                // The pieces were cut to this length.
                let _ = chain::write_bytes(pieces, &self.backing.id);
                return Outcome::Served(Served::Done { written: reply.send(S_OK, ID_LEN as u32) });
            }
            Ask::Refuse(status) => {
                self.metrics.invalid_reqs_count.inc();
                crate::guest_warn!("drive: a request refused with status {status}");
                return Outcome::Served(Served::Done { written: reply.send(status, 0) });
            }
        };
        let Some(slot) = self.slots.get_mut(usize::from(chain.head())).filter(|slot| slot.is_none()) else {
            return Outcome::Duplicate;
        };
        let flight = Slot { ask, reply, begun: watch.begun() };
        Outcome::Served(match self.disk.submit(chain.head(), work) {
            Submitted::Done(result) => Served::Done { written: answer(&self.metrics, flight, result, watch.lap()) },
            Submitted::Later => {
                *slot = Some(flight);
                Served::Later
            }
        })
    }

    /// Serves the queue, then sends what was submitted on its way.
    fn visit(&mut self, rings: &mut Rings) -> Result<Visit, RingError> {
        if self.limiter.is_blocked() {
            // The limiter's timer brings us back.
            return Ok(Visit::Idle);
        }
        let Rings { ram, irq, queues } = rings;
        let Some(queue) = queues.first_mut() else { return Ok(Visit::Idle) };
        let mut moved = 0u64;
        let mut served = 0u32;
        let mut duplicate = false;
        let mut tired = false;
        let mut watch = Stopwatch::default();
        let visit = queue.serve(ram, &**irq, |chain| {
            if moved >= VISIT_BYTES {
                tired = true;
                return Served::PutBack;
            }
            served = served.saturating_add(1);
            match self.serve(chain, &mut watch) {
                Outcome::Served(done) => {
                    moved = moved.saturating_add(GuestIoVec::total(&self.pieces) as u64);
                    done
                }
                Outcome::Throttled => {
                    self.metrics.rate_limiter_throttled_events.inc();
                    Served::PutBack
                }
                Outcome::Duplicate => {
                    duplicate = true;
                    Served::PutBack
                }
            }
        });
        if served == 0 {
            self.metrics.no_avail_buffer.inc();
        }
        let visit = visit?;
        self.finish(rings)?;
        if self.disk.is_throttled() {
            self.metrics.io_engine_throttled_events.inc();
        }
        if duplicate {
            return Err(RingError::new("a chain was made available again while it was in flight"));
        }
        let visit = if tired { Visit::More } else { visit };
        if visit == Visit::More {
            self.metrics.remaining_reqs_count.inc();
        }
        Ok(visit)
    }

    /// The rate limiter has tokens again.
    fn go_on(&mut self, rings: &mut Rings) -> Result<(), RingError> {
        if self.limiter.on_timer() {
            self.metrics.rate_limiter_event_count.inc();
            if self.visit(rings)? == Visit::More {
                self.limiter.come_back();
            }
        }
        Ok(())
    }

    /// Answers what the engine has finished.
    fn finish(&mut self, rings: &mut Rings) -> Result<(), RingError> {
        self.disk.reap(&mut self.finished);
        self.answer_finished(rings)
    }

    fn answer_finished(&mut self, rings: &mut Rings) -> Result<(), RingError> {
        if self.finished.is_empty() {
            return Ok(());
        }
        let Rings { ram, irq, queues } = rings;
        let Some(queue) = queues.first_mut() else { return Ok(()) };
        let now = Instant::now();
        for Finished { tag, result } in self.finished.drain(..) {
            let Some(slot) = self.slots.get_mut(usize::from(tag)).and_then(Option::take) else { continue };
            let took = now.saturating_duration_since(slot.begun);
            queue.complete(ram, tag, answer(&self.metrics, slot, result, took))?;
        }
        queue.notify(ram, &**irq)
    }

    /// Waits for everything in flight and forgets it.
    fn abandon(&mut self) {
        self.disk.drain(&mut self.finished);
        self.finished.clear();
        self.slots.fill(None);
        self.ram = None;
    }
}

/// Counts a finished request and tells the driver how it ended; returns how many bytes were written to its buffers.
fn answer(metrics: &BlockMetrics, slot: Slot, result: io::Result<()>, took: Duration) -> u32 {
    let Slot { ask, reply, .. } = slot;
    if let Err(error) = result {
        metrics.execute_fails.inc();
        crate::guest_warn!("drive: {ask:?} failed: {error}");
        return reply.send(S_IOERR, 0);
    }
    match ask {
        Ask::Read { len, .. } => {
            metrics.read_count.inc();
            metrics.read_bytes.add(len.into());
            metrics.read_agg.record(took);
            return reply.send(S_OK, len);
        }
        Ask::Write { len, .. } => {
            metrics.write_count.inc();
            metrics.write_bytes.add(len.into());
            metrics.write_agg.record(took);
        }
        Ask::Flush => metrics.flush_count.inc(),
        Ask::Discard { .. } => metrics.discard_count.inc(),
        Ask::Zero { .. } => metrics.write_zeroes_count.inc(),
        Ask::GetId | Ask::Refuse(_) => {}
    }
    reply.send(S_OK, 0)
}

impl VirtioDevice for Block {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES.get(..usize::from(self.queues)).unwrap_or_default()
    }

    fn lane_of(&self, queue: u16, _accepted: u64) -> usize {
        queue.into()
    }

    fn metrics(&self) -> Arc<dyn MetricGroup> {
        self.metrics.clone()
    }

    fn faults(&self) -> Faults<'_> {
        let metrics = &*self.metrics;
        Faults {
            activations: &metrics.activate_fails,
            registers: &metrics.cfg_fails,
            chains: &metrics.invalid_reqs_count,
        }
    }

    fn features(&self) -> u64 {
        let mut features = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY;
        features |= if self.read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES };
        if self.writeback {
            features |= F_FLUSH;
        }
        if self.queues > 1 {
            features |= F_MQ;
        }
        features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // CONFIG_WCE is not offered, so nothing is writable.
        self.metrics.cfg_fails.inc();
    }

    fn activate(&mut self, _accepted: u64, rings: &mut Rings) -> Result<(), String> {
        self.ram = Some(rings.ram.clone());
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
        vec![self.limiter.source(LIMITER)]
    }

    /// The one for its requests.
    fn limit_dials(&self) -> Vec<LimitDial> {
        vec![self.limiter.dial()]
    }

    fn on_source(&mut self, token: u32, rings: &mut Rings) -> Result<(), RingError> {
        let outcome = match token {
            COMPLETIONS => self.finish(rings),
            LIMITER => self.go_on(rings),
            _ => Ok(()),
        };
        outcome.inspect_err(|_| self.metrics.event_fails.inc())
    }

    fn quiesce(&mut self, rings: &mut Rings) -> Result<(), RingError> {
        self.disk.drain(&mut self.finished);
        self.answer_finished(rings)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(self.limiter.save())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        let DeviceState::Block(limiter) = state else { return Err(BadState::Kind) };
        self.limiter.restore(*limiter);
        Ok(())
    }

    /// The limiter stays as it is: a reset is no way around it.
    fn reset(&mut self) {
        self.abandon();
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.writeback { self.disk.sync_now() } else { Ok(()) }
    }
}
