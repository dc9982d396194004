//! The header before each frame a guest sends (virtio 1.3 §5.1.6), judged before the host's kernel sees it.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::features::{CSUM, HOST_TSO4, HOST_TSO6, HOST_UFO, HOST_USO};
use crate::sys::tap::HEADER_LEN;

const NEEDS_CSUM: u8 = 1;

const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_UDP: u8 = 3;
const GSO_TCP6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// `struct virtio_net_hdr_v1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: U16,
    gso_size: U16,
    csum_start: U16,
    csum_offset: U16,
    num_buffers: U16,
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);

/// Offset of `num_buffers`, which the device fills in when the guest receives.
pub(super) const NUM_BUFFERS: usize = 10;

impl Header {
    /// Whether the checksum at `csum_offset` is still to be made.
    pub(super) fn needs_checksum(&self) -> bool {
        self.flags & NEEDS_CSUM != 0
    }

    /// The header of a frame of `frame_len` bytes without what a driver has no say in. `None` if it contradicts the frame or asks for
    /// what was not negotiated.
    pub(super) fn judge(mut self, frame_len: usize, accepted: u64) -> Option<Self> {
        // §5.1.6.2: other flags are not the driver's to set, and ignored.
        self.flags &= NEEDS_CSUM;
        self.num_buffers = U16::ZERO;
        if self.flags & NEEDS_CSUM != 0 {
            let end = u64::from(self.csum_start).saturating_add(self.csum_offset.into()).saturating_add(2);
            if accepted & CSUM == 0 || end > frame_len as u64 {
                return None;
            }
        }
        let needed = match self.gso_type {
            GSO_NONE => {
                self.gso_size = U16::ZERO;
                self.hdr_len = U16::ZERO;
                return Some(self);
            }
            GSO_TCP4 => HOST_TSO4,
            GSO_TCP6 => HOST_TSO6,
            GSO_UDP => HOST_UFO,
            GSO_UDP_L4 => HOST_USO,
            _ => return None,
        };
        let sane = accepted & needed != 0 && self.gso_size.get() > 0 && usize::from(self.hdr_len) <= frame_len;
        sane.then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, gso_type: u8, hdr_len: u16, gso_size: u16, csum_start: u16, csum_offset: u16) -> Header {
        Header {
            flags,
            gso_type,
            hdr_len: hdr_len.into(),
            gso_size: gso_size.into(),
            csum_start: csum_start.into(),
            csum_offset: csum_offset.into(),
            num_buffers: 7.into(),
        }
    }

    #[test]
    fn sane_headers_pass() {
        for (sane, len) in [
            (header(0, 0, 0, 0, 0, 0), 14),
            (header(1, 0, 0, 0, 34, 16), 52),
            (header(1, 1, 54, 1448, 34, 16), 9000),
            (header(1, 5, 42, 1472, 34, 6), 9000),
        ] {
            let judged = sane.judge(len, u64::MAX).unwrap();
            assert_eq!(judged, Header { num_buffers: U16::ZERO, ..sane });
        }
        // What means nothing does not reach the kernel.
        assert_eq!(header(0xfe, 0, 9, 9, 0, 0).judge(60, 0).unwrap().as_bytes(), [0; 12]);
    }

    #[test]
    fn garbage_does_not() {
        for (bad, len) in [
            (header(1, 0, 0, 0, 34, 17), 52),
            (header(1, 0, 0, 0, 0xffff, 0xffff), 52),
            (header(1, 1, 54, 0, 34, 16), 9000),
            (header(1, 1, 9001, 1448, 34, 16), 9000),
            (header(1, 2, 54, 1448, 34, 16), 9000),
            (header(1, 0x81, 54, 1448, 34, 16), 9000),
            (header(1, 0xff, 54, 1448, 34, 16), 9000),
        ] {
            assert_eq!(bad.judge(len, u64::MAX), None, "{bad:?}");
        }
        assert_eq!(header(1, 0, 0, 0, 34, 16).judge(52, 0), None);
        for (gso_type, feature) in [(1, HOST_TSO4), (3, HOST_UFO), (4, HOST_TSO6), (5, HOST_USO)] {
            let gso = header(0, gso_type, 54, 1000, 0, 0);
            assert_eq!(gso.judge(9000, !feature), None);
            assert!(gso.judge(9000, feature).is_some());
        }
    }
}
