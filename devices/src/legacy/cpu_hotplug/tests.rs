use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Rings(AtomicU32);

impl IrqLine for Rings {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

type Chip = CpuHotplug<Rings>;

fn chip(count: u8, max: u8) -> Chip {
    CpuHotplug::new(count, max, Rings::default())
}

fn set(indices: &[u8]) -> CpuSet {
    indices.iter().fold(CpuSet::default(), |set, index| set.and(CpuSet::one(*index)))
}

impl Chip {
    fn status_of(&self, index: u8) -> u8 {
        self.write(SELECT, &[index]);
        let mut byte = [0xcc];
        self.read(STATUS, &mut byte);
        byte[0]
    }

    fn tell(&self, index: u8, what: u8) {
        self.write(SELECT, &[index]);
        self.write(STATUS, &[what]);
    }

    fn all(&self, count: u8) -> Vec<u8> {
        (0..count).map(|index| self.status_of(index)).collect()
    }

    fn rings(&self) -> u32 {
        self.bell.0.swap(0, Ordering::Relaxed)
    }

    /// What the machine does with a change. Those that may run are kept in `running`.
    fn apply(&self, change: CpuChange, running: &mut CpuSet) {
        *running = running.without(change.gone).and(change.wanted);
        self.insert(change.wanted);
    }
}

#[test]
fn sets_are_sets() {
    assert_eq!([0, 1, 31, 32, 33].map(|count| CpuSet::first(count).count()), [0, 1, 31, 32, 32]);
    assert_eq!(CpuSet::first(3), set(&[0, 1, 2]));
    assert!([32, 33, 255].into_iter().all(|index| CpuSet::one(index).is_empty() && !CpuSet::first(32).has(index)));
    assert_eq!(set(&[1, 4]).iter().collect::<Vec<_>>(), [1, 4]);
}

#[test]
fn a_vcpu_comes_and_goes() {
    let chip = chip(1, 3);
    assert_eq!(chip.all(4), [PRESENT, 0, 0, 0]);
    let change = chip.want(3);
    assert_eq!(change, CpuChange { gone: set(&[]), wanted: set(&[1, 2]) });
    assert_eq!(chip.all(3), [PRESENT, 0, 0], "not before they may run");
    chip.insert(change.wanted);
    assert_eq!(chip.all(3), [PRESENT, PRESENT | INSERTING, PRESENT | INSERTING]);
    assert!(chip.is_untold());
    chip.tell(1, INSERTING);
    chip.tell(2, INSERTING);
    assert!(!chip.is_untold());
    assert_eq!(chip.want(1), CpuChange::default());
    assert_eq!(chip.all(3), [PRESENT, PRESENT | REMOVING, PRESENT | REMOVING]);
    chip.tell(2, REMOVING);
    chip.tell(2, EJECT);
    assert_eq!((chip.all(3), chip.rings()), (vec![PRESENT, PRESENT | REMOVING, 0], 1));
    assert_eq!(chip.settle(), CpuChange { gone: set(&[2]), wanted: set(&[]) });
    assert_eq!(chip.settle(), CpuChange::default());
    chip.tell(1, EJECT);
    assert_eq!((chip.settle().gone, chip.save().present()), (set(&[1]), set(&[0])));
    let metrics = chip.metrics();
    let counts = [&metrics.insert_count, &metrics.remove_count, &metrics.eject_count, &metrics.invalid_count];
    assert_eq!(counts.map(|counter| counter.get()), [2, 2, 2, 0]);
}

#[test]
fn what_the_guest_does_not_know_of_is_taken_back() {
    let chip = chip(1, 4);
    chip.insert(chip.want(4).wanted);
    chip.tell(1, INSERTING);
    assert_eq!(chip.want(1), CpuChange { gone: set(&[2, 3]), wanted: set(&[]) });
    assert_eq!(chip.all(4), [PRESENT, PRESENT | REMOVING, 0, 0]);
    assert_eq!(chip.metrics().withdraw_count.get(), 2);
}

#[test]
fn a_guest_that_leaves_a_wish_open_is_asked_again() {
    let chip = chip(2, 2);
    chip.want(1);
    chip.tell(1, REMOVING);
    assert_eq!(chip.all(2), [PRESENT, PRESENT]);
    chip.want(1);
    assert_eq!(chip.all(2), [PRESENT, PRESENT | REMOVING]);
}

#[test]
fn a_vcpu_that_leaves_and_is_wanted_again_comes_back_once() {
    let chip = chip(2, 2);
    chip.want(1);
    chip.tell(1, REMOVING);
    // It may be on its way already.
    assert_eq!(chip.want(2), CpuChange::default());
    chip.tell(1, EJECT);
    let change = chip.settle();
    assert_eq!(change, CpuChange { gone: set(&[1]), wanted: set(&[1]) });
    chip.insert(change.wanted);
    // By itself it may leave, too, and then it stays away: no guest can keep the machine busy that way.
    chip.tell(1, INSERTING | EJECT);
    assert_eq!(chip.settle(), CpuChange { gone: set(&[1]), wanted: set(&[]) });
    assert_eq!(chip.want(2).wanted, set(&[1]), "until somebody asks for it");
}

/// Between the guest's eject and the machine's answer to the bell somebody asks for the vCPU.
#[test]
fn an_eject_that_nobody_has_heard_of_is_part_of_the_next_change() {
    let chip = chip(2, 2);
    chip.tell(1, EJECT);
    assert_eq!(chip.want(2), CpuChange { gone: set(&[1]), wanted: set(&[1]) });
    assert_eq!(chip.settle(), CpuChange::default());
}

#[test]
fn nonsense_is_counted_and_changes_nothing() {
    let chip = chip(2, 3);
    let before = chip.save();
    let mut nonsense = 0;
    let mut write = |select: u8, value: u8| {
        chip.tell(select, value);
        nonsense += 1;
        assert_eq!(chip.metrics().invalid_count.get(), nonsense, "{select} {value:#x}");
    };
    write(0, EJECT);
    for absent in [2, 3, 31, 32, 200, 255] {
        write(absent, EJECT);
        write(absent, INSERTING | REMOVING);
    }
    write(1, 0);
    write(1, 0xf0 | PRESENT);
    for (offset, len) in [(0, 2), (0, 4), (1, 0), (0, 8), (1, 2), (2, 1), (u64::MAX, 1)] {
        chip.write(offset, &vec![0xff; len]);
        let mut data = vec![0xff; len];
        chip.read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0));
        nonsense += 2;
    }
    assert_eq!(chip.metrics().invalid_count.get(), nonsense);
    assert_eq!(CpuHotplugState { selected: 0, ..chip.save() }, before);
    assert_eq!(chip.rings(), 0);
}

#[test]
fn states_that_no_machine_has_are_refused() {
    let good = chip(2, 3).save();
    assert_eq!(good.check(3), Ok(()));
    for bad in [
        CpuHotplugState { wanted: 0, ..good },
        CpuHotplugState { wanted: 4, ..good },
        CpuHotplugState { present: set(&[1]), ..good },
        CpuHotplugState { present: set(&[0, 3]), ..good },
        CpuHotplugState { inserting: set(&[2]), ..good },
        CpuHotplugState { removing: set(&[31]), ..good },
        CpuHotplugState { returning: set(&[2]), ..good },
    ] {
        assert!(bad.check(3).is_err(), "{bad:?}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Want(u8),
    Settle,
    Write(u64, Vec<u8>),
    SaveAndRestore,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let data = proptest::collection::vec(prop_oneof![0u8..8, any::<u8>()], 0..4);
    let step = prop_oneof![
        (1u8..=5).prop_map(Step::Want),
        Just(Step::Settle),
        (0u64..3, data).prop_map(|(offset, data)| Step::Write(offset, data)),
        (0u8..5).prop_map(|index| Step::Write(SELECT, vec![index])),
        (1u8..16).prop_map(|value| Step::Write(STATUS, vec![value])),
        Just(Step::SaveAndRestore),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever guest and operator do: the state is one that a machine can have; what the guest has may run; nothing may run that the guest
    /// gave back and that the machine has heard of; and nothing comes that was not asked for.
    #[test]
    fn any_sequence_keeps_the_books_right(steps in steps()) {
        const MAX: u8 = 4;
        let mut chip = chip(2, MAX);
        let mut running = CpuSet::first(2);
        for step in steps {
            match step {
                Step::Want(count) => {
                    let change = chip.want(count);
                    chip.apply(change, &mut running);
                    let state = chip.save();
                    prop_assert_eq!(state.present(), running);
                    prop_assert!(CpuSet::first(count.min(MAX)).without(running).is_empty());
                }
                Step::Settle => {
                    let change = chip.settle();
                    prop_assert!(change.wanted.without(CpuSet::first(chip.wanted())).is_empty());
                    chip.apply(change, &mut running);
                    prop_assert_eq!(chip.save().present(), running);
                }
                Step::Write(offset, data) => {
                    let before = chip.save();
                    chip.write(offset, &data);
                    let after = chip.save();
                    prop_assert!(after.present().without(before.present()).is_empty(), "a guest takes nothing");
                    prop_assert_eq!(after.wanted, before.wanted);
                }
                Step::SaveAndRestore => {
                    let change = chip.settle();
                    chip.apply(change, &mut running);
                    let state = chip.save();
                    chip = CpuHotplug::restored(state, MAX, Rings::default());
                    prop_assert_eq!(chip.save(), state);
                }
            }
            let state = chip.save();
            prop_assert_eq!(state.check(MAX), Ok(()));
            prop_assert!(state.present().without(running).is_empty());
        }
    }
}
