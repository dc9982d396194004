//! A virtio-blk driver: request slots over one queue (virtio 1.3 §5.2).

use crate::Machine;
use crate::bring_up::{self, Refusal, feature};
use crate::clock::Clock;
use crate::dma::Dma;
use crate::mmio::{Window, kind};
use crate::virtqueue::{DESCRIPTOR, Piece, Queue};

/// Request types.
pub mod request {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Feature bits of block devices.
pub const RO: u64 = 1 << 5;
pub const FLUSH: u64 = 1 << 9;
pub const MQ: u64 = 1 << 12;
pub const DISCARD: u64 = 1 << 13;
pub const WRITE_ZEROES: u64 = 1 << 14;

/// What the status byte holds before the device writes it.
pub const UNTOUCHED: u8 = 0xaa;
/// Largest number of pieces in a request, header and status included.
pub const PIECES_MAX: usize = 34;
/// Bytes a slot needs: header, then the status byte.
const SLOT: u64 = 32;

/// How to drive the device.
#[derive(Clone, Copy)]
pub struct Options {
    /// Most requests in flight.
    pub depth: u16,
    /// Most data pieces in a request.
    pub data_pieces: u16,
    /// Use indirect descriptors, if offered.
    pub indirect: bool,
    /// Use event indices, if offered.
    pub event_idx: bool,
}

impl Options {
    /// One request at a time, nothing fancy.
    pub const PLAIN: Self = Self { depth: 4, data_pieces: 1, indirect: false, event_idx: false };
}

/// A started block device.
pub struct Block {
    pub window: Window,
    pub queue: Queue,
    /// Features in force.
    pub features: u64,
    /// Capacity in sectors.
    pub capacity: u64,
    /// Requests that fit in the queue at a time.
    pub depth: u16,
    slots: Dma,
    tables: Option<Dma>,
    /// Descriptors between the heads of two slots.
    stride: u16,
}

/// A completed request.
#[derive(Clone, Copy)]
pub struct Answer {
    pub status: u8,
}

/// The window of the drive the command line names.
pub fn chosen_window(machine: &Machine) -> Option<Window> {
    machine.bus.find(kind::BLOCK, machine.command_line.number("drive", 0))
}

impl Block {
    /// Starts the device.
    pub fn start(machine: &mut Machine, window: Window, options: Options) -> Result<Self, Refusal> {
        let block = Self::prepare(machine, window, options)?;
        bring_up::start(window)?;
        Ok(block)
    }

    /// Everything up to, but without, DRIVER_OK.
    pub fn prepare(machine: &mut Machine, window: Window, options: Options) -> Result<Self, Refusal> {
        let block = Self::lay_out(machine, window, options)?;
        block.queue.announce();
        Ok(block)
    }

    /// Starts the device with two queues, each as if it were the only one.
    pub fn start_two(machine: &mut Machine, window: Window, options: Options) -> Result<[Self; 2], Refusal> {
        let first = Self::lay_out_queue(machine, window, options, 0)?;
        let second = Self::on_queue(machine, window, options, first.features, 1)?;
        first.queue.announce();
        second.queue.announce();
        bring_up::start(window)?;
        Ok([first, second])
    }

    /// Features agreed and the queue in RAM, but the device not told where. Which queue the command line says (`queue`).
    pub fn lay_out(machine: &mut Machine, window: Window, options: Options) -> Result<Self, Refusal> {
        let index = machine.command_line.number("queue", 0) as u32;
        Self::lay_out_queue(machine, window, options, index)
    }

    fn lay_out_queue(machine: &mut Machine, window: Window, options: Options, index: u32) -> Result<Self, Refusal> {
        let mut wanted = RO | FLUSH | DISCARD | WRITE_ZEROES | MQ;
        if options.indirect {
            wanted |= feature::INDIRECT_DESC;
        }
        if options.event_idx {
            wanted |= feature::EVENT_IDX;
        }
        let features = bring_up::negotiate(window, wanted, machine.clock)?;
        Self::on_queue(machine, window, options, features, index)
    }

    /// The part of a driver that uses one queue.
    fn on_queue(
        machine: &mut Machine,
        window: Window,
        options: Options,
        features: u64,
        index: u32,
    ) -> Result<Self, Refusal> {
        let size = window.queue_max(index).min(256) as u16;
        let event_idx = features & feature::EVENT_IDX != 0;
        let queue = Queue::allocate(window, index, size, event_idx, &mut machine.arena);
        let pieces = options.data_pieces + 2;
        let indirect = features & feature::INDIRECT_DESC != 0;
        let stride = if indirect { 1 } else { pieces };
        // On PCI the largest size is the size, which another processor may have made smaller a moment ago.
        if size < stride {
            return Err(Refusal::Start);
        }
        let depth = options.depth.min(size / stride);
        let tables = indirect.then(|| machine.arena.take(DESCRIPTOR * u64::from(pieces) * u64::from(depth), 16));
        let slots = machine.arena.take(SLOT * u64::from(depth), 64);
        Ok(Self { window, queue, features, capacity: window.config64(0), depth, slots, tables, stride })
    }

    /// Header of a slot's request (16 bytes).
    pub fn header(&self, slot: u16) -> Dma {
        self.slots.part(SLOT * u64::from(slot), 16)
    }

    /// Status byte of a slot's request.
    pub fn status_byte(&self, slot: u16) -> Dma {
        self.slots.part(SLOT * u64::from(slot) + 16, 1)
    }

    /// Writes a request into a slot and offers it, without a kick.
    pub fn submit(&mut self, slot: u16, kind: u32, sector: u64, data: &[Piece]) {
        let header = self.header(slot);
        header.write32(0, kind);
        header.write32(4, 0);
        header.write64(8, sector);
        let status = self.status_byte(slot);
        status.write8(0, UNTOUCHED);

        let mut pieces = [Piece::readable(header); PIECES_MAX];
        pieces[1..=data.len()].copy_from_slice(data);
        pieces[data.len() + 1] = Piece::writable(status);
        self.offer(slot, &pieces[..data.len() + 2]);
    }

    /// Offers any chain in a slot, without a kick.
    pub fn offer(&mut self, slot: u16, pieces: &[Piece]) {
        let head = slot * self.stride;
        match self.tables {
            Some(tables) => {
                let len = tables.len() / u64::from(self.depth);
                self.queue.chain_indirect(head, tables.part(len * u64::from(slot), len), pieces);
            }
            None => self.queue.chain(head, pieces),
        }
        self.queue.offer(head);
    }

    /// The next completed request: its slot and answer.
    pub fn poll(&mut self) -> Option<(u16, Answer)> {
        let used = self.queue.poll()?;
        let slot = used.head / self.stride;
        Some((slot, Answer { status: self.status_byte(slot).read8(0) }))
    }

    /// Runs one request to its end; `None` when the device does not answer.
    pub fn run(&mut self, clock: Clock, kind: u32, sector: u64, data: &[Piece]) -> Option<Answer> {
        self.submit(0, kind, sector, data);
        self.queue.kick();
        self.wait(clock, bring_up::PATIENCE_MS).map(|(_, answer)| answer)
    }

    /// Polls until something completes or `ms` are over.
    pub fn wait(&mut self, clock: Clock, ms: u64) -> Option<(u16, Answer)> {
        let deadline = clock.deadline_ms(ms);
        loop {
            if let Some(done) = self.poll() {
                return Some(done);
            }
            if deadline.passed() {
                return None;
            }
            crate::cpu::pause();
        }
    }
}
