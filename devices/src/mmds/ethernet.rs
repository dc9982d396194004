//! The service's end of the Ethernet: which frames are for it, ARP (RFC 826), and what must be right before TCP is let at a packet.
//!
//! The guest is the only one at the other end, so nobody is ever asked for an address: answers go to whoever sent the question.

use std::net::Ipv4Addr;

use smoltcp::wire::{IpAddress, TcpPacket};

use super::MAC;

/// Bytes at the start of a frame that tell whether it is for the service.
pub(super) const START_LEN: usize = 42;
/// Bytes before the packet.
pub(super) const HEADER_LEN: usize = 14;

const ETHERTYPE: usize = 12;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;

const MIN_IPV4_HEADER: usize = 20;
const MIN_TCP_HEADER: usize = 20;
const TCP: u8 = 6;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// `struct arphdr` for IPv4 over Ethernet: the two kinds of address and their lengths.
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

/// Whether the checksum of a TCP segment is there to be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// It is complete.
    Whole,
    /// The driver left it to the device (virtio 1.3 §5.1.6.2, VIRTIO_NET_HDR_F_NEEDS_CSUM).
    Partial,
}

/// A TCP segment to the service.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    /// Who sent it.
    pub(super) mac: [u8; 6],
    pub(super) address: Ipv4Addr,
    pub(super) port: u16,
    /// To which port.
    pub(super) to: u16,
    /// It asks for a connection.
    pub(super) opens: bool,
    /// From the IPv4 header to the end of the data.
    pub(super) packet: &'a [u8],
}

/// What a frame is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// Somebody asks where the service is; this is the answer.
    Question([u8; START_LEN]),
    /// To be handled by TCP.
    Segment(Segment<'a>),
    /// Nothing the service has to do with.
    Unusual,
    /// Nonsense.
    Malformed,
    /// Not even a frame for the service.
    NotOurs,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// Whether the frame that begins with `start` ([`START_LEN`] bytes, or all it has) is IPv4 to `address` or ARP about it.
pub(super) fn concerns(start: &[u8], address: Ipv4Addr) -> bool {
    let target = match u16_at(start, ETHERTYPE) {
        Some(IPV4) => array(start, 30),
        Some(ARP) => array(start, 38),
        _ => return false,
    };
    target == Some(address.octets())
}

/// Takes a frame apart that [`concerns`] the service at `address`.
pub(super) fn read(frame: &[u8], address: Ipv4Addr, checksum: Checksum) -> Frame<'_> {
    if !concerns(frame, address) {
        return Frame::NotOurs;
    }
    match u16_at(frame, ETHERTYPE) {
        Some(ARP) => question(frame, address),
        _ => segment(frame, address, checksum).map_or_else(|unusable| unusable, Frame::Segment),
    }
}

/// A sender that can be answered.
fn is_sender(address: Ipv4Addr, us: Ipv4Addr) -> bool {
    address != us && !address.is_multicast() && !address.is_broadcast()
}

fn question(frame: &[u8], us: Ipv4Addr) -> Frame<'static> {
    let parts =
        (|| Some((array(frame, 14)?, u16_at(frame, 20)?, array(frame, 22)?, Ipv4Addr::from(array(frame, 28)?))))();
    let Some((kind, operation, mac, address)): Option<([u8; 6], u16, [u8; 6], Ipv4Addr)> = parts else {
        return Frame::Malformed;
    };
    if kind != ARP_KIND {
        return Frame::Malformed;
    }
    // Nothing is learned from ARP, so there is nobody to lie to. A sender without an address is looking whether this one is taken.
    if operation != ARP_REQUEST || !is_sender(address, us) || mac.first().is_none_or(|first| first & 1 != 0) {
        return Frame::Unusual;
    }
    let answer = [
        &mac[..],
        &MAC,
        &ARP.to_be_bytes(),
        &ARP_KIND,
        &ARP_REPLY.to_be_bytes(),
        &MAC,
        &us.octets(),
        &mac,
        &address.octets(),
    ]
    .concat();
    answer.try_into().map_or(Frame::Malformed, Frame::Question)
}

fn segment(frame: &[u8], us: Ipv4Addr, checksum: Checksum) -> Result<Segment<'_>, Frame<'_>> {
    const BAD: Frame<'static> = Frame::Malformed;
    let mac: [u8; 6] = array(frame, 6).ok_or(BAD)?;
    let packet = frame.get(HEADER_LEN..).ok_or(BAD)?;
    let [version_ihl] = array(packet, 0).ok_or(BAD)?;
    let header_len = usize::from(version_ihl & 15).saturating_mul(4);
    // What follows is padding of the frame.
    let packet = packet.get(..u16_at(packet, 2).ok_or(BAD)?.into()).ok_or(BAD)?;
    if version_ihl >> 4 != 4 || header_len < MIN_IPV4_HEADER {
        return Err(BAD);
    }
    let tcp = packet.get(header_len..).ok_or(BAD)?;
    let fragment = u16_at(packet, 6).ok_or(BAD)?;
    let [protocol] = array(packet, 9).ok_or(BAD)?;
    let address = Ipv4Addr::from(array(packet, 12).ok_or(BAD)?);
    if mac.first().is_none_or(|first| first & 1 != 0) || !is_sender(address, us) || address.is_unspecified() {
        return Err(BAD);
    }
    // Neither a fragment nor the first of some: no request is so large. Nor anything but TCP.
    if fragment & 0x3fff != 0 || protocol != TCP {
        return Err(Frame::Unusual);
    }
    let [offset] = array(tcp, 12).ok_or(BAD)?;
    let [flags] = array(tcp, 13).ok_or(BAD)?;
    let tcp_header_len = usize::from(offset >> 4).saturating_mul(4);
    let options = tcp.get(MIN_TCP_HEADER..tcp_header_len).ok_or(BAD)?;
    let (port, to) = (u16_at(tcp, 0).ok_or(BAD)?, u16_at(tcp, 2).ok_or(BAD)?);
    if !options_add_up(options) || port == 0 || flags & (SYN | FIN) == SYN | FIN {
        return Err(BAD);
    }
    let whole = || {
        let segment = TcpPacket::new_checked(tcp);
        segment.is_ok_and(|tcp| tcp.verify_checksum(&IpAddress::from(address), &IpAddress::from(us)))
    };
    if checksum == Checksum::Whole && !whole() {
        return Err(BAD);
    }
    Ok(Segment { mac, address, port, to, opens: flags & (SYN | ACK | RST) == SYN, packet })
}

/// Whether each option ends where the next one begins (RFC 9293 §3.1).
fn options_add_up(mut options: &[u8]) -> bool {
    loop {
        options = match options {
            // End of the list, or no more of it.
            [] | [0, ..] => return true,
            // A byte of padding.
            [1, rest @ ..] => rest,
            [_, len, ..] if *len >= 2 => match options.get(usize::from(*len)..) {
                Some(rest) => rest,
                None => return false,
            },
            _ => return false,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::DEFAULT_ADDRESS;
    use super::super::test_frames::{GUEST, GUEST_MAC, Tcp, arp};
    use super::*;

    fn reading(frame: &[u8]) -> Frame<'_> {
        read(frame, DEFAULT_ADDRESS, Checksum::Whole)
    }

    #[test]
    fn only_frames_about_the_address_concern_the_service() {
        let frame = Tcp::syn(1000).frame();
        assert!(
            concerns(&frame[..START_LEN], DEFAULT_ADDRESS) && concerns(&arp(GUEST, DEFAULT_ADDRESS), DEFAULT_ADDRESS)
        );
        let other = Ipv4Addr::new(169, 254, 169, 253);
        assert!(!concerns(&frame, other) && !concerns(&arp(GUEST, DEFAULT_ADDRESS), other));
        assert!(!concerns(&arp(DEFAULT_ADDRESS, GUEST), DEFAULT_ADDRESS));
        for len in 0..34 {
            assert!(!concerns(&frame[..len], DEFAULT_ADDRESS), "{len}");
        }
        // IPv6 and a VLAN tag are none of our business.
        for ethertype in [[0x86, 0xdd], [0x81, 0]] {
            let mut frame = frame.clone();
            frame[ETHERTYPE..HEADER_LEN].copy_from_slice(&ethertype);
            assert_eq!(reading(&frame), Frame::NotOurs);
        }
    }

    #[test]
    fn who_asks_is_told_the_address_and_nobody_is_believed() {
        let asked = arp(GUEST, DEFAULT_ADDRESS);
        let Frame::Question(answer) = reading(&asked) else { panic!() };
        assert_eq!((&answer[..6], &answer[6..12], &answer[12..14]), (&GUEST_MAC[..], &MAC[..], &[8, 6][..]));
        assert_eq!((&answer[20..22], &answer[22..28]), (&[0, 2][..], &MAC[..]));
        assert_eq!(
            (&answer[28..32], &answer[32..38], &answer[38..]),
            (&[169, 254, 169, 254][..], &GUEST_MAC[..], &GUEST.octets()[..])
        );
        // Duplicate address detection (RFC 5227) asks without an address of its own.
        assert!(matches!(reading(&arp(Ipv4Addr::UNSPECIFIED, DEFAULT_ADDRESS)), Frame::Question(_)));
        // Somebody claims the service's address, or answers.
        assert_eq!(reading(&arp(DEFAULT_ADDRESS, DEFAULT_ADDRESS)), Frame::Unusual);
        let change = |at: usize, value: u8| {
            let mut frame = asked.clone();
            frame[at] = value;
            frame
        };
        for (at, value) in [(21, 2), (21, 9), (22, 0xff), (28, 239)] {
            assert_eq!(reading(&change(at, value)), Frame::Unusual, "{at}");
        }
        for at in 14..20 {
            assert_eq!(reading(&change(at, 0xee)), Frame::Malformed, "{at}");
        }
    }

    #[test]
    fn a_segment_is_taken_apart_and_padding_left_out() {
        let tcp = Tcp::syn(1000);
        let mut frame = tcp.frame();
        let len = frame.len();
        frame.extend([0xaa; 9]);
        let expected = Segment {
            mac: GUEST_MAC,
            address: GUEST,
            port: 1000,
            to: 80,
            opens: true,
            packet: &frame[HEADER_LEN..len],
        };
        assert_eq!(reading(&frame), Frame::Segment(expected));
        for (flags, opens) in
            [(SYN, true), (SYN | ACK, false), (SYN | RST, false), (ACK, false), (RST, false), (0, false)]
        {
            let frame = Tcp { flags, ..Tcp::syn(1) }.frame();
            assert!(matches!(reading(&frame), Frame::Segment(segment) if segment.opens == opens), "{flags:#x}");
        }
    }

    #[test]
    fn what_does_not_add_up_goes_no_further() {
        let tcp = || Tcp { options: vec![2, 4, 5, 180], ..Tcp::syn(1000) };
        assert!(matches!(reading(&tcp().frame()), Frame::Segment(_)));
        for ihl in [0, 1, 4, 15] {
            assert_eq!(reading(&Tcp { ihl, ..tcp() }.frame()), Frame::Malformed, "ihl {ihl}");
        }
        for offset in [0, 4, 7, 15] {
            assert_eq!(reading(&Tcp { offset: Some(offset), ..tcp() }.frame()), Frame::Malformed, "offset {offset}");
        }
        for options in [vec![2, 0, 1, 1], vec![2, 1, 1, 1], vec![2, 5, 1, 1], vec![1, 1, 1, 8], vec![3, 255, 0, 0]] {
            assert_eq!(reading(&Tcp { options: options.clone(), ..tcp() }.frame()), Frame::Malformed, "{options:?}");
        }
        for options in [vec![], vec![1, 1, 1, 1], vec![0, 9, 9, 9], vec![1, 2, 3, 4], vec![3, 4, 0, 0]] {
            assert!(
                matches!(reading(&Tcp { options: options.clone(), ..tcp() }.frame()), Frame::Segment(_)),
                "{options:?}"
            );
        }
        for source in ["0.0.0.0", "169.254.169.254", "255.255.255.255", "224.0.0.1"] {
            let frame = Tcp { source: source.parse().unwrap(), ..tcp() }.frame();
            assert_eq!(reading(&frame), Frame::Malformed, "{source}");
        }
        assert_eq!(reading(&Tcp { port: 0, ..tcp() }.frame()), Frame::Malformed);
        assert_eq!(reading(&Tcp { flags: SYN | FIN, ..tcp() }.frame()), Frame::Malformed);
        let (whole, len) = (tcp().frame(), tcp().frame().len());
        for cut in HEADER_LEN + 20..len {
            assert_eq!(reading(&whole[..cut]), Frame::Malformed, "{cut} of {len} bytes");
        }
        for (at, value, is) in [
            (14, 0x65, Frame::Malformed),
            (20, 0x20, Frame::Unusual),
            (21, 1, Frame::Unusual),
            (23, 17, Frame::Unusual),
            (23, 1, Frame::Unusual),
            (6, 1, Frame::Malformed),
        ] {
            let mut frame = whole.clone();
            frame[at] = value;
            assert_eq!(reading(&frame), is, "byte {at}");
        }
    }

    #[test]
    fn a_checksum_counts_if_there_is_one() {
        let mut frame = Tcp::syn(1000).frame();
        frame[HEADER_LEN + 20 + 16] ^= 1;
        assert_eq!(read(&frame, DEFAULT_ADDRESS, Checksum::Whole), Frame::Malformed);
        assert!(matches!(read(&frame, DEFAULT_ADDRESS, Checksum::Partial), Frame::Segment(_)));
    }

    proptest! {
        #[test]
        fn no_frame_breaks_it(mut bytes in prop::collection::vec(any::<u8>(), 0..120), ip in any::<bool>(), whole in any::<bool>()) {
            if let Some(start) = bytes.get_mut(..START_LEN) {
                start[12..14].copy_from_slice(if ip { &[8, 0] } else { &[8, 6] });
                let at = if ip { 30 } else { 38 };
                start[at..at + 4].copy_from_slice(&DEFAULT_ADDRESS.octets());
                if ip {
                    start[14] = 0x40 | start[14] & 15;
                    start[23] = TCP;
                }
            }
            read(&bytes, DEFAULT_ADDRESS, if whole { Checksum::Whole } else { Checksum::Partial });
        }
    }
}
