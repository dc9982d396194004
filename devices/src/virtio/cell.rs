//! One virtio device under its one lock: registers, device, rings, and the life cycle that binds them.
//!
//! vCPU threads come in through a transport, the device's event loop through [`Subscriber`]. Activation happens on the event loop: the
//! vCPU that writes DRIVER_OK only rings the control bell. A reset happens on the vCPU, under the lock, so that it is complete when the
//! guest's write returns.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::any::AnyDevice;
use super::device::{Kind, Rings, VirtioDevice};
use super::queue::{VirtQueue, Visit};
use super::registers::{Action, F_EVENT_IDX, F_INDIRECT_DESC, Registers};
use super::state::{BadState, CellState, Progress};
use crate::event::{Interest, Source, Subscriber};
use crate::irq::VirtioIrq;
use crate::metrics::MetricGroup;
use crate::ram::GuestRam;
use crate::rate_limit::LimitDial;

/// Lets the driver's doorbell writes reach an eventfd without a vCPU exit (an ioeventfd in practice). Bound at the first DRIVER_OK,
/// because a machine that dies soon after adding one pays for it.
pub trait DoorbellBinder: Send + Sync {
    /// Connects the doorbell of queue `index` to `bell`.
    fn bind(&self, index: u16, bell: &EventFd) -> io::Result<()>;

    /// Takes that back.
    fn unbind(&self, index: u16, bell: &EventFd);
}

/// First token of the doorbells; a device's own sources are below.
const DOORBELLS: u32 = 1 << 16;
/// Token of the control bell.
const CONTROL: u32 = u32::MAX;

/// Bytes of the longest configuration space (a drive's).
const CONFIG_LEN: usize = 64;

enum State {
    /// No driver, or not yet set up.
    Idle,
    /// The driver said DRIVER_OK; the event loop has not activated the device yet.
    Activating(Rings),
    /// At work.
    Live(Rings),
    /// Given up until the driver resets the device.
    NeedsReset,
}

struct Inner {
    registers: Registers,
    device: AnyDevice,
    state: State,
    doorbells_bound: bool,
    /// The machine is paused: events are ignored, and everything is looked at again on resume.
    paused: bool,
    /// What the driver knows from the time before the process, until it is resumed.
    renewed: Option<Renewed>,
}

/// Of a device that was taken up.
#[derive(Debug, Clone)]
struct Renewed {
    /// Interrupts that were not acknowledged, raised again on resume.
    interrupts: u32,
    /// The configuration space as it was.
    config: Vec<u8>,
}

/// A virtio device, its registers and its rings.
pub struct VirtioCell {
    name: String,
    kind: Kind,
    ram: GuestRam,
    irq: Arc<dyn VirtioIrq>,
    binder: Arc<dyn DoorbellBinder>,
    doorbells: Vec<EventFd>,
    control: EventFd,
    dials: Vec<LimitDial>,
    inner: Mutex<Inner>,
}

impl VirtioCell {
    /// Puts a device into a cell. `name` is for log lines.
    pub fn new(
        name: String,
        device: AnyDevice,
        ram: GuestRam,
        irq: Arc<dyn VirtioIrq>,
        binder: Arc<dyn DoorbellBinder>,
    ) -> io::Result<Self> {
        let bell = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let sizes = device.get().queue_max_sizes();
        Ok(Self {
            name,
            kind: device.get().kind(),
            ram,
            irq,
            binder,
            doorbells: sizes.iter().map(|_| bell()).collect::<Result<_, _>>()?,
            control: bell()?,
            dials: device.get().limit_dials(),
            inner: Mutex::new(Inner {
                registers: Registers::new(device.get().features(), sizes).requiring(device.get().required_features()),
                device,
                state: State::Idle,
                doorbells_bound: false,
                paused: false,
                renewed: None,
            }),
        })
    }

    /// The same, on a transport where queues have a size before the driver gives them one.
    pub fn with_sized_queues(mut self) -> Self {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        let registers = std::mem::replace(&mut inner.registers, Registers::new(0, &[]));
        inner.registers = registers.sized();
        self
    }

    /// How many queues the device has.
    pub fn queue_count(&self) -> u16 {
        self.doorbells.len() as u16
    }

    /// Which device it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Name for log lines.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the device counts.
    pub fn metrics(&self) -> Arc<dyn MetricGroup> {
        self.lock().device.get().metrics()
    }

    /// By what the device's rate limiters are changed, see [`super::device::VirtioDevice::limit_dials`]. Does not wait for the device.
    pub fn limit_dials(&self) -> &[LimitDial] {
        &self.dials
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock is held aborts the process in release builds; in tests the state is still whole enough to go on.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at or changes the registers. Not for status writes: see [`Self::write_status`].
    pub fn registers<T>(&self, look: impl FnOnce(&mut Registers) -> T) -> T {
        let mut inner = self.lock();
        let value = look(&mut inner.registers);
        inner.count_refused();
        value
    }

    /// A register that does not exist was written, or one in a way that it is not.
    pub fn refuse_write(&self) {
        self.lock().device.get().faults().registers.inc();
    }

    /// Reads the device's configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.lock().device.get().read_config(offset, data);
    }

    /// Writes the device's configuration space.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        self.lock().device.get_mut().write_config(offset, data);
    }

    /// A driver's write to the status field. A reset is complete when this returns.
    pub fn write_status(&self, value: u32) {
        let mut inner = self.lock();
        let action = inner.registers.write_status(value);
        inner.count_refused();
        match action {
            Action::None => {}
            Action::Reset => inner.reset(),
            Action::Activate => match self.make_rings(&inner.registers) {
                Ok(rings) => {
                    inner.state = State::Activating(rings);
                    ring(&self.control);
                }
                Err(why) => self.refuse_activation(&mut inner, &why),
            },
        }
    }

    /// The driver rang for a queue by an exit instead of the ioeventfd.
    pub fn ring_doorbell(&self, index: u32) {
        match self.doorbells.get(index as usize) {
            Some(bell) => ring(bell),
            None => self.refuse_write(),
        }
    }

    fn make_rings(&self, registers: &Registers) -> Result<Rings, String> {
        let accepted = registers.accepted();
        let mut queues = Vec::with_capacity(self.doorbells.len());
        for (index, (geometry, max_size)) in (0u16..).zip(registers.queues()) {
            let queue = VirtQueue::new(
                index,
                max_size,
                geometry,
                accepted & F_EVENT_IDX != 0,
                accepted & F_INDIRECT_DESC != 0,
                &self.ram,
            )
            .map_err(|e| format!("queue {index}: {e}"))?;
            queues.push(queue);
        }
        if !registers.queues().any(|(geometry, _)| geometry.ready) {
            return Err("DRIVER_OK without any queue".to_owned());
        }
        Ok(Rings { ram: self.ram.clone(), irq: self.irq.clone(), queues })
    }

    fn give_up(&self, inner: &mut Inner, why: &str) {
        crate::guest_warn!("{}: the device needs a reset: {why}", self.name);
        if !matches!(inner.state, State::Idle) {
            inner.device.get_mut().reset();
        }
        inner.state = State::NeedsReset;
        inner.registers.needs_reset();
        self.irq.config();
    }

    fn refuse_activation(&self, inner: &mut Inner, why: &str) {
        inner.device.get().faults().activations.inc();
        self.give_up(inner, why);
    }

    fn activate(&self, inner: &mut Inner) {
        if !matches!(inner.state, State::Activating(_)) {
            return;
        }
        let State::Activating(mut rings) = std::mem::replace(&mut inner.state, State::Idle) else { return };
        if let Err(why) = inner.device.get_mut().activate(inner.registers.accepted(), &mut rings) {
            return self.refuse_activation(inner, &why);
        }
        inner.state = State::Live(rings);
        self.bind_doorbells(inner);
        self.visit_all(inner);
    }

    fn bind_doorbells(&self, inner: &mut Inner) {
        if inner.doorbells_bound {
            return;
        }
        for (index, bell) in (0u16..).zip(&self.doorbells) {
            if let Err(error) = self.binder.bind(index, bell) {
                // Doorbells still arrive, each by a vCPU exit.
                log::warn!("{}: doorbell {index} stays slow: {error}", self.name);
            }
        }
        inner.doorbells_bound = true;
    }

    /// `change` changes where doorbells are rung: those that are bound are bound anew. Waits for what the device is doing.
    pub fn move_doorbells(&self, change: impl FnOnce()) {
        let mut inner = self.lock();
        let bound = std::mem::take(&mut inner.doorbells_bound);
        if bound {
            self.unbind_doorbells();
        }
        change();
        if bound {
            self.bind_doorbells(&mut inner);
        }
    }

    fn unbind_doorbells(&self) {
        for (index, bell) in (0u16..).zip(&self.doorbells) {
            self.binder.unbind(index, bell);
        }
    }

    /// Ends the device for good: what is in flight is finished, what the guest wrote is durable, and nothing of the guest reaches it any more.
    pub fn retire(&self) -> io::Result<()> {
        let durable = self.shut_down();
        let mut inner = self.lock();
        inner.reset();
        if std::mem::take(&mut inner.doorbells_bound) {
            self.unbind_doorbells();
        }
        durable
    }

    fn visit_all(&self, inner: &mut Inner) {
        for (index, _) in (0u16..).zip(&self.doorbells) {
            self.visit(inner, index);
        }
        let tokens: Vec<u32> = inner.device.get().sources().iter().map(|s| s.token).collect();
        for token in tokens {
            self.visit_source(inner, token);
        }
    }

    fn visit(&self, inner: &mut Inner, index: u16) {
        let State::Live(rings) = &mut inner.state else { return };
        match visited(&mut inner.device, rings, |device, rings| device.on_doorbell(index, rings)) {
            Ok(Visit::Idle) => {}
            Ok(Visit::More) => self.ring_doorbell(index.into()),
            Err(error) => return self.give_up(inner, &error.to_string()),
        }
        self.announce_change(inner);
    }

    fn visit_source(&self, inner: &mut Inner, token: u32) {
        let State::Live(rings) = &mut inner.state else { return };
        if let Err(error) = visited(&mut inner.device, rings, |device, rings| device.on_source(token, rings)) {
            return self.give_up(inner, &error.to_string());
        }
        self.announce_change(inner);
    }

    fn announce_change(&self, inner: &mut Inner) {
        if inner.device.get_mut().take_config_change() {
            self.announce_config(inner);
        }
    }

    /// The configuration space is another one. A driver that is at work is told.
    fn announce_config(&self, inner: &mut Inner) {
        inner.registers.bump_generation();
        if matches!(inner.state, State::Live(_)) {
            self.irq.config();
        }
    }

    /// Stops the device: everything in flight is completed, later events are ignored until [`Self::resume`].
    pub fn pause(&self) {
        let mut inner = self.lock();
        inner.paused = true;
        let Inner { state, device, .. } = &mut *inner;
        if let State::Live(rings) = state
            && let Err(error) = device.get_mut().quiesce(rings)
        {
            self.give_up(&mut inner, &error.to_string());
        }
    }

    /// Lets the device work again, and looks at every queue and source once, since events were missed.
    pub fn resume(&self) {
        let mut inner = self.lock();
        inner.paused = false;
        self.activate(&mut inner);
        if matches!(inner.state, State::Live(_)) {
            // Of a driver that was set up before the process.
            self.bind_doorbells(&mut inner);
        }
        if let Some(Renewed { interrupts, config }) = inner.renewed.take() {
            if config_space(&inner) != config {
                self.announce_config(&mut inner);
            }
            self.irq.renew(interrupts);
        }
        self.visit_all(&mut inner);
    }

    /// What outlives the process. `None` unless the device stands still, see [`Self::pause`].
    pub fn save(&self) -> Option<CellState> {
        let inner = self.lock();
        let (progress, positions) = match &inner.state {
            State::Idle => (Progress::Idle, Vec::new()),
            State::Activating(_) => (Progress::Activating, Vec::new()),
            State::Live(rings) => (Progress::Live, rings.queues.iter().map(VirtQueue::position).collect()),
            State::NeedsReset => (Progress::NeedsReset, Vec::new()),
        };
        // One that was not resumed since it was taken up: its driver still has to hear of what is new.
        let Renewed { interrupts, config } =
            inner.renewed.clone().unwrap_or_else(|| Renewed { interrupts: 0, config: config_space(&inner) });
        inner.paused.then(|| CellState {
            registers: inner.registers.save(),
            progress,
            positions,
            interrupts: interrupts | self.irq.pending(),
            config,
            device: inner.device.get().save(),
        })
    }

    /// Takes up what was saved, in a cell that was just made. The device stands still until [`Self::resume`]; its driver is then
    /// interrupted again for what it had not acknowledged, and for a configuration space that is another one than it was.
    pub fn restore(&self, state: &CellState) -> Result<(), BadState> {
        let mut inner = self.lock();
        inner.registers.restore(&state.registers)?;
        let works = matches!(state.progress, Progress::Activating | Progress::Live);
        if (works && !inner.registers.is_set_up())
            || (state.progress == Progress::NeedsReset) != inner.registers.is_broken()
        {
            let status = state.registers.status;
            let what = format!("a driver that is {:?} with a device status of {status:#x}", state.progress);
            return Err(BadState::Impossible(what));
        }
        let impossible = |what: String| BadState::Impossible(what);
        match state.progress {
            Progress::Idle => {}
            Progress::NeedsReset => inner.state = State::NeedsReset,
            Progress::Activating => {
                inner.state = State::Activating(self.make_rings(&inner.registers).map_err(impossible)?);
            }
            Progress::Live => {
                let mut rings = self.make_rings(&inner.registers).map_err(impossible)?;
                if state.positions.len() != rings.queues.len() {
                    return Err(impossible("not every queue has a position".to_owned()));
                }
                for (queue, position) in rings.queues.iter_mut().zip(&state.positions) {
                    queue.go_to(*position);
                }
                let accepted = inner.registers.accepted();
                inner.device.get_mut().activate(accepted, &mut rings).map_err(impossible)?;
                inner.state = State::Live(rings);
            }
        }
        inner.device.get_mut().restore(&state.device)?;
        inner.paused = true;
        inner.renewed = Some(Renewed { interrupts: state.interrupts, config: state.config.clone() });
        Ok(())
    }

    /// Ends the device's work: completes what is in flight and makes it durable.
    pub fn shut_down(&self) -> io::Result<()> {
        self.pause();
        self.lock().device.get_mut().flush()
    }

    /// Looks at the device. Keep it short: the guest may be waiting for its lock.
    pub fn look<T>(&self, look: impl FnOnce(&AnyDevice) -> T) -> T {
        look(&self.lock().device)
    }

    /// Changes the device on the operator's behalf. In-flight work is finished first. If `change` succeeds and says so, the driver is told
    /// that the configuration space changed.
    pub fn reconfigure<T, E>(
        &self,
        change: impl FnOnce(&mut AnyDevice) -> Result<(T, ConfigChange), E>,
    ) -> Result<T, E> {
        let mut inner = self.lock();
        let Inner { state, device, .. } = &mut *inner;
        if let State::Live(rings) = state
            && let Err(error) = device.get_mut().quiesce(rings)
        {
            self.give_up(&mut inner, &error.to_string());
        }
        let (value, changed) = change(&mut inner.device)?;
        if changed == ConfigChange::Announce {
            self.announce_config(&mut inner);
        }
        if !inner.paused {
            self.visit_all(&mut inner);
        }
        Ok(value)
    }
}

/// Whether a driver must hear of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigChange {
    /// The configuration space changed.
    Announce,
    /// Nothing the driver can see changed.
    Silent,
}

/// What a driver sees of the device's own configuration.
fn config_space(inner: &Inner) -> Vec<u8> {
    let mut config = vec![0; CONFIG_LEN];
    inner.device.get().read_config(0, &mut config);
    config
}

/// Lets the device work on its rings, and counts the malformed chains that it met.
fn visited<T>(
    device: &mut AnyDevice,
    rings: &mut Rings,
    work: impl FnOnce(&mut dyn VirtioDevice, &mut Rings) -> T,
) -> T {
    let bad_chains = |rings: &Rings| rings.queues.iter().map(VirtQueue::bad_chains).sum::<u64>();
    let before = bad_chains(rings);
    let outcome = work(device.get_mut(), rings);
    let met = bad_chains(rings).saturating_sub(before);
    if met != 0 {
        device.get().faults().chains.add(met);
    }
    outcome
}

impl Inner {
    fn count_refused(&mut self) {
        let refused = self.registers.take_refused();
        if refused != 0 {
            self.device.get().faults().registers.add(refused);
        }
    }

    fn reset(&mut self) {
        if !matches!(self.state, State::Idle) {
            self.device.get_mut().reset();
        }
        self.state = State::Idle;
        self.registers.reset();
    }
}

impl Subscriber for VirtioCell {
    fn sources(&self) -> Vec<Source> {
        let watch = |fd, token| Source { fd, interest: Interest::Readable, token };
        let mut sources = vec![watch(self.control.as_raw_fd(), CONTROL)];
        sources.extend((DOORBELLS..).zip(&self.doorbells).map(|(token, bell)| watch(bell.as_raw_fd(), token)));
        sources.extend(self.lock().device.get().sources());
        sources
    }

    fn ready(&self, token: u32) {
        let mut inner = self.lock();
        if inner.paused {
            return;
        }
        if token == CONTROL {
            self.activate(&mut inner);
        } else if let Some(index) = token.checked_sub(DOORBELLS) {
            self.visit(&mut inner, index as u16);
        } else {
            self.visit_source(&mut inner, token);
        }
    }
}

fn ring(bell: &EventFd) {
    // The bells are watched edge-triggered and never read. After 2^64 - 2 rings a write would fail; the edge was long seen.
    let _ = bell.write(1);
}

#[cfg(test)]
mod tests;
