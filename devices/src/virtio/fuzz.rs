//! Entry points for fuzzing: a drive behind its register window, driven by bytes that mean whatever they happen to mean.
//!
//! The bounded smoke run (`tests/fuzz_smoke.rs`) and the cargo-fuzz targets call the same functions. They panic where a promise is
//! broken: a panic inside the device, a read-only file that changed, bytes past the end of a device, a reset that left something behind.

mod balloon;
mod mem;
mod net;
mod pci;
mod pmem;
mod queue;
mod queues;
mod registers;
mod rng;
mod saved;
mod vsock;

pub use balloon::balloon;
pub use mem::mem;
pub use net::net;
pub use pci::pci;
pub use pmem::pmem;
pub use queue::queue;
pub use registers::registers;
pub use rng::entropy;
pub use saved::saved;
pub use vsock::vsock;

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::tempfile::TempFile;

use super::any::AnyDevice;
use super::block::{BackingFile, Block, BlockSpec, Engine, UringHub, swap_file};
use super::cell::{ConfigChange, DoorbellBinder, VirtioCell};
use super::transport::mmio::{MmioIrq, MmioWindow};
use crate::bus::BusDevice;
use crate::event::Subscriber;
use crate::fuzz_input::Input;
use crate::irq::IrqLine;
use crate::ram::GuestRam;
use crate::rate_limit::{BucketChange, BucketSpec, RateLimitChange, RateLimits};

const RAM_LEN: u64 = 1 << 20;
/// The device ends in the middle of a sector; what is behind must never change.
const SECTORS: usize = 64;
const TAIL: [u8; 200] = [0xa5; 200];
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x4000;

struct Silent;

impl IrqLine for Silent {
    fn raise(&self) {}
}

impl DoorbellBinder for Silent {
    fn bind(&self, _index: u16, _bell: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn unbind(&self, _index: u16, _bell: &EventFd) {}
}

impl Input<'_> {
    /// An address that is in RAM more often than not.
    fn address(&mut self) -> u64 {
        match self.byte() {
            0..=3 => self.u64(),
            4..=7 => RAM_LEN.saturating_sub(self.byte().into()),
            _ => u64::from(self.u32()) % RAM_LEN,
        }
    }
}

struct Machine {
    ram: GuestRam,
    cell: Arc<VirtioCell>,
    window: MmioWindow,
    available: u16,
    /// The one that it brings up.
    queue: u32,
}

/// Memory without holes.
fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), RAM_LEN as usize)]).expect("memory")
}

impl Machine {
    /// A device that nobody has brought up.
    fn new(name: &str, device: AnyDevice, ram: GuestRam) -> Self {
        Self::with_lanes(name, device, Vec::new(), ram)
    }

    fn with_lanes(name: &str, device: AnyDevice, more: Vec<AnyDevice>, ram: GuestRam) -> Self {
        let irq = Arc::new(MmioIrq::new(Silent));
        let cell = VirtioCell::with_lanes(name.to_owned(), device, more, ram.clone(), irq.clone(), Arc::new(Silent));
        let cell = Arc::new(cell.expect("spare descriptors"));
        let window = MmioWindow::new(cell.clone(), irq);
        Self { ram, cell, window, available: 0, queue: 0 }
    }

    fn write(&self, offset: u64, value: u32) {
        self.window.write(offset, &value.to_le_bytes());
    }

    fn reset(&self) {
        self.write(0x70, 0);
        let mut status = [0xff; 4];
        self.window.read(0x70, &mut status);
        assert_eq!(status, [0; 4], "a reset did not take");
    }

    /// What a proper driver does, so that the rest of the input is not wasted on a device that is not up.
    fn bring_up(&mut self, accept: u64) {
        self.available = 0;
        let zeroes = [0; 0x1000];
        for area in [AVAILABLE, USED] {
            self.ram.write_slice(&zeroes, GuestAddress(area)).expect("in RAM");
        }
        for status in [0, 1, 3] {
            self.write(0x70, status);
        }
        self.write(0x14, 0);
        let mut offered = [0; 4];
        self.window.read(0x10, &mut offered);
        for (page, bits) in [(0, accept as u32 & u32::from_le_bytes(offered)), (1, 1)] {
            self.write(0x24, page);
            self.write(0x20, bits);
        }
        self.write(0x70, 11);
        self.write(0x30, self.queue);
        self.write(0x38, 256);
        for (offset, address) in [(0x80, DESCRIPTORS), (0x90, AVAILABLE), (0xa0, USED)] {
            self.write(offset, address as u32);
            self.write(offset + 4, 0);
        }
        self.write(0x44, 1);
        self.write(0x70, 15);
        self.turn();
    }

    fn offer(&mut self, head: u16) {
        let slot = AVAILABLE + 4 + 2 * u64::from(self.available % 256);
        self.ram.write_obj(head, GuestAddress(slot)).expect("in RAM");
        self.available = self.available.wrapping_add(1);
        self.ram.write_obj(self.available, GuestAddress(AVAILABLE + 2)).expect("in RAM");
    }

    fn descriptor(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let bytes = u128::from(addr) | u128::from(len) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
        let _ = self.ram.write_slice(&bytes.to_le_bytes(), GuestAddress(at));
    }

    /// Everything the event loop could be told.
    fn turn(&self) {
        for source in self.cell.sources() {
            self.cell.ready(source.token);
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 12 {
            0 => {
                let registers = [0x14u8, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0];
                let offset = registers[usize::from(input.byte()) % registers.len()];
                self.write(offset.into(), input.u32());
            }
            1 => self.write(0x70, input.byte().into()),
            2 => {
                let data: [u8; 8] = input.take();
                let width = usize::from(input.byte()) % 8 + 1;
                self.window.write(u64::from(input.u16()) % 0x1000, &data[..width]);
            }
            3 => {
                let mut data = [0; 8];
                let width = usize::from(input.byte()) % 8 + 1;
                self.window.read(u64::from(input.u16()) % 0x1000, &mut data[..width]);
            }
            4 => {
                let bytes: [u8; 16] = input.take();
                let _ = self.ram.write_slice(&bytes, GuestAddress(input.address()));
            }
            5 => {
                let (index, addr) = (u64::from(input.byte()), input.address());
                let len = if input.byte() < 200 { u32::from(input.u16()) } else { input.u32() };
                self.descriptor(DESCRIPTORS + 16 * index, addr, len, input.u16() & 7, input.byte().into());
            }
            6 => {
                let head = if input.byte() < 250 { u16::from(input.byte()) } else { input.u16() };
                self.offer(head);
            }
            7 => self.write(0x50, u32::from(input.byte()) % 3),
            8 => self.bring_up(input.u64()),
            9 => {
                self.cell.pause();
                if input.byte() > 10 {
                    self.cell.resume();
                }
            }
            // Nearly a request: header, data, status, with a few things wrong now and then.
            _ => {
                let header = 0x8000 + 16 * u64::from(input.byte());
                let kinds = [0, 1, 4, 8, 11, 13, 0, 1, 0, 1, 2, u32::MAX];
                let kind = kinds[usize::from(input.byte()) % kinds.len()];
                let sector = if input.byte() < 230 { u64::from(input.byte()) % 80 } else { input.u64() };
                self.descriptor(header, u64::from(kind), 0, 0, 0);
                let _ = self.ram.write_obj(sector, GuestAddress(header + 8));
                let len = match input.byte() {
                    0..=150 => u32::from(input.byte() % 16) * 512,
                    151..=200 => 16,
                    201..=230 => 20,
                    _ => input.u32(),
                };
                let data = input.address();
                if kind > 8 {
                    let _ = self.ram.write_obj(u64::from(input.byte()), GuestAddress(data));
                    let _ = self.ram.write_obj(u64::from(input.byte()), GuestAddress(data.wrapping_add(8)));
                }
                let first = u16::from(input.byte());
                let at = |i: u16| DESCRIPTORS + 16 * u64::from(i % 256);
                let data_flags = match input.byte() {
                    0..=20 => input.u16() & 7,
                    _ if matches!(kind, 0 | 8) => 3,
                    _ => 1,
                };
                self.descriptor(at(first), header, 16, 1, (first + 1) % 256);
                self.descriptor(at(first + 1), data, len, data_flags, (first + 2) % 256);
                self.descriptor(at(first + 2), 0xf000 + u64::from(input.byte()), 1, 2, 0);
                self.offer(first);
                if input.byte() > 60 {
                    self.write(0x50, self.queue);
                }
            }
        }
    }
}

fn disk() -> File {
    let mut file = TempFile::new().expect("a temporary file").into_file();
    file.write_all(&[0x11; SECTORS * 512]).and_then(|()| file.write_all(&TAIL)).expect("room for a small file");
    file.rewind().expect("a regular file");
    file
}

fn check(file: &File, read_only: bool) {
    let mut bytes = vec![0; SECTORS * 512 + TAIL.len()];
    assert_eq!(file.metadata().expect("metadata").len(), bytes.len() as u64, "the file changed its length");
    file.read_exact_at(&mut bytes, 0).expect("the file can be read");
    assert_eq!(bytes[SECTORS * 512..], TAIL, "bytes past the end of the device changed");
    assert!(!read_only || bytes[..SECTORS * 512].iter().all(|b| *b == 0x11), "a read-only drive was written");
}

/// Registers, rings and requests at a drive, as `data` says. Returns how many requests were done and how many were refused.
pub fn drive(data: &[u8]) -> (u64, u64) {
    let mut input = Input(data);
    let how = input.byte();
    let (read_only, is_async) = (how & 1 != 0, how & 6 == 6);
    let hub = is_async.then(|| UringHub::new(1).ok()).flatten();
    let mut file = disk();
    // Low enough to be hit, refilled soon enough to go on.
    let bucket = |size| BucketSpec { size, one_time_burst: 0, refill_ms: 1 };
    let limits = match how >> 6 {
        0 | 1 => RateLimits::default(),
        2 => RateLimits { bandwidth: Some(bucket(4096)), ops: None },
        _ => RateLimits { bandwidth: Some(bucket(1 << 20)), ops: Some(bucket(2)) },
    };
    let spec = |file: &File| BlockSpec {
        file: file.try_clone().expect("a spare descriptor"),
        read_only,
        writeback: how & 8 != 0,
        engine: hub.clone().map_or(Engine::Sync, Engine::Async),
        queues: if how & 6 == 4 { 2 } else { 1 },
        limits,
    };
    let block = Block::new(spec(&file)).expect("a drive");
    let seat = block.uring_seat();
    let metrics = block.metrics();
    let more = (how & 6 == 4).then(|| block.lane(Engine::Sync).expect("spare descriptors"));
    let more = more.into_iter().map(|lane| AnyDevice::Block(Box::new(lane))).collect();
    let mut machine = Machine::with_lanes("fuzzed drive", AnyDevice::Block(Box::new(block)), more, ram());
    // Sometimes what a driver does is done to the other queue.
    machine.queue = u32::from(how & 0x56 == 0x44);
    if let (Some(hub), Some(seat)) = (&hub, seat) {
        hub.attach(seat, &machine.cell, 0);
    }
    if how & 16 == 0 {
        machine.bring_up(if how & 32 == 0 { u64::MAX } else { 0 });
    }
    while !input.0.is_empty() {
        machine.step(&mut input);
        machine.turn();
        if let Some(hub) = &hub {
            hub.ready(0);
        }
        if input.0.len() % 61 == 60 {
            let new = disk();
            let handed_over = new.try_clone().expect("a spare descriptor");
            BackingFile::new(handed_over).and_then(|file| swap_file(&machine.cell, file)).expect("a swapped file");
            check(&file, read_only);
            file = new;
        }
    }
    machine.reset();
    check(&file, read_only);
    // Whatever happened before, a reset makes a working device of it.
    let lift = RateLimitChange { bandwidth: BucketChange::Remove, ops: BucketChange::Remove };
    machine.cell.limit_dials().iter().for_each(|dial| dial.turn(lift));
    machine.cell.resume();
    machine.bring_up(0);
    machine.descriptor(0x8000, 0, 0, 0, 0);
    machine.descriptor(DESCRIPTORS, 0x8000, 16, 1, 1);
    machine.descriptor(DESCRIPTORS + 16, 0x9000, 513, 2, 0);
    machine.ram.write_obj(0xeeu8, GuestAddress(0x9200)).expect("in RAM");
    machine.offer(0);
    machine.write(0x50, machine.queue);
    machine.turn();
    machine.cell.pause();
    assert_eq!(machine.ram.read_obj::<u8>(GuestAddress(0x9200)).expect("in RAM"), 0, "the device did not recover");
    let done = [&metrics.read_count, &metrics.write_count, &metrics.flush_count, &metrics.write_zeroes_count];
    (done.iter().map(|count| count.get()).sum(), metrics.invalid_reqs_count.get())
}
