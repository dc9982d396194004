//! The socket device (virtio 1.3 §5.10): its driver. `vsock_mode` is what is done with it.

use crate::bring_up::{self, Refusal, feature};
use crate::dma::Dma;
use crate::mmio::{Window, kind};
use crate::virtqueue::{Piece, Queue};
use crate::{Machine, cpu};

/// Bytes of a packet's header (§5.10.6).
pub const HEADER: u64 = 44;
/// The host's context id.
pub const HOST: u64 = 2;
/// The only socket type the device has.
pub const STREAM: u16 = 1;
/// Most data in a packet from us.
pub const DATA_MAX: u64 = 64 << 10;

const RX: u32 = 0;
const TX: u32 = 1;
const EVENT: u32 = 2;
const TX_SLOTS: u16 = 64;
/// Data that fits into a receive buffer, as Linux has it.
const RX_DATA: u64 = 4096;

/// Packet operations.
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of a SHUTDOWN: its sender receives, or sends, no more.
pub const NO_RECEIVE: u32 = 1;
pub const NO_SEND: u32 = 2;

/// A packet's header.
#[derive(Clone, Copy)]
pub struct Packet {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Packet {
    /// A packet to a port of the host, without data or credit.
    pub fn to_host(cid: u64, src_port: u32, dst_port: u32, op: u16) -> Self {
        Self {
            src_cid: cid,
            dst_cid: HOST,
            src_port,
            dst_port,
            len: 0,
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// Writes the header to the start of `to`.
    pub fn write(self, to: Dma) {
        to.write64(0, self.src_cid);
        to.write64(8, self.dst_cid);
        to.write32(16, self.src_port);
        to.write32(20, self.dst_port);
        to.write32(24, self.len);
        to.write16(28, self.kind);
        to.write16(30, self.op);
        to.write32(32, self.flags);
        to.write32(36, self.buf_alloc);
        to.write32(40, self.fwd_cnt);
    }

    fn read(from: Dma) -> Self {
        Self {
            src_cid: from.read64(0),
            dst_cid: from.read64(8),
            src_port: from.read32(16),
            dst_port: from.read32(20),
            len: from.read32(24),
            kind: from.read16(28),
            op: from.read16(30),
            flags: from.read32(32),
            buf_alloc: from.read32(36),
            fwd_cnt: from.read32(40),
        }
    }
}

/// A started socket device.
pub struct Vsock {
    pub window: Window,
    pub cid: u64,
    pub rx: Queue,
    pub tx: Queue,
    event: Queue,
    event_area: Dma,
    rx_area: Dma,
    tx_area: Dma,
    /// Transmit slots that are free, one bit each.
    free: u64,
    /// Packets received.
    pub received: u64,
}

/// The window of the socket device.
pub fn chosen_window(machine: &Machine) -> Option<Window> {
    machine.bus.find(kind::VSOCK, 0)
}

impl Vsock {
    /// Starts the device; with receive buffers, if `posts`.
    pub fn start(machine: &mut Machine, window: Window, posts: bool) -> Result<Self, Refusal> {
        let features = bring_up::negotiate(window, feature::EVENT_IDX, machine.clock)?;
        let event_idx = features & feature::EVENT_IDX != 0;
        let mut queue = |index, most: u16| {
            let size = window.queue_max(index).min(most.into()) as u16;
            let queue = Queue::allocate(window, index, size, event_idx, &mut machine.arena);
            queue.announce();
            queue
        };
        let (rx, tx) = (queue(RX, 256), queue(TX, 256));
        let event = queue(EVENT, 16);
        bring_up::start(window)?;
        let event_area = machine.arena.take(8, 8);
        let rx_area = machine.arena.take(u64::from(rx.size) * Self::RX_STRIDE, 4096);
        let tx_area = machine.arena.take(u64::from(TX_SLOTS) * Self::TX_STRIDE, 4096);
        let cid = window.config64(0);
        let mut vsock = Self { window, cid, rx, tx, event, event_area, rx_area, tx_area, free: u64::MAX, received: 0 };
        if posts {
            for slot in 0..vsock.rx.size {
                vsock.post(slot);
            }
            vsock.rx.kick();
            vsock.post_event();
        }
        Ok(vsock)
    }

    fn post_event(&mut self) {
        self.event.chain(0, &[Piece::writable(self.event_area.part(0, 4))]);
        self.event.offer(0);
        self.event.kick();
    }

    /// Whether the device says that all connections are gone (§5.10.6.7).
    pub fn was_reset(&mut self) -> bool {
        if self.event.poll().is_none() {
            return false;
        }
        let event = self.event_area.read32(0);
        assert!(event == 0, "an unknown event {event}");
        self.cid = self.window.config64(0);
        self.post_event();
        true
    }

    /// A multiple of 8 with room for header and data.
    const RX_STRIDE: u64 = HEADER + 4 + RX_DATA;
    const TX_STRIDE: u64 = HEADER + 4 + DATA_MAX;

    fn rx_buffer(&self, slot: u16) -> Dma {
        self.rx_area.part(u64::from(slot) * Self::RX_STRIDE, HEADER + RX_DATA)
    }

    fn post(&mut self, slot: u16) {
        let buffer = Piece::writable(self.rx_buffer(slot));
        self.rx.chain(slot, &[buffer]);
        self.rx.offer(slot);
    }

    /// The next packet and its data, and what to hand to [`Self::done_with`] afterwards.
    pub fn receive(&mut self) -> Option<(Packet, Dma, u16)> {
        let used = self.rx.poll()?;
        self.received += 1;
        let buffer = self.rx_buffer(used.head);
        let packet = Packet::read(buffer);
        let len = u64::from(used.len).saturating_sub(HEADER).min(RX_DATA);
        assert!(u64::from(packet.len) == len, "a packet of {} bytes came with {len}", packet.len);
        Some((packet, buffer.part(HEADER, len), used.head))
    }

    /// Posts the buffer again.
    pub fn done_with(&mut self, slot: u16) {
        self.post(slot);
    }

    /// Where the data of the next packet goes, if a transmit slot is free.
    pub fn slot(&mut self) -> Option<(u16, Dma)> {
        while let Some(used) = self.tx.poll() {
            if used.head < TX_SLOTS {
                self.free |= 1 << used.head;
            }
        }
        let slot = self.free.trailing_zeros() as u16;
        (slot < TX_SLOTS).then(|| (slot, self.tx_buffer(slot).part(HEADER, DATA_MAX)))
    }

    fn tx_buffer(&self, slot: u16) -> Dma {
        self.tx_area.part(u64::from(slot) * Self::TX_STRIDE, HEADER + DATA_MAX)
    }

    /// Sends a packet whose `len` bytes of data are in the slot.
    pub fn send_slot(&mut self, slot: u16, packet: Packet) {
        self.send_part(slot, packet, packet.len.into());
    }

    /// Sends a header alone, whatever it says of its data.
    pub fn send_header(&mut self, slot: u16, packet: Packet) {
        self.send_part(slot, packet, 0);
    }

    fn send_part(&mut self, slot: u16, packet: Packet, len: u64) {
        self.free &= !(1 << slot);
        let buffer = self.tx_buffer(slot);
        packet.write(buffer);
        self.tx.chain(slot, &[Piece::readable(buffer.part(0, HEADER + len))]);
        self.tx.offer(slot);
    }

    /// Sends a packet without data. Waits for a free slot, if need be.
    pub fn send(&mut self, packet: Packet) {
        loop {
            if let Some((slot, _)) = self.slot() {
                self.send_slot(slot, packet);
                return;
            }
            self.kick();
            cpu::pause();
        }
    }

    /// Tells the device of everything that was sent and posted.
    pub fn kick(&mut self) {
        self.tx.kick();
        self.rx.kick();
    }
}
