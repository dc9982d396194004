//! Packets as they lie on the rings (virtio 1.3 §5.10.6).

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// The host's context id (§5.10.4).
pub const HOST_CID: u64 = 2;
/// The only socket type there is here (VIRTIO_VSOCK_TYPE_STREAM).
pub const STREAM: u16 = 1;
/// Bytes of a [`Header`].
pub const HEADER_LEN: usize = 44;

/// What a packet is about (§5.10.6).
pub mod op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts one.
    pub const RESPONSE: u16 = 2;
    /// Ends or refuses one.
    pub const RST: u16 = 3;
    /// Announces that a direction, or both, will not be used any more.
    pub const SHUTDOWN: u16 = 4;
    /// Data.
    pub const RW: u16 = 5;
    /// Tells how much room there is.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for a credit update.
    pub const CREDIT_REQUEST: u16 = 7;
}

bitflags! {
    /// Directions that a side closed for good (§5.10.6.5), as in the flags of a SHUTDOWN.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct Shut: u32 {
        /// It receives nothing more.
        const RECEIVE = 1;
        /// It sends nothing more.
        const SEND = 2;
    }
}

/// The start of every packet.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: U64,
    /// Context id of the receiver.
    pub dst_cid: U64,
    /// Port of the sender.
    pub src_port: U32,
    /// Port of the receiver.
    pub dst_port: U32,
    /// Bytes of data that follow.
    pub len: U32,
    /// Socket type.
    pub kind: U16,
    /// One of [`op`].
    pub op: U16,
    /// Depend on `op`.
    pub flags: U32,
    /// Room that the sender has for this connection's data, used or not (§5.10.6.3).
    pub buf_alloc: U32,
    /// How many bytes of this connection's data have left that room again, modulo 2^32.
    pub fwd_cnt: U32,
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);

impl Header {
    /// A packet of this kind from the host to the guest `cid`; the rest is zero.
    pub fn to_guest(cid: u64, ports: Ports, op: u16) -> Self {
        Self {
            src_cid: HOST_CID.into(),
            dst_cid: cid.into(),
            src_port: ports.host.into(),
            dst_port: ports.guest.into(),
            kind: STREAM.into(),
            op: op.into(),
            ..Self::new_zeroed()
        }
    }

    /// The ports of a packet from the guest.
    pub fn ports(&self) -> Ports {
        Ports { host: self.dst_port.get(), guest: self.src_port.get() }
    }
}

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The host's.
    pub host: u32,
    /// The guest's.
    pub guest: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let ports = Ports { host: 0x0102_0304, guest: 0x0506_0708 };
        let header = Header { len: 9.into(), fwd_cnt: 0xa0b0_c0d0.into(), ..Header::to_guest(3, ports, op::RW) };
        let bytes = header.as_bytes();
        assert_eq!(bytes[..8], [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[8..16], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..24], [4, 3, 2, 1, 8, 7, 6, 5]);
        assert_eq!(bytes[24..32], [9, 0, 0, 0, 1, 0, 5, 0]);
        assert_eq!(bytes[32..], [0, 0, 0, 0, 0, 0, 0, 0, 0xd0, 0xc0, 0xb0, 0xa0]);
        assert_eq!(header.ports(), Ports { host: ports.guest, guest: ports.host }, "seen from the other side");
    }
}
