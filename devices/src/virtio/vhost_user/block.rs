//! A drive behind a backend (virtio 1.3 §5.2): the configuration space and nearly all features are the backend's.

use super::peer::{Offer, Wishes};

/// Bytes of the configuration space that all backends have: up to write_zeroes_may_unmap and its padding (§5.2.4).
const CONFIG_LEN: u8 = 60;

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_GEOMETRY: u64 = 1 << 4;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// What of the drive is not the backend's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockModel {
    /// Offer FLUSH to the guest.
    pub writeback: bool,
}

impl BlockModel {
    /// Rings: one, as file drives have.
    pub const WISHES: Wishes = Wishes { queues: 1, config_len: CONFIG_LEN };

    /// Those it may pass on. A cache that the driver switches (CONFIG_WCE) is not among them, nor are more rings.
    pub(super) fn features(self) -> u64 {
        let flush = if self.writeback { F_FLUSH } else { 0 };
        F_SIZE_MAX | F_SEG_MAX | F_GEOMETRY | F_RO | F_BLK_SIZE | F_TOPOLOGY | F_DISCARD | F_WRITE_ZEROES | flush
    }

    /// Whether the backend lets nobody write.
    pub fn is_read_only(offer: &Offer) -> bool {
        offer.features & F_RO != 0
    }
}
