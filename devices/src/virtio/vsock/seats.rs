//! The places that connections have. There are only so many, so that neither guest nor host can use up memory or descriptors.

use std::collections::HashMap;

use super::connection::Connection;
use super::packet::Ports;
use crate::sys::unix_stream::HostStream;

/// Most connections at a time, those of host programs that have not yet said what they want included.
pub const MAX_SEATS: usize = 1023;

/// First port given to a host program.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// Names who has a seat. Never given to two of them, so that a late event does not reach the wrong one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    index: u32,
    turn: u32,
}

impl Ticket {
    /// The `turn`th to have seat `index`.
    pub const fn new(index: u32, turn: u32) -> Self {
        Self { index, turn }
    }

    /// As the kernel keeps it for us.
    pub fn to_bits(self) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.turn)
    }

    /// The reverse of [`Self::to_bits`].
    pub fn from_bits(bits: u64) -> Self {
        Self { index: (bits >> 32) as u32, turn: bits as u32 }
    }
}

/// Who has a seat.
#[derive(Debug)]
pub enum Sitter {
    /// A host program that has not yet said what it wants.
    Visitor(Visitor),
    /// A connection.
    Connection(Box<Connection>),
}

/// A host program that has not yet said what it wants.
#[derive(Debug)]
pub struct Visitor {
    /// Its socket.
    pub stream: HostStream,
    /// When it has to go.
    pub deadline: std::time::Instant,
}

#[derive(Debug, Default)]
struct Seat {
    turn: u32,
    sitter: Option<Sitter>,
}

/// All seats.
#[derive(Debug)]
pub struct Seats {
    seats: Vec<Seat>,
    free: Vec<u32>,
    by_ports: HashMap<Ports, Ticket>,
    next_host_port: u32,
}

impl Seats {
    /// All free.
    pub fn new() -> Self {
        Self { seats: Vec::new(), free: Vec::new(), by_ports: HashMap::new(), next_host_port: FIRST_HOST_PORT }
    }

    /// Where the next host program's port is looked for.
    pub fn next_host_port(&self) -> u32 {
        self.next_host_port
    }

    /// Looks there from now on; at the first port, if it is none for a host program.
    pub fn go_on_at_host_port(&mut self, next: u32) {
        self.next_host_port = next.max(FIRST_HOST_PORT);
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.seats.len().saturating_sub(self.free.len())
    }

    /// Whether none is free.
    pub fn is_full(&self) -> bool {
        self.taken() >= MAX_SEATS
    }

    /// The ticket that the next one to [`Self::take`] a seat will have. `None` if there is no seat.
    pub fn next_ticket(&mut self) -> Option<Ticket> {
        if self.free.is_empty() {
            if self.is_full() {
                return None;
            }
            self.free.push(u32::try_from(self.seats.len()).ok()?);
            self.seats.push(Seat::default());
        }
        let index = *self.free.last()?;
        Some(Ticket { index, turn: self.seats.get(index as usize)?.turn })
    }

    /// Seats `sitter` with the ticket that [`Self::next_ticket`] just told.
    pub fn take(&mut self, ticket: Ticket, sitter: Sitter) {
        if let Some(seat) = self.seats.get_mut(ticket.index as usize)
            && seat.turn == ticket.turn
            && self.free.pop_if(|index| *index == ticket.index).is_some()
        {
            if let Sitter::Connection(connection) = &sitter {
                self.by_ports.insert(connection.ports, ticket);
            }
            seat.sitter = Some(sitter);
        }
    }

    /// A visitor becomes a connection.
    pub fn promote(&mut self, ticket: Ticket, promote: impl FnOnce(Visitor) -> Box<Connection>) {
        let Some(seat) = self.seats.get_mut(ticket.index as usize).filter(|seat| seat.turn == ticket.turn) else {
            return;
        };
        seat.sitter = match seat.sitter.take() {
            Some(Sitter::Visitor(visitor)) => {
                let connection = promote(visitor);
                self.by_ports.insert(connection.ports, ticket);
                Some(Sitter::Connection(connection))
            }
            other => other,
        };
    }

    /// Who has this ticket, if still there.
    pub fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Sitter> {
        let seat = self.seats.get_mut(ticket.index as usize).filter(|seat| seat.turn == ticket.turn)?;
        seat.sitter.as_mut()
    }

    /// The connection with this ticket.
    pub fn connection(&mut self, ticket: Ticket) -> Option<&mut Connection> {
        match self.get_mut(ticket)? {
            Sitter::Connection(connection) => Some(connection),
            Sitter::Visitor(_) => None,
        }
    }

    /// The connection between these ports.
    pub fn find(&self, ports: Ports) -> Option<Ticket> {
        self.by_ports.get(&ports).copied()
    }

    /// The guest may use the ports of this connection for another one.
    pub fn release_ports(&mut self, ports: Ports) {
        self.by_ports.remove(&ports);
    }

    /// Frees a seat.
    pub fn leave(&mut self, ticket: Ticket) -> Option<Sitter> {
        let seat = self.seats.get_mut(ticket.index as usize).filter(|seat| seat.turn == ticket.turn)?;
        let sitter = seat.sitter.take()?;
        seat.turn = seat.turn.wrapping_add(1);
        self.free.push(ticket.index);
        if let Sitter::Connection(connection) = &sitter
            && self.by_ports.get(&connection.ports) == Some(&ticket)
        {
            self.by_ports.remove(&connection.ports);
        }
        Some(sitter)
    }

    /// The first one for whom `is_it` holds.
    pub fn find_sitter(&self, is_it: impl Fn(&Sitter) -> bool) -> Option<Ticket> {
        let index = self.seats.iter().position(|seat| seat.sitter.as_ref().is_some_and(&is_it))?;
        Some(Ticket { index: u32::try_from(index).ok()?, turn: self.seats.get(index)?.turn })
    }

    /// Frees all seats; the number of connections there were. Tickets given before stay void.
    pub fn clear(&mut self) -> u64 {
        let mut connections = 0u64;
        self.by_ports = HashMap::new();
        self.free.clear();
        for (index, seat) in (0u32..).zip(&mut self.seats) {
            if let Some(sitter) = seat.sitter.take() {
                seat.turn = seat.turn.wrapping_add(1);
                connections = connections.saturating_add(matches!(sitter, Sitter::Connection(_)).into());
            }
            self.free.push(index);
        }
        connections
    }

    /// A port for a host program that wants to talk to the guest's port `guest`.
    pub fn host_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_host_port;
            self.next_host_port = host.wrapping_add(1) & (FIRST_HOST_PORT - 1) | FIRST_HOST_PORT;
            // There are a million times as many ports as seats.
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }
}
