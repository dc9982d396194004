//! The life of a connection: found, greeted, at work for a driver, halted, lost and found again.
//!
//! On the event loop nothing waits for the backend: answers are events, and a timer notices when they do not come. Only where the cell's
//! contract wants a ring to stand still on return (a reset, a pause), and for an operator's refresh, this waits, and not for long. A
//! backend that does not keep up loses its connection, which is looked for again: to a driver it is a device that takes its time.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::connection::{Answer, Broken, Connection};
use super::driver::{Driver, Inflight};
use super::memory::SharedMemory;
use super::message::{F_PROTOCOL_FEATURES, InflightArea, Request, VringState, protocol};
use super::metrics::VhostUserMetrics;
use super::peer::{ANSWER_LIMIT, Channel, Greeting, Offer, Peer, Wishes, ask_config, config_space};
use crate::event::{Interest, Source};
use crate::metrics::microseconds;
use crate::virtio::device::Rings;
use crate::virtio::queue::RingError;

/// How long a paused machine waits for its backend to do what was asked.
const FINISH_LIMIT: Duration = Duration::from_secs(5);
/// A driver that resets its device has seldom left something.
const SHORT_FINISH_LIMIT: Duration = Duration::from_millis(100);
/// How often it is looked whether it has: the driver may not want to be told.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// How long anybody waits for one answer: a pause, a vCPU, an operator.
const SHORT_LIMIT: Duration = Duration::from_secs(1);
/// A backend that is gone is looked for after this time, and then less and less often.
const FIRST_RETRY: Duration = Duration::from_millis(20);
/// At least so often.
const LAST_RETRY: Duration = Duration::from_secs(1);

/// Token of whatever the backend sends.
const BACKEND: u32 = 0;
/// Token of the timer.
const TIMER: u32 = 1;
/// Tokens of the rings' interrupts begin here.
const CALLS: u32 = 2;

/// What a frontend is made of.
#[derive(Debug)]
pub struct FrontendSpec {
    /// What log lines call the device.
    pub name: String,
    /// Where the backend listens.
    pub socket: PathBuf,
    /// What is wanted of it.
    pub wishes: Wishes,
    /// Largest size of its rings.
    pub queue_size: u16,
    /// The backend, which is known already.
    pub peer: Peer,
    /// Guest memory.
    pub memory: SharedMemory,
}

/// How far things have come with a backend that is connected.
#[derive(Debug)]
enum Stage {
    /// It says what it can do.
    Greeting(Greeting),
    /// It has nothing to do.
    Idle,
    /// It makes memory for requests in flight.
    Preparing,
    /// It serves the rings.
    AtWork,
}

#[derive(Debug)]
struct Link {
    connection: Connection,
    channel: Option<Channel>,
    stage: Stage,
    since: Instant,
    /// It has guest memory. It is told once: some backends map it anew when they are told again, under requests that are still in flight
    /// though their ring has stopped (QEMU 7.2's, for one).
    has_memory: bool,
}

impl Link {
    fn new(connection: Connection, channel: Option<Channel>, stage: Stage) -> Self {
        Self { connection, channel, stage, since: Instant::now(), has_memory: false }
    }
}

/// The frontend of one device.
pub(super) struct Frontend {
    name: String,
    socket: PathBuf,
    wishes: Wishes,
    queue_size: u16,
    memory: SharedMemory,
    offer: Offer,
    link: Option<Link>,
    driver: Option<Driver>,
    inflight: Option<Inflight>,
    config_changed: bool,
    /// When somebody wanted to know the configuration space.
    config_asked: Option<Instant>,
    epoll: Epoll,
    timer: TimerFd,
    /// When the timer reports, if it is of use. It is never read: an edge comes with each setting.
    due: Option<Instant>,
    retry: Duration,
    end: EventFd,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    metrics: Arc<VhostUserMetrics>,
}

impl Frontend {
    /// For a backend that was met.
    pub(super) fn new(spec: FrontendSpec) -> io::Result<Self> {
        let FrontendSpec { name, socket, wishes, queue_size, peer, memory } = spec;
        let Peer { connection, channel, offer, took } = peer;
        let bell = |_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let metrics = Arc::<VhostUserMetrics>::default();
        metrics.init_time_us.set(microseconds(took));
        let mut frontend = Self {
            name,
            socket,
            wishes,
            queue_size,
            memory,
            offer,
            link: None,
            driver: None,
            inflight: None,
            config_changed: false,
            config_asked: None,
            epoll: Epoll::new()?,
            timer: TimerFd::new()?,
            due: None,
            retry: FIRST_RETRY,
            end: bell(0)?,
            kicks: Vec::new(),
            calls: (0..wishes.queues).map(bell).collect::<Result<_, _>>()?,
            metrics,
        };
        frontend.watch(connection.as_raw_fd())?;
        if let Some(channel) = &channel {
            frontend.watch(channel.as_raw_fd())?;
        }
        frontend.link = Some(Link::new(connection, channel, Stage::Idle));
        Ok(frontend)
    }

    /// What is rung when the driver has something new on a ring.
    ///
    /// Nothing waits for the backend any more when what is returned has been rung.
    pub(super) fn take_doorbells(&mut self, bells: &[EventFd]) -> io::Result<EventFd> {
        self.kicks = bells.iter().map(EventFd::try_clone).collect::<Result<_, _>>()?;
        self.end.try_clone()
    }

    pub(super) fn metrics(&self) -> &Arc<VhostUserMetrics> {
        &self.metrics
    }

    /// What the backend offers, or did when it was last there.
    pub(super) fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Whether the configuration space is another one since this was last asked.
    pub(super) fn take_config_change(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    pub(super) fn sources(&self) -> Vec<Source> {
        let watch = |fd: RawFd, token| Source { fd, interest: Interest::Readable, token };
        let mut sources = vec![watch(self.epoll.as_raw_fd(), BACKEND), watch(self.timer.as_raw_fd(), TIMER)];
        sources.extend((CALLS..).zip(&self.calls).map(|(token, call)| watch(call.as_raw_fd(), token)));
        sources
    }

    fn watch(&self, fd: RawFd) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0))
    }

    /// A driver is set up. Its rings are served as soon as the backend is ready for them.
    pub(super) fn activate(&mut self, features: u64, rings: &Rings) {
        self.driver = Some(Driver::new(features, rings));
        self.go_on();
    }

    /// The rings may be served (again).
    pub(super) fn go_on(&mut self) {
        if let Some(driver) = &mut self.driver {
            driver.halted = false;
        }
        let outcome = self.prepare();
        self.survive(outcome);
    }

    /// One of [`Self::sources`] is ready.
    ///
    /// # Errors
    /// The driver has to begin anew: the backend that is back is not the one it was set up for, or nobody knows which requests are open.
    pub(super) fn on_source(&mut self, token: u32) -> Result<(), RingError> {
        match token {
            BACKEND => {
                // Edges were seen; what is there is read below, all of it.
                let mut events = [EpollEvent::default(); 2];
                let _ = self.epoll.wait(0, &mut events);
                let outcome = self.listen();
                self.survive(outcome);
            }
            TIMER => {
                // A look after a pause may come early, and leaves the timer running.
                if self.due.is_some_and(|due| Instant::now() >= due) {
                    self.due = None;
                    self.on_timer();
                }
            }
            _ => {
                let index = token.saturating_sub(CALLS);
                if let (Some(call), Some(driver)) = (self.calls.get(index as usize), &self.driver)
                    && call.read().is_ok()
                {
                    driver.irq.queue(index as u16);
                }
            }
        }
        self.judge_driver()
    }

    /// A driver that uses what the backend does not have any more cannot go on, nor one of whose requests too little is known.
    fn judge_driver(&self) -> Result<(), RingError> {
        let missing = self.driver.as_ref().map_or(0, |driver| driver.features & !self.offer.features);
        if missing != 0 {
            return Err(RingError::of(format!(
                "the backend is back without features {missing:#x} that the driver uses"
            )));
        }
        match self.driver.as_ref().and_then(Driver::lost_ring) {
            Some(index) if !self.is_at_work() => Err(RingError::of(format!(
                "the backend was lost with requests of ring {index} in flight, answers out of order, and keeps no track of them (protocol feature INFLIGHT_SHMFD)"
            ))),
            _ => Ok(()),
        }
    }

    /// Whether the backend notes requests in flight.
    fn tracks(&self) -> bool {
        self.offer.protocol & protocol::INFLIGHT_SHMFD != 0
    }

    fn is_at_work(&self) -> bool {
        self.link.as_ref().is_some_and(|link| matches!(link.stage, Stage::AtWork))
    }

    /// Reads what the backend has sent.
    fn listen(&mut self) -> Result<(), Broken> {
        while let Some(link) = &mut self.link {
            let Some(answer) = link.connection.next_answer()? else { break };
            self.answered(&answer)?;
        }
        if let Some(link) = &mut self.link
            && let Some(channel) = &mut link.channel
            && channel.listen()?
        {
            self.config_asked.get_or_insert_with(Instant::now);
            ask_config(&mut link.connection, self.wishes.config_len)?;
        }
        Ok(())
    }

    fn answered(&mut self, answer: &Answer) -> Result<(), Broken> {
        let Some(link) = &mut self.link else { return Ok(()) };
        if let Stage::Greeting(greeting) = &mut link.stage {
            let Some(offer) = greeting.answered(&mut link.connection, answer)? else { return Ok(()) };
            link.channel = Channel::open(&mut link.connection, &offer)?;
            link.stage = Stage::Idle;
            let channel = link.channel.as_ref().map(AsRawFd::as_raw_fd);
            if let Some(channel) = channel {
                self.watch(channel)?;
            }
            log::info!("{}: the backend at {} is back", self.name, self.socket.display());
            self.metrics.reconnect_count.inc();
            self.config_changed |= self.offer.config != offer.config;
            self.offer = offer;
            if !self.tracks() && self.inflight.take().is_some() {
                // Another kind of backend, which cannot read what the last one noted.
                self.driver.iter_mut().for_each(|driver| driver.is_left(false));
            }
            return self.prepare();
        }
        match answer.request {
            Request::GetInflightFd => {
                link.stage = Stage::Idle;
                let (area, _) = answer.shaped::<InflightArea>()?;
                let file = answer.fds.first().ok_or_else(|| Broken::nonsense("no file for requests in flight"))?;
                if area.len.get() == 0 {
                    return Err(Broken::nonsense("an empty file for requests in flight"));
                }
                if self.driver.is_none() {
                    return Ok(());
                }
                self.inflight = Some(Inflight { area, file: file.try_clone()? });
                self.prepare()
            }
            Request::GetConfig => {
                let config = config_space(answer, self.wishes.config_len)?;
                self.config_changed |= self.offer.config != config;
                self.offer.config = config;
                if let Some(asked) = self.config_asked.take() {
                    self.metrics.config_change_time_us.set(microseconds(asked.elapsed()));
                }
                Ok(())
            }
            Request::GetVringBase => {
                let (state, _) = answer.shaped::<VringState>()?;
                self.driver.as_mut().map_or(Ok(()), |driver| driver.set_base(state))
            }
            request => match answer.number()? {
                0 => Ok(()),
                code => Err(Broken::Unfit(format!("it answers {request:?} with error {code}"))),
            },
        }
    }

    /// Gives an idle backend its work, if there is some.
    fn prepare(&mut self) -> Result<(), Broken> {
        let tracked = self.tracks();
        let (Some(link), Some(driver)) = (&mut self.link, &mut self.driver) else { return Ok(()) };
        let fits = driver.features & !self.offer.features == 0 && driver.lost_ring().is_none();
        if !matches!(link.stage, Stage::Idle) || driver.halted || !fits {
            return Ok(());
        }
        if tracked && self.inflight.is_none() {
            let area = InflightArea {
                len: U64::ZERO,
                offset: U64::ZERO,
                queues: U16::new(self.wishes.queues),
                queue_size: U16::new(self.queue_size),
                padding: U32::ZERO,
            };
            link.connection.ask(Request::GetInflightFd, area.as_bytes())?;
            link.stage = Stage::Preparing;
            return Ok(());
        }
        let connection = &mut link.connection;
        let features = driver.features | F_PROTOCOL_FEATURES;
        connection.tell(Request::SetFeatures, &features.to_le_bytes(), &[])?;
        if !std::mem::replace(&mut link.has_memory, true) {
            let (table, fds) = self.memory.table();
            connection.tell_and_hear(Request::SetMemTable, &table, &fds)?;
        }
        if let Some(Inflight { area, file }) = &self.inflight {
            connection.tell(Request::SetInflightFd, area.as_bytes(), &[file.as_raw_fd()])?;
        }
        // From here on it may touch them.
        link.stage = Stage::AtWork;
        driver.hand_over(connection, &self.kicks, &self.calls)?;
        if !driver.served {
            self.metrics.activate_time_us.set(microseconds(driver.since.elapsed()));
        }
        driver.served = true;
        Ok(())
    }

    /// Has the backend put its work down; it may keep the machine for a while.
    pub(super) fn halt(&mut self) {
        if let Some(driver) = &mut self.driver {
            driver.halted = true;
        }
        let outcome = self.stop_rings(FINISH_LIMIT);
        self.survive(outcome);
    }

    /// The driver is gone.
    pub(super) fn reset(&mut self) {
        let outcome = self.stop_rings(SHORT_FINISH_LIMIT);
        self.driver = None;
        self.inflight = None;
        self.survive(outcome);
    }

    /// Lets the backend finish, and then has it stop. Some cannot be stopped while requests are in flight: QEMU's before 8.0 loses its
    /// connection when one of them is done afterwards.
    fn stop_rings(&mut self, finish_limit: Duration) -> Result<(), Broken> {
        if !self.is_at_work() {
            return Ok(());
        }
        self.finish(finish_limit)?;
        let (Some(link), Some(driver)) = (&mut self.link, &self.driver) else { return Ok(()) };
        for ring in &driver.rings {
            // GET_VRING_BASE is what stops a ring.
            link.connection.ask(Request::GetVringBase, VringState::new(ring.index, 0).as_bytes())?;
        }
        self.hear_all(SHORT_LIMIT)?;
        if let Some(link) = &mut self.link {
            link.stage = Stage::Idle;
        }
        Ok(())
    }

    /// Waits until no request is open, for as long as that may take at most.
    fn finish(&mut self, limit: Duration) -> Result<(), Broken> {
        let now = Instant::now();
        let deadline = now.checked_add(limit).unwrap_or(now);
        // The driver may have been stopped before it could ring.
        for kick in &self.kicks {
            let _ = kick.write(1);
        }
        while let (Some(link), Some(driver)) = (&self.link, &self.driver) {
            if !driver.is_waiting() || Instant::now() >= deadline {
                break;
            }
            if link.connection.wait_for_anything(LOOK_AGAIN, &self.end)? {
                self.listen()?;
            }
        }
        Ok(())
    }

    /// Asks the backend for its configuration space, and waits for the answer.
    pub(super) fn refresh(&mut self) -> Result<(), String> {
        let Some(link) = &mut self.link else { return Err("its backend is not there.".to_owned()) };
        if matches!(link.stage, Stage::Greeting(_)) {
            return Err("its backend does not answer yet.".to_owned());
        }
        self.config_asked.get_or_insert_with(Instant::now);
        let outcome =
            ask_config(&mut link.connection, self.wishes.config_len).and_then(|()| self.hear_all(SHORT_LIMIT));
        let refusal = outcome.as_ref().err().map(|why| format!("its backend is of no use: {why}."));
        self.survive(outcome);
        refusal.map_or(Ok(()), Err)
    }

    /// Waits until no answer is missing.
    fn hear_all(&mut self, limit: Duration) -> Result<(), Broken> {
        let now = Instant::now();
        let deadline = now.checked_add(limit).unwrap_or(now);
        while let Some(link) = self.link.as_mut().filter(|link| link.connection.awaits()) {
            let answer = link.connection.wait(deadline, limit, Some(&self.end))?;
            self.answered(&answer)?;
        }
        Ok(())
    }

    /// Ends the connection for good, without waiting for anything: the backend finishes what it has.
    pub(super) fn part(&mut self) {
        self.driver = None;
        if let Some(link) = self.link.take() {
            self.hang_up(&link);
        }
    }

    fn hang_up(&self, link: &Link) {
        // By hand: whoever has the socket, too, would keep it here.
        let fds = [Some(link.connection.as_raw_fd()), link.channel.as_ref().map(AsRawFd::as_raw_fd)];
        for fd in fds.into_iter().flatten() {
            let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
        link.connection.end();
    }

    /// After whatever may have ended the connection: sees to it that the backend is looked for, or its answers are waited for.
    fn survive(&mut self, outcome: Result<(), Broken>) {
        if let Err(why) = outcome
            && let Some(link) = self.link.take()
        {
            self.hang_up(&link);
            if link.since.elapsed() >= LAST_RETRY {
                // One that was of use. A backend that comes only to go again is not asked for more and more often.
                self.retry = FIRST_RETRY;
            }
            if !matches!(link.stage, Stage::Greeting(_)) {
                self.metrics.connection_losses.inc();
            }
            if let (Stage::AtWork, Some(driver)) = (&link.stage, &mut self.driver) {
                driver.is_left(self.inflight.is_some());
            }
            if !matches!(why, Broken::Unwanted) {
                let (name, socket) = (&self.name, self.socket.display());
                crate::guest_warn!("{name}: the backend at {socket} is lost: {why}; it is looked for");
            }
        }
        self.mind();
    }

    fn mind(&mut self) {
        let wait = match &self.link {
            None => self.retry,
            Some(link) if link.connection.awaits() => ANSWER_LIMIT,
            Some(_) => return,
        };
        let Some(due) = Instant::now().checked_add(wait) else { return };
        if self.due.is_none_or(|earlier| earlier > due) {
            match self.timer.reset(wait, None) {
                Ok(()) => self.due = Some(due),
                Err(error) => crate::guest_warn!("{}: no timer: {error}", self.name),
            }
        }
    }

    fn on_timer(&mut self) {
        let outcome = match &self.link {
            None => self.look_for_backend(),
            Some(link) => link.connection.judge_silence(ANSWER_LIMIT),
        };
        self.survive(outcome);
    }

    fn look_for_backend(&mut self) -> Result<(), Broken> {
        self.retry = self.retry.saturating_mul(2).min(LAST_RETRY);
        let Ok(mut connection) = Connection::open(&self.socket) else { return Ok(()) };
        let greeting = Greeting::begin(self.wishes, &mut connection)?;
        self.watch(connection.as_raw_fd())?;
        self.link = Some(Link::new(connection, None, Stage::Greeting(greeting)));
        Ok(())
    }
}
