//! A balloon, its rings, and memory with something in every page.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use crate::virtio::balloon::{Balloon, BalloonMetrics, BalloonSpec, PAGE_LEN};
use crate::virtio::device::{Rings, VirtioDevice};
use crate::virtio::queue::Visit;
use crate::virtio::registers::F_VERSION_1;
use crate::virtio::test_driver::{Buffer, TestDriver};

pub const INFLATE: usize = 0;
pub const DEFLATE: usize = 1;

/// First page that belongs to a test; what is before it is for rings and requests.
pub const FIRST: u32 = 0x400;
/// First page that is not RAM.
pub const END: u32 = (TestDriver::RAM_LEN as u64 / PAGE_LEN) as u32;
/// Where requests are written.
pub const REQUEST: u64 = TestDriver::FREE;

pub struct Rig {
    pub driver: TestDriver,
    pub rings: Rings,
    pub balloon: Balloon,
    pub metrics: Arc<BalloonMetrics>,
}

impl Rig {
    /// A device and driver with all features of `spec` and queues numbered without holes.
    pub fn new(spec: BalloonSpec) -> Self {
        let balloon = Balloon::new(spec).unwrap();
        let accepted = balloon.features();
        let queues = 2 + (accepted & 0b10_1010).count_ones() as u16;
        let mut rig = Self::idle(balloon, queues);
        rig.balloon.activate(accepted, &mut rig.rings).unwrap();
        rig
    }

    /// The same, as far as the rings.
    pub fn idle(balloon: Balloon, queues: u16) -> Self {
        let driver = TestDriver::new(queues, 256);
        for page in 0..END {
            let at = GuestAddress(u64::from(page) * PAGE_LEN + 8);
            if page >= FIRST {
                driver.ram.write_obj(page, at).unwrap();
            }
        }
        let rings = driver.rings(true, true);
        let metrics = balloon.metrics.clone();
        Self { driver, rings, balloon, metrics }
    }

    /// Whether a page still has what was written to it.
    pub fn keeps(&self, page: u32) -> bool {
        match self.driver.ram.read_obj::<u32>(GuestAddress(u64::from(page) * PAGE_LEN + 8)).unwrap() {
            0 => false,
            found => {
                assert_eq!(found, page, "not what was written");
                true
            }
        }
    }

    /// The pages that are gone.
    pub fn gone(&self) -> Vec<u32> {
        (FIRST..END).filter(|page| !self.keeps(*page)).collect()
    }

    /// Writes something into every page again.
    pub fn fill(&self) {
        for page in FIRST..END {
            self.driver.ram.write_obj(page, GuestAddress(u64::from(page) * PAGE_LEN + 8)).unwrap();
        }
    }

    /// Rings once.
    pub fn ring(&mut self, queue: usize) -> Visit {
        self.balloon.on_doorbell(queue as u16, &mut self.rings).unwrap()
    }

    /// Rings until there is nothing left to do; returns how many visits that took.
    pub fn serve(&mut self, queue: usize) -> usize {
        (1..).find(|_| self.ring(queue) == Visit::Idle).unwrap()
    }

    /// Offers a request of these pages.
    pub fn offer_pages(&mut self, queue: usize, pages: &[u32]) -> u16 {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.offer_bytes(queue, &bytes)
    }

    /// Offers a request of these bytes.
    pub fn offer_bytes(&mut self, queue: usize, bytes: &[u8]) -> u16 {
        self.driver.ram.write_slice(bytes, GuestAddress(REQUEST)).unwrap();
        self.driver.offer(queue, &[Buffer { addr: REQUEST, len: bytes.len() as u32, writable: false }])
    }

    /// Sends a request of these pages and waits for the acknowledgement.
    pub fn send_pages(&mut self, queue: usize, pages: &[u32]) {
        let head = self.offer_pages(queue, pages);
        self.serve(queue);
        assert_eq!(self.driver.take_used(queue), Some((head, 0)));
    }

    /// Offers a hint or report of ranges of pages.
    pub fn offer_ranges(&mut self, queue: usize, ranges: &[(u32, u32)]) -> u16 {
        let buffer = |(first, count): &(u32, u32)| Buffer {
            addr: u64::from(*first) * PAGE_LEN,
            len: count * PAGE_LEN as u32,
            writable: true,
        };
        self.driver.offer(queue, &ranges.iter().map(buffer).collect::<Vec<_>>())
    }

    /// Sends it and waits for the acknowledgement.
    pub fn send_ranges(&mut self, queue: usize, ranges: &[(u32, u32)]) {
        let head = self.offer_ranges(queue, ranges);
        self.serve(queue);
        assert_eq!(self.driver.take_used(queue), Some((head, 0)));
    }

    /// Sends a hinting command.
    pub fn send_command(&mut self, queue: usize, command: u32) {
        let head = self.offer_bytes(queue, &command.to_le_bytes());
        self.serve(queue);
        assert_eq!(self.driver.take_used(queue), Some((head, 0)));
    }

    /// The three words of the configuration space.
    pub fn config(&self) -> [u32; 3] {
        [0, 4, 8].map(|offset| {
            let mut word = [0; 4];
            self.balloon.read_config(offset, &mut word);
            u32::from_le_bytes(word)
        })
    }

    /// Tells the device that a source is ready until `done`.
    pub fn wait(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done(self) {
            assert!(Instant::now() < deadline, "it does not happen");
            self.balloon.on_source(0, &mut self.rings).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// VERSION_1 and these.
pub fn with(features: u64) -> u64 {
    F_VERSION_1 | features
}
