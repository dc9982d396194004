//! For tests and fuzzing: frames made by hand, right or wrong.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "it is for tests")]

use std::net::Ipv4Addr;

use smoltcp::wire::{IpAddress, Ipv4Packet, TcpPacket};

use super::{DEFAULT_ADDRESS, MAC};

pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
pub(crate) const GUEST_MAC: [u8; 6] = [0x06, 0, 0xac, 0x10, 0, 2];

/// A question by ARP.
pub(crate) fn arp(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    [
        &[0xff; 6][..],
        &GUEST_MAC,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &GUEST_MAC,
        &sender.octets(),
        &[0; 6],
        &target.octets(),
    ]
    .concat()
}

/// A TCP segment in all its parts.
#[derive(Debug, Clone)]
pub(crate) struct Tcp {
    pub(crate) source: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) to: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) data: Vec<u8>,
    /// Words of the IPv4 header, whatever it is.
    pub(crate) ihl: u8,
    /// Words of the TCP header, if not what it is.
    pub(crate) offset: Option<u8>,
}

impl Tcp {
    /// The first segment of a connection from `port`.
    pub(crate) fn syn(port: u16) -> Self {
        Self {
            source: GUEST,
            port,
            to: 80,
            seq: 1000,
            ack: 0,
            flags: 2,
            window: 65_000,
            options: Vec::new(),
            data: Vec::new(),
            ihl: 5,
            offset: None,
        }
    }

    /// As a frame with right checksums, where lengths allow.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let words = 5 + self.options.len().div_ceil(4);
        let offset = self.offset.unwrap_or(words as u8);
        let total = 20 + words * 4 + self.data.len();
        let mut packet = vec![0x40 | self.ihl, 0];
        packet.extend((total as u16).to_be_bytes());
        packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
        packet.extend(self.source.octets());
        packet.extend(DEFAULT_ADDRESS.octets());
        let mut tcp = Vec::new();
        tcp.extend(self.port.to_be_bytes());
        tcp.extend(self.to.to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([offset << 4, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(&self.options);
        tcp.resize(words * 4, 0);
        tcp.extend(&self.data);
        TcpPacket::new_unchecked(&mut tcp)
            .fill_checksum(&IpAddress::from(self.source), &IpAddress::from(DEFAULT_ADDRESS));
        packet.extend(tcp);
        if self.ihl == 5 {
            Ipv4Packet::new_unchecked(&mut packet).fill_checksum();
        }
        [&[0xff; 6][..], &GUEST_MAC, &[8, 0], &packet].concat()
    }
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) data: Vec<u8>,
}

/// Reads a frame of the service and checks what can be checked about it.
///
/// # Panics
/// If it is no proper TCP segment from the service.
pub(crate) fn hear(frame: &[u8]) -> Heard {
    assert_eq!((&frame[6..12], &frame[12..14]), (&MAC[..], &[8, 0][..]));
    let packet = Ipv4Packet::new_checked(&frame[14..]).expect("an IPv4 packet");
    assert!(packet.verify_checksum() && packet.src_addr() == DEFAULT_ADDRESS && packet.total_len() <= 1500);
    let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
    let tcp = TcpPacket::new_checked(packet.payload()).expect("a TCP segment");
    assert!(tcp.verify_checksum(&from, &to) && tcp.src_port() == 80 || tcp.rst());
    Heard {
        port: tcp.dst_port(),
        seq: tcp.seq_number().0 as u32,
        ack: tcp.ack_number().0 as u32,
        flags: packet.payload()[13],
        window: tcp.window_len(),
        data: tcp.payload().to_vec(),
    }
}
