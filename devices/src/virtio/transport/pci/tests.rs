//! The function as a guest sees it: a drive on a bus.

use std::sync::atomic::AtomicU64;

use proptest::prelude::*;

use super::*;
use crate::bus::BusDevice;
use crate::irq::Msi;
use crate::pci::bus::{BarWindow, Ecam, PciBus};
use crate::virtio::block::tests::rig::*;
use crate::virtio::test_driver::Buffer;

const BASE: u64 = 0x7f_c000_0000;

#[derive(Default)]
struct Sink {
    raised: [AtomicU64; 2],
}

impl Vectors for Sink {
    fn route(&self, _vector: u16, _msi: Msi) {}
    fn raise(&self, vector: u16) {
        self.raised[usize::from(vector)].fetch_add(1, Ordering::SeqCst);
    }
    fn release(&self) {}
}

struct Board {
    rig: Rig,
    irq: Arc<PciIrq>,
    sink: Arc<Sink>,
    function: Arc<VirtioPci>,
    ecam: Ecam,
    window: BarWindow,
    places: Arc<Mutex<Vec<Option<u64>>>>,
}

fn function(rig: &Rig, irq: &Arc<PciIrq>, places: &Arc<Mutex<Vec<Option<u64>>>>) -> Arc<VirtioPci> {
    let places = places.clone();
    let moved = move |base| places.lock().unwrap().push(base);
    Arc::new(VirtioPci::new(rig.cell.clone(), irq.clone(), BASE, moved))
}

fn board() -> Board {
    let rig = Rig::idle_with_sized_queues(disk_of(&pattern(50, 1 << 20)));
    let sink = Arc::new(Sink::default());
    let irq = Arc::new(PciIrq::new(1, sink.clone()));
    let places = Arc::default();
    let function = function(&rig, &irq, &places);
    let bus = Arc::new(PciBus::new(BASE..BASE + (16 << 20)));
    bus.insert(3, function.clone()).unwrap();
    Board { rig, irq, sink, function, ecam: Ecam(bus.clone()), window: BarWindow(bus), places }
}

impl Board {
    fn config<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0xee; N];
        self.ecam.read(3 << 15 | at, &mut data);
        data
    }

    fn configure(&self, at: u64, data: &[u8]) {
        self.ecam.write(3 << 15 | at, data);
    }

    fn switch_on(&self) {
        self.configure(4, &6u16.to_le_bytes());
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xee; N];
        self.window.read(offset, &mut data);
        data
    }

    fn word(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    fn half(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    /// Capabilities of one id: where they are.
    fn capabilities(&self, id: u8) -> Vec<u64> {
        let mut found = Vec::new();
        let mut at = u64::from(self.config::<1>(0x34)[0]);
        while at != 0 {
            let [this] = self.config(at);
            if this == id {
                found.push(at);
            }
            at = self.config::<1>(at + 1)[0].into();
        }
        found
    }

    fn raised(&self) -> [u64; 2] {
        [0, 1].map(|vector| self.sink.raised[vector].load(Ordering::SeqCst))
    }

    /// As far as DRIVER_OK, all of it by registers, with the queue at the size it comes with.
    fn bring_up(&self) {
        let w = |offset, data: &[u8]| self.window.write(offset, data);
        w(0x14, &[1]);
        w(0x14, &[3]);
        w(0x08, &1u32.to_le_bytes());
        w(0x0c, &1u32.to_le_bytes());
        w(0x14, &[11]);
        assert_eq!(self.read(0x14), [11]);
        w(0x10, &0u16.to_le_bytes());
        w(0x16, &0u16.to_le_bytes());
        w(0x1a, &1u16.to_le_bytes());
        assert_eq!((self.half(0x10), self.half(0x1a)), (0, 1));
        let geometry = self.rig.driver.queues[0].geometry;
        w(0x20, &geometry.descriptors.to_le_bytes());
        w(0x28, &(geometry.available as u32).to_le_bytes());
        w(0x2c, &((geometry.available >> 32) as u32).to_le_bytes());
        w(0x30, &(geometry.used as u32).to_le_bytes());
        w(0x34, &0u32.to_le_bytes());
        w(0x1c, &1u16.to_le_bytes());
        w(0x14, &[15]);
        self.rig.events.settle();
        assert_eq!(self.read(0x14), [15]);
    }

    fn open_vectors(&self) {
        for vector in 0..2u64 {
            self.window.write(TABLE + vector * 16, &0xfee0_0000u64.to_le_bytes());
            self.window.write(TABLE + vector * 16 + 8, &(0x40 + vector).to_le_bytes());
        }
        let [at] = self.capabilities(CAP_MSIX)[..] else { panic!("one MSI-X capability") };
        self.configure(at + 2, &0x8000u16.to_le_bytes());
    }
}

#[test]
fn a_guest_finds_the_structures() {
    let board = board();
    assert_eq!(u32::from_le_bytes(board.config(0)), 0x1042_1af4);
    assert_eq!(board.config(8), [1, 0, 0x80, 1]);
    let found: Vec<(u8, u32, u32)> = board
        .capabilities(CAP_VENDOR)
        .into_iter()
        .map(|at| {
            let [kind] = board.config(at + 3);
            (kind, u32::from_le_bytes(board.config(at + 8)), u32::from_le_bytes(board.config(at + 12)))
        })
        .collect();
    let contract = [(1, 0, 0x40), (3, 0x2000, 1), (4, 0x4000, 0x1000), (2, 0x6000, 4), (5, 0, 0)];
    assert_eq!(found, contract);
    let [msix] = board.capabilities(CAP_MSIX)[..] else { panic!("one MSI-X capability") };
    assert_eq!(u16::from_le_bytes(board.config(msix + 2)), 1, "two vectors");
    assert_eq!(u32::from_le_bytes(board.config(msix + 4)), 0x8000);
    assert_eq!(u32::from_le_bytes(board.config(msix + 8)), 0x4_8000);
}

#[test]
fn a_driver_finds_what_it_looks_for() {
    let board = board();
    assert_eq!(board.word(0), u32::MAX, "not switched on");
    board.switch_on();
    assert_eq!(*board.places.lock().unwrap(), [Some(BASE)]);
    let offered = board.rig.features();
    for (page, bits) in [(0u32, offered as u32), (1, (offered >> 32) as u32), (2, 0)] {
        board.window.write(0, &page.to_le_bytes());
        assert_eq!((board.word(0), board.word(4)), (page, bits));
    }
    assert_eq!((board.half(0x10), board.half(0x12), board.half(0x18), board.half(0x1a)), (0xffff, 1, 256, 0xffff));
    assert_eq!((board.half(0x1c), board.half(0x1e), board.word(0x2000)), (0, 0, 0));
    board.window.write(0x16, &1u16.to_le_bytes());
    assert_eq!((board.half(0x18), board.half(0x1a)), (0, 0xffff), "queue 1 does not exist");
    assert_eq!(u64::from_le_bytes(board.read(DEVICE)), 2048, "sectors");
    // A vector that does not exist.
    board.window.write(0x10, &2u16.to_le_bytes());
    assert_eq!(board.half(0x10), 0xffff);
}

#[test]
fn a_driver_at_work_is_interrupted() {
    let mut board = board();
    board.switch_on();
    board.open_vectors();
    board.bring_up();
    let at = board.rig.place();
    let data = Buffer { addr: at + 0x1000, len: 512, writable: true };
    let chain = [board.rig.header(at, 0, 0), data, board.rig.status_at(at + 16)];
    let head = board.rig.offer(&chain, at + 16);
    board.window.write(doorbell(0), &0u16.to_le_bytes());
    assert_eq!(board.rig.wait(head), Answer { status: OK, written: 513 });
    // The rig's cell tells its own counter; the function's interrupts are looked at here.
    board.irq.queue(0);
    board.irq.config();
    board.irq.queue(9);
    assert_eq!(board.raised(), [1, 1]);
    board.window.write(0x14, &[0]);
    board.irq.queue(0);
    assert_eq!(board.raised(), [1, 1], "a reset takes the vectors away");
    assert_eq!((board.half(0x10), board.half(0x18)), (0xffff, 256));
    board.bring_up();
}

/// G1 and G2 on PCI: sizes that cannot be are refused at DRIVER_OK, and what was agreed on stays (CVE-2026-5747).
#[test]
fn geometry_is_frozen() {
    let board = board();
    board.switch_on();
    board.bring_up();
    let before = board.rig.metrics.cfg_fails.get();
    for (offset, data) in [(0x18, 8u64), (0x20, 0xdead_0000), (0x28, 0xdead_0000), (0x30, 0xdead_0000), (0x1c, 0)] {
        let len = if offset >= 0x20 { 8 } else { 2 };
        board.window.write(offset, &data.to_le_bytes()[..len]);
    }
    // Three addresses are six halves.
    assert_eq!(board.rig.metrics.cfg_fails.get() - before, 8);
    let geometry = board.rig.driver.queues[0].geometry;
    assert_eq!((board.half(0x18), u64::from_le_bytes(board.read(0x20))), (256, geometry.descriptors));
    assert_eq!(board.read(0x14), [15]);
    board.window.write(0x14, &[0]);
    for size in [0u16, 3, 512, 0xffff] {
        for status in [1, 3] {
            board.window.write(0x14, &[status]);
        }
        board.window.write(0x08, &1u32.to_le_bytes());
        board.window.write(0x0c, &1u32.to_le_bytes());
        board.window.write(0x14, &[11]);
        board.window.write(0x18, &size.to_le_bytes());
        board.window.write(0x1c, &1u16.to_le_bytes());
        board.window.write(0x14, &[15]);
        assert_eq!(board.read(0x14), [0x4f], "size {size}");
        board.window.write(0x14, &[0]);
    }
    board.bring_up();
}

/// §4.1.4.9: a driver that cannot reach the BAR goes by the configuration space.
#[test]
fn the_window_in_the_configuration_space() {
    let board = board();
    let at = board.capabilities(CAP_VENDOR)[4];
    board.configure(at + 8, &0x12u32.to_le_bytes());
    board.configure(at + 12, &2u32.to_le_bytes());
    assert_eq!(u16::from_le_bytes(board.config(at + 16)), 1, "num_queues");
    board.configure(at + 8, &0x14u32.to_le_bytes());
    board.configure(at + 12, &1u32.to_le_bytes());
    board.configure(at + 16, &[1]);
    assert_eq!(board.config(at + 16), [1], "the device's status");
    for (bar, offset, len) in [(1u8, 0x14u32, 1u32), (0, 0x8_0000, 1), (0, u32::MAX, 4), (0, 0x14, 0), (0, 2, 4)] {
        board.configure(at + 4, &[bar]);
        board.configure(at + 8, &offset.to_le_bytes());
        board.configure(at + 12, &len.to_le_bytes());
        board.configure(at + 16, &[0xff; 4]);
        assert_eq!(board.rig.status().bits(), 1, "BAR {bar}, {offset:#x}+{len}");
    }
}

#[test]
fn what_was_saved_comes_back() {
    let board = board();
    board.switch_on();
    board.open_vectors();
    board.bring_up();
    let saved = board.function.save();
    let rig = Rig::idle_with_sized_queues(disk_of(&[0; 512]));
    let sink = Arc::new(Sink::default());
    let irq = Arc::new(PciIrq::new(1, sink.clone()));
    let again = function(&rig, &irq, &Arc::default());
    again.restore(&saved).unwrap();
    assert_eq!(again.save(), saved);
    assert_eq!(again.bar(), Some(BASE));
    irq.renew(0);
    assert_eq!(sink.raised[1].load(Ordering::SeqCst), 1, "what may have been on its way");
    let other = function(&rig, &Arc::new(PciIrq::new(3, sink)), &Arc::default());
    assert!(matches!(other.restore(&saved), Err(BadState::Impossible(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// G19, G28: any access of any width anywhere: no panic, the identity stays, a reset brings it back.
    #[test]
    fn any_access(script in proptest::collection::vec((0u8..6, any::<u32>(), 0usize..=8, any::<u64>(), any::<bool>()), 1..80)) {
        let board = board();
        board.switch_on();
        for (kind, offset, len, value, write) in script {
            let mut data = value.to_le_bytes();
            let offset = u64::from(offset);
            match kind {
                0 if write => board.ecam.write((3 << 15) | (offset % 0x110), &data[..len]),
                0 => board.ecam.read((3 << 15) | (offset % 0x110), &mut data[..len]),
                1 => board.irq.queue(value as u16 & 3),
                _ => {
                    let offset = match kind {
                        2 => offset % 0x50,
                        3 => TABLE + offset % 0x30,
                        4 => (offset & 7) * REGION_LEN + (offset >> 8 & 0x3f),
                        _ => offset % BAR_LEN,
                    };
                    if write { board.window.write(offset, &data[..len]) } else { board.window.read(offset, &mut data[..len]) }
                }
            }
            board.rig.events.turn(0);
        }
        prop_assert_eq!(u32::from_le_bytes(board.config(0)), 0x1042_1af4);
        board.configure(4, &[0]);
        board.configure(0x10, &BASE.to_le_bytes()[..4]);
        board.configure(0x14, &BASE.to_le_bytes()[4..]);
        board.switch_on();
        board.window.write(0x14, &[0]);
        prop_assert_eq!(board.read(0x14), [0]);
        board.bring_up();
    }
}
