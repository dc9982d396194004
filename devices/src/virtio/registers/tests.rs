//! Random scripts of register writes against what must hold whatever a driver writes.

use proptest::prelude::*;

use super::*;

const OFFERED: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | 0x60;
const SIZES: &[u16] = &[256, 128];

#[derive(Debug, Clone, Copy)]
enum Write {
    DriverFeatures(u32),
    DriverPage(u32),
    DevicePage(u32),
    Queue(u32),
    Size(u32),
    Address(u8, bool, u32),
    Ready(u32),
    Status(u32),
}

fn area(which: u8) -> Area {
    match which % 3 {
        0 => Area::Descriptors,
        1 => Area::Available,
        _ => Area::Used,
    }
}

fn write() -> impl Strategy<Value = Write> {
    let features = prop_oneof![Just(1u32), Just(OFFERED as u32), Just(0x60), any::<u32>()];
    let status = prop_oneof![
        4 => prop_oneof![Just(1u32), Just(3), Just(11), Just(15)],
        1 => prop_oneof![Just(0u32), Just(0x8f), Just(0x4f), Just(0x80)],
        1 => any::<u32>(),
    ];
    prop_oneof![
        1 => features.prop_map(Write::DriverFeatures),
        1 => (0u32..4).prop_map(Write::DriverPage),
        1 => (0u32..4).prop_map(Write::DevicePage),
        1 => (0u32..4).prop_map(Write::Queue),
        1 => prop_oneof![Just(256u32), any::<u32>()].prop_map(Write::Size),
        1 => (any::<u8>(), any::<bool>(), any::<u32>()).prop_map(|(a, h, v)| Write::Address(a, h, v)),
        1 => (0u32..3).prop_map(Write::Ready),
        3 => status.prop_map(Write::Status),
    ]
}

fn snapshot(registers: &Registers) -> (u64, Vec<(Geometry, u16)>, Status) {
    (registers.accepted(), registers.queues().collect(), registers.status())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn whatever_is_written(script in proptest::collection::vec(write(), 1..80)) {
        let mut registers = Registers::new(OFFERED, SIZES);
        for step in script {
            let (accepted, queues, status) = snapshot(&registers);
            let mut action = Action::None;
            match step {
                Write::DriverFeatures(bits) => registers.accept_features(bits),
                Write::DriverPage(page) => registers.select_driver_features(page),
                Write::DevicePage(page) => {
                    registers.select_device_features(page);
                    let expected = OFFERED.checked_shr(32 * page).map_or(0, |bits| bits as u32);
                    prop_assert_eq!(registers.device_features(), expected);
                }
                Write::Queue(index) => {
                    registers.select_queue(index);
                    prop_assert_eq!(registers.queue_max_size(), SIZES.get(index as usize).copied().unwrap_or(0));
                    prop_assert_eq!(registers.queue().is_some(), (index as usize) < SIZES.len());
                }
                Write::Size(size) => registers.set_queue_size(size),
                Write::Address(which, high, half) => registers.set_queue_address(area(which), high, half),
                Write::Ready(ready) => registers.set_queue_ready(ready),
                Write::Status(value) => action = registers.write_status(value),
            }
            let (accepted_now, queues_now, now) = snapshot(&registers);
            // The driver never clears a bit, and only it sets them, in order and with offered features.
            prop_assert!(now.contains(status));
            if !matches!(step, Write::Status(_)) {
                prop_assert_eq!(now, status);
            }
            if now.contains(Status::FEATURES_OK) {
                prop_assert!(accepted_now & !OFFERED == 0 && accepted_now & F_VERSION_1 != 0);
            }
            if status.contains(Status::FEATURES_OK) {
                prop_assert_eq!(accepted_now, accepted);
            }
            prop_assert!(!now.contains(Status::DRIVER_OK) || now.contains(Status::FEATURES_OK));
            prop_assert!(!now.contains(Status::FEATURES_OK) || now.contains(Status::DRIVER));
            prop_assert!(!now.contains(Status::NEEDS_RESET), "only the device sets it");
            // Geometry moves only between FEATURES_OK and ready or DRIVER_OK (G2).
            for ((before, _), (after, _)) in queues.iter().zip(&queues_now) {
                let open = status.contains(Status::FEATURES_OK)
                    && !status.intersects(Status::DRIVER_OK | Status::FAILED)
                    && !before.ready;
                prop_assert!(open || before == after, "{:?} changed {:?} to {:?}", step, before, after);
            }
            let first_driver_ok = now.contains(Status::DRIVER_OK) && !status.contains(Status::DRIVER_OK);
            prop_assert_eq!(action == Action::Activate, first_driver_ok && !now.contains(Status::FAILED));
            prop_assert_eq!(action == Action::Reset, matches!(step, Write::Status(0)));
            if action == Action::Reset {
                registers.bump_generation();
                let generation = registers.generation();
                registers.reset();
                let fresh = Registers::new(OFFERED, SIZES);
                prop_assert_eq!(snapshot(&registers), snapshot(&fresh));
                prop_assert_eq!(registers.generation(), generation);
            }
        }
    }
}

#[test]
fn sixty_four_bit_addresses_come_in_halves() {
    let mut registers = Registers::new(OFFERED, SIZES);
    registers.select_driver_features(1);
    registers.accept_features(1);
    for status in [1, 3, 11] {
        registers.write_status(status);
    }
    registers.select_queue(1);
    for (which, value) in [(0, 0x1111_2222_3333_4440u64), (1, 0x5555_6666_7777_8888), (2, 0x9999_aaaa_bbbb_cccc)] {
        registers.set_queue_address(area(which), false, value as u32);
        registers.set_queue_address(area(which), true, (value >> 32) as u32);
    }
    registers.set_queue_size(0x1_0000);
    let queue = registers.queue().unwrap();
    assert_eq!(
        (queue.descriptors, queue.available, queue.used, queue.size),
        (0x1111_2222_3333_4440, 0x5555_6666_7777_8888, 0x9999_aaaa_bbbb_cccc, 0)
    );
}

#[test]
fn refused_features_do_not_stick() {
    for (page, bits) in [(0, 1u32), (1, 3), (1, 0)] {
        let mut registers = Registers::new(OFFERED, SIZES);
        registers.select_driver_features(1);
        registers.accept_features(1);
        registers.select_driver_features(page);
        registers.accept_features(bits);
        for status in [1, 3, 11] {
            registers.write_status(status);
        }
        assert_eq!(registers.status().bits(), 3, "page {page} bits {bits:#x}");
    }
}
