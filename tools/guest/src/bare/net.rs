//! A virtio-net driver: one receive and one transmit queue, one descriptor a
//! frame (virtio 1.3 §5.1).

use crate::bring_up::{self, Refusal, feature};
use crate::dma::Dma;
use crate::mmio::{Window, kind, reg};
use crate::virtqueue::{Piece, Queue};
use crate::{Machine, say};

/// Feature bits of network devices.
pub const MAC: u64 = 1 << 5;
pub const MRG_RXBUF: u64 = 1 << 15;

/// Bytes of `virtio_net_hdr_v1`, before every frame in both directions.
pub const HEADER: u64 = 12;
/// Bytes of a buffer: header and the largest untagged Ethernet frame, rounded up.
pub const BUFFER: u64 = 2048;
const RX: u32 = 0;
const TX: u32 = 1;

/// A started network device.
pub struct Net {
    pub window: Window,
    pub rx: Queue,
    pub tx: Queue,
    /// Features in force.
    pub features: u64,
    pub mac: [u8; 6],
    rx_buffers: Dma,
    tx_buffers: Dma,
    /// Transmit slots not in flight.
    free: [u16; 256],
    free_count: usize,
    /// Buffers that belonged to a frame spread over several.
    pub spread: u64,
}

/// A received frame; give its slot back with [`Net::recycle`].
#[derive(Clone, Copy)]
pub struct Frame {
    pub slot: u16,
    pub bytes: &'static [u8],
}

/// The window of the interface the command line names.
pub fn chosen_window(machine: &Machine) -> Option<Window> {
    machine.bus.find(kind::NET, machine.command_line.number("net", 0))
}

impl Net {
    /// Starts the device with all receive buffers posted.
    pub fn start(machine: &mut Machine, window: Window) -> Result<Self, Refusal> {
        let line = machine.command_line;
        let mut wanted = MAC | MRG_RXBUF;
        if line.switch("event_idx", true) {
            wanted |= feature::EVENT_IDX;
        }
        let features = bring_up::negotiate(window, wanted, machine.clock)?;
        let event_idx = features & feature::EVENT_IDX != 0;
        let arena = &mut machine.arena;
        let mut queue = |index| {
            let size = window.queue_max(index).min(256) as u16;
            let queue = Queue::allocate(window, index, size, event_idx, arena);
            queue.announce();
            queue
        };
        let (rx, tx) = (queue(RX), queue(TX));
        let mut mac = [0; 6];
        for (i, byte) in (0..).zip(&mut mac) {
            *byte = crate::cpu::read8(window.config_space() + i);
        }
        let mut net = Self {
            rx_buffers: arena.take(BUFFER * u64::from(rx.size), 4096),
            tx_buffers: arena.take(BUFFER * u64::from(tx.size), 4096),
            free: core::array::from_fn(|slot| slot as u16),
            free_count: tx.size.into(),
            window,
            rx,
            tx,
            features,
            mac,
            spread: 0,
        };
        bring_up::start(window)?;
        let withhold_ms = line.number("withhold_ms", 0);
        if withhold_ms != 0 {
            // A driver that is up and gives the device nothing to receive into.
            say!("net=withholding");
            let deadline = machine.clock.deadline_ms(withhold_ms);
            while !deadline.passed() {
                crate::cpu::pause();
            }
        }
        for slot in 0..net.rx.size {
            net.recycle(slot);
        }
        net.rx.kick();
        Ok(net)
    }

    /// The next received frame, without its header. Frames spread over several
    /// buffers (larger than any we agreed to) are dropped and counted.
    pub fn receive(&mut self) -> Option<Frame> {
        let used = self.rx.poll()?;
        let buffer = self.rx_buffers.part(BUFFER * u64::from(used.head), BUFFER);
        let buffers = buffer.read16(10);
        if self.features & MRG_RXBUF != 0 && buffers > 1 {
            self.recycle(used.head);
            self.spread += 1;
            for _ in 1..buffers {
                if let Some(more) = self.rx.poll() {
                    self.recycle(more.head);
                    self.spread += 1;
                }
            }
            return None;
        }
        let len = u64::from(used.len).clamp(HEADER, BUFFER);
        Some(Frame { slot: used.head, bytes: buffer.part(HEADER, len - HEADER).bytes() })
    }

    /// Posts a receive buffer again; takes effect at the next `rx.kick`.
    pub fn recycle(&mut self, slot: u16) {
        let buffer = self.rx_buffers.part(BUFFER * u64::from(slot), BUFFER);
        self.rx.chain(slot, &[Piece::writable(buffer)]);
        self.rx.offer(slot);
    }

    /// Takes back transmitted slots; returns how many.
    pub fn reclaim(&mut self) -> u64 {
        let mut count = 0;
        while let Some(used) = self.tx.poll() {
            self.free[self.free_count] = used.head;
            self.free_count += 1;
            count += 1;
        }
        count
    }

    /// Transmit frames in flight.
    pub fn in_flight(&self) -> u64 {
        u64::from(self.tx.size) - self.free_count as u64
    }

    /// A free transmit slot.
    pub fn claim(&mut self) -> Option<u16> {
        self.free_count = self.free_count.checked_sub(1)?;
        Some(self.free[self.free_count])
    }

    /// Puts back a claimed slot that was not used.
    pub fn unclaim(&mut self, slot: u16) {
        self.free[self.free_count] = slot;
        self.free_count += 1;
    }

    /// Where a slot's frame goes; the header before it stays zero.
    pub fn frame(&self, slot: u16) -> Dma {
        self.tx_buffers.part(BUFFER * u64::from(slot) + HEADER, BUFFER - HEADER)
    }

    /// Offers a claimed slot with a frame of `len` bytes, without a kick.
    pub fn transmit(&mut self, slot: u16, len: u64) {
        let whole = self.tx_buffers.part(BUFFER * u64::from(slot), HEADER + len);
        self.tx.chain(slot, &[Piece::readable(whole)]);
        self.tx.offer(slot);
    }
}
