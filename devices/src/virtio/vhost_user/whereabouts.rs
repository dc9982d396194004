//! Where a backend is on its rings, as the rings in guest memory tell (virtio 1.3 §2.7.6, §2.7.8). What is there is the guest's to forge, at
//! its own cost.

use vm_memory::{Bytes, GuestAddress};

use crate::ram::GuestRam;
use crate::virtio::queue::Geometry;

/// A look at a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Whereabouts {
    /// Requests that were answered, modulo 2^16.
    pub(super) used: u16,
    /// Requests that were made.
    available: u16,
}

impl Whereabouts {
    pub(super) fn look(ram: &GuestRam, geometry: &Geometry) -> Self {
        // Both rings begin with flags and index.
        let index = |ring: u64| number(ram, ring.saturating_add(2));
        Self { used: index(geometry.used), available: index(geometry.available) }
    }

    /// Requests without an answer.
    pub(super) fn open(self) -> u16 {
        self.available.wrapping_sub(self.used)
    }

    /// Where the next backend goes on without the last one's word, if that can be known: behind the last request that was answered, if
    /// none is open, or if all that the rings still show was answered in the order in which it was asked. A request that was asked earlier may
    /// else be open, and a later one be answered already: to answer that again would tell the driver that another request is done.
    pub(super) fn goes_on(self, ram: &GuestRam, geometry: &Geometry) -> Option<u16> {
        let closed = geometry.size.checked_sub(self.open())?;
        let in_order = (1..=closed).all(|back| {
            let slot = u64::from(self.used.wrapping_sub(back).checked_rem(geometry.size).unwrap_or(0));
            let asked = number(ram, geometry.available.saturating_add(4).saturating_add(slot.saturating_mul(2)));
            let answered = number(ram, geometry.used.saturating_add(4).saturating_add(slot.saturating_mul(8)));
            asked == answered
        });
        (self.open() == 0 || in_order).then_some(self.used)
    }
}

/// The rings were found to be in memory; an address that is not is nobody's request.
fn number(ram: &GuestRam, at: u64) -> u16 {
    u16::from_le(ram.read_obj(GuestAddress(at)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::test_driver::TestDriver;

    /// A ring of four on which these were asked and answered, in this order.
    fn goes_on(asked: &[u16], answered: &[u16]) -> Option<u16> {
        let driver = TestDriver::new(1, 4);
        let at = driver.queues[0].geometry;
        let put = |value: u16, at: u64| driver.ram.write_obj(value, GuestAddress(at)).unwrap();
        for (n, head) in (0..).zip(asked) {
            put(*head, at.available + 4 + 2 * (n % 4));
        }
        for (n, head) in (0..).zip(answered) {
            put(*head, at.used + 4 + 8 * (n % 4));
        }
        put(asked.len() as u16, at.available + 2);
        put(answered.len() as u16, at.used + 2);
        let seen = Whereabouts::look(&driver.ram, &at);
        assert_eq!(usize::from(seen.open()), asked.len() - answered.len());
        seen.goes_on(&driver.ram, &at)
    }

    #[test]
    fn what_is_open_must_be_known() {
        assert_eq!(goes_on(&[], &[]), Some(0));
        assert_eq!(goes_on(&[0, 1, 2], &[]), Some(0));
        assert_eq!(goes_on(&[0, 1, 2, 0, 1], &[0, 1, 2]), Some(3));
        // Nothing is open, so it does not matter.
        assert_eq!(goes_on(&[0, 1, 2], &[2, 1, 0]), Some(3));
        // 0 is open, and 1 answered.
        assert_eq!(goes_on(&[0, 1], &[1]), None);
        assert_eq!(goes_on(&[0, 1, 2, 1, 2], &[1, 2, 1]), None);
    }

    #[test]
    fn nonsense_is_nobodys_place() {
        let driver = TestDriver::new(1, 4);
        let at = driver.queues[0].geometry;
        driver.ram.write_obj(5u16, GuestAddress(at.available + 2)).unwrap();
        assert_eq!(Whereabouts::look(&driver.ram, &at).goes_on(&driver.ram, &at), None);
    }
}
