//! The register window as a guest sees it.

use std::sync::atomic::AtomicU32;

use proptest::prelude::*;

use super::*;
use crate::virtio::block::Engine;
use crate::virtio::block::tests::rig::*;

#[derive(Clone, Default)]
struct Line(Arc<AtomicU32>);

impl IrqLine for Line {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Board {
    rig: Rig,
    window: MmioWindow,
    irq: Arc<MmioIrq>,
    line: Line,
}

fn board() -> Board {
    let rig = Rig::idle(disk_of(&[0; 4096]), Engine::Sync, false, true);
    let line = Line::default();
    let irq = Arc::new(MmioIrq::new(line.clone()));
    Board { window: MmioWindow::new(rig.cell.clone(), irq.clone()), rig, irq, line }
}

impl Board {
    fn read(&self, offset: u64) -> u32 {
        let mut data = [0xee; 4];
        self.window.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        self.window.write(offset, &value.to_le_bytes());
    }
}

#[test]
fn a_driver_finds_what_it_looks_for() {
    let board = board();
    for (offset, value) in [
        (0x00, 0x7472_6976),
        (0x04, 2),
        (0x08, 2),
        (0x34, 256),
        (0x44, 0),
        (0x60, 0),
        (0x70, 0),
        (0xb0, u32::MAX),
        (0xb4, u32::MAX),
        (0xb8, u32::MAX),
        (0xbc, u32::MAX),
        (0xfc, 0),
        (0x100, 8),
        (0x10c, 254),
    ] {
        assert_eq!(board.read(offset), value, "register {offset:#x}");
    }
    let offered = board.rig.features();
    for (page, bits) in [(0, offered as u32), (1, (offered >> 32) as u32), (2, 0), (u32::MAX, 0)] {
        board.write(0x14, page);
        assert_eq!(board.read(0x10), bits);
    }
    for queue in [1, u32::MAX] {
        board.write(0x30, queue);
        assert_eq!((board.read(0x34), board.read(0x44)), (0, 0), "queue {queue} does not exist");
    }
}

/// §4.2.2.2: registers answer aligned 32-bit accesses only; the configuration space takes any.
#[test]
fn widths() {
    let board = board();
    for width in [1, 2, 3, 5, 8] {
        let mut data = vec![0xee; width];
        board.window.read(0, &mut data);
        assert!(data.iter().all(|b| *b == 0), "width {width}");
        board.window.write(0x70, &vec![1; width]);
        assert_eq!(board.read(0x70), 0, "width {width}");
    }
    for offset in [1, 2, 3, 0x71] {
        assert_eq!(board.read(offset), 0);
    }
    let mut capacity = [0xee; 8];
    board.window.read(0x100, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 8);
    let mut byte = [0xee];
    board.window.read(0x10c, &mut byte);
    assert_eq!(byte, [254]);
    // Across the end of the structure, and at the end of the window.
    assert_eq!(board.read(0x100 + 58), 0);
    assert_eq!(board.read(0xffc), 0);
}

#[test]
fn interrupts_are_acknowledged_bit_by_bit() {
    let board = board();
    board.irq.queue(0);
    board.irq.config();
    assert_eq!((board.read(0x60), board.line.0.load(Ordering::Relaxed)), (3, 2));
    board.write(0x64, 1);
    assert_eq!(board.read(0x60), 2);
    board.irq.repeat();
    assert_eq!(board.line.0.load(Ordering::Relaxed), 3, "still pending, so the line is raised again");
    board.write(0x64, u32::MAX);
    board.irq.repeat();
    assert_eq!((board.read(0x60), board.line.0.load(Ordering::Relaxed)), (0, 3));
    board.irq.queue(0);
    board.write(0x70, 0);
    assert_eq!(board.read(0x60), 0, "a reset clears what is pending");
}

/// G19: a doorbell may be rung for any queue; those that do not exist are counted.
#[test]
fn doorbells_of_queues_that_do_not_exist() {
    let board = board();
    let metrics = &board.rig.metrics;
    assert_eq!(metrics.cfg_fails.get(), 0);
    for queue in [1, 2, 0xffff, u32::MAX] {
        board.write(QUEUE_NOTIFY, queue);
    }
    assert_eq!(metrics.cfg_fails.get(), 4);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Any access of any width anywhere: no panic, and the identity registers stay what they are.
    #[test]
    fn any_access(script in proptest::collection::vec((0u64..WINDOW_LEN + 16, 1usize..=8, any::<u64>(), any::<bool>()), 1..60)) {
        let board = board();
        for (offset, width, value, write) in script {
            let mut data = value.to_le_bytes();
            if write {
                board.window.write(offset, &data[..width]);
            } else {
                board.window.read(offset, &mut data[..width]);
                prop_assert_eq!(&data[width..], &value.to_le_bytes()[width..]);
            }
            board.rig.events.turn(0);
        }
        prop_assert_eq!((board.read(0), board.read(4), board.read(8)), (0x7472_6976, 2, 2));
        board.write(0x70, 0);
        prop_assert_eq!(board.read(0x70), 0);
    }
}
