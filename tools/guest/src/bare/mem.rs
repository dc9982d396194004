//! `mode=mem`: memory that comes and goes (virtio 1.3 §5.15): does what the
//! configuration space asks for, uses what it plugs, and looks at what it unplugged.

use crate::block_mode::word;
use crate::bring_up::{self, PATIENCE_MS, Refusal, feature};
use crate::clock::Clock;
use crate::dma::Dma;
use crate::mmio::{CONFIG_CHANGED, Window, kind, reg};
use crate::virtqueue::{Piece, Queue};
use crate::{Machine, cpu, say};

/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE.
pub const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
const PAGE: u64 = 4096;
/// What a response holds before the device writes it.
const UNTOUCHED: u16 = 0x5555;

/// Request types.
pub mod request {
    pub const PLUG: u16 = 0;
    pub const UNPLUG: u16 = 1;
    pub const UNPLUG_ALL: u16 = 2;
    pub const STATE: u16 = 3;
}

/// Offsets in the configuration space.
mod field {
    pub const BLOCK_SIZE: u64 = 0;
    pub const ADDR: u64 = 16;
    pub const REGION_SIZE: u64 = 24;
    pub const USABLE_SIZE: u64 = 32;
    pub const PLUGGED_SIZE: u64 = 40;
    pub const REQUESTED_SIZE: u64 = 48;
}

/// A started memory device.
pub struct Mem {
    pub window: Window,
    pub queue: Queue,
    /// Where its region is.
    pub start: u64,
    /// Length of the region in bytes.
    pub len: u64,
    /// Length of a block in bytes.
    pub block: u64,
    request: Dma,
    response: Dma,
}

/// The window of the device.
pub fn chosen_window(machine: &Machine) -> Option<Window> {
    machine.bus.find(kind::MEM, 0)
}

impl Mem {
    /// Starts the device.
    pub fn start(machine: &mut Machine, window: Window) -> Result<Self, Refusal> {
        bring_up::negotiate(window, UNPLUGGED_INACCESSIBLE | feature::EVENT_IDX, machine.clock)?;
        let size = window.queue_max(0).min(16) as u16;
        let queue = Queue::allocate(window, 0, size, true, &mut machine.arena);
        queue.announce();
        bring_up::start(window)?;
        let (request, response) = (machine.arena.take(24, 64), machine.arena.take(10, 64));
        let [start, len, block] = [field::ADDR, field::REGION_SIZE, field::BLOCK_SIZE].map(|at| window.config64(at));
        Ok(Self { window, queue, start, len, block, request, response })
    }

    /// What the host wants the guest to use, in bytes.
    pub fn requested(&self) -> u64 {
        self.window.config64(field::REQUESTED_SIZE)
    }

    /// What is plugged, in bytes.
    pub fn plugged(&self) -> u64 {
        self.window.config64(field::PLUGGED_SIZE)
    }

    /// Memory of the region.
    pub fn memory(&self, offset: u64, len: u64) -> Dma {
        Dma::far(self.start + offset, len)
    }

    /// One request to its end: response type and state; `None` when the device
    /// does not answer.
    pub fn ask(&mut self, clock: Clock, kind: u16, addr: u64, blocks: u16) -> Option<(u16, u16)> {
        self.request.write16(0, kind);
        self.request.write64(8, addr);
        self.request.write16(16, blocks);
        self.response.write16(0, UNTOUCHED);
        self.offer(clock, &[Piece::readable(self.request), Piece::writable(self.response)])?;
        Some((self.response.read16(0), self.response.read16(8)))
    }

    /// The request of the last [`Mem::ask`].
    pub fn request(&self) -> Dma {
        self.request
    }

    /// Offers any chain and waits for it; the length it came back with.
    pub fn offer(&mut self, clock: Clock, pieces: &[Piece]) -> Option<u32> {
        self.queue.chain(0, pieces);
        self.queue.offer(0);
        self.queue.kick();
        let deadline = clock.deadline_ms(PATIENCE_MS);
        loop {
            match self.queue.poll() {
                Some(used) => return Some(used.len),
                None if deadline.passed() => return None,
                None => cpu::pause(),
            }
        }
    }
}

/// What one step came to.
#[derive(Default)]
struct Step {
    /// Requests that were not acknowledged.
    refused: u64,
    /// Words of fresh memory that were not zero.
    stale: u64,
    /// Words that did not keep what was stored in them.
    lost: u64,
    /// Words of unplugged memory that read zero, all ones, and what was stored.
    zero: u64,
    ones: u64,
    old: u64,
}

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let Some(window) = chosen_window(machine) else {
        say!("error=no-mem");
        return;
    };
    let mut mem = match Mem::start(machine, window) {
        Ok(mem) => mem,
        Err(refusal) => {
            say!("error={}", word(refusal));
            return;
        }
    };
    let usable = mem.window.config64(field::USABLE_SIZE);
    say!("mem=started start={:#x} len={} usable={usable} block={}", mem.start, mem.len, mem.block);
    let line = machine.command_line;
    let (steps, per_request) = (line.number("steps", 2), line.number("blocks", 8).clamp(1, u64::from(u16::MAX)));
    let mut have = 0;
    for number in 1..=steps {
        if !changed(machine, &mem, have) {
            say!("error=no-change");
            return;
        }
        let wanted = mem.requested();
        let mut step = Step::default();
        while have != wanted && step.refused == 0 {
            let bytes = wanted.abs_diff(have).min(per_request * mem.block);
            let blocks = (bytes / mem.block) as u16;
            let plug = wanted > have;
            let (kind, at) = if plug { (request::PLUG, have) } else { (request::UNPLUG, have - bytes) };
            let answer = mem.ask(machine.clock, kind, mem.start + at, blocks);
            if answer.map(|(kind, _)| kind) != Some(0) {
                step.refused += 1;
                break;
            }
            let memory = mem.memory(at, bytes);
            if plug {
                fill(memory, &mut step);
                have += bytes;
            } else {
                have -= bytes;
                look(memory, &mut step);
            }
        }
        keep(mem.memory(0, have), &mut step);
        let Step { refused, stale, lost, zero, ones, old } = step;
        say!(
            "step={number} requested={wanted} plugged={} refused={refused} stale={stale} lost={lost} zero={zero} ones={ones} old={old}",
            mem.plugged()
        );
    }
}

/// Waits until the device asks for something else than `have`.
fn changed(machine: &Machine, mem: &Mem, have: u64) -> bool {
    let deadline = machine.clock.deadline_ms(machine.command_line.number("ms", 20_000));
    while mem.requested() == have || mem.window.read(reg::INTERRUPT_STATUS) & CONFIG_CHANGED == 0 {
        if deadline.passed() {
            return false;
        }
    }
    mem.window.write(reg::INTERRUPT_ACK, CONFIG_CHANGED);
    true
}

/// What is stored at an address.
fn mark(address: u64) -> u64 {
    address ^ 0x5a5a_5a5a_5a5a_5a5a
}

/// Looks at fresh memory, then stores a word in each page.
fn fill(memory: Dma, step: &mut Step) {
    for at in (0..memory.len()).step_by(PAGE as usize) {
        step.stale += u64::from(memory.read64(at) != 0);
        memory.write64(at, mark(memory.address() + at));
    }
}

/// Whether pages hold what was stored in them.
fn keep(memory: Dma, step: &mut Step) {
    for at in (0..memory.len()).step_by(PAGE as usize) {
        step.lost += u64::from(memory.read64(at) != mark(memory.address() + at));
    }
}

/// Looks at memory that should be gone: some of it, because each look may be
/// an exit.
fn look(memory: Dma, step: &mut Step) {
    for at in (0..memory.len()).step_by(64 * PAGE as usize) {
        match memory.read64(at) {
            0 => step.zero += 1,
            u64::MAX => step.ones += 1,
            _ => step.old += 1,
        }
    }
}
