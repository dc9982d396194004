//! The vhost-user protocol's messages as bytes (QEMU docs/interop/vhost-user.rst). Numbers are the host's own, and both ends are on one
//! host: little-endian on the machines we know.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::virtio::queue::Geometry;

/// Longest body that either side sends: far more than any message we know needs.
pub(super) const MAX_BODY_LEN: usize = 4096;

/// What the frontend asks of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    SetBackendReqFd = 21,
    GetConfig = 24,
    GetInflightFd = 31,
    SetInflightFd = 32,
}

/// What a backend says on its own: the configuration space is another one (`VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`).
pub(super) const CONFIG_CHANGED: u32 = 2;

/// `VHOST_USER_F_PROTOCOL_FEATURES`, among the virtio features and not for the driver.
pub(super) const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Protocol features.
pub(super) mod protocol {
    /// It has several queues, and says how many.
    pub const MQ: u64 = 1 << 0;
    /// It acknowledges what it is asked to.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// It has things to say on its own.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// It has the configuration space.
    pub const CONFIG: u64 = 1 << 9;
    /// It notes requests in flight where the frontend keeps them for the next one.
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
}

/// Before each body.
#[derive(Debug, Clone, Copy, Default, IntoBytes, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) request: U32,
    pub(super) flags: U32,
    pub(super) size: U32,
}

impl Header {
    pub(super) const LEN: usize = size_of::<Self>();
    const VERSION: u32 = 1;
    const VERSION_MASK: u32 = 3;
    const REPLY: u32 = 1 << 2;
    const NEED_REPLY: u32 = 1 << 3;

    pub(super) fn of(request: u32, reply: bool, need_reply: bool, len: usize) -> Self {
        let reply = if reply { Self::REPLY } else { 0 };
        let need_reply = if need_reply { Self::NEED_REPLY } else { 0 };
        Self {
            request: U32::new(request),
            flags: U32::new(Self::VERSION | reply | need_reply),
            size: U32::new(u32::try_from(len).unwrap_or(u32::MAX)),
        }
    }

    pub(super) fn is_ours(self) -> bool {
        self.flags.get() & Self::VERSION_MASK == Self::VERSION
    }

    pub(super) fn is_reply(self) -> bool {
        self.flags.get() & Self::REPLY != 0
    }

    pub(super) fn needs_reply(self) -> bool {
        self.flags.get() & Self::NEED_REPLY != 0
    }

    pub(super) fn body_len(self) -> usize {
        usize::try_from(self.size.get()).unwrap_or(usize::MAX)
    }
}

/// A ring and a number of it.
#[derive(Debug, Clone, Copy, IntoBytes, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct VringState {
    pub(super) index: U32,
    pub(super) number: U32,
}

impl VringState {
    pub(super) fn new(index: u16, number: u16) -> Self {
        Self { index: U32::new(index.into()), number: U32::new(number.into()) }
    }
}

/// Where a ring lies.
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct VringAddr {
    index: U32,
    flags: U32,
    descriptors: U64,
    used: U64,
    available: U64,
    log: U64,
}

impl VringAddr {
    pub(super) fn new(index: u16, geometry: &Geometry) -> Self {
        Self {
            index: U32::new(index.into()),
            flags: U32::ZERO,
            descriptors: U64::new(geometry.descriptors),
            used: U64::new(geometry.used),
            available: U64::new(geometry.available),
            log: U64::ZERO,
        }
    }
}

/// A region of guest memory. "User" addresses are those by which the frontend names rings; ours are the guest's own, so that a backend
/// learns nothing of our address space.
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct MemoryRegion {
    pub(super) guest: U64,
    pub(super) len: U64,
    pub(super) user: U64,
    pub(super) offset: U64,
}

/// Before the configuration space's bytes.
#[derive(Debug, Clone, Copy, IntoBytes, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ConfigHeader {
    pub(super) offset: U32,
    pub(super) size: U32,
    pub(super) flags: U32,
}

/// Memory for requests in flight. The padding is sent, too, as in the C struct that the first implementation sends.
#[derive(Debug, Clone, Copy, IntoBytes, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct InflightArea {
    pub(super) len: U64,
    pub(super) offset: U64,
    pub(super) queues: U16,
    pub(super) queue_size: U16,
    pub(super) padding: U32,
}
