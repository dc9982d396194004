//! One connection as the two sides of the rings see it: phases, half-closed directions and credit (virtio 1.3 §5.10.6.3 to §5.10.6.5).
//!
//! Nothing here reads or writes anything. The owner tells a [`Link`] what arrived and what became of it, and asks what may be sent. All
//! byte counts are modulo 2^32, as the packets have them.

use bitflags::bitflags;

use super::packet::{Header, Shut, op};

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The guest is asked to accept.
    Asking,
    /// Data may flow.
    Open,
}

/// What a packet from the guest means for its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Nothing to do but to look again at what may be sent.
    Credit,
    /// The guest accepted.
    Accepted,
    /// Its `len` bytes of data are to be passed on, see [`Link::forwarded`].
    Data,
    /// The guest closed a direction: see [`Link::guest_shut`].
    Shut,
    /// The guest ended or refused the connection.
    Reset,
    /// It broke the protocol, in this way.
    Wrong(&'static str),
}

bitflags! {
    /// Control packets that the guest is yet to be sent. One of each is enough: they tell the latest state.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Owed: u8 {
        const REQUEST = 1;
        const RESPONSE = 2;
        const SHUTDOWN = 4;
        const UPDATE = 8;
        const ASK_CREDIT = 16;
    }
}

/// A connection without its socket.
#[derive(Debug)]
pub struct Link {
    phase: Phase,
    owed: Owed,
    guest_shut: Shut,
    host_shut: Shut,
    /// To the guest: bytes sent, its room, and what it says has left its room.
    sent: u32,
    guest_alloc: u32,
    guest_forwarded: u32,
    /// The guest was asked for more credit since it last told.
    asked: bool,
    /// From the guest: our room, bytes received, bytes that left our room, and what the guest knows of that.
    alloc: u32,
    received: u32,
    forwarded: u32,
    told: u32,
}

impl Link {
    fn new(phase: Phase, owed: Owed, alloc: u32) -> Self {
        Self {
            phase,
            owed,
            guest_shut: Shut::empty(),
            host_shut: Shut::empty(),
            sent: 0,
            guest_alloc: 0,
            guest_forwarded: 0,
            asked: false,
            alloc,
            received: 0,
            forwarded: 0,
            told: 0,
        }
    }

    /// The guest is to be asked to accept a connection, for which we have `alloc` bytes of room.
    pub fn ask(alloc: u32) -> Self {
        Self::new(Phase::Asking, Owed::REQUEST, alloc)
    }

    /// The guest's `request` is accepted; we have `alloc` bytes of room for its data.
    pub fn accept(request: &Header, alloc: u32) -> Self {
        let mut link = Self::new(Phase::Open, Owed::RESPONSE, alloc);
        link.learn_credit(request);
        link
    }

    /// Where the connection is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether the guest has not been told of the connection at all.
    pub fn is_unheard_of(&self) -> bool {
        self.owed.contains(Owed::REQUEST)
    }

    /// What the guest closed.
    pub fn guest_shut(&self) -> Shut {
        self.guest_shut
    }

    /// What the host closed.
    pub fn host_shut(&self) -> Shut {
        self.host_shut
    }

    /// A packet came from the guest.
    pub fn hear(&mut self, packet: &Header) -> Heard {
        self.learn_credit(packet);
        match (packet.op.get(), self.phase) {
            (op::RST, _) => Heard::Reset,
            (op::RESPONSE, Phase::Asking) => {
                self.phase = Phase::Open;
                Heard::Accepted
            }
            (op::RW, Phase::Open) => self.hear_data(packet.len.get()),
            (op::CREDIT_UPDATE, Phase::Open) => Heard::Credit,
            (op::CREDIT_REQUEST, Phase::Open) => {
                self.owed |= Owed::UPDATE;
                Heard::Credit
            }
            (op::SHUTDOWN, Phase::Open) => {
                // Permanent once sent (§5.10.6.5); unknown flags mean nothing.
                self.guest_shut |= Shut::from_bits_truncate(packet.flags.get());
                Heard::Shut
            }
            (op::REQUEST, _) => Heard::Wrong("asked for a connection that exists"),
            (op::RESPONSE, _) => Heard::Wrong("accepted a connection twice"),
            (_, Phase::Asking) => Heard::Wrong("used a connection before accepting it"),
            _ => Heard::Wrong("sent an unknown operation"),
        }
    }

    fn learn_credit(&mut self, packet: &Header) {
        self.guest_alloc = packet.buf_alloc.get();
        self.guest_forwarded = packet.fwd_cnt.get();
        if self.credit() > 0 {
            self.asked = false;
        }
    }

    fn hear_data(&mut self, len: u32) -> Heard {
        if self.guest_shut.contains(Shut::SEND) {
            return Heard::Wrong("sent data after it had closed that direction");
        }
        // `received - forwarded` never exceeds `alloc`: this is the only place where it grows.
        let room = self.alloc.wrapping_sub(self.received.wrapping_sub(self.forwarded));
        if len > room {
            return Heard::Wrong("sent more data than it had credit for");
        }
        self.received = self.received.wrapping_add(len);
        Heard::Data
    }

    /// `len` bytes of the guest's data went on to where they belong, or were thrown away.
    pub fn forwarded(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
        // What the guest believes to be free. Told before it runs dry, but not for every packet.
        let believed = self.alloc.saturating_sub(self.received.wrapping_sub(self.told));
        let news = self.forwarded.wrapping_sub(self.told);
        if believed <= self.alloc / 2 && news >= self.alloc / 4 && !self.guest_shut.contains(Shut::SEND) {
            self.owed |= Owed::UPDATE;
        }
    }

    /// How many bytes of data the guest may be sent now.
    pub fn credit(&self) -> u32 {
        if !self.wants_data() {
            return 0;
        }
        // A guest may shrink its room below what is in it, and one that lies about what it forwarded only cheats itself.
        self.guest_alloc.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// Whether data can flow to the guest at all, credit or not.
    pub fn wants_data(&self) -> bool {
        self.phase == Phase::Open && !self.guest_shut.contains(Shut::RECEIVE) && !self.host_shut.contains(Shut::SEND)
    }

    /// `len` bytes of data, at most [`Self::credit`], are sent in one or more packets.
    pub fn data_sent(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
        self.tell();
    }

    /// There is data for the guest and no credit: ask for it, once.
    pub fn starve(&mut self) {
        if self.wants_data() && self.credit() == 0 && !self.asked {
            self.asked = true;
            self.owed |= Owed::ASK_CREDIT;
        }
    }

    /// The host closed these directions, seen from the host. Data that the host sent earlier must be sent to the guest before.
    pub fn shut(&mut self, directions: Shut) {
        if !self.host_shut.contains(directions) {
            self.host_shut |= directions;
            self.owed |= Owed::SHUTDOWN;
        }
    }

    /// Whether [`Self::next_control`] has a packet.
    pub fn owes(&self) -> bool {
        !self.owed.is_empty()
    }

    /// The next control packet for the guest, by operation and flags. It counts as sent.
    pub fn next_control(&mut self) -> Option<(u16, u32)> {
        let (debt, op) = [
            (Owed::REQUEST, op::REQUEST),
            (Owed::RESPONSE, op::RESPONSE),
            (Owed::SHUTDOWN, op::SHUTDOWN),
            (Owed::ASK_CREDIT, op::CREDIT_REQUEST),
            (Owed::UPDATE, op::CREDIT_UPDATE),
        ]
        .into_iter()
        .find(|(debt, _)| self.owed.contains(*debt))?;
        self.owed -= debt;
        self.tell();
        let flags = if debt == Owed::SHUTDOWN { self.host_shut.bits() } else { 0 };
        Some((op, flags))
    }

    /// The credit fields for a packet to the guest: our room and what has left it.
    pub fn credit_fields(&self) -> (u32, u32) {
        (self.alloc, self.forwarded)
    }

    /// A packet goes to the guest; each of them carries the news of our room.
    fn tell(&mut self) {
        self.told = self.forwarded;
        self.owed -= Owed::UPDATE;
    }
}

#[cfg(test)]
mod tests;
