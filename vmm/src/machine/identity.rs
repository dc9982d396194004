//! What tells a guest that it is no longer the only one of its kind: the VM generation id and the VM clock.
//!
//! Both are pages in guest memory that the guest finds by ACPI. They are filled when a machine boots; a machine that is restored from a
//! snapshot gets new contents and a notification, so that its kernel mixes new randomness in, and its programs discard what must not
//! exist twice and what they knew of the time. The guest may have written there: what is found is never trusted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use devices::irq::IrqLine;
use devices::ram::GuestRam;
use devices::sys::random;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use crate::arch::layout::{GENERATION_ID, PAGE_SIZE, VM_CLOCK};

/// Length of a generation id (Microsoft, "Virtual Machine Generation ID").
const GENERATION_ID_LEN: usize = 16;

/// Offsets of what changes in the VM clock's page (Linux `include/uapi/linux/vmclock-abi.h`).
mod at {
    pub(super) const SEQ_COUNT: u64 = 12;
    pub(super) const DISRUPTION_MARKER: u64 = 16;
    pub(super) const VM_GENERATION_COUNTER: u64 = 104;
}

/// The VM clock's page (Linux `include/uapi/linux/vmclock-abi.h`). It tells no time, only whether the time was disrupted.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ClockPage {
    magic: U32,
    size: U32,
    version: U16,
    counter_id: u8,
    time_type: u8,
    seq_count: U32,
    disruption_marker: U64,
    flags: U64,
    pad: [u8; 2],
    clock_status: u8,
    leap_second_smearing_hint: u8,
    tai_offset_sec: U16,
    leap_indicator: u8,
    counter_period_shift: u8,
    counter_value: U64,
    counter_period: [U64; 3],
    time: [U64; 4],
    vm_generation_counter: U64,
}

const _: () = {
    assert!(size_of::<ClockPage>() == 112);
    assert!(std::mem::offset_of!(ClockPage, seq_count) as u64 == at::SEQ_COUNT);
    assert!(std::mem::offset_of!(ClockPage, disruption_marker) as u64 == at::DISRUPTION_MARKER);
    assert!(std::mem::offset_of!(ClockPage, vm_generation_counter) as u64 == at::VM_GENERATION_COUNTER);
};

impl ClockPage {
    /// "VCLK".
    const MAGIC: u32 = 0x4b4c_4356;
    const VERSION: u16 = 1;
    /// No counter is related to the time: the page tells none.
    const COUNTER_INVALID: u8 = 0xff;
    const STATUS_UNKNOWN: u8 = 0;
    /// The generation counter is there, and changes with each restore.
    const FLAG_GENERATION_COUNTER: u64 = 1 << 8;
    /// A notification follows each change.
    const FLAG_NOTIFICATION: u64 = 1 << 9;

    /// As a machine that was never restored has it.
    fn new() -> Self {
        Self {
            magic: Self::MAGIC.into(),
            size: U32::new(PAGE_SIZE as u32),
            version: Self::VERSION.into(),
            counter_id: Self::COUNTER_INVALID,
            time_type: 0,
            seq_count: U32::ZERO,
            disruption_marker: U64::ZERO,
            flags: U64::new(Self::FLAG_GENERATION_COUNTER | Self::FLAG_NOTIFICATION),
            pad: [0; 2],
            clock_status: Self::STATUS_UNKNOWN,
            leap_second_smearing_hint: 0,
            tai_offset_sec: U16::ZERO,
            leap_indicator: 0,
            counter_period_shift: 0,
            counter_value: U64::ZERO,
            counter_period: [U64::ZERO; 3],
            time: [U64::ZERO; 4],
            vm_generation_counter: U64::ZERO,
        }
    }
}

/// Why the guest cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The kernel has no random bytes for us.
    #[error("no random bytes for the VM generation id: {0}")]
    Random(io::Error),
    /// The pages are not there.
    #[error("the pages of the VM generation id and the VM clock cannot be written: {0}")]
    Memory(GuestMemoryError),
}

/// An interrupt that must not get lost while the guest has its pin masked.
pub struct Notice<L> {
    line: L,
    /// Raised, and not yet repeated for a pin that may have been masked then.
    owed: AtomicBool,
}

impl<L: IrqLine> Notice<L> {
    /// A notice that raises `line`.
    pub fn new(line: L) -> Arc<Self> {
        Arc::new(Self { line, owed: AtomicBool::new(false) })
    }

    /// Raises it.
    pub fn give(&self) {
        self.owed.store(true, Ordering::Relaxed);
        self.line.raise();
    }

    /// The pin was unmasked. Nobody tells whether the first edge arrived, so one more is raised; drivers see that nothing is new then.
    pub fn repeat(&self) {
        if self.owed.swap(false, Ordering::Relaxed) {
            self.line.raise();
        }
    }
}

/// The two pages and their interrupts.
pub struct Identity<L> {
    ram: GuestRam,
    generation_id: Arc<Notice<L>>,
    clock: Arc<Notice<L>>,
}

impl<L: IrqLine> Identity<L> {
    /// The pages of a machine that boots, filled.
    pub fn boot(ram: GuestRam, generation_id: Arc<Notice<L>>, clock: Arc<Notice<L>>) -> Result<Self, IdentityError> {
        let identity = Self { ram, generation_id, clock };
        identity.new_generation_id()?;
        identity.ram.write_slice(ClockPage::new().as_bytes(), VM_CLOCK).map_err(IdentityError::Memory)?;
        Ok(identity)
    }

    /// The pages of a machine that was saved, as they were.
    pub fn saved(ram: GuestRam, generation_id: Arc<Notice<L>>, clock: Arc<Notice<L>>) -> Self {
        Self { ram, generation_id, clock }
    }

    /// Bytes of the pages that [`Self::renew`] writes to.
    pub const WRITTEN_LEN: u64 = 2 * PAGE_SIZE;

    /// Tells the guest that it was restored from a snapshot, and so may exist more than once. Call it with the guest's memory in place
    /// and before its vCPUs run.
    pub fn renew(&self) -> Result<(), IdentityError> {
        self.new_generation_id()?;
        self.disrupt_clock().map_err(IdentityError::Memory)?;
        self.generation_id.give();
        self.clock.give();
        Ok(())
    }

    fn new_generation_id(&self) -> Result<(), IdentityError> {
        let id = random::bytes::<GENERATION_ID_LEN>().map_err(IdentityError::Random)?;
        self.ram.write_slice(&id, GENERATION_ID).map_err(IdentityError::Memory)
    }

    /// Readers take what they read between two equal and even sequence counts for consistent.
    fn disrupt_clock(&self) -> Result<(), GuestMemoryError> {
        let field = |offset| GuestAddress(VM_CLOCK.0 + offset);
        let next = |offset| -> Result<(), GuestMemoryError> {
            let old: u64 = self.ram.read_obj(field(offset))?;
            self.ram.write_obj(old.wrapping_add(1), field(offset))
        };
        let odd = self.ram.load::<u32>(field(at::SEQ_COUNT), Ordering::Relaxed)? | 1;
        self.ram.store(odd, field(at::SEQ_COUNT), Ordering::Relaxed)?;
        fence(Ordering::SeqCst);
        next(at::DISRUPTION_MARKER)?;
        next(at::VM_GENERATION_COUNTER)?;
        self.ram.store(odd.wrapping_add(1), field(at::SEQ_COUNT), Ordering::Release)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[derive(Default)]
    struct Edges(AtomicU32);

    impl IrqLine for Edges {
        fn raise(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Edges {
        fn take(&self) -> u32 {
            self.0.swap(0, Ordering::Relaxed)
        }
    }

    struct Rig {
        identity: Identity<Arc<Edges>>,
        edges: [Arc<Edges>; 2],
    }

    fn rig() -> Rig {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let edges = [Arc::new(Edges::default()), Arc::new(Edges::default())];
        let [generation_id, clock] = edges.clone().map(Notice::new);
        Rig { identity: Identity::boot(ram, generation_id, clock).unwrap(), edges }
    }

    impl Rig {
        fn generation_id(&self) -> [u8; 16] {
            self.identity.ram.read_obj(GuestAddress(0xd_0000)).unwrap()
        }

        /// Sequence count, disruption marker, generation counter.
        fn clock(&self) -> (u32, u64, u64) {
            let ram = &self.identity.ram;
            let wide = |offset: u64| ram.read_obj(GuestAddress(0xd_1000 + offset)).unwrap();
            (ram.read_obj(GuestAddress(0xd_100c)).unwrap(), wide(16), wide(104))
        }

        fn edges(&self) -> [u32; 2] {
            [self.edges[0].take(), self.edges[1].take()]
        }
    }

    #[test]
    fn a_booted_machine_has_both_pages_and_hears_nothing() {
        let rig = rig();
        assert_ne!(rig.generation_id(), [0; 16]);
        let mut page = [0; 40];
        rig.identity.ram.read_slice(&mut page, GuestAddress(0xd_1000)).unwrap();
        assert_eq!(&page[..12], b"VCLK\x00\x10\x00\x00\x01\x00\xff\x00");
        assert_eq!(rig.clock(), (0, 0, 0));
        assert_eq!(&page[24..40], [0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "flags; no status, no time");
        assert_eq!(rig.edges(), [0, 0]);
    }

    #[test]
    fn no_two_machines_share_a_generation_id() {
        assert_ne!(rig().generation_id(), rig().generation_id());
    }

    #[test]
    fn a_restored_machine_is_another_and_hears_it() {
        let rig = rig();
        for times in 1..=3 {
            let before = rig.generation_id();
            rig.identity.renew().unwrap();
            assert_ne!(rig.generation_id(), before);
            assert_eq!(rig.clock(), (2 * times, times.into(), times.into()), "the count is even again");
            assert_eq!(rig.edges(), [1, 1]);
        }
    }

    #[test]
    fn the_rest_of_the_pages_stays_as_it_is() {
        let rig = rig();
        let all = || {
            let mut bytes = vec![0; 0x2000];
            rig.identity.ram.read_slice(&mut bytes, GuestAddress(0xd_0000)).unwrap();
            bytes
        };
        let before = all();
        rig.identity.renew().unwrap();
        let changed = [0..16, 0x100c..0x1018, 0x1068..0x1070];
        for (at, (before, after)) in before.iter().zip(all()).enumerate() {
            assert!(*before == after || changed.iter().any(|range| range.contains(&at)), "{at:#x}");
        }
    }

    #[test]
    fn an_unmasked_pin_gets_what_it_may_have_missed_once() {
        let rig = rig();
        let repeat = || {
            rig.identity.generation_id.repeat();
            rig.identity.clock.repeat();
        };
        repeat();
        assert_eq!(rig.edges(), [0, 0], "nothing is owed after a boot");
        rig.identity.renew().unwrap();
        rig.edges();
        repeat();
        assert_eq!(rig.edges(), [1, 1]);
        repeat();
        assert_eq!(rig.edges(), [0, 0]);
    }

    /// The guest owns its memory, these pages too.
    #[test]
    fn what_a_guest_wrote_there_does_no_harm() {
        for junk in [0xff_u8, 0x01, 0x7f] {
            let rig = rig();
            rig.identity.ram.write_slice(&[junk; 0x2000], GuestAddress(0xd_0000)).unwrap();
            let (seq, marker, generation) = rig.clock();
            rig.identity.renew().unwrap();
            assert_eq!(rig.clock(), (seq.wrapping_add(1), marker.wrapping_add(1), generation.wrapping_add(1)));
            assert_eq!(rig.clock().0 % 2, 0);
            assert_ne!(rig.generation_id(), [junk; 16]);
        }
    }

    #[test]
    fn a_machine_without_that_memory_is_an_error() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let notice = || Notice::new(Edges::default());
        assert!(matches!(Identity::boot(ram, notice(), notice()), Err(IdentityError::Memory(_))));
    }
}
