//! What a driver asks for: header, data and status of one chain (virtio 1.3 §5.2.6), judged before anything is done.
//!
//! Header, data and status may be cut into descriptors in any way (§2.7.4.3). The header is copied once and never read again.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::config_space::{MAX_DISCARD_SECTORS, MAX_ZEROES_SECTORS, SECTOR_LEN};
use crate::sys::iovec::GuestIoVec;
use crate::virtio::chain::{self, Chain};

/// Status bytes.
pub(super) const S_OK: u8 = 0;
/// The device or the driver is at fault.
pub(super) const S_IOERR: u8 = 1;
/// The device cannot do this.
pub(super) const S_UNSUPP: u8 = 2;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// Length of the answer to GET_ID in bytes.
pub(super) const ID_LEN: usize = 20;

const HEADER_LEN: usize = 16;

#[derive(Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    kind: U32,
    reserved: U32,
    sector: U64,
}

/// The payload of DISCARD and WRITE_ZEROES.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Range {
    sector: U64,
    sectors: U32,
    flags: U32,
}

const RANGE_UNMAP: u32 = 1;

/// What the drive allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Whole sectors, in bytes.
    pub capacity_bytes: u64,
    /// Nothing may change the file, whatever the driver negotiated.
    pub read_only: bool,
    /// FLUSH is offered.
    pub flush: bool,
}

/// Where and how a request is answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reply {
    /// The status byte.
    status: GuestIoVec,
    /// Bytes the device may write.
    writable: u32,
}

impl Reply {
    /// Writes the status and returns how many bytes, counted from the first writable one, are known to be written when `data` of the
    /// data bytes are (§2.7.8.2: never claim more than was written).
    pub(super) fn send(&self, status: u8, data: u32) -> u32 {
        self.status.copy_from(&[status]);
        if data.saturating_add(1) == self.writable { self.writable } else { data }
    }
}

/// A judged request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Read `len` bytes at `offset` into the data pieces.
    Read { offset: u64, len: u32 },
    /// Write the data pieces, `len` bytes, at `offset`.
    Write { offset: u64, len: u32 },
    /// Make writes durable.
    Flush,
    /// The range is free.
    Discard { offset: u64, len: u64 },
    /// Zero the range.
    Zero { offset: u64, len: u64, unmap: bool },
    /// Say who you are, in the data pieces.
    GetId,
    /// Nonsense or not allowed: answer with this status.
    Refuse(u8),
}

/// Reads a chain's request. Its data pieces are left in `data`. `None` if there is no byte for a status: nothing can be answered.
pub(super) fn read(chain: &Chain, limits: Limits, data: &mut Vec<GuestIoVec>) -> Option<(Ask, Reply)> {
    data.clear();
    let writable = chain.writable_len();
    let data_in = writable.checked_sub(1)?;
    chain::cut(chain.writable(), data_in as usize, 1, data)?;
    let reply = Reply { status: data.pop()?, writable };
    data.clear();
    let ask = judge(chain, limits, data_in, data).unwrap_or(Ask::Refuse(S_IOERR));
    Some((ask, reply))
}

/// `None` stands for a malformed request.
fn judge(chain: &Chain, limits: Limits, data_in: u32, data: &mut Vec<GuestIoVec>) -> Option<Ask> {
    let mut header = Header::default();
    chain::read_bytes(chain.readable(), header.as_mut_bytes())?;
    let data_out = chain.readable_len().checked_sub(HEADER_LEN)?;
    let sector = header.sector.get();
    Some(match header.kind.get() {
        T_IN => {
            let offset = place(sector, data_in.into(), limits)?;
            chain::cut(chain.writable(), 0, data_in as usize, data)?;
            Ask::Read { offset, len: data_in }
        }
        T_OUT => {
            let offset = place(sector, data_out as u64, limits)?;
            if limits.read_only {
                return None;
            }
            chain::cut(chain.readable(), HEADER_LEN, data_out, data)?;
            Ask::Write { offset, len: u32::try_from(data_out).ok()? }
        }
        T_FLUSH if limits.flush => Ask::Flush,
        T_GET_ID => {
            // The driver gives 20 bytes (§5.2.6.1); more do no harm.
            chain::cut(chain.writable(), 0, (data_in as usize >= ID_LEN).then_some(ID_LEN)?, data)?;
            Ask::GetId
        }
        kind @ (T_DISCARD | T_WRITE_ZEROES) => {
            if limits.read_only {
                return None;
            }
            // One range a request is what the configuration space allows.
            let mut range = Range::new_zeroed();
            if data_out != size_of::<Range>() {
                return None;
            }
            chain::cut(chain.readable(), HEADER_LEN, data_out, data)?;
            chain::read_bytes(data, range.as_mut_bytes())?;
            let (known_flags, most) = match kind {
                T_DISCARD => (0, MAX_DISCARD_SECTORS),
                _ => (RANGE_UNMAP, MAX_ZEROES_SECTORS),
            };
            let (sectors, flags) = (range.sectors.get(), range.flags.get());
            if flags & !known_flags != 0 {
                return Some(Ask::Refuse(S_UNSUPP));
            }
            if sectors > most {
                return None;
            }
            let len = u64::from(sectors).checked_mul(SECTOR_LEN)?;
            let offset = place(range.sector.get(), len, limits)?;
            match kind {
                T_DISCARD => Ask::Discard { offset, len },
                _ => Ask::Zero { offset, len, unmap: flags & RANGE_UNMAP != 0 },
            }
        }
        _ => Ask::Refuse(S_UNSUPP),
    })
}

/// The offset in bytes of a range of whole sectors, at least one, that ends within the capacity.
fn place(sector: u64, len: u64, limits: Limits) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR_LEN)?;
    let end = offset.checked_add(len)?;
    (len != 0 && len.is_multiple_of(SECTOR_LEN) && end <= limits.capacity_bytes).then_some(offset)
}
