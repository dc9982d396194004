//! Between the rings and the host's sockets: who is connected, who has something to say, and what a packet or event means.
//!
//! All host sockets are watched by an epoll instance of the device's own, edge-triggered: a socket that cannot be read on, for want of
//! credit or receive buffers, costs nothing until something new happens.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::VsockSpec;
use super::connection::{Connection, Fate, Fetched};
use super::deadlines::Deadlines;
use super::knock::{self, Knock};
use super::link::{Heard, Link, Phase};
use super::metrics::VsockMetrics;
use super::packet::{HOST_CID, Header, Ports, STREAM, op};
use super::seats::{Seats, Sitter, Ticket, Visitor};
use crate::sys::iovec::GuestIoVec;
use crate::sys::unix_stream::HostStream;
use crate::virtio::queue::Visit;

/// How long the guest may take to accept or refuse, and to confirm or the host to read at the end.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a host program may take to say what it wants. Somebody may be typing.
const KNOCK_PATIENCE: Duration = Duration::from_secs(60);
/// When to try again to accept host programs after the process ran out of descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(500);

/// Room for data from the guest, per connection, while there are few of them and when there are many.
const GENEROUS_ROOM: u32 = 256 << 10;
const ROOM: u32 = 64 << 10;
const FEW: usize = 128;

/// Refusals that wait for receive buffers. When there are more, the guest's packets have to wait (virtio 1.3 §5.10.6.1).
const MAX_REFUSALS: usize = 256;
/// After so many rounds of events, others have their turn.
const MAX_ROUNDS: usize = 8;
/// Events taken from the kernel at once, and host programs accepted at once.
const BATCH: usize = 64;

const LISTENER: Ticket = Ticket::new(u32::MAX, 0);

/// What the guest can be sent now.
#[derive(Debug, Clone, Copy)]
pub enum Turn {
    /// A packet without data.
    Control(Header),
    /// Data of a connection: at most `credit` bytes, likely to fill `appetite` buffers.
    Data {
        /// Whose.
        ticket: Ticket,
        /// Bytes.
        credit: u32,
        /// Receive buffers.
        appetite: u16,
    },
}

/// The connections and their sockets.
pub struct Muxer {
    guest_cid: u64,
    path: PathBuf,
    listener: UnixListener,
    epoll: Epoll,
    deadlines: Deadlines,
    seats: Seats,
    /// Who has something to say to the guest.
    ready: VecDeque<Ticket>,
    refusals: VecDeque<Header>,
    /// Host programs may wait at the listener that it will not report again.
    more_visitors: bool,
    /// The timer will remind of them.
    reminded: bool,
    metrics: Arc<VsockMetrics>,
}

impl Muxer {
    /// Nobody is connected yet. Fails if the process is out of descriptors.
    pub fn new(spec: VsockSpec, metrics: Arc<VsockMetrics>) -> io::Result<Self> {
        let VsockSpec { guest_cid, uds_path, listener } = spec;
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, LISTENER.to_bits());
        epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), event)?;
        Ok(Self {
            guest_cid: guest_cid.into(),
            path: uds_path,
            listener,
            epoll,
            deadlines: Deadlines::new()?,
            seats: Seats::new(),
            ready: VecDeque::new(),
            refusals: VecDeque::new(),
            more_visitors: true,
            reminded: false,
            metrics,
        })
    }

    /// The guest's context id.
    pub fn guest_cid(&self) -> u64 {
        self.guest_cid
    }

    /// Becomes readable when a host socket has news.
    pub fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// Time limits.
    pub fn deadlines(&mut self) -> &mut Deadlines {
        &mut self.deadlines
    }

    /// The timer as a source.
    pub fn timer_source(&self, token: u32) -> crate::event::Source {
        self.deadlines.source(token)
    }

    /// How many seats are taken.
    #[cfg(any(test, feature = "test-driver"))]
    pub fn taken(&self) -> usize {
        self.seats.taken()
    }

    /// Where the next host program's port is looked for.
    pub fn next_host_port(&self) -> u32 {
        self.seats.next_host_port()
    }

    /// Goes on with host ports where another process left off.
    pub fn go_on_at_host_port(&mut self, next: u32) {
        self.seats.go_on_at_host_port(next);
    }

    /// Ends all connections without a word to the guest.
    pub fn clear(&mut self) {
        self.metrics.conns_removed.add(self.seats.clear());
        self.deadlines.clear();
        self.ready.clear();
        self.refusals.clear();
        self.more_visitors = true;
        self.reminded = false;
    }

    // From the guest.

    /// Whether so many refusals wait that no more packets of the guest should be looked at.
    pub fn is_clogged(&self) -> bool {
        self.refusals.len() >= MAX_REFUSALS
    }

    /// A packet came from the guest. If it is data that may be passed on: for whom.
    pub fn hear(&mut self, packet: &Header) -> Option<Ticket> {
        self.metrics.tx_packets_count.inc();
        if packet.src_cid.get() != self.guest_cid {
            self.metrics.tx_malformed_packets.inc();
            crate::guest_warn!("vsock: a packet from another context id than the guest's was dropped");
            return None;
        }
        if packet.dst_cid.get() != HOST_CID || packet.kind.get() != STREAM {
            // §5.10.6.4.2 for the type; a program that asks for another context id should not have to wait for a time limit.
            self.metrics.tx_malformed_packets.inc();
            self.refuse(packet);
            return None;
        }
        let Some(ticket) = self.seats.find(packet.ports()) else {
            match packet.op.get() {
                op::REQUEST => self.open(packet),
                _ => self.refuse(packet),
            }
            return None;
        };
        let connection = self.seats.connection(ticket)?;
        match connection.link.hear(packet) {
            Heard::Data => return Some(ticket),
            Heard::Credit | Heard::Shut => self.settle(ticket),
            Heard::Accepted => {
                let said = connection.say_ok();
                if let Some(at) = connection.deadline.take() {
                    self.deadlines.lift(ticket, at);
                }
                if said { self.settle(ticket) } else { self.kill(ticket) }
            }
            Heard::Reset => self.remove(ticket),
            Heard::Wrong(what) => {
                let Ports { guest, host } = packet.ports();
                crate::guest_warn!("vsock: connection {guest} to {host} ends: the guest {what}");
                self.kill(ticket);
            }
        }
        None
    }

    /// The guest's packet is not what its header says. Its connection ends.
    pub fn hear_nonsense(&mut self, packet: &Header) {
        self.metrics.tx_malformed_packets.inc();
        crate::guest_warn!("vsock: a packet that claims {} bytes of data has less", packet.len);
        match self.seats.find(packet.ports()) {
            Some(ticket) if packet.src_cid.get() == self.guest_cid && packet.dst_cid.get() == HOST_CID => {
                self.kill(ticket)
            }
            _ => self.refuse(packet),
        }
    }

    /// Passes on the data of packets that [`Self::hear`] let through.
    pub fn pass_on(&mut self, ticket: Ticket, pieces: &[GuestIoVec]) {
        if let Some(connection) = self.seats.connection(ticket) {
            connection.pass_on(pieces, &self.metrics);
            if connection.has_backlog() {
                connection.progress = self.deadlines.now();
            }
            self.settle(ticket);
        }
    }

    /// Answers a packet of no connection.
    fn refuse(&mut self, packet: &Header) {
        // An answer to an RST could be answered by another one, and so on.
        if packet.op.get() != op::RST && packet.src_cid.get() == self.guest_cid {
            let rst = Header::to_guest(self.guest_cid, packet.ports(), op::RST);
            self.refusals.push_back(Header { src_cid: packet.dst_cid, kind: packet.kind, ..rst });
        }
    }

    /// The guest asks for a connection to the program that listens at the path for its port.
    fn open(&mut self, request: &Header) {
        let ports = request.ports();
        let Some(ticket) = self.next_ticket() else {
            self.metrics.conns_refused.inc();
            return self.refuse(request);
        };
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", ports.host));
        let stream = HostStream::connect(path.as_ref()).and_then(|stream| {
            self.watch(ticket, &stream)?;
            Ok(stream)
        });
        match stream {
            Ok(stream) => {
                let link = Link::accept(request, self.room());
                let connection = Connection::new(ports, link, stream, self.deadlines.now());
                self.seats.take(ticket, Sitter::Connection(Box::new(connection)));
                self.metrics.conns_added.inc();
                self.settle(ticket);
            }
            Err(error) => {
                self.metrics.no_listener_count.inc();
                if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
                    crate::guest_warn!("vsock: cannot connect to {}: {error}", path.display());
                }
                self.refuse(request);
            }
        }
    }

    // From the host.

    /// Looks at what host sockets report. `More` if there is more than should be looked at now.
    pub fn on_host_events(&mut self) -> Visit {
        let mut events = [EpollEvent::default(); BATCH];
        let mut visit = Visit::More;
        for _ in 0..MAX_ROUNDS {
            let count = match self.epoll.wait(0, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => {
                    self.metrics.muxer_event_fails.inc();
                    0
                }
            };
            for event in events.iter().take(count) {
                match Ticket::from_bits(event.data()) {
                    LISTENER => self.more_visitors = true,
                    ticket => self.on_event(ticket, event.event_set()),
                }
            }
            if count < BATCH {
                visit = Visit::Idle;
                break;
            }
        }
        if self.more_visitors {
            self.welcome();
        }
        if self.more_visitors { Visit::More } else { visit }
    }

    fn on_event(&mut self, ticket: Ticket, events: EventSet) {
        let hung_up = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        let ended = hung_up || events.contains(EventSet::READ_HANG_UP);
        match self.seats.get_mut(ticket) {
            None => self.metrics.conn_event_fails.inc(),
            Some(Sitter::Visitor(visitor)) => {
                let knock = knock::listen(&visitor.stream, ended);
                self.answer(ticket, knock, hung_up);
            }
            Some(Sitter::Connection(connection)) => {
                if events.intersects(EventSet::OUT | EventSet::HANG_UP | EventSet::ERROR) && connection.has_backlog() {
                    connection.flush(&self.metrics, self.deadlines.now());
                }
                if ended || events.contains(EventSet::IN) {
                    connection.became_readable(hung_up);
                }
                self.settle(ticket);
            }
        }
    }

    /// Lets host programs in.
    fn welcome(&mut self) {
        for _ in 0..BATCH {
            match HostStream::accept(&self.listener) {
                Ok(stream) => self.seat_visitor(stream),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.more_visitors = false;
                    if error.kind() != io::ErrorKind::WouldBlock {
                        // Out of descriptors or memory. They stay in the listener's backlog, but it reports only those who come later.
                        self.metrics.muxer_event_fails.inc();
                        crate::guest_warn!("vsock: cannot accept a host program: {error}");
                        if !std::mem::replace(&mut self.reminded, true) {
                            self.deadlines.set(LISTENER, ACCEPT_AGAIN);
                        }
                    }
                    return;
                }
            }
        }
    }

    fn seat_visitor(&mut self, stream: HostStream) {
        let Some(ticket) = self.next_ticket() else {
            self.metrics.conns_refused.inc();
            return;
        };
        if let Err(error) = self.watch(ticket, &stream) {
            self.metrics.muxer_event_fails.inc();
            crate::guest_warn!("vsock: cannot watch a host program's socket: {error}");
            return;
        }
        let deadline = self.deadlines.set(ticket, KNOCK_PATIENCE);
        self.seats.take(ticket, Sitter::Visitor(Visitor { stream, deadline }));
    }

    fn answer(&mut self, ticket: Ticket, knock: Knock, hung_up: bool) {
        match knock {
            Knock::Unfinished => {}
            Knock::Nonsense => {
                self.metrics.handshake_fails.inc();
                self.remove(ticket);
            }
            Knock::Port(guest) => {
                let ports = Ports { host: self.seats.host_port(guest), guest };
                let (room, now) = (self.room(), self.deadlines.now());
                let deadlines = &mut self.deadlines;
                self.seats.promote(ticket, |visitor| {
                    deadlines.lift(ticket, visitor.deadline);
                    let mut connection = Connection::new(ports, Link::ask(room), visitor.stream, now);
                    connection.deadline = Some(deadlines.set(ticket, PATIENCE));
                    connection.became_readable(hung_up);
                    Box::new(connection)
                });
                self.metrics.conns_added.inc();
                self.settle(ticket);
            }
        }
    }

    /// The timer reports.
    pub fn on_timer(&mut self) {
        while let Some(ticket) = self.deadlines.next_expired() {
            match self.seats.get_mut(ticket) {
                None if ticket == LISTENER => {
                    self.reminded = false;
                    self.welcome();
                }
                None => {}
                Some(Sitter::Visitor(_)) => {
                    self.metrics.handshake_fails.inc();
                    self.remove(ticket);
                }
                Some(Sitter::Connection(connection)) => {
                    connection.deadline = None;
                    if connection.link.phase() == Phase::Open && connection.has_backlog() {
                        self.linger(ticket);
                    } else {
                        self.kill(ticket);
                    }
                }
            }
        }
    }

    // To the guest.

    /// Whether the guest may have to be sent something.
    pub fn has_turns(&self) -> bool {
        !self.refusals.is_empty() || !self.ready.is_empty()
    }

    /// What the guest is to be sent next. There must be a receive buffer for it. `None` does not mean that nobody has anything to say:
    /// see [`Self::has_turns`].
    pub fn next_turn(&mut self) -> Option<Turn> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(Turn::Control(refusal));
        }
        let ticket = self.ready.pop_front()?;
        let connection = self.seats.connection(ticket)?;
        connection.queued = false;
        if !connection.wants_turn() {
            return None;
        }
        if let Some((op, flags)) = connection.link.next_control() {
            let header = connection.header(self.guest_cid, op, flags);
            self.queue(ticket);
            return Some(Turn::Control(header));
        }
        Some(Turn::Data { ticket, credit: connection.link.credit(), appetite: connection.appetite() })
    }

    /// Reads data of a connection whose turn it is into receive buffers. How much it was, and the header of packets that bring it.
    pub fn fetch(&mut self, ticket: Ticket, pieces: &[GuestIoVec]) -> Option<(usize, Header)> {
        let connection = self.seats.connection(ticket)?;
        match connection.fetch(pieces, &self.metrics) {
            Fetched::Data(count) => {
                let header = connection.header(self.guest_cid, op::RW, 0);
                self.queue(ticket);
                Some((count, header))
            }
            Fetched::Nothing | Fetched::End => {
                self.settle(ticket);
                None
            }
            Fetched::Broken => {
                self.kill(ticket);
                None
            }
        }
    }

    /// How many of the receive buffers [`Self::fetch`] was offered were filled.
    pub fn learn_appetite(&mut self, ticket: Ticket, used: u16, offered: u16) {
        if let Some(connection) = self.seats.connection(ticket) {
            connection.learn_appetite(used, offered);
        }
    }

    /// Puts a connection that has something to say into the queue.
    fn queue(&mut self, ticket: Ticket) {
        if let Some(connection) = self.seats.connection(ticket)
            && !connection.queued
            && connection.wants_turn()
        {
            connection.queued = true;
            self.ready.push_back(ticket);
        }
    }

    // Comings and goings.

    /// Draws the consequences of anything that happened to a connection.
    fn settle(&mut self, ticket: Ticket) {
        let Some(connection) = self.seats.connection(ticket) else { return };
        match connection.settle() {
            Fate::Finished if connection.lingering => return self.remove(ticket),
            Fate::Finished => {
                self.refusals.push_back(Header::to_guest(self.guest_cid, connection.ports, op::RST));
                return self.remove(ticket);
            }
            Fate::Closing if connection.deadline.is_none() && !connection.lingering => {
                connection.deadline = Some(self.deadlines.set(ticket, PATIENCE));
            }
            Fate::Closing | Fate::Stays => {}
        }
        let wants_room = connection.has_backlog();
        if connection.watched_for_room != wants_room {
            connection.watched_for_room = wants_room;
            let more = if wants_room { EventSet::OUT } else { EventSet::empty() };
            let event = EpollEvent::new(WATCHED | more, ticket.to_bits());
            if self.epoll.ctl(ControlOperation::Modify, connection.stream().as_raw_fd(), event).is_err() {
                // It was watched before and is still open, so the kernel has no reason to refuse.
                self.metrics.muxer_event_fails.inc();
                return self.kill(ticket);
            }
        }
        self.queue(ticket);
    }

    /// The guest is told that the connection is over; what it sent is still written when the host reads on.
    fn linger(&mut self, ticket: Ticket) {
        let Some(connection) = self.seats.connection(ticket) else { return };
        connection.lingering = true;
        let ports = connection.ports;
        self.refusals.push_back(Header::to_guest(self.guest_cid, ports, op::RST));
        self.seats.release_ports(ports);
        self.settle(ticket);
    }

    /// Ends a connection by force.
    fn kill(&mut self, ticket: Ticket) {
        if let Some(connection) = self.seats.connection(ticket) {
            if !connection.lingering && !connection.link.is_unheard_of() {
                self.refusals.push_back(Header::to_guest(self.guest_cid, connection.ports, op::RST));
            }
            self.metrics.conns_killed.inc();
            self.remove(ticket);
        }
    }

    /// Ends a connection without a word to the guest.
    fn remove(&mut self, ticket: Ticket) {
        match self.seats.leave(ticket) {
            Some(Sitter::Connection(connection)) => {
                self.metrics.conns_removed.inc();
                if let Some(at) = connection.deadline {
                    self.deadlines.lift(ticket, at);
                }
                if connection.queued {
                    self.ready.retain(|queued| *queued != ticket);
                }
            }
            Some(Sitter::Visitor(visitor)) => self.deadlines.lift(ticket, visitor.deadline),
            None => {}
        }
    }

    /// A seat for somebody new, if need be that of somebody who does not use it.
    fn next_ticket(&mut self) -> Option<Ticket> {
        if self.seats.is_full() {
            let now = self.deadlines.now();
            let late = now.checked_add(KNOCK_PATIENCE.saturating_sub(PATIENCE)).unwrap_or(now);
            let idler = self.seats.find_sitter(|sitter| match sitter {
                Sitter::Visitor(visitor) => visitor.deadline < late,
                Sitter::Connection(c) => c.lingering && now.saturating_duration_since(c.progress) > PATIENCE,
            })?;
            self.metrics.idlers_evicted.inc();
            self.remove(idler);
        }
        self.seats.next_ticket()
    }

    /// Room for data from the guest that a new connection gets.
    fn room(&self) -> u32 {
        if self.seats.taken() < FEW { GENEROUS_ROOM } else { ROOM }
    }

    fn watch(&self, ticket: Ticket, stream: &HostStream) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(WATCHED, ticket.to_bits()))
    }
}

/// What is always of interest. Room to write is only while something waits to be written: else each read by the host would wake us.
const WATCHED: EventSet = EventSet::IN.union(EventSet::READ_HANG_UP).union(EventSet::EDGE_TRIGGERED);
