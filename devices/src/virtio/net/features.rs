//! What a network card offers, and what a driver's choice means for the tap (virtio 1.3 §5.1.3).

use crate::sys::tap::Offloads;
use crate::virtio::registers::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};

/// The device finishes checksums.
pub(super) const CSUM: u64 = 1 << 0;
/// The driver takes frames without checksum. The other `GUEST_` features need it.
pub(super) const GUEST_CSUM: u64 = 1 << 1;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_UFO: u64 = 1 << 10;
/// The device segments TCP over IPv4.
pub(super) const HOST_TSO4: u64 = 1 << 11;
/// The device segments TCP over IPv6.
pub(super) const HOST_TSO6: u64 = 1 << 12;
/// The device fragments UDP.
pub(super) const HOST_UFO: u64 = 1 << 14;
/// A frame may lie in several receive buffers.
pub(super) const MRG_RXBUF: u64 = 1 << 15;
/// There is a control queue.
pub(super) const CTRL_VQ: u64 = 1 << 17;
/// There may be several pairs of queues. Needs the control queue.
pub(super) const MQ: u64 = 1 << 22;
const GUEST_USO4: u64 = 1 << 54;
const GUEST_USO6: u64 = 1 << 55;
/// The device segments UDP.
pub(super) const HOST_USO: u64 = 1 << 56;

const GUEST_OFFLOADS: [(u64, Offloads); 5] = [
    (GUEST_TSO4, Offloads::TSO4),
    (GUEST_TSO6, Offloads::TSO6),
    (GUEST_UFO, Offloads::UFO),
    (GUEST_USO4, Offloads::USO4),
    (GUEST_USO6, Offloads::USO6),
];

/// Features of a card on a tap that supports `tap`, with or without a MAC address and an MTU of its own, and with so many pairs of queues.
pub(super) fn offered(tap: Offloads, has_mac: bool, has_mtu: bool, pairs: usize) -> u64 {
    let mut features = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | MRG_RXBUF | CSUM | HOST_TSO4 | HOST_TSO6;
    if has_mac {
        features |= MAC;
    }
    if has_mtu {
        features |= MTU;
    }
    if pairs > 1 {
        features |= CTRL_VQ | MQ;
    }
    if tap.contains(Offloads::CSUM) {
        features |= GUEST_CSUM;
    }
    for (feature, offload) in GUEST_OFFLOADS {
        if tap.contains(offload) {
            features |= feature;
        }
    }
    // A tap that can be asked for these understands them in the other direction.
    if tap.contains(Offloads::UFO) {
        features |= HOST_UFO;
    }
    if tap.contains(Offloads::USO4 | Offloads::USO6) {
        features |= HOST_USO;
    }
    features
}

/// What the tap may hand to a guest that accepted these features.
pub(super) fn offloads(accepted: u64) -> Offloads {
    if accepted & GUEST_CSUM == 0 {
        return Offloads::empty();
    }
    let mut offloads = Offloads::CSUM;
    for (feature, offload) in GUEST_OFFLOADS {
        if accepted & feature != 0 {
            offloads |= offload;
        }
    }
    // The kernel takes the two USOs together only; a guest with one of them does without.
    let uso = Offloads::USO4 | Offloads::USO6;
    if !offloads.contains(uso) {
        offloads -= uso;
    }
    offloads
}

/// The configuration space (§5.1.4) up to `mtu`. Fields whose feature is not offered read as zero.
pub(super) fn config_space(mac: Option<[u8; 6]>, mtu: Option<u16>, pairs: usize) -> [u8; 12] {
    let [a, b, c, d, e, f] = mac.unwrap_or_default();
    let [mtu_low, mtu_high] = mtu.unwrap_or_default().to_le_bytes();
    let pairs = if pairs > 1 { u16::try_from(pairs).unwrap_or(u16::MAX) } else { 0 };
    let [pairs_low, pairs_high] = pairs.to_le_bytes();
    // status in between.
    [a, b, c, d, e, f, 0, 0, pairs_low, pairs_high, mtu_low, mtu_high]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_follow_the_tap() {
        let all = offered(Offloads::all(), true, true, 2);
        for feature in [GUEST_CSUM, GUEST_TSO4, GUEST_USO6, HOST_USO, HOST_UFO, MAC, MTU, MRG_RXBUF, CTRL_VQ, MQ] {
            assert_ne!(all & feature, 0, "{feature:#x}");
        }
        let old = offered(Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6, false, false, 1);
        for feature in [GUEST_USO4, GUEST_USO6, HOST_USO, HOST_UFO, GUEST_UFO, MAC, MTU, CTRL_VQ, MQ] {
            assert_eq!(old & feature, 0, "{feature:#x}");
        }
    }

    #[test]
    fn only_sets_the_kernel_takes_are_asked_for() {
        assert_eq!(offloads(GUEST_TSO4 | GUEST_USO4), Offloads::empty());
        assert_eq!(offloads(GUEST_CSUM | GUEST_TSO4 | GUEST_USO4), Offloads::CSUM | Offloads::TSO4);
        assert_eq!(offloads(u64::MAX), Offloads::all());
    }

    #[test]
    fn the_configuration_space() {
        assert_eq!(config_space(Some([1, 2, 3, 4, 5, 6]), Some(0x1234), 1), [1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0x34, 0x12]);
        assert_eq!(config_space(None, None, 1), [0; 12]);
        assert_eq!(config_space(None, None, 3), [0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0]);
    }
}
