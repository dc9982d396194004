//! A TCP client, as much of one as it takes to ask an HTTP server on the same link something (RFC 9293): one connection at a time, one
//! segment under way, and what was lost is sent again.

use crate::checksum;
use crate::clock::Clock;
use crate::dma::Dma;
use crate::net::Net;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PUSH: u8 = 8;
pub const ACK: u8 = 16;

/// Where the headers of a frame start: Ethernet, IPv4 without options, TCP.
pub const IP: usize = 14;
pub const TCP: usize = 34;
/// Where the data of our segments starts.
pub const DATA: usize = 54;
/// Most data in a segment.
pub const SEGMENT: usize = 1400;
/// When to send again.
const AGAIN_MS: u64 = 200;
const PATIENCE_MS: u64 = 5000;
const WINDOW: u16 = 32_768;

/// Both ends of the link.
#[derive(Clone, Copy)]
pub struct Ends {
    pub mac: [u8; 6],
    pub server_mac: [u8; 6],
    pub ip: [u8; 4],
    pub server: [u8; 4],
}

/// A connection.
pub struct Connection {
    pub ends: Ends,
    /// Our port.
    pub port: u16,
    /// What we send next, and what we expect next.
    pub seq: u32,
    pub ack: u32,
    /// The server has said that it sends no more.
    pub ended: bool,
}

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The server reset the connection.
    Reset,
    /// Nothing came for too long.
    Silence,
}

/// What a received segment says.
#[derive(Clone, Copy)]
pub struct Segment {
    pub port: u16,
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    pub data: &'static [u8],
}

/// Sends bytes as a frame. `false` if there is no free slot.
pub fn send_frame(net: &mut Net, bytes: &[u8]) -> bool {
    net.reclaim();
    let Some(slot) = net.claim() else { return false };
    net.frame(slot).put(0, bytes);
    net.transmit(slot, bytes.len() as u64);
    net.tx.kick();
    true
}

/// Asks who has the server's address. Its MAC address, if it answers.
pub fn resolve(net: &mut Net, clock: Clock, ip: [u8; 4], server: [u8; 4]) -> Option<[u8; 6]> {
    let mut frame = [0; 42];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&net.mac);
    frame[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&net.mac);
    frame[28..32].copy_from_slice(&ip);
    frame[38..42].copy_from_slice(&server);
    send_frame(net, &frame);
    let deadline = clock.deadline_ms(PATIENCE_MS);
    while !deadline.passed() {
        let Some(frame) = net.receive() else { continue };
        let bytes = frame.bytes;
        let answer = bytes.len() >= 42 && bytes[12..14] == [8, 6] && bytes[21] == 2 && bytes[28..32] == server;
        let mac = answer.then(|| [bytes[22], bytes[23], bytes[24], bytes[25], bytes[26], bytes[27]]);
        net.recycle(frame.slot);
        net.rx.kick();
        if mac.is_some() {
            return mac;
        }
    }
    None
}

impl Ends {
    /// Writes a segment with right lengths and checksums to the start of `frame`; how long it is.
    pub fn segment(&self, port: u16, seq: u32, ack: u32, flags: u8, data: &[u8], frame: &mut [u8]) -> usize {
        let total = DATA - IP + data.len();
        frame[..6].copy_from_slice(&self.server_mac);
        frame[6..12].copy_from_slice(&self.mac);
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14..26].copy_from_slice(&[0x45, 0, (total >> 8) as u8, total as u8, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame[26..30].copy_from_slice(&self.ip);
        frame[30..34].copy_from_slice(&self.server);
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        frame[36..38].copy_from_slice(&80u16.to_be_bytes());
        frame[38..42].copy_from_slice(&seq.to_be_bytes());
        frame[42..46].copy_from_slice(&ack.to_be_bytes());
        frame[46..48].copy_from_slice(&[0x50, flags]);
        frame[48..50].copy_from_slice(&WINDOW.to_be_bytes());
        frame[50..54].fill(0);
        frame[DATA..DATA + data.len()].copy_from_slice(data);
        finish(frame, DATA + data.len());
        DATA + data.len()
    }

    /// What a frame says, if it is a segment from the server to us.
    pub fn read(&self, frame: &'static [u8]) -> Option<Segment> {
        if frame.len() < DATA || frame[12..14] != [8, 0] || frame[23] != 6 || frame[26..30] != self.server {
            return None;
        }
        let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        let start = TCP + usize::from(frame[46] >> 4) * 4;
        Some(Segment {
            port: u16::from_be_bytes([frame[36], frame[37]]),
            flags: frame[47],
            seq: u32::from_be_bytes([frame[38], frame[39], frame[40], frame[41]]),
            ack: u32::from_be_bytes([frame[42], frame[43], frame[44], frame[45]]),
            data: frame.get(start..IP + total)?,
        })
    }
}

/// Fills in both checksums of a segment that ends at `end`.
pub fn finish(frame: &mut [u8], end: usize) {
    frame[24..26].fill(0);
    let sum = checksum::of(&frame[IP..TCP]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[50..52].fill(0);
    let pseudo = checksum::add(6 + (end - TCP) as u32, &frame[26..34]);
    let sum = checksum::fold(checksum::add(pseudo, &frame[TCP..end]));
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
}

impl Connection {
    /// Shakes hands with the server.
    pub fn open(net: &mut Net, clock: Clock, ends: Ends, port: u16) -> Result<Self, Trouble> {
        let mut connection = Self { ends, port, seq: 1000, ack: 0, ended: false };
        connection.exchange(net, clock, SYN, &[], |connection, segment| {
            connection.ack = segment.seq.wrapping_add(1);
            segment.flags & SYN != 0
        })?;
        connection.seq = connection.seq.wrapping_add(1);
        connection.send(net, ACK, &[]);
        Ok(connection)
    }

    /// Sends a request and collects the answer in `into` until `whole` says that it is there. How long it is.
    pub fn ask(
        &mut self,
        net: &mut Net,
        clock: Clock,
        request: &[u8],
        mut into: Dma,
        whole: fn(&[u8]) -> bool,
    ) -> Result<usize, Trouble> {
        let mut len = 0;
        let end = self.seq.wrapping_add(request.len() as u32);
        self.exchange(net, clock, ACK | PUSH, request, |connection, segment| {
            if segment.seq == connection.ack {
                let room = into.bytes_mut();
                let count = segment.data.len().min(room.len() - len);
                room[len..len + count].copy_from_slice(&segment.data[..count]);
                len += count;
                connection.ack = connection.ack.wrapping_add(segment.data.len() as u32);
                if segment.flags & FIN != 0 {
                    connection.ack = connection.ack.wrapping_add(1);
                    connection.ended = true;
                }
            }
            if segment.ack == end {
                connection.seq = end;
            }
            whole(into.part(0, len as u64).bytes()) || connection.ended
        })?;
        self.seq = end;
        self.send(net, ACK, &[]);
        Ok(len)
    }

    /// Says that we send no more, and forgets the connection.
    pub fn close(mut self, net: &mut Net) {
        self.send(net, FIN | ACK, &[]);
        self.seq = self.seq.wrapping_add(1);
        self.send(net, RST | ACK, &[]);
    }

    fn send(&self, net: &mut Net, flags: u8, data: &[u8]) {
        let mut frame = [0; DATA + SEGMENT];
        let len = self.ends.segment(self.port, self.seq, self.ack, flags, data, &mut frame);
        send_frame(net, &frame[..len]);
    }

    /// Sends a segment, again and again, and hands what comes back to `heard` until that is content.
    fn exchange(
        &mut self,
        net: &mut Net,
        clock: Clock,
        flags: u8,
        data: &[u8],
        mut heard: impl FnMut(&mut Self, Segment) -> bool,
    ) -> Result<(), Trouble> {
        let deadline = clock.deadline_ms(PATIENCE_MS);
        let first = self.seq;
        loop {
            if self.seq == first {
                self.send(net, flags, data);
            } else {
                self.send(net, ACK, &[]);
            }
            let again = clock.deadline_ms(AGAIN_MS);
            while !again.passed() {
                let Some(frame) = net.receive() else {
                    crate::cpu::pause();
                    continue;
                };
                let segment = self.ends.read(frame.bytes).filter(|segment| segment.port == self.port);
                let content = segment.map(|segment| {
                    if segment.flags & RST != 0 {
                        return Err(Trouble::Reset);
                    }
                    let whole = heard(self, segment);
                    if !whole && !segment.data.is_empty() {
                        self.send(net, ACK, &[]);
                    }
                    Ok(whole)
                });
                net.recycle(frame.slot);
                net.rx.kick();
                match content {
                    Some(Ok(true)) => return Ok(()),
                    Some(Err(trouble)) => return Err(trouble),
                    Some(Ok(false)) | None => {}
                }
            }
            if deadline.passed() {
                return Err(Trouble::Silence);
            }
        }
    }
}
