//! One connection: requests in, answers out, and how long it may take.

use std::time::{Duration, Instant};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use super::answer::{self, Answer};
use super::http::{self, MAX_REQUEST, Reading};
use super::{Manner, Mmds};

/// What is given to TCP at once.
const SEND_BUFFER: usize = 16 << 10;
/// An answer of this size is kept in any case.
const SMALL: usize = 4 << 10;

/// Time to complete the handshake.
const OPENING: Duration = Duration::from_secs(3);
/// Time from a request's first byte to its last.
const ASKING: Duration = Duration::from_secs(10);
/// Time in which a client must take at least something of an answer.
const FETCHING: Duration = Duration::from_secs(30);
/// Time in which others must have fetched enough of theirs.
const WAITING: Duration = Duration::from_secs(60);
/// Time to take leave.
const LEAVING: Duration = Duration::from_secs(5);
/// When there are too many, room for a new one is made by one that has been idle so long,
const IDLE: Duration = Duration::from_secs(10);
/// or has not completed its handshake in this time.
const HALF_OPEN: Duration = Duration::from_secs(1);

/// A connection's state beside that of its socket.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: SocketHandle,
    /// The answer being sent, and how much of it TCP has.
    pending: Option<(Answer, usize)>,
    /// No more requests are read; what still comes is thrown away.
    leaving: bool,
    /// The answer to the next request is large and waits until others have fetched theirs.
    pub(super) postponed: bool,
    /// What it is doing, and since when.
    doing: Doing,
    since: Instant,
    /// Bytes of answers that the client does not have yet.
    owed: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Opening,
    Idle,
    Asking,
    Waiting,
    Fetching,
    Leaving,
}

impl Doing {
    fn limit(self) -> Option<Duration> {
        match self {
            Doing::Opening => Some(OPENING),
            Doing::Idle => None,
            Doing::Asking => Some(ASKING),
            Doing::Waiting => Some(WAITING),
            Doing::Fetching => Some(FETCHING),
            Doing::Leaving => Some(LEAVING),
        }
    }
}

/// Buffers for a connection. Its listening lasts only until the packet at hand has been looked at.
pub(super) fn listener(port: u16) -> Socket<'static> {
    let mut socket = Socket::new(SocketBuffer::new(vec![0; MAX_REQUEST]), SocketBuffer::new(vec![0; SEND_BUFFER]));
    // Answers are written as a whole: there is nothing to wait for, and no timer to wait with.
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    // Fails only for port 0.
    let _ = socket.listen(port);
    socket
}

impl Connection {
    /// A connection that was just asked for.
    pub(super) fn new(socket: SocketHandle, now: Instant) -> Self {
        let (pending, leaving, postponed) = (None, false, false);
        Self { socket, pending, leaving, postponed, doing: Doing::Opening, since: now, owed: 0 }
    }

    /// Answers what was asked, as far as there is room to send. `room` says whether one more
    /// large answer may be kept in memory.
    pub(super) fn serve(&mut self, socket: &mut Socket<'_>, mmds: &Mmds, manner: Manner, room: bool, now: Instant) {
        // As many requests as fit the receive buffer, at most.
        while self.flush(socket) {
            if self.leaving {
                while socket.recv(|bytes| (bytes.len(), bytes.len())).is_ok_and(|len| len > 0) {}
                break;
            }
            // Not even looked up: that may take long.
            if self.postponed && !room {
                break;
            }
            self.postponed = false;
            if !self.take_request(socket, mmds, manner, room, now) {
                break;
            }
        }
        self.note_progress(socket, now);
    }

    /// Hands TCP what it takes of the answer. Whether nothing of it is left.
    fn flush(&mut self, socket: &mut Socket<'_>) -> bool {
        let Some((answer, sent)) = &mut self.pending else { return true };
        loop {
            let head_left = answer.head.get(*sent..).unwrap_or_default();
            let body_sent = sent.saturating_sub(answer.head.len());
            let rest = if head_left.is_empty() { answer.body.get(body_sent..).unwrap_or_default() } else { head_left };
            if rest.is_empty() {
                break;
            }
            match socket.send_slice(rest) {
                // A full buffer, or a client that is gone.
                Ok(0) | Err(_) => return false,
                Ok(len) => *sent = sent.saturating_add(len),
            }
        }
        if answer.closes {
            self.leave(socket);
        }
        self.pending = None;
        true
    }

    /// Reads one request and makes the answer. `false` if there is none to be made.
    fn take_request(&mut self, socket: &mut Socket<'_>, mmds: &Mmds, manner: Manner, room: bool, now: Instant) -> bool {
        let mut buffer = [0; MAX_REQUEST];
        let len = socket.peek_slice(&mut buffer).unwrap_or(0);
        let bytes = buffer.get(..len).unwrap_or_default();
        let (answer, used) = match http::read(bytes) {
            Reading::Incomplete => {
                // The client has closed its side: there will be no more of it.
                if socket.state() == State::CloseWait {
                    self.leave(socket);
                }
                return false;
            }
            Reading::Whole(request, used) => (answer::answer(mmds, manner, &request, now), used),
            Reading::Bad(bad) => (answer::refuse(bad), len),
        };
        if !room && answer.body.len() > SMALL {
            self.postponed = true;
            return false;
        }
        // The same bytes once more, to drop them.
        let _ = socket.recv_slice(buffer.get_mut(..used).unwrap_or_default());
        self.pending = Some((answer, 0));
        true
    }

    fn leave(&mut self, socket: &mut Socket<'_>) {
        self.leaving = true;
        socket.close();
    }

    fn note_progress(&mut self, socket: &Socket<'_>, now: Instant) {
        let unsent = self
            .pending
            .as_ref()
            .map_or(0, |(answer, sent)| answer.head.len().saturating_add(answer.body.len()).saturating_sub(*sent));
        let owed = socket.send_queue().saturating_add(unsent);
        let doing = match socket.state() {
            State::Listen | State::SynReceived => Doing::Opening,
            _ if owed > 0 => Doing::Fetching,
            _ if self.postponed => Doing::Waiting,
            State::Established if socket.recv_queue() > 0 => Doing::Asking,
            State::Established => Doing::Idle,
            _ => Doing::Leaving,
        };
        // A request that waits for its next byte does not get more time with it; an answer being fetched does.
        let fetched = doing == Doing::Fetching && owed != self.owed;
        let idle_again = doing == Doing::Idle;
        if doing != self.doing || fetched || idle_again {
            self.since = now;
        }
        (self.doing, self.owed) = (doing, owed);
    }

    /// Bytes of the answer that is kept for it.
    pub(super) fn kept(&self) -> usize {
        self.pending.as_ref().map_or(0, |(answer, _)| answer.body.len())
    }

    /// When it has taken too long.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.since.checked_add(self.doing.limit()?)
    }

    /// Whether it can be given up for a new one, and since when it does what it does.
    pub(super) fn expendable(&self, now: Instant) -> Option<Instant> {
        let patience = match self.doing {
            Doing::Leaving => Duration::ZERO,
            Doing::Idle => IDLE,
            Doing::Opening => HALF_OPEN,
            Doing::Asking | Doing::Waiting | Doing::Fetching => return None,
        };
        (now.saturating_duration_since(self.since) >= patience).then_some(self.since)
    }
}
