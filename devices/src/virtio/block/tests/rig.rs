//! A drive in a cell, a driver that speaks to it by hand, and a small event loop.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::event::Subscriber;
use crate::rate_limit::RateLimits;
use crate::virtio::any::AnyDevice;
use crate::virtio::block::{Block, BlockMetrics, BlockSpec, Engine};
use crate::virtio::cell::{DoorbellBinder, VirtioCell};
use crate::virtio::registers::{Area, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::virtio::status::Status;
use crate::virtio::test_driver::{Buffer, TestDriver};

pub(crate) const SECTOR: u64 = 512;
pub(crate) const OK: u8 = 0;
pub(crate) const IOERR: u8 = 1;
pub(crate) const UNSUPP: u8 = 2;
/// What a status byte holds before the device writes it.
pub(crate) const UNTOUCHED: u8 = 0xaa;

/// Doorbells always take the slow way in tests.
pub(crate) struct NoBinder;

impl DoorbellBinder for NoBinder {
    fn bind(&self, _index: u16, _bell: &EventFd) -> io::Result<()> {
        Ok(())
    }
    fn unbind(&self, _index: u16, _bell: &EventFd) {}
}

/// Subscribers watched edge-triggered, as in the real loop.
pub(crate) struct Loop {
    epoll: Epoll,
    subscribers: Vec<Arc<dyn Subscriber>>,
}

impl Loop {
    pub(crate) fn new() -> Self {
        Self { epoll: Epoll::new().unwrap(), subscribers: Vec::new() }
    }

    pub(crate) fn add(&mut self, subscriber: Arc<dyn Subscriber>) {
        for source in subscriber.sources() {
            let data = (self.subscribers.len() as u64) << 32 | u64::from(source.token);
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, data);
            self.epoll.ctl(ControlOperation::Add, source.fd, event).unwrap();
        }
        self.subscribers.push(subscriber);
    }

    /// Handles events; `false` if none came within `timeout_ms`.
    pub(crate) fn turn(&self, timeout_ms: i32) -> bool {
        let mut events = [EpollEvent::default(); 16];
        // io_uring interrupts a waiting submitter to finish requests in its context; the real loop has to expect that as well.
        let count = match self.epoll.wait(timeout_ms, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            other => other.unwrap(),
        };
        for event in &events[..count] {
            self.subscribers[(event.data() >> 32) as usize].ready(event.data() as u32);
        }
        count > 0
    }

    /// Handles events until there are no more.
    pub(crate) fn settle(&self) {
        while self.turn(0) {}
    }

    pub(crate) fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(20), "waited too long for {what}");
            self.turn(50);
        }
    }
}

/// What a request came back with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub status: u8,
    pub written: u32,
}

/// A drive and its driver. Request `i` has its header, status and data at fixed places, so 256 of them can be in flight.
pub(crate) struct Rig {
    pub driver: TestDriver,
    pub cell: Arc<VirtioCell>,
    pub events: Loop,
    pub metrics: Arc<BlockMetrics>,
    /// The one that requests go to.
    pub queue: usize,
    /// Status place of each request in flight, by queue and head.
    statuses: Vec<[u64; 256]>,
    next: u64,
}

pub(crate) struct Options {
    pub read_only: bool,
    pub writeback: bool,
    pub accept: u64,
    pub limits: RateLimits,
    pub queues: u16,
}

impl Default for Options {
    fn default() -> Self {
        let accept = F_EVENT_IDX | F_INDIRECT_DESC;
        Self { read_only: false, writeback: true, accept, limits: RateLimits::default(), queues: 1 }
    }
}

impl Rig {
    pub(crate) fn new(file: File, engine: Engine, options: Options) -> Self {
        let accept = options.accept;
        let mut rig = Self::made_of(file, engine, options);
        rig.bring_up(accept);
        rig
    }

    /// A drive whose driver has not begun.
    pub(crate) fn idle(file: File, engine: Engine, read_only: bool, writeback: bool) -> Self {
        Self::made_of(file, engine, Options { read_only, writeback, ..Options::default() })
    }

    /// The same as PCI has it.
    pub(crate) fn idle_with_sized_queues(file: File) -> Self {
        Self::put_together(file, Engine::Sync, Options::default(), VirtioCell::with_sized_queues)
    }

    /// The same with these options. Several queues need an engine with a seat for each.
    pub(crate) fn made_of(file: File, engine: Engine, options: Options) -> Self {
        Self::put_together(file, engine, options, |cell| cell)
    }

    fn put_together(
        file: File,
        engine: Engine,
        options: Options,
        change: impl FnOnce(VirtioCell) -> VirtioCell,
    ) -> Self {
        let Options { read_only, writeback, limits, queues, .. } = options;
        let driver = TestDriver::new(queues, 256);
        let block =
            Block::new(BlockSpec { file, read_only, writeback, engine: engine.clone(), queues, limits }).unwrap();
        let metrics = block.metrics();
        let others: Vec<Block> = (1..queues).map(|_| block.lane(engine.clone()).unwrap()).collect();
        let seats: Vec<_> = std::iter::once(&block).chain(&others).map(Block::uring_seat).collect();
        let cell = VirtioCell::with_lanes(
            "drive test".to_owned(),
            AnyDevice::Block(Box::new(block)),
            others.into_iter().map(|lane| AnyDevice::Block(Box::new(lane))).collect(),
            driver.ram.clone(),
            driver.irq.clone(),
            Arc::new(NoBinder),
        );
        let cell = Arc::new(change(cell.unwrap()));
        let mut events = Loop::new();
        events.add(cell.clone());
        attach(&engine, &seats, &cell, &mut events);
        Self { driver, cell, events, metrics, queue: 0, statuses: vec![[0; 256]; queues.into()], next: 0 }
    }

    /// From status 0 to DRIVER_OK, with fresh rings.
    pub(crate) fn bring_up(&mut self, accept: u64) {
        let all: Vec<u32> = (0..self.driver.queues.len() as u32).collect();
        self.bring_up_with(accept, &all);
        self.events.settle();
    }

    /// The same with these queues only, and without the event loop's part.
    pub(crate) fn bring_up_with(&mut self, accept: u64, queues: &[u32]) {
        let fresh = TestDriver::new(self.driver.queues.len() as u16, 256);
        self.driver.queues = fresh.queues;
        for geometry in self.driver.queues.iter().map(|queue| queue.geometry) {
            for area in [geometry.available, geometry.used] {
                self.driver.ram.write_slice(&[0; 4096], GuestAddress(area)).unwrap();
            }
        }
        self.cell.write_status(1);
        self.cell.write_status(3);
        let accept = accept | F_VERSION_1;
        self.cell.registers(|r| {
            for page in 0..2 {
                r.select_driver_features(page);
                r.accept_features((accept >> (32 * page)) as u32);
            }
        });
        self.cell.write_status(11);
        assert_eq!(self.status(), Status::from_bits_truncate(11), "features {accept:#x} not agreed on");
        self.cell.registers(|r| {
            for queue in queues {
                let geometry = self.driver.queues[*queue as usize].geometry;
                r.select_queue(*queue);
                r.set_queue_size(geometry.size.into());
                for (area, address) in [
                    (Area::Descriptors, geometry.descriptors),
                    (Area::Available, geometry.available),
                    (Area::Used, geometry.used),
                ] {
                    r.set_queue_address(area, false, address as u32);
                    r.set_queue_address(area, true, (address >> 32) as u32);
                }
                r.set_queue_ready(1);
            }
        });
        self.cell.write_status(15);
    }

    pub(crate) fn status(&self) -> Status {
        self.cell.registers(|r| r.status())
    }

    pub(crate) fn features(&self) -> u64 {
        self.cell.registers(|r| r.offered())
    }

    /// Free memory for one request, 64 KiB apart and reused after 192.
    pub(crate) fn place(&mut self) -> u64 {
        let place = TestDriver::FREE + (self.next % 192) * 0x1_0000;
        self.next += 1;
        place
    }

    pub(crate) fn header(&self, at: u64, kind: u32, sector: u64) -> Buffer {
        self.driver.ram.write_obj(kind, GuestAddress(at)).unwrap();
        self.driver.ram.write_obj(0u32, GuestAddress(at + 4)).unwrap();
        self.driver.ram.write_obj(sector, GuestAddress(at + 8)).unwrap();
        Buffer { addr: at, len: 16, writable: false }
    }

    pub(crate) fn status_at(&self, at: u64) -> Buffer {
        self.driver.ram.write_obj(UNTOUCHED, GuestAddress(at)).unwrap();
        Buffer { addr: at, len: 1, writable: true }
    }

    /// Makes a chain available whose status byte is at `status`.
    pub(crate) fn offer(&mut self, buffers: &[Buffer], status: u64) -> u16 {
        let head = self.driver.offer(self.queue, buffers);
        self.statuses[self.queue][usize::from(head)] = status;
        head
    }

    pub(crate) fn kick(&self) {
        self.cell.ring_doorbell(self.queue as u32);
    }

    /// The answer to `head`, which is the next to come back.
    pub(crate) fn wait(&mut self, head: u16) -> Answer {
        let (back, answer) = self.wait_any();
        assert_eq!(back, head);
        answer
    }

    pub(crate) fn wait_any(&mut self) -> (u16, Answer) {
        let Self { events, driver, queue, .. } = self;
        let mut back = None;
        events.until("an answer", || {
            back = back.or_else(|| driver.take_used(*queue));
            back.is_some()
        });
        let (head, written) = back.unwrap();
        let status = self.driver.ram.read_obj(GuestAddress(self.statuses[self.queue][usize::from(head)])).unwrap();
        (head, Answer { status, written })
    }

    /// One request with one data buffer (at `place` + 0x1000), waited for.
    pub(crate) fn request(&mut self, kind: u32, sector: u64, data: Option<(u32, bool)>) -> (u64, Answer) {
        let at = self.place();
        let answer = self.request_at(at, kind, sector, data);
        (at + 0x1000, answer)
    }

    pub(crate) fn request_at(&mut self, at: u64, kind: u32, sector: u64, data: Option<(u32, bool)>) -> Answer {
        let mut buffers = vec![self.header(at, kind, sector)];
        buffers.extend(data.map(|(len, writable)| Buffer { addr: at + 0x1000, len, writable }));
        buffers.push(self.status_at(at + 16));
        let head = self.offer(&buffers, at + 16);
        self.kick();
        self.wait(head)
    }

    pub(crate) fn read(&mut self, sector: u64, len: u32) -> Vec<u8> {
        let (at, answer) = self.request(0, sector, Some((len, true)));
        assert_eq!(answer, Answer { status: OK, written: len + 1 });
        self.bytes(at, len as usize)
    }

    pub(crate) fn write(&mut self, sector: u64, data: &[u8]) -> Answer {
        let at = self.place();
        self.driver.ram.write_slice(data, GuestAddress(at + 0x1000)).unwrap();
        self.request_at(at, 1, sector, Some((data.len() as u32, false)))
    }

    /// DISCARD (11) or WRITE_ZEROES (13) with one range.
    pub(crate) fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> Answer {
        let at = self.place();
        self.driver.ram.write_obj(sector, GuestAddress(at + 0x1000)).unwrap();
        self.driver.ram.write_obj(sectors, GuestAddress(at + 0x1008)).unwrap();
        self.driver.ram.write_obj(flags, GuestAddress(at + 0x100c)).unwrap();
        self.request_at(at, kind, 0, Some((16, false)))
    }

    pub(crate) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.driver.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub(crate) fn config_interrupts(&self) -> u32 {
        self.driver.irq.config.load(Ordering::Relaxed)
    }
}

fn attach(engine: &Engine, seats: &[Option<usize>], cell: &Arc<VirtioCell>, events: &mut Loop) {
    if let Engine::Async(hub) = engine {
        for (lane, seat) in seats.iter().enumerate() {
            hub.attach(seat.unwrap(), cell, lane);
        }
        events.add(hub.clone());
    }
}

/// Bytes that differ from sector to sector and from seed to seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A temporary file with `content`.
pub(crate) fn disk_of(content: &[u8]) -> File {
    use std::io::Write;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

/// What is in the file behind a clone of it.
pub(crate) fn content(file: &File) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}
