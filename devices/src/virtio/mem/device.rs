//! The memory device: takes requests from the queue, one at a time, and answers them.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{Immutable, IntoBytes};

use super::metrics::MemMetrics;
use super::request::{self, Answer, Ask, Kind as Request, Reply};
use super::work::{Job, Progress, Region};
use super::{Backing, Levels, Shape, blocks::State};
use crate::event::{Interest, Source};
use crate::metrics::MetricGroup;
use crate::sys::iovec::GuestIoVec;
use crate::virtio::chain::Chain;
use crate::virtio::config_space;
use crate::virtio::device::{Faults, Kind, Rings, VirtioDevice};
use crate::virtio::queue::{MAX_SIZE, RingError, Visit};
use crate::virtio::registers::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::virtio::state::{BadState, DeviceState};

/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE (virtio 1.3 §5.15.3): the driver knows that what is not plugged is not there.
const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// Token of the bell that the device rings for itself when there is more to do.
const MORE: u32 = 0;
/// After this time, whoever else wants the device has a turn.
const VISIT_TIME: Duration = Duration::from_millis(5);

/// What a memory device is made of.
pub struct MemSpec {
    /// Its region. All of it is unplugged, and no slot open.
    pub shape: Shape,
    /// The memory behind it.
    pub backing: Box<dyn Backing>,
    /// Where to tell how much is plugged.
    pub levels: Arc<Levels>,
}

/// A size that cannot be asked of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadSize {
    /// More than there is.
    #[error("{0} bytes are more than the {1} of the region")]
    TooLarge(u64, u64),
    /// Not whole blocks.
    #[error("{0} bytes are not a multiple of the block size of {1}")]
    NotBlocks(u64, u64),
}

/// The configuration space (§5.15.4).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ConfigSpace {
    block_size: U64,
    node_id: U16,
    padding: [u8; 6],
    addr: U64,
    region_size: U64,
    usable_region_size: U64,
    plugged_size: U64,
    requested_size: U64,
}

/// A memory device.
pub struct Mem {
    region: Region,
    levels: Arc<Levels>,
    /// The request at work. Its chain is with us, and no other is taken meanwhile.
    job: Option<Job>,
    again: EventFd,
    metrics: Arc<MemMetrics>,
    /// Emptied and filled again at every visit; kept for their room.
    chain: Chain,
    pieces: Vec<GuestIoVec>,
}

impl Mem {
    /// A device for a region in the guest's address space.
    pub fn new(spec: MemSpec) -> io::Result<Self> {
        let MemSpec { shape, backing, levels } = spec;
        let whole = |len: u64, unit: u64| unit != 0 && len != 0 && len.is_multiple_of(unit);
        let fits = shape.block_len.is_power_of_two()
            && shape.start.is_multiple_of(shape.block_len)
            && whole(shape.slot_len, shape.block_len)
            && whole(shape.len, shape.slot_len)
            && shape.start.checked_add(shape.len).is_some();
        if !fits {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{shape:x?} does not divide evenly")));
        }
        Ok(Self {
            region: Region::new(shape, backing),
            levels,
            job: None,
            again: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            metrics: Arc::default(),
            chain: Chain::new(),
            pieces: Vec::with_capacity(MAX_SIZE.into()),
        })
    }

    /// The device's counters.
    pub fn metrics(&self) -> Arc<MemMetrics> {
        self.metrics.clone()
    }

    /// Asks the guest to use so many bytes of the region. Call it through [`crate::virtio::cell::VirtioCell::reconfigure`] and announce the
    /// change.
    pub fn request(&mut self, bytes: u64) -> Result<(), BadSize> {
        let Shape { len, block_len, .. } = self.region.shape;
        if bytes > len {
            return Err(BadSize::TooLarge(bytes, len));
        }
        if !bytes.is_multiple_of(block_len) {
            return Err(BadSize::NotBlocks(bytes, block_len));
        }
        self.levels.requested.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn visit(&mut self, rings: &mut Rings) -> Result<Visit, RingError> {
        self.visit_for(VISIT_TIME, rings)
    }

    /// Serves the queue until it is empty or others should have a turn.
    pub(super) fn visit_for(&mut self, time: Duration, rings: &mut Rings) -> Result<Visit, RingError> {
        let started = Instant::now();
        let Rings { ram, irq, queues } = rings;
        let Some(queue) = queues.first_mut() else { return Ok(Visit::Idle) };
        queue.disarm(ram)?;
        let mut budget = queue.size();
        loop {
            while let Some(job) = &mut self.job {
                let progress = self.region.bite(job, &self.metrics);
                if progress != Progress::More {
                    let (head, written) = self.conclude(progress);
                    queue.complete(ram, head, written)?;
                } else if started.elapsed() >= time {
                    queue.notify(ram, &**irq)?;
                    return Ok(Visit::More);
                }
            }
            if !queue.pop(ram, &mut self.chain)? {
                queue.notify(ram, &**irq)?;
                return Ok(if queue.arm(ram)? { Visit::More } else { Visit::Idle });
            }
            if let Some((head, written)) = self.begin() {
                queue.complete(ram, head, written)?;
            }
            budget = budget.saturating_sub(1);
            if budget == 0 || started.elapsed() >= time {
                queue.notify(ram, &**irq)?;
                return Ok(Visit::More);
            }
        }
    }

    /// Answers the request just taken, or makes a job of it.
    fn begin(&mut self) -> Option<(u16, u32)> {
        let started = Instant::now();
        let head = self.chain.head();
        let Some(reply) = Reply::of(&self.chain, &mut self.pieces) else {
            self.metrics.queue_event_fails.inc();
            crate::guest_warn!("memory: a request without room for an answer");
            return Some((head, 0));
        };
        let (kind, ask) = request::judge(&self.chain, self.region.shape, &self.region.blocks, self.levels.requested());
        let count = match kind {
            Request::Plug => &self.metrics.plug_count,
            Request::Unplug => &self.metrics.unplug_count,
            Request::UnplugAll => &self.metrics.unplug_all_count,
            Request::State => &self.metrics.state_count,
            Request::Unknown => &self.metrics.unknown_count,
        };
        count.inc();
        let blocks = match ask {
            Ask::Tell(answer, state) => {
                self.count_end(kind, started, answer == Answer::Ack);
                return Some((head, reply.send(answer, state)));
            }
            Ask::Plug(blocks) | Ask::Unplug(blocks) => blocks,
            Ask::UnplugAll => 0..self.region.blocks.count(),
        };
        self.job = Some(Job::new(head, reply, kind, blocks));
        None
    }

    /// Counts and answers the job that has come to an end.
    fn conclude(&mut self, progress: Progress) -> (u16, u32) {
        self.levels.plugged.store(self.region.bytes(self.region.blocks.plugged()), Ordering::Relaxed);
        let Some(job) = self.job.take() else { return (0, 0) };
        let bytes = self.region.bytes(job.changed);
        match job.kind {
            Request::Plug => self.metrics.plug_bytes.add(bytes),
            _ => self.metrics.unplug_bytes.add(bytes),
        }
        let done = progress == Progress::Done;
        self.count_end(job.kind, job.started, done);
        let answer = if done { Answer::Ack } else { Answer::Busy };
        (job.head, job.reply.send(answer, State::Unplugged))
    }

    fn count_end(&self, kind: Request, started: Instant, done: bool) {
        let metrics = &self.metrics;
        let (fails, time) = match kind {
            Request::Plug => (&metrics.plug_fails, &metrics.plug_agg),
            Request::Unplug => (&metrics.unplug_fails, &metrics.unplug_agg),
            Request::UnplugAll => (&metrics.unplug_all_fails, &metrics.unplug_all_agg),
            Request::State => (&metrics.state_fails, &metrics.state_agg),
            Request::Unknown => return,
        };
        if !done {
            fails.inc();
        }
        time.record(started.elapsed());
    }

    /// Does what is left of the job at once and returns its chain.
    fn finish_job(&mut self) -> Option<(u16, u32)> {
        loop {
            let progress = self.region.bite(self.job.as_mut()?, &self.metrics);
            if progress != Progress::More {
                return Some(self.conclude(progress));
            }
        }
    }
}

impl VirtioDevice for Mem {
    fn kind(&self) -> Kind {
        Kind::Mem
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[MAX_SIZE]
    }

    fn metrics(&self) -> Arc<dyn MetricGroup> {
        self.metrics.clone()
    }

    fn faults(&self) -> Faults<'_> {
        let metrics = &*self.metrics;
        Faults {
            activations: &metrics.activate_fails,
            registers: &metrics.cfg_fails,
            chains: &metrics.queue_event_fails,
        }
    }

    fn features(&self) -> u64 {
        F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_UNPLUGGED_INACCESSIBLE
    }

    fn required_features(&self) -> u64 {
        F_VERSION_1 | F_UNPLUGGED_INACCESSIBLE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let Shape { start, len, block_len, .. } = self.region.shape;
        let space = ConfigSpace {
            block_size: U64::new(block_len),
            node_id: U16::ZERO,
            padding: [0; 6],
            addr: U64::new(start),
            region_size: U64::new(len),
            // All of it always: which blocks a driver can use best depends on the size of its own blocks, which we do not know.
            usable_region_size: U64::new(len),
            plugged_size: U64::new(self.region.bytes(self.region.blocks.plugged())),
            requested_size: U64::new(self.levels.requested()),
        };
        config_space::read(space.as_bytes(), offset, data);
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
        self.visit(rings).inspect_err(|_| self.metrics.queue_event_fails.inc())
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.again.as_raw_fd(), interest: Interest::Readable, token: MORE }]
    }

    fn on_source(&mut self, _token: u32, rings: &mut Rings) -> Result<(), RingError> {
        if self.visit(rings).inspect_err(|_| self.metrics.queue_event_fails.inc())? == Visit::More {
            // Watched edge-triggered and never read.
            let _ = self.again.write(1);
        }
        Ok(())
    }

    fn quiesce(&mut self, rings: &mut Rings) -> Result<(), RingError> {
        let Some((head, written)) = self.finish_job() else { return Ok(()) };
        let Rings { ram, irq, queues } = rings;
        let Some(queue) = queues.first_mut() else { return Ok(()) };
        queue.complete(ram, head, written)?;
        queue.notify(ram, &**irq)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Mem { requested: self.levels.requested(), plugged: self.region.blocks.words().to_vec() }
    }

    /// Slots that hold plugged blocks are opened.
    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        let DeviceState::Mem { requested, plugged } = state else { return Err(BadState::Kind) };
        self.request(*requested).map_err(|e| BadState::Impossible(e.to_string()))?;
        self.region.restore(plugged, &self.metrics)?;
        self.levels.plugged.store(self.region.bytes(self.region.blocks.plugged()), Ordering::Relaxed);
        Ok(())
    }

    /// Plugged blocks stay plugged, and keep what they hold (§5.15.5.2). A request at work is finished first: half of it would be a state
    /// that no driver asked for.
    fn reset(&mut self) {
        let _ = self.finish_job();
    }
}
