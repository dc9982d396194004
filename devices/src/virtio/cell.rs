//! One virtio device: registers, device, rings, and the life cycle that binds them.
//!
//! vCPU threads come in through a transport, the device's event loops through [`Subscriber`]. Activation happens on the event loop: the
//! vCPU that writes DRIVER_OK only rings the control bell. A reset happens on the vCPU, under the locks, so that it is complete when the
//! guest's write returns.
//!
//! A device works in one or more lanes: parts with rings, a lock and an event loop of their own, so that its queues can be served
//! side by side. Registers have a lock of their own, too, that no work is done under. Order of the locks: registers, then lanes, by their
//! index; who holds a lane's and needs the registers lets go of it first. What happened in between shows by the driver's `life`.

mod lane;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::any::AnyDevice;
use super::device::{Doorbells, Kind, Rings};
use super::queue::VirtQueue;
use super::registers::{Action, F_EVENT_IDX, F_INDIRECT_DESC, Registers};
use super::state::{BadState, CellState, Progress};
use crate::event::{Source, Subscriber};
use crate::irq::VirtioIrq;
use crate::metrics::MetricGroup;
use crate::ram::GuestRam;
use crate::rate_limit::LimitDial;

pub use self::lane::LaneSeat;
use self::lane::{Lane, Look, Work};

/// Lets the driver's doorbell writes reach an eventfd without a vCPU exit (an ioeventfd in practice). Bound at the first DRIVER_OK,
/// because a machine that dies soon after adding one pays for it.
pub trait DoorbellBinder: Send + Sync {
    /// Connects the doorbell of queue `index` to `bell`.
    fn bind(&self, index: u16, bell: &EventFd) -> io::Result<()>;

    /// Takes that back.
    fn unbind(&self, index: u16, bell: &EventFd);
}

/// Bytes of the longest configuration space (a drive's).
const CONFIG_LEN: usize = 64;

/// How far the driver is.
enum State {
    /// No driver, or not yet set up.
    Idle,
    /// The driver said DRIVER_OK; the event loop has not activated the device yet. The rings are those of each lane.
    Activating(Vec<Rings>),
    /// At work; the lanes have the rings.
    Live,
    /// Given up until the driver resets the device.
    NeedsReset,
}

/// What transports and requests see. Locked before any lane is.
struct Front {
    registers: Registers,
    state: State,
    doorbells_bound: bool,
    /// The machine is paused: nothing is activated until it is resumed.
    paused: bool,
    /// What the driver knows from the time before the process, until it is resumed.
    renewed: Option<Renewed>,
    /// Counts activations, so that what one of them brought about does not befall the next.
    life: u64,
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
    hears: Doorbells,
    dials: Vec<LimitDial>,
    /// Changes of the configuration space that the registers' generation does not tell yet.
    changes: AtomicU32,
    /// What [`Self::is_driven`] says.
    driven: AtomicBool,
    front: Mutex<Front>,
    first: Lane,
    others: Vec<Lane>,
}

impl VirtioCell {
    /// Puts a device that works in one lane into a cell. `name` is for log lines.
    pub fn new(
        name: String,
        device: AnyDevice,
        ram: GuestRam,
        irq: Arc<dyn VirtioIrq>,
        binder: Arc<dyn DoorbellBinder>,
    ) -> io::Result<Self> {
        Self::with_lanes(name, device, Vec::new(), ram, irq, binder)
    }

    /// Puts a device that works in several lanes into a cell: the one that speaks for all of them, and the others.
    pub fn with_lanes(
        name: String,
        mut first: AnyDevice,
        others: Vec<AnyDevice>,
        ram: GuestRam,
        irq: Arc<dyn VirtioIrq>,
        binder: Arc<dyn DoorbellBinder>,
    ) -> io::Result<Self> {
        let doorbells = first.get().queue_max_sizes().iter().map(|_| bell()).collect::<Result<Vec<_>, _>>()?;
        let hears = first.get_mut().take_doorbells(&doorbells)?;
        let device = first.get();
        let sizes = device.queue_max_sizes();
        let registers = Registers::new(device.features(), sizes).requiring(device.required_features());
        Ok(Self {
            name,
            kind: device.kind(),
            ram,
            irq,
            binder,
            doorbells,
            hears,
            dials: device.limit_dials(),
            changes: AtomicU32::new(0),
            driven: AtomicBool::new(false),
            front: Mutex::new(Front {
                registers,
                state: State::Idle,
                doorbells_bound: false,
                paused: false,
                renewed: None,
                life: 0,
            }),
            first: Lane::new(first)?,
            others: others.into_iter().map(Lane::new).collect::<Result<_, _>>()?,
        })
    }

    /// The same, on a transport where queues have a size before the driver gives them one.
    pub fn with_sized_queues(mut self) -> Self {
        let front = self.front.get_mut().unwrap_or_else(PoisonError::into_inner);
        let registers = std::mem::replace(&mut front.registers, Registers::new(0, &[]));
        front.registers = registers.sized();
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
        self.first.lock().device.get().metrics()
    }

    /// By what the device's rate limiters are changed, see [`super::device::VirtioDevice::limit_dials`]. Does not wait for the device.
    pub fn limit_dials(&self) -> &[LimitDial] {
        &self.dials
    }

    fn lock(&self) -> MutexGuard<'_, Front> {
        // A panic while the lock is held aborts the process in release builds; in tests the state is still whole enough to go on.
        let mut front = self.front.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..self.changes.swap(0, Ordering::Acquire) {
            front.registers.bump_generation();
        }
        front
    }

    fn lanes(&self) -> impl Iterator<Item = &Lane> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Looks at or changes the registers. Not for status writes: see [`Self::write_status`].
    pub fn registers<T>(&self, look: impl FnOnce(&mut Registers) -> T) -> T {
        let mut front = self.lock();
        let value = look(&mut front.registers);
        self.count_refused(&mut front);
        value
    }

    fn count_refused(&self, front: &mut Front) {
        let refused = front.registers.take_refused();
        if refused != 0 {
            self.first.lock().device.get().faults().registers.add(refused);
        }
    }

    /// A register that does not exist was written, or one in a way that it is not.
    pub fn refuse_write(&self) {
        self.first.lock().device.get().faults().registers.inc();
    }

    /// Reads the device's configuration space.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.first.lock().device.get().read_config(offset, data);
    }

    /// Writes the device's configuration space.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        self.first.lock().device.get_mut().write_config(offset, data);
    }

    /// A driver's write to the status field. A reset is complete when this returns.
    pub fn write_status(&self, value: u32) {
        let mut front = self.lock();
        let action = front.registers.write_status(value);
        self.count_refused(&mut front);
        match action {
            Action::None => {}
            Action::Reset => {
                self.stop_lanes(&front);
                front.state = State::Idle;
                front.registers.reset();
            }
            Action::Activate => match self.make_rings(&front.registers) {
                Ok(rings) => {
                    front.state = State::Activating(rings);
                    ring(&self.first.control);
                }
                Err(why) => self.refuse_activation(&mut front, &why),
            },
        }
        self.note_driver(&front);
    }

    fn note_driver(&self, front: &Front) {
        self.driven.store(!front.registers.status().is_empty(), Ordering::Relaxed);
    }

    /// Whether a driver has begun with the device, and has not reset it since. Waits for nobody, a reset that takes its time included.
    pub fn is_driven(&self) -> bool {
        self.driven.load(Ordering::Relaxed)
    }

    /// The driver rang for a queue by an exit instead of the ioeventfd.
    pub fn ring_doorbell(&self, index: u32) {
        match self.doorbells.get(index as usize) {
            Some(bell) => ring(bell),
            None => self.refuse_write(),
        }
    }

    /// The rings that the driver has set up, by the lanes that serve them.
    fn make_rings(&self, registers: &Registers) -> Result<Vec<Rings>, String> {
        let accepted = registers.accepted();
        let mut lanes: Vec<Rings> =
            self.lanes().map(|_| Rings { ram: self.ram.clone(), irq: self.irq.clone(), queues: Vec::new() }).collect();
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
            let lane = self.first.lock().device.get().lane_of(index, accepted);
            if let Some(rings) = lanes.get_mut(lane.min(self.others.len())) {
                rings.queues.push(queue);
            }
        }
        if !registers.queues().any(|(geometry, _)| geometry.ready) {
            return Err("DRIVER_OK without any queue".to_owned());
        }
        Ok(lanes)
    }

    /// No lane has rings any more, and nothing is in flight.
    fn stop_lanes(&self, front: &Front) {
        if !matches!(front.state, State::Idle) {
            self.lanes().for_each(|lane| lane.lock().stop());
        }
    }

    fn give_up(&self, front: &mut Front, why: &str) {
        crate::guest_warn!("{}: the device needs a reset: {why}", self.name);
        self.stop_lanes(front);
        front.state = State::NeedsReset;
        front.registers.needs_reset();
        self.irq.config();
    }

    /// A lane has met a broken ring while its driver lived that life.
    fn give_up_life(&self, life: u64, why: &str) {
        let mut front = self.lock();
        if front.life == life && matches!(front.state, State::Live) {
            self.give_up(&mut front, why);
        }
    }

    fn refuse_activation(&self, front: &mut Front, why: &str) {
        self.first.lock().device.get().faults().activations.inc();
        self.give_up(front, why);
    }

    /// Gives the lanes their rings, if a driver waits for it.
    fn activate(&self, front: &mut Front) {
        if front.paused || !matches!(front.state, State::Activating(_)) {
            return;
        }
        let State::Activating(rings) = std::mem::replace(&mut front.state, State::Live) else { return };
        match self.start_lanes(front, rings) {
            Ok(()) => self.bind_doorbells(front),
            Err(why) => self.refuse_activation(front, &why),
        }
    }

    fn start_lanes(&self, front: &mut Front, rings: Vec<Rings>) -> Result<(), String> {
        front.life = front.life.wrapping_add(1);
        let accepted = front.registers.accepted();
        for (lane, mut rings) in self.lanes().zip(rings) {
            let mut work = lane.lock();
            work.device.get_mut().activate(accepted, &mut rings)?;
            work.life = front.life;
            work.rings = Some(rings);
        }
        Ok(())
    }

    fn bind_doorbells(&self, front: &mut Front) {
        if front.doorbells_bound {
            return;
        }
        for (index, bell) in (0u16..).zip(&self.doorbells) {
            if let Err(error) = self.binder.bind(index, bell) {
                // Doorbells still arrive, each by a vCPU exit.
                log::warn!("{}: doorbell {index} stays slow: {error}", self.name);
            }
        }
        front.doorbells_bound = true;
    }

    /// `change` changes where doorbells are rung: those that are bound are bound anew.
    pub fn move_doorbells(&self, change: impl FnOnce()) {
        let mut front = self.lock();
        let bound = std::mem::take(&mut front.doorbells_bound);
        if bound {
            self.unbind_doorbells();
        }
        change();
        if bound {
            self.bind_doorbells(&mut front);
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
        let mut front = self.lock();
        self.stop_lanes(&front);
        front.state = State::Idle;
        front.registers.reset();
        if std::mem::take(&mut front.doorbells_bound) {
            self.unbind_doorbells();
        }
        durable
    }

    /// Looks at every queue and source: of the first lane here and now, of the others where they are served.
    fn look_at_all(&self) {
        self.others.iter().for_each(|lane| ring(&lane.control));
        self.see(0, Look::Everything);
    }

    /// Stops the device: everything in flight is completed, later events are ignored until [`Self::resume`].
    pub fn pause(&self) {
        let mut front = self.lock();
        front.paused = true;
        let mut broken = None;
        for lane in self.lanes() {
            let mut work = lane.lock();
            work.paused = true;
            broken = broken.or(work.quiesce().err());
        }
        if let Some(error) = broken {
            self.give_up(&mut front, &error.to_string());
        }
    }

    /// Lets the device work again, and has every queue and source looked at once, since events were missed.
    pub fn resume(&self) {
        let mut front = self.lock();
        front.paused = false;
        self.lanes().for_each(|lane| lane.lock().paused = false);
        self.activate(&mut front);
        if matches!(front.state, State::Live) {
            // Of a driver that was set up before the process.
            self.bind_doorbells(&mut front);
        }
        if let Some(Renewed { interrupts, config }) = front.renewed.take() {
            if self.config_space() != config {
                front.registers.bump_generation();
                if matches!(front.state, State::Live) {
                    self.irq.config();
                }
            }
            self.irq.renew(interrupts);
        }
        drop(front);
        self.look_at_all();
    }

    /// What a driver sees of the device's own configuration.
    fn config_space(&self) -> Vec<u8> {
        let mut config = vec![0; CONFIG_LEN];
        self.read_config(0, &mut config);
        config
    }

    /// What outlives the process. `None` unless the device stands still, see [`Self::pause`].
    pub fn save(&self) -> Option<CellState> {
        let front = self.lock();
        let mut positions = Vec::new();
        let progress = match &front.state {
            State::Idle => Progress::Idle,
            State::Activating(_) => Progress::Activating,
            State::Live => {
                let mut queues = Vec::with_capacity(self.doorbells.len());
                self.lanes().for_each(|lane| lane.lock().enter_positions(&mut queues));
                queues.sort_unstable_by_key(|(index, _)| *index);
                positions.extend(queues.into_iter().map(|(_, position)| position));
                Progress::Live
            }
            State::NeedsReset => Progress::NeedsReset,
        };
        // One that was not resumed since it was taken up: its driver still has to hear of what is new.
        let Renewed { interrupts, config } =
            front.renewed.clone().unwrap_or_else(|| Renewed { interrupts: 0, config: self.config_space() });
        front.paused.then(|| CellState {
            registers: front.registers.save(),
            progress,
            positions,
            interrupts: interrupts | self.irq.pending(),
            config,
            device: self.first.lock().device.get().save(),
        })
    }

    /// Takes up what was saved, in a cell that was just made. The device stands still until [`Self::resume`]; its driver is then
    /// interrupted again for what it had not acknowledged, and for a configuration space that is another one than it was.
    pub fn restore(&self, state: &CellState) -> Result<(), BadState> {
        let mut front = self.lock();
        front.registers.restore(&state.registers)?;
        self.note_driver(&front);
        let works = matches!(state.progress, Progress::Activating | Progress::Live);
        if (works && !front.registers.is_set_up())
            || (state.progress == Progress::NeedsReset) != front.registers.is_broken()
        {
            let status = state.registers.status;
            let what = format!("a driver that is {:?} with a device status of {status:#x}", state.progress);
            return Err(BadState::Impossible(what));
        }
        let impossible = |what: String| BadState::Impossible(what);
        match state.progress {
            Progress::Idle => {}
            Progress::NeedsReset => front.state = State::NeedsReset,
            Progress::Activating => {
                front.state = State::Activating(self.make_rings(&front.registers).map_err(impossible)?);
            }
            Progress::Live => {
                let mut lanes = self.make_rings(&front.registers).map_err(impossible)?;
                if state.positions.len() != self.doorbells.len() {
                    return Err(impossible("not every queue has a position".to_owned()));
                }
                for queue in lanes.iter_mut().flat_map(|rings| &mut rings.queues) {
                    if let Some(position) = state.positions.get(usize::from(queue.index())) {
                        queue.go_to(*position);
                    }
                }
                self.start_lanes(&mut front, lanes).map_err(impossible)?;
                front.state = State::Live;
            }
        }
        self.first.lock().device.get_mut().restore(&state.device)?;
        front.paused = true;
        self.lanes().for_each(|lane| lane.lock().paused = true);
        front.renewed = Some(Renewed { interrupts: state.interrupts, config: state.config.clone() });
        Ok(())
    }

    /// The machine is about to end. Who waits for another process, here or on another thread, does not any more.
    pub fn hurry(&self) {
        if let Doorbells::Taken(end) = &self.hears {
            ring(end);
        }
    }

    /// Ends the device's work: completes what is in flight and makes it durable.
    pub fn shut_down(&self) -> io::Result<()> {
        match self.hears {
            Doorbells::Watched => self.pause(),
            Doorbells::Taken(_) => {}
        }
        self.first.lock().device.get_mut().flush()
    }

    /// Looks at the device. Keep it short: the guest may be waiting for its lock.
    pub fn look<T>(&self, look: impl FnOnce(&AnyDevice) -> T) -> T {
        look(&self.first.lock().device)
    }

    /// Changes the device on the operator's behalf. In-flight work is finished first. If `change` succeeds and says so, the driver is told
    /// that the configuration space changed.
    pub fn reconfigure<T, E>(
        &self,
        change: impl FnOnce(&mut AnyDevice) -> Result<(T, ConfigChange), E>,
    ) -> Result<T, E> {
        self.reconfigure_lanes(|first, _| change(first))
    }

    /// The same of a device with several lanes, which all stand still meanwhile: the one that speaks for all, and the others.
    pub fn reconfigure_lanes<T, E>(
        &self,
        change: impl FnOnce(&mut AnyDevice, &mut [&mut AnyDevice]) -> Result<(T, ConfigChange), E>,
    ) -> Result<T, E> {
        let mut first = self.first.lock();
        let mut others: Vec<MutexGuard<'_, Work>> = self.others.iter().map(Lane::lock).collect();
        let life = first.life;
        let mut broken = first.quiesce().err();
        for work in &mut others {
            broken = broken.or(work.quiesce().err());
        }
        let outcome =
            change(&mut first.device, &mut others.iter_mut().map(|work| &mut work.device).collect::<Vec<_>>());
        if let Ok((_, ConfigChange::Announce)) = &outcome {
            self.announce_change(first.rings.is_some());
        }
        drop((first, others));
        if let Some(error) = broken {
            self.give_up_life(life, &error.to_string());
        }
        let (value, _) = outcome?;
        self.look_at_all();
        Ok(value)
    }

    /// The same of a device with one lane, while it goes on with its work.
    pub fn reconfigure_at_work<T, E>(
        &self,
        change: impl FnOnce(&mut AnyDevice) -> Result<(T, ConfigChange), E>,
    ) -> Result<T, E> {
        let mut first = self.first.lock();
        let (value, changed) = change(&mut first.device)?;
        if changed == ConfigChange::Announce {
            self.announce_change(first.rings.is_some());
        }
        drop(first);
        self.look_at_all();
        Ok(value)
    }

    /// The configuration space is another one, and the lane that it lies in is held. A driver that is at work is told.
    fn announce_change(&self, live: bool) {
        self.changes.fetch_add(1, Ordering::Release);
        if live {
            self.irq.config();
        }
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

/// All lanes in one event loop. See [`LaneSeat`] for one of them.
impl Subscriber for VirtioCell {
    fn sources(&self) -> Vec<Source> {
        (0..=self.others.len()).flat_map(|lane| self.lane_sources(lane)).collect()
    }

    fn ready(&self, token: u32) {
        self.lane_ready(token);
    }
}

fn bell() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
}

fn ring(bell: &EventFd) {
    // The bells are watched edge-triggered and never read. After 2^64 - 2 rings a write would fail; the edge was long seen.
    let _ = bell.write(1);
}

#[cfg(test)]
mod tests;
