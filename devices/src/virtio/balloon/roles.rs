//! Which queue is which.
//!
//! virtio 1.3 §5.5.2 gives each of the five queues a fixed number. Linux numbers those it uses without holes instead: it leaves out the
//! names of queues whose feature was not negotiated, and its transports count only named ones (`vm_find_vqs` in
//! drivers/virtio/virtio_mmio.c), so that with reporting alone the reporting queue is number 2, not 4. Both kinds of drivers set up their
//! queues in the same order, and this is what counts here: the third queue that is ready has the third role there is.

use super::device::{F_FREE_PAGE_HINT, F_PAGE_REPORTING, F_STATS_VQ};
use crate::virtio::queue::MAX_SIZE;

/// Most queues a balloon has.
pub(super) const QUEUES: usize = 5;

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Pages go into the balloon.
    Inflate,
    /// Pages leave it.
    Deflate,
    /// The guest's numbers.
    Stats,
    /// Free pages, named because the host asked.
    Hint,
    /// Free pages, named because the guest has some.
    Report,
}

/// The roles in order of their queues, each with the feature it comes with.
const ORDER: [(Role, u64); QUEUES] = [
    (Role::Inflate, 0),
    (Role::Deflate, 0),
    (Role::Stats, F_STATS_VQ),
    (Role::Hint, F_FREE_PAGE_HINT),
    (Role::Report, F_PAGE_REPORTING),
];

/// Sizes of the queues of a device with these features: as many as a driver that keeps to the fixed numbers needs.
pub(super) fn queue_sizes(offered: u64) -> &'static [u16] {
    const SIZES: [u16; QUEUES] = [MAX_SIZE; QUEUES];
    let last = ORDER.iter().rposition(|(_, feature)| offered & feature == *feature).unwrap_or(0);
    SIZES.get(..=last).unwrap_or(&SIZES)
}

/// The roles of the queues, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Roles([Option<Role>; QUEUES]);

impl Roles {
    /// Hands out the roles that come with the `accepted` features to the queues that are ready.
    pub(super) fn of(accepted: u64, ready: &[bool]) -> Self {
        let is_ready = |index: usize| ready.get(index).copied().unwrap_or(false);
        let there_is = |feature: u64| accepted & feature == feature;
        let roles = || ORDER.into_iter().filter(|(_, feature)| there_is(*feature)).map(|(role, _)| role);
        let mut given = [None; QUEUES];
        if ready.iter().filter(|ready| **ready).count() == roles().count() {
            let mut roles = roles();
            for (index, slot) in given.iter_mut().enumerate() {
                *slot = if is_ready(index) { roles.next() } else { None };
            }
        } else {
            // A driver that left queues out which it could have: then only the fixed numbers tell.
            for (index, (slot, (role, feature))) in given.iter_mut().zip(ORDER).enumerate() {
                *slot = (is_ready(index) && there_is(feature)).then_some(role);
            }
        }
        Self(given)
    }

    /// What queue `index` is for.
    pub(super) fn role(&self, index: u16) -> Option<Role> {
        self.0.get(usize::from(index)).copied().flatten()
    }

    /// Which queue has this role.
    pub(super) fn queue(&self, role: Role) -> Option<usize> {
        self.0.iter().position(|given| *given == Some(role))
    }
}

#[cfg(test)]
mod tests {
    use super::Role::*;
    use super::*;

    const ALL: u64 = F_STATS_VQ | F_FREE_PAGE_HINT | F_PAGE_REPORTING;

    fn roles(accepted: u64, ready: &str) -> Vec<Option<Role>> {
        let ready: Vec<_> = ready.chars().map(|c| c == 'x').collect();
        let roles = Roles::of(accepted, &ready);
        (0..ready.len() as u16).map(|index| roles.role(index)).collect()
    }

    #[test]
    fn linux_counts_without_holes_and_others_with_them() {
        let (inflate, deflate) = (Some(Inflate), Some(Deflate));
        assert_eq!(roles(0, "xx"), [inflate, deflate]);
        assert_eq!(roles(F_PAGE_REPORTING, "xxx.."), [inflate, deflate, Some(Report), None, None]);
        assert_eq!(roles(F_PAGE_REPORTING, "xx..x"), [inflate, deflate, None, None, Some(Report)]);
        assert_eq!(roles(F_FREE_PAGE_HINT, "xxx."), [inflate, deflate, Some(Hint), None]);
        assert_eq!(roles(F_FREE_PAGE_HINT, "xx.x"), [inflate, deflate, None, Some(Hint)]);
        let both = F_STATS_VQ | F_PAGE_REPORTING;
        assert_eq!(roles(both, "xxxx."), [inflate, deflate, Some(Stats), Some(Report), None]);
        assert_eq!(roles(both, "xxx.x"), [inflate, deflate, Some(Stats), None, Some(Report)]);
        assert_eq!(roles(ALL, "xxxxx"), [inflate, deflate, Some(Stats), Some(Hint), Some(Report)]);
    }

    #[test]
    fn with_queues_left_out_the_fixed_numbers_tell() {
        assert_eq!(roles(ALL, "xx..x"), [Some(Inflate), Some(Deflate), None, None, Some(Report)]);
        assert_eq!(roles(0, "x."), [Some(Inflate), None]);
        assert_eq!(roles(0, "xxxxx"), [Some(Inflate), Some(Deflate), None, None, None]);
        assert_eq!(roles(ALL, "....."), [None; 5]);
        assert_eq!(Roles::of(ALL, &[true; 9]).role(7), None);
    }

    #[test]
    fn there_are_as_many_queues_as_the_fixed_numbers_need() {
        let count = |offered| queue_sizes(offered).len();
        assert_eq!([0, F_STATS_VQ, F_FREE_PAGE_HINT, F_PAGE_REPORTING, ALL].map(count), [2, 3, 4, 5, 5]);
    }

    #[test]
    fn a_role_finds_its_queue() {
        let roles = Roles::of(F_PAGE_REPORTING, &[true, true, true, false, false]);
        assert_eq!((roles.queue(Report), roles.queue(Stats)), (Some(2), None));
    }
}
