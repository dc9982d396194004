//! The bus as a guest sees it, with functions that remember what was done to them.

use proptest::prelude::*;

use super::*;

const SPACE: Range<u64> = 0x1_0000_0000..0x1_0100_0000;
const LEN: u64 = 0x8_0000;

struct Card {
    space: Mutex<ConfigSpace>,
    base: Mutex<Option<u64>>,
    last: Mutex<Option<u64>>,
    /// What another vCPU does between a write to the configuration space and what follows from it.
    between: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

fn card(base: u64) -> Arc<Card> {
    let mut space = ConfigSpace::new(Identity {
        vendor: 0x1af4,
        device: 0x1041,
        class: [2, 0, 0],
        revision: 1,
        subsystem_vendor: 0,
        subsystem: 0,
    });
    space.add_bar(base, LEN);
    Arc::new(Card {
        space: Mutex::new(space),
        base: Mutex::new(None),
        last: Mutex::new(None),
        between: Mutex::default(),
    })
}

impl Function for Card {
    fn read_config(&self, at: usize, data: &mut [u8]) {
        self.space.lock().unwrap().read(at, data);
    }
    fn write_config(&self, at: usize, data: &[u8]) {
        let between = self.between.lock().unwrap().take();
        if let Some(between) = between {
            between();
        }
        self.space.lock().unwrap().write(at, data);
    }
    fn bar(&self) -> Option<u64> {
        self.space.lock().unwrap().bar()
    }
    fn bar_len(&self) -> u64 {
        LEN
    }
    fn move_to(&self, base: Option<u64>) {
        *self.base.lock().unwrap() = base;
    }
    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn write_bar(&self, offset: u64, _data: &[u8]) {
        *self.last.lock().unwrap() = Some(offset);
    }
}

struct Guest {
    bus: Arc<PciBus>,
    ecam: Ecam,
    ports: ConfigPorts,
    window: BarWindow,
}

fn guest() -> Guest {
    let bus = Arc::new(PciBus::new(SPACE));
    Guest { ecam: Ecam(bus.clone()), ports: ConfigPorts::new(bus.clone()), window: BarWindow(bus.clone()), bus }
}

impl Guest {
    fn read(&self, slot: u64, at: u64) -> u32 {
        let mut data = [0; 4];
        self.ecam.read(slot * ECAM_SLOT_LEN + at, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, slot: u64, at: u64, value: u32) {
        self.ecam.write(slot * ECAM_SLOT_LEN + at, &value.to_le_bytes());
    }

    fn by_port(&self, slot: u32, at: u32) -> u32 {
        self.ports.write(0, &(0x8000_0000 | slot << 11 | at).to_le_bytes());
        let mut data = [0; 4];
        self.ports.read(4, &mut data);
        u32::from_le_bytes(data)
    }

    fn answers(&self, addr: u64) -> bool {
        let mut data = [0xff; 8];
        self.window.read(addr - SPACE.start, &mut data);
        data != [0xff; 8]
    }
}

/// Two vCPUs at the same BAR: one moves it while the other is about to write what it said before.
#[test]
fn the_last_word_about_a_bar_counts() {
    let guest = guest();
    let card = card(SPACE.start);
    guest.bus.insert(5, card.clone()).unwrap();
    guest.write(5, 4, 2);
    assert_eq!(*card.base.lock().unwrap(), Some(SPACE.start));
    let ecam = Ecam(guest.bus.clone());
    let elsewhere = (SPACE.start + 4 * LEN) as u32;
    *card.between.lock().unwrap() =
        Some(Box::new(move || ecam.write(5 * ECAM_SLOT_LEN + 0x10, &elsewhere.to_le_bytes())));
    guest.write(5, 0x10, SPACE.start as u32);
    assert_eq!((card.bar(), *card.base.lock().unwrap()), (Some(SPACE.start), Some(SPACE.start)));
    assert!(guest.answers(SPACE.start) && !guest.answers(SPACE.start + 4 * LEN));
}

#[test]
fn both_ways_lead_to_the_same_place() {
    let guest = guest();
    guest.bus.insert(5, card(SPACE.start)).unwrap();
    for (slot, id) in [(0, 0x0d57_8086), (5, 0x1041_1af4), (1, u32::MAX), (31, u32::MAX)] {
        assert_eq!(guest.read(slot, 0), id, "slot {slot}");
        assert_eq!(guest.by_port(slot as u32, 0), id, "slot {slot}");
    }
    // Other functions, other buses, the address port itself.
    assert_eq!(guest.by_port(5, 0x100), u32::MAX);
    assert_eq!(guest.by_port(5 | 1 << 5, 0), u32::MAX);
    assert_eq!(guest.read(5, ECAM_FUNCTION_LEN), u32::MAX);
    assert_eq!(guest.read(5, 0x100), 0, "no extended capabilities");
    let mut word = [0; 2];
    guest.by_port(5, 0);
    guest.ports.read(6, &mut word);
    assert_eq!(u16::from_le_bytes(word), 0x1041);
    guest.ports.write(0, &0x12345678u32.to_le_bytes());
    assert_eq!(guest.ports.address(), 0x0034_5678);
    guest.ports.write(1, &[1]);
    guest.ports.write(0, &[1, 2]);
    assert_eq!(guest.ports.address(), 0x0034_5678, "only a double word is an address");
}

#[test]
fn memory_answers_when_the_guest_says_so() {
    let guest = guest();
    let card = card(SPACE.start + LEN);
    guest.bus.insert(1, card.clone()).unwrap();
    let at = SPACE.start + LEN;
    assert!(!guest.answers(at));
    guest.write(1, 4, 2);
    assert!(guest.answers(at + 8) && !guest.answers(at - 8) && !guest.answers(at + LEN));
    guest.window.write(LEN + 0x50, &[1; 4]);
    assert_eq!(*card.last.lock().unwrap(), Some(0x50));
    // Across the end.
    assert!(!guest.answers(at + LEN - 4));
    guest.write(1, 4, 0);
    assert!(!guest.answers(at + 8));
    assert_eq!(*card.base.lock().unwrap(), None);
}

/// G28: a BAR goes nowhere but into the bus's own space, and never onto another one.
#[test]
fn bars_move_to_free_places_only() {
    let guest = guest();
    let (first, second) = (card(SPACE.start), card(SPACE.start + LEN));
    guest.bus.insert(1, first.clone()).unwrap();
    guest.bus.insert(2, second.clone()).unwrap();
    guest.write(1, 4, 2);
    guest.write(2, 4, 2);
    let move_to = |base: u64| {
        guest.write(2, 4, 0);
        guest.write(2, 0x10, base as u32);
        guest.write(2, 0x14, (base >> 32) as u32);
        guest.write(2, 4, 2);
        *second.base.lock().unwrap()
    };
    for base in [0, 0x1000_0000, SPACE.start, SPACE.end, SPACE.end - LEN / 2, SPACE.start - LEN, 0xffff_ffff_fff8_0000]
    {
        let expected = (base == SPACE.end - LEN / 2).then_some(SPACE.end - LEN);
        // Not aligned: the lower bits are not there.
        assert_eq!(move_to(base), expected, "{base:#x}");
    }
    assert_eq!(move_to(SPACE.start + 4 * LEN), Some(SPACE.start + 4 * LEN));
    assert_eq!(*first.base.lock().unwrap(), Some(SPACE.start));
    // Without switching it off first, half by half.
    guest.write(2, 0x10, (SPACE.start + 6 * LEN) as u32);
    assert_eq!(*second.base.lock().unwrap(), Some(SPACE.start + 6 * LEN));
    guest.write(2, 0x14, 7);
    assert_eq!(*second.base.lock().unwrap(), None);
}

/// F11: the 32nd device finds no slot, and an emptied slot is used again.
#[test]
fn slots_run_out_and_come_back() {
    let guest = guest();
    for n in 1..32 {
        assert_eq!(guest.bus.free_slot(), Ok(n));
        guest.bus.insert(n, card(SPACE.start)).unwrap();
    }
    assert_eq!(guest.bus.free_slot(), Err(NoSlot::Full));
    assert_eq!(guest.bus.insert(7, card(SPACE.start)), Err(NoSlot::Taken(7)));
    assert_eq!(guest.bus.insert(32, card(SPACE.start)), Err(NoSlot::Taken(32)));
    guest.write(7, 4, 2);
    assert!(guest.answers(SPACE.start));
    guest.bus.remove(7);
    guest.bus.remove(7);
    assert!(!guest.answers(SPACE.start));
    assert_eq!((guest.read(7, 0), guest.bus.free_slot()), (u32::MAX, Ok(7)));
}

proptest! {
    /// Any access by any way: no panic, the host bridge stays, and no two windows share an address or leave the space.
    #[test]
    fn any_access(script in proptest::collection::vec((0u8..3, 0u64..0x2_0000, 0usize..=8, any::<u64>(), any::<bool>()), 0..200)) {
        let guest = guest();
        let cards = [card(SPACE.start), card(SPACE.start), card(SPACE.start + LEN)];
        for (slot, card) in (1..).zip(&cards) {
            guest.bus.insert(slot, card.clone()).unwrap();
        }
        for (way, offset, len, value, write) in script {
            let mut data = (value & 0x1_01ff_ffff).to_le_bytes();
            let (device, offset): (&dyn BusDevice, u64) = match way {
                0 => (&guest.ecam, offset),
                1 => (&guest.ports, offset % 10),
                _ => (&guest.window, offset << 8),
            };
            if write { device.write(offset, &data[..len]) } else { device.read(offset, &mut data[..len]) }
            let windows: Vec<u64> = cards.iter().filter_map(|card| *card.base.lock().unwrap()).collect();
            for (n, window) in windows.iter().enumerate() {
                prop_assert!(*window >= SPACE.start && window + LEN <= SPACE.end);
                prop_assert!(windows.iter().skip(n + 1).all(|other| other.abs_diff(*window) >= LEN));
            }
        }
        prop_assert_eq!(guest.read(0, 0), 0x0d57_8086);
    }
}
