//! The service behind one card: frames in, frames out, and when to look again.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::time::Instant as Moment;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::connection::{self, Connection};
pub use super::ethernet::Checksum;
use super::ethernet::{self, Frame, Segment};
use super::wire::Wire;
use super::{Manner, Mmds};

const PORT: u16 = 80;
/// Connections at a time (v1 contract).
const MAX_CONNECTIONS: usize = 30;
/// Bytes of answers that are kept for slow clients, all together, before the next large one has to wait.
const MAX_KEPT: usize = 1 << 20;
/// Shortest time between two looks, whatever TCP says.
const MIN_WAIT: Duration = Duration::from_millis(10);

/// The service at its address behind one card. It has no thread and no descriptor: whoever owns it brings frames and time.
pub struct Stack {
    mmds: Arc<Mmds>,
    manner: Manner,
    address: Ipv4Addr,
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    wire: Wire,
    /// What smoltcp's time counts from.
    born: Instant,
    /// The last look.
    woken: Instant,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("address", &self.address).field("connections", &self.connections).finish()
    }
}

impl Stack {
    /// Bytes at the start of a frame that [`Self::concerns`] looks at.
    pub const START_LEN: usize = ethernet::START_LEN;
    /// Longest frame that is looked at: what fits a connection's receive buffer, under the largest headers.
    pub const MAX_FRAME_LEN: usize = 4096;

    /// The service at `address`, which is a unicast one. `seed` makes sequence numbers hard to guess.
    pub fn new(mmds: Arc<Mmds>, manner: Manner, address: Ipv4Addr, seed: u64, now: Instant) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut wire, Moment::ZERO);
        // Everyone is a neighbour: guests have whatever address they like.
        interface.update_ip_addrs(|addresses| {
            // There is room for two.
            let _ = addresses.push(IpCidr::new(IpAddress::from(address), 0));
        });
        let sockets = SocketSet::new(Vec::new());
        Self { mmds, manner, address, interface, sockets, connections: Vec::new(), wire, born: now, woken: now }
    }

    /// Whether the frame that begins with `start` is for the service and for nobody else.
    pub fn concerns(&self, start: &[u8]) -> bool {
        ethernet::concerns(start, self.address)
    }

    /// Takes a frame from the guest.
    pub fn take(&mut self, frame: &[u8], checksum: Checksum, now: Instant) {
        let metrics = self.mmds.metrics.clone();
        metrics.rx_accepted.inc();
        match ethernet::read(frame, self.address, checksum) {
            // The guest does not fetch its answers. What it repeats then may find room.
            _ if !self.wire.has_room() => metrics.rx_accepted_err.inc(),
            Frame::Question(answer) => {
                metrics.rx_count.inc();
                self.wire.send(&answer);
            }
            Frame::Segment(segment) => {
                metrics.rx_count.inc();
                self.take_segment(&segment, now);
            }
            Frame::Unusual => metrics.rx_accepted_unusual.inc(),
            Frame::Malformed => metrics.rx_accepted_err.inc(),
            Frame::NotOurs => metrics.rx_bad_eth.inc(),
        }
    }

    /// A frame that concerns the service is not even looked at: it is longer than [`Self::MAX_FRAME_LEN`], or changed while it was read.
    pub fn refuse(&mut self) {
        self.mmds.metrics.rx_accepted.inc();
        self.mmds.metrics.rx_accepted_err.inc();
    }

    fn take_segment(&mut self, segment: &Segment<'_>, now: Instant) {
        let moment = self.moment(now);
        let remote = (IpAddress::from(segment.address), segment.port).into();
        let of_remote = |sockets: &SocketSet<'_>, connection: &Connection| {
            sockets.get::<Socket<'_>>(connection.socket).remote_endpoint() == Some(remote)
        };
        let known = self.connections.iter().position(|connection| of_remote(&self.sockets, connection));
        if segment.to != PORT {
            self.mmds.metrics.rx_accepted_unusual.inc();
        } else if segment.opens {
            // A client may use its port again before we have forgotten the last time.
            let again = known.filter(|old| self.socket_state(*old) == Some(State::TimeWait));
            if let Some(old) = again {
                self.remove(old);
            }
            if (known.is_none() || again.is_some()) && self.make_room(now) {
                let socket = self.sockets.add(connection::listener(PORT));
                self.connections.push(Connection::new(socket, now));
                self.mmds.metrics.connections_created.inc();
            }
        }
        self.wire.put_in(segment.packet, segment.address, segment.mac);
        self.interface.poll_ingress_single(moment, &mut self.wire, &mut self.sockets);
        // Nobody listens between two packets: neither for what TCP did not like nor after a reset in the middle of a handshake.
        for index in (0..self.connections.len()).rev() {
            if self.socket_state(index) == Some(State::Listen) {
                self.remove(index);
            }
        }
        self.go_on(now, |sockets, connection| of_remote(sockets, connection));
    }

    /// Sees to it that there is room for one more connection; `false` if all are needed.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.connections.len() < MAX_CONNECTIONS {
            return true;
        }
        let expendable = |(index, connection): (usize, &Connection)| Some((connection.expendable(now)?, index));
        let Some((_, index)) = self.connections.iter().enumerate().filter_map(expendable).min() else {
            self.mmds.metrics.rx_accepted_unusual.inc();
            return false;
        };
        self.abort(index, now);
        true
    }

    /// Resets a connection.
    fn abort(&mut self, index: usize, now: Instant) {
        if let Some(connection) = self.connections.get(index) {
            let socket = self.sockets.get_mut::<Socket<'_>>(connection.socket);
            // Then the client knows already.
            if socket.state() != State::TimeWait {
                socket.abort();
                self.send(now);
            }
            self.remove(index);
        }
    }

    fn remove(&mut self, index: usize) {
        if index < self.connections.len() {
            let connection = self.connections.swap_remove(index);
            self.sockets.remove(connection.socket);
            self.mmds.metrics.connections_destroyed.inc();
        }
    }

    fn socket_state(&self, index: usize) -> Option<State> {
        self.connections.get(index).map(|connection| self.sockets.get::<Socket<'_>>(connection.socket).state())
    }

    /// Serves the connections that `has_news` (and those that wait for others), sends what there is to send, and gives
    /// up what has ended or taken too long.
    fn go_on(&mut self, now: Instant, has_news: impl Fn(&SocketSet<'_>, &Connection) -> bool) {
        let mut kept = self.kept();
        for connection in &mut self.connections {
            if (connection.postponed && kept < MAX_KEPT) || has_news(&self.sockets, connection) {
                let before = connection.kept();
                let socket = self.sockets.get_mut(connection.socket);
                connection.serve(socket, &self.mmds, self.manner, kept < MAX_KEPT, now);
                kept = kept.saturating_sub(before).saturating_add(connection.kept());
            }
        }
        self.send(now);
        for index in (0..self.connections.len()).rev() {
            if self.socket_state(index) == Some(State::Closed) {
                self.remove(index);
            } else if self.connections.get(index).and_then(Connection::deadline).is_some_and(|limit| limit <= now) {
                self.abort(index, now);
            }
        }
    }

    /// Lets TCP send what it has, as far as the wire takes it.
    fn send(&mut self, now: Instant) {
        let moment = self.moment(now);
        // Each turn but the last one fills a place on the wire.
        while self.interface.poll_egress(moment, &mut self.wire, &mut self.sockets) == PollResult::SocketStateChanged {}
    }

    /// Whether the guest has a frame to fetch.
    pub fn has_frames(&self) -> bool {
        self.wire.front().is_some()
    }

    /// The frame the guest gets next.
    pub fn front(&self) -> Option<&[u8]> {
        self.wire.front()
    }

    /// The guest has got the frame at the front, or has lost it because its buffer was too small.
    pub fn pop(&mut self, delivered: bool, now: Instant) {
        let len = self.wire.front().map_or(0, <[u8]>::len);
        let metrics = &self.mmds.metrics;
        if delivered {
            metrics.tx_count.inc();
            metrics.tx_frames.inc();
            metrics.tx_bytes.add(len as u64);
        } else {
            metrics.tx_errors.inc();
        }
        if self.wire.pop() {
            self.send(now);
        }
    }

    /// When to [`Self::wake`] it, if nothing else happens. Without connections that wait for something, never.
    pub fn wake_at(&mut self, now: Instant) -> Option<Instant> {
        let limits = self.connections.iter().filter_map(Connection::deadline).min();
        // While the guest fetches nothing, there is no use in repeating anything.
        let moment = self.moment(now);
        let tcp = if self.connections.is_empty() || self.wire.is_held_back() {
            None
        } else {
            self.interface.poll_delay(moment, &self.sockets)
        };
        let tcp = tcp.map(|delay| Duration::from_micros(delay.total_micros()));
        let wait = match (limits.map(|limit| limit.saturating_duration_since(now)), tcp) {
            (Some(limit), Some(tcp)) => limit.min(tcp),
            (limit, tcp) => limit.or(tcp)?,
        };
        Some(now.checked_add(wait)?.max(self.woken.checked_add(MIN_WAIT)?))
    }

    /// The time asked for has come.
    pub fn wake(&mut self, now: Instant) {
        self.woken = now;
        self.go_on(now, |_, _| false);
    }

    /// The guest's driver starts anew: connections and frames of the last one are forgotten.
    pub fn reset(&mut self) {
        for index in (0..self.connections.len()).rev() {
            self.remove(index);
        }
        self.wire = Wire::default();
    }

    fn moment(&self, now: Instant) -> Moment {
        let micros = now.saturating_duration_since(self.born).as_micros();
        Moment::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// Bytes of answers that are kept.
    pub(super) fn kept(&self) -> usize {
        self.connections.iter().fold(0, |sum, connection| sum.saturating_add(connection.kept()))
    }

    /// Connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Frames that wait for the guest.
    pub fn waiting(&self) -> usize {
        self.wire.waiting()
    }
}
