//! The device status field (virtio 1.3 §2.1) and which changes of it a driver may make.

use bitflags::bitflags;

bitflags! {
    /// Device status bits.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Status: u32 {
        /// The driver has seen the device.
        const ACKNOWLEDGE = 1;
        /// The driver knows how to drive it.
        const DRIVER = 2;
        /// The driver is set up.
        const DRIVER_OK = 4;
        /// Features are agreed on.
        const FEATURES_OK = 8;
        /// The device has given up and waits for a reset.
        const NEEDS_RESET = 0x40;
        /// The driver has given up.
        const FAILED = 0x80;
    }
}

/// What a driver's write to the status field amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Reset the device.
    Reset,
    /// A legal step to this status.
    Step(Status),
    /// Not a legal step; the status stays as it is.
    Refused,
}

/// Judges a write of `value` while the status is `now` (virtio 1.3 §2.1.1, §3.1.1).
///
/// Bits may be set, never cleared, in the order ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK; one write may set several. FAILED may be set
/// at any time. A write of 0 is a reset.
pub fn judge(now: Status, value: u32) -> Change {
    if value == 0 {
        return Change::Reset;
    }
    // The driver does not own NEEDS_RESET: what it writes there is ignored (it usually writes back what it read).
    let Some(new) = Status::from_bits(value) else { return Change::Refused };
    let new = new.difference(Status::NEEDS_RESET) | (now & Status::NEEDS_RESET);
    let order = [Status::ACKNOWLEDGE, Status::DRIVER, Status::FEATURES_OK, Status::DRIVER_OK];
    let in_order = order.windows(2).all(|pair| match pair {
        [earlier, later] => !new.contains(*later) || new.contains(*earlier),
        _ => true,
    });
    if new.contains(now) && in_order { Change::Step(new) } else { Change::Refused }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_life() {
        let mut now = Status::empty();
        for value in [1, 3, 11, 15] {
            let Change::Step(next) = judge(now, value) else { panic!("{value} refused") };
            now = next;
        }
        assert_eq!(now.bits(), 15);
        assert_eq!(judge(now, 15), Change::Step(now));
        assert_eq!(judge(now, 0x8f), Change::Step(now | Status::FAILED));
        assert_eq!(judge(now, 0), Change::Reset);
    }

    #[test]
    fn illegal_steps() {
        let of = |bits| Status::from_bits_truncate(bits);
        for (now, value) in
            [(0, 2), (0, 8), (0, 4), (3, 7), (3, 1), (11, 3), (15, 11), (0x8f, 0xf), (3, 0x13), (15, 0xffff_ffff)]
        {
            assert_eq!(judge(of(now), value), Change::Refused, "{now:#x} -> {value:#x}");
        }
    }

    #[test]
    fn needs_reset_belongs_to_the_device() {
        let broken = Status::from_bits_truncate(0x4f);
        assert_eq!(judge(broken, 0xf), Change::Step(broken));
        assert_eq!(judge(Status::from_bits_truncate(0xf), 0x4f), Change::Step(Status::from_bits_truncate(0xf)));
    }

    /// Every value a driver can write in every status: bits are never cleared, never set out of order, and the device's own bit is the
    /// device's own.
    #[test]
    fn all_of_them() {
        for bits in 0..=0xff {
            let Some(now) = Status::from_bits(bits) else { continue };
            for value in 0..=0x1ff {
                match judge(now, value) {
                    Change::Reset => assert_eq!(value, 0),
                    Change::Refused => assert_ne!(value, 0),
                    Change::Step(new) => {
                        assert!(new.contains(now), "{now:?} -> {value:#x}");
                        assert_eq!(new.difference(Status::NEEDS_RESET).bits(), value & !0x40);
                        assert_eq!(new.contains(Status::NEEDS_RESET), now.contains(Status::NEEDS_RESET));
                        let has = |status| u8::from(new.contains(status));
                        let order =
                            [Status::ACKNOWLEDGE, Status::DRIVER, Status::FEATURES_OK, Status::DRIVER_OK].map(has);
                        assert!(order.is_sorted_by(|a, b| a >= b), "{now:?} -> {value:#x}");
                    }
                }
            }
        }
    }
}
