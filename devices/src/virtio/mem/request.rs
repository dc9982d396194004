//! What a driver asks for and what it is told (virtio 1.3 §5.15.6): read, judged against the region's state, not yet done.

use std::ops::Range;

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout};

use super::Shape;
use super::blocks::{Blocks, State};
use crate::sys::iovec::GuestIoVec;
use crate::virtio::chain::{self, Chain};

const T_PLUG: u16 = 0;
const T_UNPLUG: u16 = 1;
const T_UNPLUG_ALL: u16 = 2;
const T_STATE: u16 = 3;

/// Response types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Answer {
    /// Done.
    Ack = 0,
    /// Denied: more than requested.
    Nack = 1,
    /// Not now.
    Busy = 2,
    /// Nonsense.
    Error = 3,
}

/// Response data of [`T_STATE`].
const STATE_PLUGGED: u16 = 0;
const STATE_UNPLUGGED: u16 = 1;
const STATE_MIXED: u16 = 2;

#[derive(zerocopy::FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Request {
    kind: U16,
    padding: [u8; 6],
    addr: U64,
    nb_blocks: U16,
    more_padding: [u8; 6],
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Response {
    kind: U16,
    padding: [u8; 6],
    state: U16,
}

/// Length of a response in bytes.
pub(super) const RESPONSE_LEN: usize = size_of::<Response>();

/// Where a response goes: it may be cut into as many pieces as it has bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reply([GuestIoVec; RESPONSE_LEN]);

impl Reply {
    /// The room for a response in a chain, if there is enough. `pieces` is for scratch.
    pub(super) fn of(chain: &Chain, pieces: &mut Vec<GuestIoVec>) -> Option<Self> {
        pieces.clear();
        chain::cut(chain.writable(), 0, RESPONSE_LEN, pieces)?;
        let mut room = [GuestIoVec::empty(); RESPONSE_LEN];
        for (to, from) in room.iter_mut().zip(pieces.iter().filter(|piece| !piece.is_empty())) {
            *to = *from;
        }
        Some(Self(room))
    }

    /// Writes the response and returns how many bytes that is.
    pub(super) fn send(&self, answer: Answer, state: State) -> u32 {
        let state = match state {
            State::Plugged => STATE_PLUGGED,
            State::Unplugged => STATE_UNPLUGGED,
            State::Mixed => STATE_MIXED,
        };
        let response = Response { kind: U16::new(answer as u16), padding: [0; 6], state: U16::new(state) };
        // The pieces were cut to this length.
        let _ = chain::write_bytes(&self.0, response.as_bytes());
        RESPONSE_LEN as u32
    }
}

/// Which of the requests it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Plug,
    Unplug,
    UnplugAll,
    State,
    Unknown,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    /// Nothing but this answer.
    Tell(Answer, State),
    /// Plug these unplugged blocks.
    Plug(Range<u64>),
    /// Unplug these plugged blocks.
    Unplug(Range<u64>),
    /// Unplug what is plugged.
    UnplugAll,
}

/// Reads and judges a request. `requested` is in bytes.
pub(super) fn judge(chain: &Chain, shape: Shape, blocks: &Blocks, requested: u64) -> (Kind, Ask) {
    let tell = |answer| Ask::Tell(answer, State::Unplugged);
    let mut request = Request::new_zeroed();
    if chain::read_bytes(chain.readable(), request.as_mut_bytes()).is_none() {
        return (Kind::Unknown, tell(Answer::Error));
    }
    let kind = match request.kind.get() {
        T_PLUG => Kind::Plug,
        T_UNPLUG => Kind::Unplug,
        T_UNPLUG_ALL => return (Kind::UnplugAll, Ask::UnplugAll),
        T_STATE => Kind::State,
        _ => return (Kind::Unknown, tell(Answer::Error)),
    };
    let Some(range) = range(request.addr.get(), request.nb_blocks.get(), shape, blocks) else {
        return (kind, tell(Answer::Error));
    };
    let state = blocks.state(range.clone());
    let ask = match (kind, state) {
        (Kind::State, state) => Ask::Tell(Answer::Ack, state),
        (Kind::Unplug, State::Plugged) => Ask::Unplug(range),
        (Kind::Plug, State::Unplugged) => {
            let more = u64::from(request.nb_blocks.get()).saturating_add(blocks.plugged());
            if more.saturating_mul(shape.block_len) > requested { tell(Answer::Nack) } else { Ask::Plug(range) }
        }
        _ => tell(Answer::Error),
    };
    (kind, ask)
}

/// The blocks a request names; `None` if it names none, or any outside the region, or its address is not a block's.
fn range(addr: u64, nb_blocks: u16, shape: Shape, blocks: &Blocks) -> Option<Range<u64>> {
    let offset = addr.checked_sub(shape.start)?;
    if nb_blocks == 0 || offset.checked_rem(shape.block_len)? != 0 {
        return None;
    }
    let first = offset.checked_div(shape.block_len)?;
    let end = first.checked_add(nb_blocks.into())?;
    (end <= blocks.count()).then_some(first..end)
}
