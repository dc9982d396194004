use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::metrics::VsockMetrics;
use super::muxer::Muxer;
use super::rx::{Place, Rx};
use super::tx::Tx;
use crate::event::{Interest, Source};
use crate::metrics::MetricGroup;
use crate::virtio::chain::{self, Chain};
use crate::virtio::device::{Faults, Kind, Rings, VirtioDevice};
use crate::virtio::queue::{self, RingError, Visit};
use crate::virtio::registers::{F_EVENT_IDX, F_IN_ORDER, F_VERSION_1};
use crate::virtio::state::{BadState, DeviceState};

const RX: u16 = 0;
const TX: u16 = 1;
const EVENT: u16 = 2;
const QUEUE_SIZES: [u16; 3] = [queue::MAX_SIZE; 3];

/// A host socket has news.
const HOST: u32 = 0;
/// A time limit is over.
const TIMER: u32 = 1;
/// The last visit left something to do.
const AGAIN: u32 = 2;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (§5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

/// What a socket device is made of.
#[derive(Debug)]
pub struct VsockSpec {
    /// The guest's context id.
    pub guest_cid: u32,
    /// Where the listener is bound. Guest connections to a port go to the socket at this path with `_<port>` behind it.
    pub uds_path: PathBuf,
    /// Where host programs connect.
    pub listener: UnixListener,
}

/// A socket device.
pub struct Vsock {
    muxer: Muxer,
    rx: Rx,
    tx: Tx,
    /// The guest is to be told that all connections are gone.
    reset_due: bool,
    again: EventFd,
    metrics: Arc<VsockMetrics>,
}

impl Vsock {
    /// A device that host programs can reach at the listener once the guest's driver is up. Fails if the process is out of descriptors.
    pub fn new(spec: VsockSpec) -> io::Result<Self> {
        let metrics = Arc::<VsockMetrics>::default();
        Ok(Self {
            muxer: Muxer::new(spec, metrics.clone())?,
            rx: Rx::default(),
            tx: Tx::default(),
            reset_due: false,
            again: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            metrics,
        })
    }

    /// Counters.
    pub fn metrics(&self) -> Arc<VsockMetrics> {
        self.metrics.clone()
    }

    /// How many seats are taken.
    #[cfg(any(test, feature = "test-driver"))]
    pub fn taken(&self) -> usize {
        self.muxer.taken()
    }

    /// Ends all connections, and tells the guest at the next visit that they are gone (§5.10.6.7): for a machine that was moved or
    /// restored.
    pub fn reset_transport(&mut self) {
        self.muxer.clear();
        self.reset_due = true;
        self.come_back();
    }

    /// Sends the guest what waits for it. `More` also if packets of the guest can be looked at again that had to wait for that.
    fn send(&mut self, rings: &mut Rings) -> Result<Visit, RingError> {
        let Self { muxer, rx, tx, metrics, .. } = self;
        let Some(mut place) = place(muxer, metrics, rings, RX) else { return Ok(Visit::Idle) };
        let visit = rx.visit(&mut place).inspect_err(|_| metrics.rx_queue_event_fails.inc())?;
        Ok(if tx.is_unfinished() && !muxer.is_clogged() { Visit::More } else { visit })
    }

    /// Looks at the guest's packets.
    fn receive(&mut self, rings: &mut Rings) -> Result<(), RingError> {
        let Self { muxer, tx, metrics, .. } = self;
        let Some(mut place) = place(muxer, metrics, rings, TX) else { return Ok(()) };
        tx.visit(&mut place).inspect_err(|_| metrics.tx_queue_event_fails.inc())
    }

    /// Tells the guest what happened, if there is something and it has a buffer for it.
    fn report(&mut self, rings: &mut Rings) -> Result<(), RingError> {
        if !self.reset_due {
            return Ok(());
        }
        let Rings { ram, irq, queues } = rings;
        let Some(queue) = queues.get_mut(usize::from(EVENT)) else { return Ok(()) };
        let mut chain = Chain::new();
        if queue.pop(ram, &mut chain)? {
            let event = TRANSPORT_RESET.to_le_bytes();
            let told = chain::write_bytes(chain.writable(), &event).is_some();
            queue.complete(ram, chain.head(), if told { event.len() as u32 } else { 0 })?;
            self.reset_due = !told;
            queue.notify(ram, &**irq)?;
        }
        Ok(())
    }

    fn come_back(&self) {
        // Never read, watched by edge; fails after 2^64 rings.
        let _ = self.again.write(1);
    }
}

fn place<'a>(muxer: &'a mut Muxer, metrics: &'a VsockMetrics, rings: &'a mut Rings, queue: u16) -> Option<Place<'a>> {
    let Rings { ram, irq, queues } = rings;
    Some(Place { ram, irq: &**irq, queue: queues.get_mut(usize::from(queue))?, muxer, metrics })
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> Kind {
        Kind::Vsock
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn metrics(&self) -> Arc<dyn MetricGroup> {
        self.metrics.clone()
    }

    fn faults(&self) -> Faults<'_> {
        let metrics = &*self.metrics;
        Faults {
            activations: &metrics.activate_fails,
            registers: &metrics.cfg_fails,
            chains: &metrics.tx_queue_event_fails,
        }
    }

    /// Streams need no feature (§5.10.3). Chains are completed in the order in which they come. Indirect descriptors would gain nothing:
    /// packets have two descriptors at most.
    fn features(&self) -> u64 {
        F_VERSION_1 | F_EVENT_IDX | F_IN_ORDER
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.muxer.guest_cid().to_le_bytes();
        let mut from = space.iter().skip(usize::try_from(offset).unwrap_or(usize::MAX));
        data.fill_with(|| from.next().copied().unwrap_or(0));
    }

    /// Nothing can be written.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        self.metrics.cfg_fails.inc();
    }

    fn activate(&mut self, _accepted: u64, _rings: &mut Rings) -> Result<(), String> {
        self.rx = Rx::new();
        self.tx = Tx::default();
        Ok(())
    }

    fn on_doorbell(&mut self, queue: u16, rings: &mut Rings) -> Result<Visit, RingError> {
        self.muxer.deadlines().resume();
        // Before anything else is said: whoever hears of it afterwards ends what is new.
        self.report(rings).inspect_err(|_| self.metrics.ev_queue_event_fails.inc())?;
        match queue {
            RX => {
                self.metrics.rx_queue_event_count.inc();
                if self.tx.is_unfinished() {
                    self.receive(rings)?;
                }
                self.send(rings)
            }
            TX => {
                self.metrics.tx_queue_event_count.inc();
                self.receive(rings)?;
                // Answers, and what the host could not send before.
                self.send(rings)
            }
            _ => Ok(Visit::Idle),
        }
    }

    fn sources(&self) -> Vec<Source> {
        let readable = |fd, token| Source { fd, interest: Interest::Readable, token };
        vec![
            readable(self.muxer.epoll().as_raw_fd(), HOST),
            self.muxer.timer_source(TIMER),
            readable(self.again.as_raw_fd(), AGAIN),
        ]
    }

    fn on_source(&mut self, token: u32, rings: &mut Rings) -> Result<(), RingError> {
        self.muxer.deadlines().resume();
        self.report(rings)?;
        let mut visit = Visit::Idle;
        match token {
            TIMER => self.muxer.on_timer(),
            HOST => visit = self.muxer.on_host_events(),
            _ => {
                visit = self.muxer.on_host_events();
                if self.tx.is_unfinished() {
                    self.receive(rings)?;
                }
            }
        }
        if self.send(rings)? == Visit::More || visit == Visit::More {
            self.come_back();
        }
        Ok(())
    }

    /// Nothing is ever in flight between visits. Time limits stand still until the next one.
    fn quiesce(&mut self, _rings: &mut Rings) -> Result<(), RingError> {
        self.muxer.deadlines().pause();
        Ok(())
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock { next_host_port: self.muxer.next_host_port() }
    }

    /// The host's ends of all connections are gone, and the guest is told so.
    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        let DeviceState::Vsock { next_host_port } = state else { return Err(BadState::Kind) };
        self.muxer.go_on_at_host_port(*next_host_port);
        self.reset_transport();
        Ok(())
    }

    /// Connections end with the driver that made them. Host programs that come meanwhile wait for the next one.
    fn reset(&mut self) {
        self.muxer.clear();
        self.rx = Rx::default();
        self.tx = Tx::default();
        self.reset_due = false;
    }
}
