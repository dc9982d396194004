//! One connection: its [`Link`] to the guest, its host socket, and what waits between them.
//!
//! To the guest nothing waits: data stays in the socket until guest and credit can take it. To the host, what the socket does not take
//! waits in the [`Outbox`], which the credit we give bounds.

use std::io;
use std::net::Shutdown;
use std::time::Instant;

use super::link::{Link, Phase};
use super::metrics::VsockMetrics;
use super::outbox::Outbox;
use super::packet::{Header, Ports, Shut};
use crate::sys::iovec::GuestIoVec;
use crate::sys::unix_stream::HostStream;
use crate::virtio::chain;

/// Most receive buffers that are filled by one read.
pub const MAX_APPETITE: u16 = 64;

/// What became of a read for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// So many bytes are there.
    Data(usize),
    /// Nothing now; the socket will report.
    Nothing,
    /// The host will send no more.
    End,
    /// The host program went away and did not read all it was sent.
    Broken,
}

/// What is to become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Stays,
    /// It goes on for a while: the other side has to answer, or to read, in time.
    Closing,
    /// Both sides are done with it.
    Finished,
}

/// A connection between a host program and the guest.
#[derive(Debug)]
pub struct Connection {
    /// Its ends.
    pub ports: Ports,
    /// How the guest sees it.
    pub link: Link,
    /// Its time limit, if it has one.
    pub deadline: Option<Instant>,
    /// It waits for its turn to send to the guest.
    pub queued: bool,
    /// The guest is through with it; only the outbox is left.
    pub lingering: bool,
    /// When the host last took something from the outbox.
    pub progress: Instant,
    /// The socket is watched for being writable.
    pub watched_for_room: bool,
    stream: HostStream,
    outbox: Outbox,
    /// There may be something to read.
    readable: bool,
    /// The host program is gone altogether.
    hung_up: bool,
    /// What was closed on the socket.
    closed: Shut,
    /// How many receive buffers the next read is likely to fill.
    appetite: u16,
}

impl Connection {
    /// A connection on `stream`, which may have something to read if it is that of a host program that asked for it.
    pub fn new(ports: Ports, link: Link, stream: HostStream, now: Instant) -> Self {
        Self {
            ports,
            deadline: None,
            queued: false,
            lingering: false,
            progress: now,
            watched_for_room: false,
            readable: link.phase() == Phase::Asking,
            hung_up: false,
            closed: Shut::empty(),
            appetite: 1,
            link,
            stream,
            outbox: Outbox::default(),
        }
    }

    /// The host's socket.
    pub fn stream(&self) -> &HostStream {
        &self.stream
    }

    /// Whether guest data waits for the host.
    pub fn has_backlog(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// The socket can be read, or came to an end; `hung_up` says that the other side is closed altogether.
    pub fn became_readable(&mut self, hung_up: bool) {
        self.readable = true;
        self.hung_up |= hung_up;
    }

    /// Tells the host program that the guest accepted.
    pub fn say_ok(&mut self) -> bool {
        let line = format!("OK {}\n", self.ports.host);
        match self.stream.send_bytes(line.as_bytes()) {
            // Nothing was written before, so there is room for it.
            Ok(count) => count == line.len(),
            // It may have sent what it had to say and gone.
            Err(_) => {
                self.link.shut(Shut::RECEIVE);
                true
            }
        }
    }

    /// Passes guest data on: to the socket as far as it goes, the rest to the outbox.
    pub fn pass_on(&mut self, pieces: &[GuestIoVec], metrics: &VsockMetrics) {
        let len = GuestIoVec::total(pieces);
        metrics.tx_bytes_count.add(len as u64);
        if self.link.host_shut().contains(Shut::RECEIVE) {
            // Nobody will read it.
            self.link.forwarded(len as u32);
            return;
        }
        let mut sent = 0;
        if self.outbox.is_empty() {
            match self.stream.send(pieces) {
                Ok(count) => sent = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    metrics.tx_write_fails.inc();
                    self.link.forwarded(len as u32);
                    self.link.shut(Shut::RECEIVE);
                    return;
                }
            }
            self.link.forwarded(sent as u32);
        }
        if sent < len {
            let mut rest = Vec::new();
            // Cannot fail: `sent` was counted in these pieces.
            let _ = chain::cut(pieces, sent, len.saturating_sub(sent), &mut rest);
            self.outbox.push(&rest);
        }
    }

    /// Writes what waits for the host, as far as it goes.
    pub fn flush(&mut self, metrics: &VsockMetrics, now: Instant) {
        let (written, outcome) = self.outbox.flush(&self.stream);
        self.link.forwarded(written as u32);
        if written > 0 {
            self.progress = now;
        }
        if outcome.is_err() {
            metrics.tx_flush_fails.inc();
            self.link.forwarded(self.outbox.len() as u32);
            self.outbox.clear();
            self.link.shut(Shut::RECEIVE);
        }
    }

    /// Whether the guest could be sent something now. Asks for credit if that is all that is missing.
    pub fn wants_turn(&mut self) -> bool {
        if self.lingering {
            return false;
        }
        if self.readable {
            self.link.starve();
        }
        self.link.owes() || (self.readable && self.link.credit() > 0)
    }

    /// How many receive buffers to get ready for [`Self::fetch`].
    pub fn appetite(&self) -> u16 {
        self.appetite
    }

    /// Reads from the host into `pieces`, which hold at most [`Link::credit`] bytes.
    pub fn fetch(&mut self, pieces: &[GuestIoVec], metrics: &VsockMetrics) -> Fetched {
        match self.stream.receive(pieces) {
            Ok(0) => {
                self.readable = false;
                self.link.shut(if self.hung_up { Shut::all() } else { Shut::SEND });
                Fetched::End
            }
            Ok(count) => {
                metrics.rx_bytes_count.add(count as u64);
                self.link.data_sent(count as u32);
                Fetched::Data(count)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                self.appetite = (self.appetite / 2).max(1);
                Fetched::Nothing
            }
            Err(_) => {
                metrics.rx_read_fails.inc();
                self.readable = false;
                Fetched::Broken
            }
        }
    }

    /// The last read filled `used` of the `offered` receive buffers.
    pub fn learn_appetite(&mut self, used: u16, offered: u16) {
        let next = if used >= offered { used.saturating_mul(2) } else { used };
        self.appetite = next.clamp(1, MAX_APPETITE);
    }

    /// Draws the consequences of what happened: directions are closed on the socket once what belongs before that is written.
    pub fn settle(&mut self) -> Fate {
        let guest = self.link.guest_shut();
        if self.hung_up && (guest.contains(Shut::RECEIVE) || self.link.host_shut().contains(Shut::SEND)) {
            self.link.shut(Shut::all());
        }
        if guest.contains(Shut::RECEIVE) && !self.closed.contains(Shut::RECEIVE) {
            self.closed |= Shut::RECEIVE;
            self.stream.shut_down(Shutdown::Read);
        }
        if guest.contains(Shut::SEND) && self.outbox.is_empty() && !self.closed.contains(Shut::SEND) {
            self.closed |= Shut::SEND;
            self.stream.shut_down(Shutdown::Write);
        }
        if guest == Shut::all() || self.lingering {
            // The guest is through. The host gets what is left.
            if self.outbox.is_empty() { Fate::Finished } else { Fate::Closing }
        } else if self.link.host_shut() == Shut::all() {
            // The guest has to confirm (§5.10.6.5).
            Fate::Closing
        } else {
            Fate::Stays
        }
    }

    /// A packet of this connection, with what the guest should know about our room.
    pub fn header(&self, guest_cid: u64, op: u16, flags: u32) -> Header {
        let (buf_alloc, fwd_cnt) = self.link.credit_fields();
        Header {
            flags: flags.into(),
            buf_alloc: buf_alloc.into(),
            fwd_cnt: fwd_cnt.into(),
            ..Header::to_guest(guest_cid, self.ports, op)
        }
    }
}
