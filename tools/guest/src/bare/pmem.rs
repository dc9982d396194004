//! `mode=pmem`: persistent memory (virtio 1.3 §5.19), read and written by plain
//! loads and stores, flushed by requests, and as the target of a drive's data.

use crate::block::{self, Block, Options, request};
use crate::block_mode::word;
use crate::bring_up::{self, PATIENCE_MS, Refusal, feature};
use crate::clock::Clock;
use crate::dma::Dma;
use crate::mmio::{Window, kind};
use crate::pattern::{self, CHECKSUM_START, SECTOR};
use crate::virtqueue::{Piece, Queue};
use crate::{Machine, cpu, say};

const SECTOR_BYTES: u64 = SECTOR as u64;
const PAGE: u64 = 4096;
/// The only request there is.
pub const FLUSH: u32 = 0;
/// What an answer holds before the device writes it.
pub const UNTOUCHED: u32 = 0x5555_5555;
/// Bytes a slot needs: the request, then its answer.
const SLOT: u64 = 16;

/// A started persistent-memory device.
pub struct Pmem {
    pub window: Window,
    pub queue: Queue,
    /// Where its memory is.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    slots: Dma,
}

/// The window of the device the command line names.
pub fn chosen_window(machine: &Machine) -> Option<Window> {
    machine.bus.find(kind::PMEM, machine.command_line.number("pmem", 0))
}

impl Pmem {
    /// Starts the device.
    pub fn start(machine: &mut Machine, window: Window) -> Result<Self, Refusal> {
        bring_up::negotiate(window, feature::EVENT_IDX, machine.clock)?;
        let size = window.queue_max(0).min(256) as u16;
        let queue = Queue::allocate(window, 0, size, true, &mut machine.arena);
        queue.announce();
        bring_up::start(window)?;
        let slots = machine.arena.take(SLOT * u64::from(size), 64);
        Ok(Self { window, queue, start: window.config64(0), len: window.config64(8), slots })
    }

    /// Part of its memory; `None` when there is not so much of it.
    pub fn memory(&self, offset: u64, len: u64) -> Option<Dma> {
        (offset <= self.len && len <= self.len - offset).then(|| Dma::far(self.start + offset, len))
    }

    /// The answer to the request in a slot.
    pub fn answer(&self, slot: u16) -> Dma {
        self.slots.part(SLOT * u64::from(slot) + 8, 4)
    }

    /// Writes a request into a slot and offers it, without a kick. A queue has
    /// room for half as many requests as it has descriptors.
    pub fn submit(&mut self, slot: u16, kind: u32) {
        let at = self.slots.part(SLOT * u64::from(slot), 4);
        at.write32(0, kind);
        self.answer(slot).write32(0, UNTOUCHED);
        self.queue.chain(2 * slot, &[Piece::readable(at), Piece::writable(self.answer(slot))]);
        self.queue.offer(2 * slot);
    }

    /// Kicks and waits until `count` requests came back; `false` when they do not.
    pub fn wait(&mut self, clock: Clock, count: u16) -> bool {
        self.queue.kick();
        let deadline = clock.deadline_ms(PATIENCE_MS);
        let mut returned = 0;
        while returned < count {
            match self.queue.poll() {
                Some(_) => returned += 1,
                None if deadline.passed() => return false,
                None => cpu::pause(),
            }
        }
        true
    }
}

/// What the operations came to.
struct Tally {
    errors: u64,
    /// The first answer that was not 0.
    status: u32,
    checksum: u64,
    mismatches: u64,
    flushes: u64,
}

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let Some(window) = chosen_window(machine) else {
        say!("error=no-pmem");
        return;
    };
    let mut pmem = match Pmem::start(machine, window) {
        Ok(pmem) => pmem,
        Err(refusal) => {
            say!("error={}", word(refusal));
            return;
        }
    };
    say!("start={:#x} len={}", pmem.start, pmem.len);
    let line = machine.command_line;
    let (offset, len) = (line.number("offset", 0), line.number("len", PAGE));
    let Some(memory) = pmem.memory(offset, len) else {
        say!("error=not-so-long");
        return;
    };
    let mut tally = Tally { errors: 0, status: 0, checksum: CHECKSUM_START, mismatches: 0, flushes: 0 };
    let op = line.text("op").unwrap_or("read");
    match op {
        "read" | "verify" => read(machine, memory, offset, &mut tally),
        "write" => write(machine, memory, offset),
        "poke" => poke(memory),
        "flush" => {}
        "dma-in" | "dma-out" => transfer(machine, memory, op, &mut tally),
        _ => {
            say!("error=unknown-op");
            return;
        }
    }
    flush(machine, &mut pmem, &mut tally);
    say!(
        "op={op} errors={} status={} checksum={:#x} mismatches={} flushes={} kicks={}",
        tally.errors,
        tally.status,
        tally.checksum,
        tally.mismatches,
        tally.flushes,
        pmem.queue.kicks
    );
}

/// `flushes` requests, `batch` at a time.
fn flush(machine: &Machine, pmem: &mut Pmem, tally: &mut Tally) {
    let line = machine.command_line;
    let (mut left, batch) =
        (line.number("flushes", 0), line.number("batch", 1).clamp(1, u64::from(pmem.queue.size) / 2));
    while left > 0 {
        let now = batch.min(left) as u16;
        for slot in 0..now {
            pmem.submit(slot, FLUSH);
        }
        let all = pmem.wait(machine.clock, now);
        for slot in 0..now {
            let answer = pmem.answer(slot).read32(0);
            if answer != 0 {
                tally.errors += 1;
                tally.status = if tally.status == 0 { answer } else { tally.status };
            }
        }
        tally.flushes += u64::from(now);
        if !all {
            return;
        }
        left -= u64::from(now);
    }
}

/// Checksum of the range, and how many of its sectors do not hold the pattern;
/// `rounds` times, of which the last counts.
fn read(machine: &Machine, memory: Dma, offset: u64, tally: &mut Tally) {
    for _ in 0..machine.command_line.number("rounds", 1) {
        read_once(machine, memory, offset, tally);
    }
}

fn read_once(machine: &Machine, memory: Dma, offset: u64, tally: &mut Tally) {
    let seed = machine.command_line.number("seed", 1);
    (tally.checksum, tally.mismatches) = (CHECKSUM_START, 0);
    let mut expected = [0; SECTOR];
    for at in (0..memory.len()).step_by(SECTOR) {
        let part = memory.part(at, SECTOR_BYTES.min(memory.len() - at)).bytes();
        tally.checksum = pattern::checksum(tally.checksum, part);
        pattern::fill(seed, (offset + at) / SECTOR_BYTES, &mut expected);
        tally.mismatches += u64::from(part != &expected[..part.len()]);
    }
}

/// Fills the range with the pattern.
fn write(machine: &Machine, memory: Dma, offset: u64) {
    let seed = machine.command_line.number("seed", 1);
    for at in (0..memory.len()).step_by(SECTOR) {
        let mut part = memory.part(at, SECTOR_BYTES.min(memory.len() - at));
        pattern::fill(seed, (offset + at) / SECTOR_BYTES, part.bytes_mut());
    }
}

/// Stores a word in each page, one plain instruction each: what a hypervisor has
/// to emulate should at least be something every hypervisor knows.
fn poke(memory: Dma) {
    for at in (0..memory.len()).step_by(PAGE as usize) {
        memory.write64(at, 0x6666_6666_6666_6666);
    }
}

/// A drive's data straight into the range, or out of it.
fn transfer(machine: &mut Machine, memory: Dma, op: &str, tally: &mut Tally) {
    let Some(window) = block::chosen_window(machine) else {
        say!("error=no-drive");
        return;
    };
    let Ok(mut block) = Block::start(machine, window, Options::PLAIN) else {
        say!("error=drive-refused");
        return;
    };
    let sector = machine.command_line.number("sector", 0);
    let (kind, piece) = match op {
        "dma-in" => (request::IN, Piece::writable(memory)),
        _ => (request::OUT, Piece::readable(memory)),
    };
    let status = block.run(machine.clock, kind, sector, &[piece]).map_or(block::UNTOUCHED, |answer| answer.status);
    if status != 0 {
        tally.errors += 1;
        tally.status = status.into();
    }
}
