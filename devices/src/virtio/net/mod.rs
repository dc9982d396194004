//! Network card on a tap (virtio 1.3 §5.1).
//!
//! Frames go between tap and guest memory without a copy, each with its virtio-net header, so that checksums and segmentation are left
//! to whoever does them best. `rx` and `tx` are the two directions, `features` what is negotiated, `header` what a guest may ask of the
//! host's kernel. `port` is where the metadata service is, for cards that have it.

mod features;
mod header;
mod metrics;
mod pairs;
mod port;
mod rx;
pub mod syscalls;
#[cfg(test)]
mod tests;
mod tx;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

pub use self::metrics::NetMetrics;
use self::pairs::Pairs;
use self::port::SharedPort;
use self::rx::{Place, Rx};
use self::tx::Tx;
use super::device::{Faults, Kind, Rings, VirtioDevice};
use super::queue::{self, RingError, Visit};
use super::state::{BadState, DeviceState};
use crate::event::{Interest, Source};
use crate::metrics::MetricGroup;
use crate::mmds::Stack;
use crate::rate_limit::{LimitDial, RateLimiter, RateLimits};
use crate::sys::iovec::GuestIoVec;
use crate::sys::tap::{HEADER_LEN, Offloads};
pub use crate::sys::tap::{Tap, TapError};

/// Bytes of an Ethernet header.
const ETHERNET_LEN: usize = 14;
/// Largest frame with its header: 64 KiB of IP in an Ethernet frame with a VLAN tag.
const MAX_FRAME_LEN: usize = HEADER_LEN + ETHERNET_LEN + 4 + 65535;
/// MTU of a card that was not given one.
const USUAL_MTU: u16 = 1500;

/// After so many frames, other devices have their turn.
const MAX_FRAMES_PER_VISIT: u32 = 128;
/// After so many bytes, too.
const MAX_BYTES_PER_VISIT: usize = 1 << 20;

const RX: u16 = 0;
const TX: u16 = 1;
/// Of a card with several pairs, in its first lane.
const CONTROL: u16 = 2;
/// Nobody has more to say at once.
const CONTROL_SIZE: u16 = 64;

/// Frames came in on the tap.
const TAP: u32 = 0;
/// The last visit left frames on the tap.
const AGAIN: u32 = 1;
/// The rate limiter of a direction has tokens again.
const RX_LIMITER: u32 = 2;
const TX_LIMITER: u32 = 3;
/// The metadata service wants to be looked at.
const PORT: u32 = 4;

/// Frames of an earlier driver that are thrown away at most; more than a tap holds.
const MAX_STALE_FRAMES: u32 = 4096;

/// What a card is made of.
#[derive(Debug)]
pub struct NetSpec {
    /// Its cable.
    pub tap: Tap,
    /// The other queues of that tap: for each there is another pair of queues.
    pub more_taps: Vec<Tap>,
    /// Its address; `None` lets the guest choose.
    pub mac: Option<[u8; 6]>,
    /// The MTU it recommends.
    pub mtu: Option<u16>,
    /// Bytes of frames and frames per time towards the guest.
    pub rx_limits: RateLimits,
    /// The same from the guest. What is no frame is one all the same.
    pub tx_limits: RateLimits,
    /// The metadata service, for guests that may reach it by this card.
    pub mmds: Option<Stack>,
}

/// A network card, or a lane of one: each pair of queues is a lane, on a queue of the tap. The control queue is in the first.
#[derive(Debug)]
pub struct Net {
    pairs: Arc<Pairs>,
    /// The one that this lane serves.
    pair: usize,
    sizes: Arc<[u16]>,
    /// What the driver accepted.
    accepted: u64,
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
    rx: Rx,
    tx: Tx,
    rx_limiter: RateLimiter,
    tx_limiter: RateLimiter,
    port: Option<Arc<SharedPort>>,
    /// What the tap was last allowed to hand over unfinished.
    offloads: Offloads,
    /// Frames on the tap may still be of that kind.
    stale: Offloads,
    again: Arc<EventFd>,
    /// That of the first lane, which receives what the service says.
    first_again: Arc<EventFd>,
    metrics: Arc<NetMetrics>,
}

impl Net {
    /// A card on a tap. Fails if the process is out of descriptors.
    pub fn new(spec: NetSpec) -> io::Result<Self> {
        let NetSpec { tap, more_taps, mac, mtu, rx_limits, tx_limits, mmds } = spec;
        let pairs = Pairs::new(tap, more_taps)?;
        let mut sizes = vec![queue::MAX_SIZE; pairs.count().saturating_mul(2)];
        if pairs.count() > 1 {
            sizes.push(CONTROL_SIZE);
        }
        let again = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        Ok(Self {
            pairs: Arc::new(pairs),
            pair: 0,
            sizes: sizes.into(),
            accepted: 0,
            mac,
            mtu,
            rx: Rx::default(),
            tx: Tx::default(),
            rx_limiter: RateLimiter::new(rx_limits)?,
            tx_limiter: RateLimiter::new(tx_limits)?,
            port: mmds.map(|stack| SharedPort::new(stack).map(Arc::new)).transpose()?,
            offloads: Offloads::empty(),
            stale: Offloads::empty(),
            first_again: again.clone(),
            again,
            metrics: Arc::default(),
        })
    }

    /// Another lane of the same card, for the pair of queues with this index.
    pub fn lane(&self, pair: usize) -> io::Result<Self> {
        Ok(Self {
            pairs: self.pairs.clone(),
            pair,
            sizes: self.sizes.clone(),
            accepted: 0,
            mac: self.mac,
            mtu: self.mtu,
            rx: Rx::default(),
            tx: Tx::default(),
            rx_limiter: self.rx_limiter.share()?,
            tx_limiter: self.tx_limiter.share()?,
            port: self.port.clone(),
            offloads: Offloads::empty(),
            stale: Offloads::empty(),
            again: Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?),
            first_again: self.again.clone(),
            metrics: self.metrics.clone(),
        })
    }

    fn is_first(&self) -> bool {
        self.pair == 0
    }

    /// A driver that knows of one pair only has no other.
    fn works(&self) -> bool {
        self.is_first() || self.accepted & features::MQ != 0
    }

    /// Counters.
    pub fn metrics(&self) -> Arc<NetMetrics> {
        self.metrics.clone()
    }

    /// Throws away frames that the tap took in for an earlier driver, which could do more than this one.
    fn drop_stale_frames(&mut self) {
        if !self.offloads.contains(self.stale) {
            // Reading a frame in part takes all of it off the tap.
            let mut byte = [0u8; 1];
            let piece = GuestIoVec::new(&VolatileSlice::from(&mut byte[..]));
            for _ in 0..MAX_STALE_FRAMES {
                if self.pairs.tap(self.pair).is_none_or(|tap| tap.read(&[piece]).is_err()) {
                    break;
                }
            }
        }
        self.stale = self.offloads;
    }

    fn receive(&mut self, rings: &mut Rings) -> Result<Visit, RingError> {
        let port = self.port.as_deref().filter(|_| self.is_first());
        let outcome = match place(self.pairs.tap(self.pair), &self.metrics, &mut self.rx_limiter, port, rings, RX) {
            Some(mut place) => self.rx.visit(&mut place),
            None => Ok(Visit::Idle),
        };
        if let Some(port) = port {
            port.lock().settle();
        }
        outcome
    }

    fn transmit(&mut self, rings: &mut Rings) -> Result<Visit, RingError> {
        let port = self.port.as_deref();
        let outcome = match place(self.pairs.tap(self.pair), &self.metrics, &mut self.tx_limiter, port, rings, TX) {
            Some(mut place) => self.tx.visit(&mut place)?,
            None => Visit::Idle,
        };
        if let Some(port) = &self.port {
            let mut port = port.lock();
            port.settle();
            let answers = port.has_frames();
            drop(port);
            match (answers, self.is_first()) {
                (true, true) => self.receive_and_remember(rings)?,
                (true, false) => ring(&self.first_again),
                (false, _) => {}
            }
        }
        Ok(outcome)
    }

    /// Receives outside of a visit to the receive queue.
    fn receive_and_remember(&mut self, rings: &mut Rings) -> Result<(), RingError> {
        if self.receive(rings)? == Visit::More {
            ring(&self.again);
        }
        Ok(())
    }

    fn source_ready(&mut self, token: u32, rings: &mut Rings) -> Result<(), RingError> {
        match token {
            TAP | AGAIN => {
                if token == TAP {
                    self.metrics.rx_tap_event_count.inc();
                }
                self.receive_and_remember(rings)?;
                if token == TAP && self.rx.is_starved() {
                    self.metrics.no_rx_avail_buffer.inc();
                }
            }
            RX_LIMITER if self.rx_limiter.on_timer() => {
                self.metrics.rx_event_rate_limiter_count.inc();
                if self.receive(rings)? == Visit::More {
                    self.rx_limiter.come_back();
                }
            }
            TX_LIMITER if self.tx_limiter.on_timer() => {
                self.metrics.tx_rate_limiter_event_count.inc();
                if self.transmit(rings)? == Visit::More {
                    self.tx_limiter.come_back();
                }
            }
            PORT => {
                if let Some(port) = &self.port {
                    port.lock().on_timer();
                    self.receive_and_remember(rings)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn ring(bell: &EventFd) {
    // Never read, watched by edge; fails after 2^64 rings.
    let _ = bell.write(1);
}

/// Where to work: `None` if there is no such queue.
fn place<'a>(
    tap: Option<&'a Tap>,
    metrics: &'a NetMetrics,
    limiter: &'a mut RateLimiter,
    port: Option<&'a SharedPort>,
    rings: &'a mut Rings,
    queue: u16,
) -> Option<Place<'a>> {
    let Rings { ram, irq, queues } = rings;
    Some(Place { tap: tap?, ram, irq: &**irq, queue: queues.get_mut(usize::from(queue))?, metrics, limiter, port })
}

impl VirtioDevice for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.sizes
    }

    /// The control queue comes after all pairs that there can be; for a driver that knows of one pair only, after that (§5.1.2).
    fn lane_of(&self, queue: u16, accepted: u64) -> usize {
        let pair = usize::from(queue / 2);
        match accepted & features::MQ != 0 {
            true if pair < self.pairs.count() => pair,
            true => 0,
            false if queue <= CONTROL => 0,
            false => 1,
        }
    }

    fn metrics(&self) -> Arc<dyn MetricGroup> {
        self.metrics.clone()
    }

    fn faults(&self) -> Faults<'_> {
        let metrics = &*self.metrics;
        Faults { activations: &metrics.activate_fails, registers: &metrics.cfg_fails, chains: &metrics.event_fails }
    }

    fn features(&self) -> u64 {
        let tap = self.pairs.tap(self.pair).map(Tap::supported).unwrap_or_default();
        features::offered(tap, self.mac.is_some(), self.mtu.is_some(), self.pairs.count())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = features::config_space(self.mac, self.mtu, self.pairs.count());
        let mut from = space.iter().skip(usize::try_from(offset).unwrap_or(usize::MAX));
        data.fill_with(|| from.next().copied().unwrap_or(0));
    }

    /// Nothing can be written: a legacy driver's way to change the address is gone.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        self.metrics.cfg_fails.inc();
    }

    fn activate(&mut self, accepted: u64, _rings: &mut Rings) -> Result<(), String> {
        let offloads = features::offloads(accepted);
        self.accepted = accepted;
        // Of a tap with all its queues.
        if let Some(tap) = self.pairs.tap(0).filter(|_| self.is_first()) {
            let refused = |error| format!("{}: the tap does not take offloads {offloads:?}: {error}", tap.name());
            tap.set_offloads(offloads).map_err(refused)?;
            let stuck = |error| format!("{}: queues of the tap cannot be detached: {error}", tap.name());
            self.pairs.put_to_use(1).map_err(stuck)?;
        }
        self.offloads = offloads;
        self.drop_stale_frames();
        let large = Offloads::all() - Offloads::CSUM;
        let usual_len = if offloads.intersects(large) {
            MAX_FRAME_LEN
        } else {
            let mtu = usize::from(self.mtu.unwrap_or(USUAL_MTU).max(USUAL_MTU));
            mtu.saturating_add(HEADER_LEN + ETHERNET_LEN)
        };
        self.rx = Rx::new(accepted & features::MRG_RXBUF != 0, usual_len);
        self.tx = Tx::new(accepted, self.mac);
        Ok(())
    }

    fn on_doorbell(&mut self, queue: u16, rings: &mut Rings) -> Result<Visit, RingError> {
        let outcome = match queue {
            _ if !self.works() => Ok(Visit::Idle),
            RX => {
                self.metrics.rx_queue_event_count.inc();
                self.receive(rings)
            }
            TX => {
                self.metrics.tx_queue_event_count.inc();
                self.transmit(rings)
            }
            CONTROL if self.is_first() && self.accepted & features::CTRL_VQ != 0 => {
                let Rings { ram, irq, queues } = rings;
                match queues.get_mut(usize::from(CONTROL)) {
                    Some(queue) => self.pairs.control(self.accepted, queue, ram, &**irq),
                    None => Ok(Visit::Idle),
                }
            }
            _ => Ok(Visit::Idle),
        };
        outcome.inspect_err(|_| self.metrics.event_fails.inc())
    }

    fn sources(&self) -> Vec<Source> {
        let readable = |fd, token| Source { fd, interest: Interest::Readable, token };
        let mut sources = vec![
            readable(self.again.as_raw_fd(), AGAIN),
            self.rx_limiter.source(RX_LIMITER),
            self.tx_limiter.source(TX_LIMITER),
        ];
        sources.extend(self.pairs.tap(self.pair).map(|tap| readable(tap.as_raw_fd(), TAP)));
        sources.extend(self.port.iter().filter(|_| self.is_first()).map(|port| port.lock().source(PORT)));
        sources
    }

    /// Receiving, then sending.
    fn limit_dials(&self) -> Vec<LimitDial> {
        vec![self.rx_limiter.dial(), self.tx_limiter.dial()]
    }

    fn on_source(&mut self, token: u32, rings: &mut Rings) -> Result<(), RingError> {
        if !self.works() {
            return Ok(());
        }
        self.source_ready(token, rings).inspect_err(|_| self.metrics.event_fails.inc())
    }

    /// Frames are sent when they are taken from the ring; only receive buffers are held.
    fn quiesce(&mut self, rings: &mut Rings) -> Result<(), RingError> {
        match place(self.pairs.tap(self.pair), &self.metrics, &mut self.rx_limiter, None, rings, RX) {
            Some(mut place) => self.rx.release(&mut place),
            None => Ok(()),
        }
    }

    /// Connections to the metadata service end with the process: the guest's side is answered by a reset.
    fn save(&self) -> DeviceState {
        let (rx, tx) = (self.rx_limiter.save(), self.tx_limiter.save());
        match self.pairs.count() {
            1 => DeviceState::Net { rx, tx },
            _ => DeviceState::NetPairs { rx, tx, in_use: self.pairs.in_use() as u16 },
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        let (rx, tx, in_use) = match state {
            DeviceState::Net { rx, tx } => (rx, tx, 1),
            DeviceState::NetPairs { rx, tx, in_use } => (rx, tx, usize::from(*in_use)),
            _ => return Err(BadState::Kind),
        };
        let impossible =
            |what: &dyn std::fmt::Display| BadState::Impossible(format!("{in_use} pairs of queues: {what}"));
        if !(1..=self.pairs.count()).contains(&in_use) || (in_use > 1 && self.accepted & features::MQ == 0) {
            return Err(impossible(&format!("the card has {}", self.pairs.count())));
        }
        self.pairs.put_to_use(in_use).map_err(|e| impossible(&e))?;
        self.rx_limiter.restore(*rx);
        self.tx_limiter.restore(*tx);
        Ok(())
    }

    /// The limiters stay as they are: a reset is no way around them.
    fn reset(&mut self) {
        self.rx = Rx::default();
        self.tx = Tx::default();
        self.accepted = 0;
        self.offloads = Offloads::empty();
        if !self.is_first() {
            return;
        }
        if let Some(port) = &self.port {
            port.lock().reset();
        }
        // A tap that is gone refuses; then there is nothing left to turn off.
        if let Some(tap) = self.pairs.tap(0) {
            let _ = tap.set_offloads(Offloads::empty());
        }
        let _ = self.pairs.put_to_use(1);
    }
}
