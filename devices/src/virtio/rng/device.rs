use std::io;
use std::sync::Arc;

use super::metrics::RngMetrics;
use super::stock::Stock;
use crate::event::Source;
use crate::metrics::MetricGroup;
use crate::rate_limit::{LimitDial, RateLimiter, RateLimits};
use crate::sys::random;
use crate::virtio::chain::Chain;
use crate::virtio::device::{Faults, Kind, Rings, VirtioDevice};
use crate::virtio::queue::{MAX_SIZE, RingError, Served, Visit};
use crate::virtio::registers::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::virtio::state::{BadState, DeviceState};

/// Most bytes that one request gets, however large its buffers are. The device may leave a buffer partly filled (virtio 1.3 §5.4.6.2).
pub const MAX_REQUEST_LEN: u32 = 64 << 10;
/// One visit draws about so much, a fraction of a millisecond's work, then other devices have their turn.
const VISIT_BYTES: u64 = 128 << 10;

/// Token of the rate limiter.
const LIMITER: u32 = 0;

/// What an entropy device is made of.
#[derive(Debug, Clone, Copy, Default)]
pub struct RngSpec {
    /// Random bytes and requests per time.
    pub limits: RateLimits,
}

/// An entropy device.
pub struct Rng {
    stock: Stock,
    limiter: RateLimiter,
    metrics: Arc<RngMetrics>,
}

impl Rng {
    /// An entropy device. Fails if the process is out of descriptors.
    pub fn new(spec: RngSpec) -> io::Result<Self> {
        Ok(Self { stock: Stock::new(random::fill), limiter: RateLimiter::new(spec.limits)?, metrics: Arc::default() })
    }

    /// Counters.
    pub fn metrics(&self) -> Arc<RngMetrics> {
        self.metrics.clone()
    }

    /// Draws from another source.
    #[cfg(test)]
    pub(super) fn with_stock(mut self, stock: Stock) -> Self {
        self.stock = stock;
        self
    }

    fn visit(&mut self, rings: &mut Rings) -> Result<Visit, RingError> {
        if self.limiter.is_blocked() {
            // The limiter's timer brings us back.
            return Ok(Visit::Idle);
        }
        let Rings { ram, irq, queues } = rings;
        let Some(queue) = queues.first_mut() else { return Ok(Visit::Idle) };
        let mut given = 0u64;
        let mut tired = false;
        let visit = queue.serve(ram, &**irq, |chain| {
            if given >= VISIT_BYTES {
                tired = true;
                return Served::PutBack;
            }
            let wanted = chain.writable_len().min(MAX_REQUEST_LEN);
            if !self.limiter.take(wanted.into()) {
                self.metrics.entropy_rate_limiter_throttled.inc();
                return Served::PutBack;
            }
            let written = self.answer(chain, wanted);
            given = given.saturating_add(written.into());
            Served::Done { written }
        })?;
        Ok(if tired { Visit::More } else { visit })
    }

    /// Writes `wanted` random bytes to the start of the chain's writable buffers; returns how many it were.
    fn answer(&mut self, chain: &Chain, wanted: u32) -> u32 {
        let metrics = &self.metrics;
        if wanted == 0 {
            metrics.entropy_event_fails.inc();
            crate::guest_warn!("entropy device: a request without room for a byte");
            return 0;
        }
        let mut left = wanted as usize;
        for piece in chain.writable() {
            let (part, _) = piece.split_at(left);
            if let Err(error) = self.stock.fill(part) {
                metrics.host_rng_fails.inc();
                crate::guest_warn!("entropy device: the host has no random bytes: {error}");
                break;
            }
            left = left.saturating_sub(part.len());
            if left == 0 {
                break;
            }
        }
        let written = wanted.saturating_sub(left as u32);
        metrics.requests_count.inc();
        metrics.entropy_bytes.add(written.into());
        written
    }

    /// The rate limiter has tokens again.
    fn go_on(&mut self, rings: &mut Rings) -> Result<(), RingError> {
        if self.limiter.on_timer() {
            self.metrics.rate_limiter_event_count.inc();
            if self.visit(rings)? == Visit::More {
                self.limiter.come_back();
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> Kind {
        Kind::Rng
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[MAX_SIZE]
    }

    fn metrics(&self) -> Arc<dyn MetricGroup> {
        self.metrics.clone()
    }

    fn faults(&self) -> Faults<'_> {
        let metrics = &*self.metrics;
        Faults {
            activations: &metrics.activate_fails,
            registers: &metrics.cfg_fails,
            chains: &metrics.entropy_event_fails,
        }
    }

    fn features(&self) -> u64 {
        F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC
    }

    /// There is none (§5.4.4).
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, _accepted: u64, _rings: &mut Rings) -> Result<(), String> {
        Ok(())
    }

    fn on_doorbell(&mut self, queue: u16, rings: &mut Rings) -> Result<Visit, RingError> {
        if queue != 0 {
            return Ok(Visit::Idle);
        }
        self.metrics.entropy_event_count.inc();
        self.visit(rings).inspect_err(|_| self.metrics.entropy_event_fails.inc())
    }

    fn sources(&self) -> Vec<Source> {
        vec![self.limiter.source(LIMITER)]
    }

    /// The one for its requests.
    fn limit_dials(&self) -> Vec<LimitDial> {
        vec![self.limiter.dial()]
    }

    fn on_source(&mut self, token: u32, rings: &mut Rings) -> Result<(), RingError> {
        match token {
            LIMITER => self.go_on(rings).inspect_err(|_| self.metrics.entropy_event_fails.inc()),
            _ => Ok(()),
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng(self.limiter.save())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), BadState> {
        let DeviceState::Rng(limiter) = state else { return Err(BadState::Kind) };
        self.limiter.restore(*limiter);
        Ok(())
    }

    /// The limiter stays as it is: a reset is no way around it.
    fn reset(&mut self) {}
}
