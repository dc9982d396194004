//! Network card on a tap (virtio 1.3 §5.1).
//!
//! Frames go between tap and guest memory without a copy, each with its virtio-net header, so that checksums and segmentation are left
//! to whoever does them best. `rx` and `tx` are the two directions, `features` what is negotiated, `header` what a guest may ask of the
//! host's kernel. `port` is where the metadata service is, for cards that have it.

mod features;
mod header;
mod metrics;
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
use self::port::Port;
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
const QUEUE_SIZES: [u16; 2] = [queue::MAX_SIZE; 2];

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

/// A network card.
#[derive(Debug)]
pub struct Net {
    tap: Tap,
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
    rx: Rx,
    tx: Tx,
    rx_limiter: RateLimiter,
    tx_limiter: RateLimiter,
    port: Option<Box<Port>>,
    /// What the tap was last allowed to hand over unfinished.
    offloads: Offloads,
    /// Frames on the tap may still be of that kind.
    stale: Offloads,
    again: EventFd,
    metrics: Arc<NetMetrics>,
}

impl Net {
    /// A card on a tap. Fails if the process is out of descriptors.
    pub fn new(spec: NetSpec) -> io::Result<Self> {
        let NetSpec { tap, mac, mtu, rx_limits, tx_limits, mmds } = spec;
        Ok(Self {
            tap,
            mac,
            mtu,
            rx: Rx::default(),
            tx: Tx::default(),
            rx_limiter: RateLimiter::new(rx_limits)?,
            tx_limiter: RateLimiter::new(tx_limits)?,
            port: mmds.map(|stack| Port::new(stack).map(Box::new)).transpose()?,
            offloads: Offloads::empty(),
            stale: Offloads::empty(),
            again: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            metrics: Arc::default(),
        })
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
                if self.tap.read(&[piece]).is_err() {
                    break;
                }
            }
        }
        self.stale = self.offloads;
    }

    fn receive(&mut self, rings: &mut Rings) -> Result<Visit, RingError> {
        let port = self.port.as_deref_mut();
        let outcome = match place(&self.tap, &self.metrics, &mut self.rx_limiter, port, rings, RX) {
            Some(mut place) => self.rx.visit(&mut place),
            None => Ok(Visit::Idle),
        };
        if let Some(port) = &mut self.port {
            port.settle();
        }
        outcome
    }

    fn transmit(&mut self, rings: &mut Rings) -> Result<Visit, RingError> {
        let port = self.port.as_deref_mut();
        let outcome = match place(&self.tap, &self.metrics, &mut self.tx_limiter, port, rings, TX) {
            Some(mut place) => self.tx.visit(&mut place)?,
            None => Visit::Idle,
        };
        if let Some(port) = &mut self.port {
            port.settle();
            if port.has_frames() {
                self.receive_and_remember(rings)?;
            }
        }
        Ok(outcome)
    }

    /// Receives outside of a visit to the receive queue.
    fn receive_and_remember(&mut self, rings: &mut Rings) -> Result<(), RingError> {
        if self.receive(rings)? == Visit::More {
            // Never read, watched by edge; fails after 2^64 rings.
            let _ = self.again.write(1);
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
                if let Some(port) = &mut self.port {
                    port.on_timer();
                    self.receive_and_remember(rings)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn place<'a>(
    tap: &'a Tap,
    metrics: &'a NetMetrics,
    limiter: &'a mut RateLimiter,
    port: Option<&'a mut Port>,
    rings: &'a mut Rings,
    queue: u16,
) -> Option<Place<'a>> {
    let Rings { ram, irq, queues } = rings;
    Some(Place { tap, ram, irq: &**irq, queue: queues.get_mut(usize::from(queue))?, metrics, limiter, port })
}

impl VirtioDevice for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn metrics(&self) -> Arc<dyn MetricGroup> {
        self.metrics.clone()
    }

    fn faults(&self) -> Faults<'_> {
        let metrics = &*self.metrics;
        Faults { activations: &metrics.activate_fails, registers: &metrics.cfg_fails, chains: &metrics.event_fails }
    }

    fn features(&self) -> u64 {
        features::offered(self.tap.supported(), self.mac.is_some(), self.mtu.is_some())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = features::config_space(self.mac, self.mtu);
        let mut from = space.iter().skip(usize::try_from(offset).unwrap_or(usize::MAX));
        data.fill_with(|| from.next().copied().unwrap_or(0));
    }

    /// Nothing can be written: a legacy driver's way to change the address is gone.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        self.metrics.cfg_fails.inc();
    }

    fn activate(&mut self, accepted: u64, _rings: &mut Rings) -> Result<(), String> {
        let offloads = features::offloads(accepted);
        let refused = |error| format!("{}: the tap does not take offloads {offloads:?}: {error}", self.tap.name());
        self.tap.set_offloads(offloads).map_err(refused)?;
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
            RX => {
                self.metrics.rx_queue_event_count.inc();
                self.receive(rings)
            }
            TX => {
                self.metrics.tx_queue_event_count.inc();
                self.transmit(rings)
            }
            _ => Ok(Visit::Idle),
        };
        outcome.inspect_err(|_| self.metrics.event_fails.inc())
    }

    fn sources(&self) -> Vec<Source> {
        let readable = |fd, token| Source { fd, interest: Interest::Readable, token };
        let mut sources = vec![
            readable(self.tap.as_raw_fd(), TAP),
            readable(self.again.as_raw_fd(), AGAIN),
            self.rx_limiter.source(RX_LIMITER),
            self.tx_limiter.source(TX_LIMITER),
        ];
        sources.extend(self.port.iter().map(|port| port.source(PORT)));
        sources
    }

    /// Receiving, then sending.
    fn limit_dials(&self) -> Vec<LimitDial> {
        vec![self.rx_limiter.dial(), self.tx_limiter.dial()]
    }

    fn on_source(&mut self, token: u32, rings: &mut Rings) -> Result<(), RingError> {
        self.source_ready(token, rings).inspect_err(|_| self.metrics.event_fails.inc())
    }

    /// Frames are sent when they are taken from the ring; only receive buffers are held.
    fn quiesce(&mut self, rings: &mut Rings) -> Result<(), RingError> {
        match place(&self.tap, &self.metrics, &mut self.rx_limiter, None, rings, RX) {
            Some(mut place) => self.rx.release(&mut place),
            None => Ok(()),
        }
    }

    /// Connections to the metadata service end with the process: the guest's side is answered by a reset.
    fn save(&self) -> DeviceState {
        DeviceState::Net { rx: self.rx_limiter.save(), tx: self.tx_limiter.save() }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        let DeviceState::Net { rx, tx } = state else { return Err(BadState::Kind) };
        self.rx_limiter.restore(*rx);
        self.tx_limiter.restore(*tx);
        Ok(())
    }

    /// The limiters stay as they are: a reset is no way around them.
    fn reset(&mut self) {
        self.rx = Rx::default();
        self.tx = Tx::default();
        if let Some(port) = &mut self.port {
            port.reset();
        }
        self.offloads = Offloads::empty();
        // A tap that is gone refuses; then there is nothing left to turn off.
        let _ = self.tap.set_offloads(Offloads::empty());
    }
}
