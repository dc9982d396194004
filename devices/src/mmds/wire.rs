//! Between smoltcp and the card: one packet in at a time, a bounded number of frames out.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use super::MAC;
use super::ethernet::HEADER_LEN;

/// Frames that wait for the guest at most. When there are so many, nothing more is taken in.
const MAX_FRAMES: usize = 64;
/// When there are so many, connections are no longer asked for theirs, but what comes in is still taken note of.
const MANY_FRAMES: usize = 48;
/// When there are no more than so many again, they are.
const FEW_FRAMES: usize = 16;
/// Largest packet that is sent. A guest with a smaller MTU says so when it connects.
const MTU: usize = 1500;
/// Addresses whose MAC addresses are remembered; more than there can be connections.
const MAX_NEIGHBOURS: usize = 32;
const IPV4: [u8; 2] = [8, 0];

/// The two ends.
#[derive(Debug, Default)]
pub(super) struct Wire {
    /// The packet to be taken in, if `full`.
    inbox: Vec<u8>,
    full: bool,
    outbox: Outbox,
}

/// Frames for the guest.
#[derive(Debug, Default)]
struct Outbox {
    frames: VecDeque<Vec<u8>>,
    /// Connections may have more.
    held_back: bool,
    neighbours: Neighbours,
}

/// Who sent from which address, the last one first.
#[derive(Debug, Default)]
struct Neighbours(VecDeque<(Ipv4Addr, [u8; 6])>);

impl Neighbours {
    fn note(&mut self, address: Ipv4Addr, mac: [u8; 6]) {
        if self.0.front() == Some(&(address, mac)) {
            return;
        }
        if let Some(old) = self.0.iter().position(|(known, _)| *known == address) {
            self.0.remove(old);
        }
        self.0.push_front((address, mac));
        self.0.truncate(MAX_NEIGHBOURS);
    }

    /// Where a packet to `address` goes. If we forgot, to whoever was heard last: it is the same guest.
    fn find(&self, address: Ipv4Addr) -> [u8; 6] {
        let known = self.0.iter().find(|(known, _)| *known == address).or(self.0.front());
        known.map_or([0xff; 6], |(_, mac)| *mac)
    }
}

impl Wire {
    /// Whether frames can still be answered.
    pub(super) fn has_room(&self) -> bool {
        self.outbox.has_room()
    }

    /// Lays a packet out for smoltcp.
    pub(super) fn put_in(&mut self, packet: &[u8], address: Ipv4Addr, mac: [u8; 6]) {
        self.inbox.clear();
        self.inbox.extend_from_slice(packet);
        self.full = true;
        self.outbox.neighbours.note(address, mac);
    }

    /// Sends a frame that smoltcp knows nothing of. `false` if there is no room.
    pub(super) fn send(&mut self, frame: &[u8]) -> bool {
        let room = self.has_room();
        if room {
            self.outbox.frames.push_back(frame.to_vec());
        }
        room
    }

    /// The frame the guest gets next.
    pub(super) fn front(&self) -> Option<&[u8]> {
        self.outbox.frames.front().map(Vec::as_slice)
    }

    /// The guest has it. Whether connections should be asked for more.
    pub(super) fn pop(&mut self) -> bool {
        self.outbox.frames.pop_front();
        self.waiting() <= FEW_FRAMES && std::mem::take(&mut self.outbox.held_back)
    }

    /// Whether connections have to wait until the guest has fetched something.
    pub(super) fn is_held_back(&self) -> bool {
        self.outbox.held_back
    }

    /// Frames that wait for the guest.
    pub(super) fn waiting(&self) -> usize {
        self.outbox.frames.len()
    }
}

impl Outbox {
    fn has_room(&self) -> bool {
        self.frames.len() < MAX_FRAMES
    }
}

/// The packet that came in.
pub(super) struct Incoming<'a>(&'a [u8]);

impl phy::RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Room for a packet to go out.
pub(super) struct Outgoing<'a>(&'a mut Outbox);

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len.saturating_add(HEADER_LEN)];
        let (header, packet) = frame.split_at_mut(HEADER_LEN);
        let result = f(packet);
        // Destination address of the IPv4 header.
        let to = packet.get(16..).and_then(|rest| rest.first_chunk::<4>()).map(|octets| Ipv4Addr::from(*octets));
        let mac = self.0.neighbours.find(to.unwrap_or(Ipv4Addr::UNSPECIFIED));
        header.copy_from_slice(&[&mac[..], &MAC, &IPV4].concat());
        self.0.frames.push_back(frame);
        result
    }
}

impl phy::Device for Wire {
    type RxToken<'a> = Incoming<'a>;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        (std::mem::take(&mut self.full) && self.outbox.has_room())
            .then_some((Incoming(&self.inbox), Outgoing(&mut self.outbox)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        self.outbox.held_back = self.outbox.frames.len() >= MANY_FRAMES;
        (!self.outbox.held_back).then_some(Outgoing(&mut self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // Judged before, since only the card knows whether there is one.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_remembered_up_to_a_number() {
        let mut neighbours = Neighbours::default();
        let of = |n: u8| (Ipv4Addr::new(10, 0, 0, n), [2, 0, 0, 0, 0, n]);
        assert_eq!(neighbours.find(of(1).0), [0xff; 6]);
        for n in 0..100 {
            let (address, mac) = of(n);
            neighbours.note(address, mac);
            // One who is heard now and then is not forgotten.
            neighbours.note(of(7).0, of(7).1);
        }
        assert_eq!(neighbours.0.len(), MAX_NEIGHBOURS);
        assert_eq!(neighbours.find(of(99).0), of(99).1);
        assert_eq!(neighbours.find(of(7).0), of(7).1);
        assert_eq!(neighbours.find(of(1).0), of(7).1, "the last one heard");
        neighbours.note(of(99).0, [6; 6]);
        assert_eq!(neighbours.find(of(99).0), [6; 6]);
    }
}
