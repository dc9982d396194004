//! Requests as drivers make them and as nobody should, against a model, with memory that is made up.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::device::{Rings, VirtioDevice};
use crate::virtio::queue::Visit;
use crate::virtio::test_driver::{Buffer, TestDriver};

const MIB: u64 = 1 << 20;
const START: u64 = 512 << 30;
/// Eight slots of four blocks.
const SHAPE: Shape = Shape { start: START, len: 64 * MIB, block_len: 2 * MIB, slot_len: 8 * MIB };
const BLOCKS: u64 = 32;
const SLOTS: usize = 8;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

/// One byte stands for each block: what the guest stored there, or zero.
#[derive(Debug, Default)]
struct Memory {
    bytes: [u8; BLOCKS as usize],
    open: [bool; SLOTS],
    /// So many calls work, the next one fails.
    works: Option<u32>,
    discarded: u64,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Memory>>);

impl Fake {
    fn look(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap()
    }

    /// The guest stores in every block it reaches.
    fn store_everywhere(&self) {
        let mut memory = self.look();
        for block in 0..BLOCKS as usize {
            if memory.open[block / 4] {
                memory.bytes[block] = 0x77;
            }
        }
    }
}

impl Memory {
    fn may(&mut self) -> io::Result<()> {
        match &mut self.works {
            Some(0) => {
                self.works = None;
                Err(io::ErrorKind::OutOfMemory.into())
            }
            Some(more) => {
                *more -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Backing for Fake {
    fn open(&mut self, slot: usize) -> io::Result<()> {
        let mut memory = self.look();
        memory.may()?;
        assert!(!std::mem::replace(&mut memory.open[slot], true), "slot {slot} was open");
        Ok(())
    }

    fn close(&mut self, slot: usize) -> io::Result<()> {
        let mut memory = self.look();
        memory.may()?;
        assert!(std::mem::replace(&mut memory.open[slot], false), "slot {slot} was closed");
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let mut memory = self.look();
        memory.may()?;
        assert!(offset.is_multiple_of(SHAPE.block_len) && len.is_multiple_of(SHAPE.block_len));
        let first = (offset / SHAPE.block_len) as usize;
        let count = (len / SHAPE.block_len) as usize;
        memory.bytes[first..first + count].fill(0);
        memory.discarded += len;
        Ok(())
    }
}

struct Rig {
    driver: TestDriver,
    rings: Rings,
    device: Mem,
    memory: Fake,
    levels: Arc<Levels>,
}

impl Rig {
    fn new() -> Self {
        let driver = TestDriver::new(1, 64);
        let rings = driver.rings(true, true);
        let (memory, levels) = (Fake::default(), Arc::new(Levels::default()));
        let spec = MemSpec { shape: SHAPE, backing: Box::new(memory.clone()), levels: levels.clone() };
        Self { driver, rings, device: Mem::new(spec).unwrap(), memory, levels }
    }

    fn request(mib: u64) -> Self {
        let mut rig = Self::new();
        rig.device.request(mib * MIB).unwrap();
        rig
    }

    /// One request to its end: response type and state.
    fn ask(&mut self, kind: u16, addr: u64, nb_blocks: u16) -> (u16, u16) {
        let at = TestDriver::FREE;
        self.driver.ram.write_slice(&[0xee; 64], GuestAddress(at)).unwrap();
        self.driver.ram.write_obj(kind, GuestAddress(at)).unwrap();
        self.driver.ram.write_obj(addr, GuestAddress(at + 8)).unwrap();
        self.driver.ram.write_obj(nb_blocks, GuestAddress(at + 16)).unwrap();
        let buffer = |addr, len, writable| Buffer { addr, len, writable };
        self.driver.offer(0, &[buffer(at, 24, false), buffer(at + 32, 10, true)]);
        self.settle();
        assert_eq!(self.driver.take_used(0).map(|(_, len)| len), Some(10));
        assert!(self.driver.take_used(0).is_none());
        let word = |at| self.driver.ram.read_obj::<u16>(GuestAddress(at)).unwrap();
        (word(at + 32), word(at + 40))
    }

    fn settle(&mut self) {
        let mut visit = self.device.on_doorbell(0, &mut self.rings).unwrap();
        while visit == Visit::More {
            visit = self.device.on_doorbell(0, &mut self.rings).unwrap();
        }
    }

    fn on(&mut self, kind: u16, block: u64, nb_blocks: u16) -> u16 {
        self.ask(kind, START + block * SHAPE.block_len, nb_blocks).0
    }

    fn state(&mut self, block: u64, nb_blocks: u16) -> (u16, u16) {
        self.ask(STATE, START + block * SHAPE.block_len, nb_blocks)
    }

    fn field(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.device.read_config(offset, &mut data);
        u64::from_le_bytes(data)
    }

    /// Slots are open exactly where something is plugged, and everybody says the same of how much that is.
    fn is_consistent(&self, plugged: &[bool]) {
        let count = plugged.iter().filter(|flag| **flag).count() as u64;
        assert_eq!(self.field(40), count * SHAPE.block_len);
        assert_eq!(self.levels.plugged(), count * SHAPE.block_len);
        let memory = self.memory.look();
        for (slot, blocks) in plugged.chunks(4).enumerate() {
            assert_eq!(memory.open[slot], blocks.contains(&true), "slot {slot}");
        }
        let open = memory.open.iter().filter(|open| **open).count() as u64;
        assert_eq!(self.device.metrics().reachable_bytes.get(), open * SHAPE.slot_len);
    }
}

#[test]
fn the_configuration_space_tells_the_region() {
    let mut rig = Rig::request(16);
    let fields = [0, 8, 16, 24, 32, 40, 48, 56].map(|offset| rig.field(offset));
    assert_eq!(fields, [2 * MIB, 0, START, 64 * MIB, 64 * MIB, 0, 16 * MIB, 0]);
    assert_eq!(rig.on(PLUG, 3, 2), ACK);
    assert_eq!(rig.field(40), 4 * MIB);
    rig.device.write_config(48, &[1]);
    assert_eq!((rig.field(48), rig.device.metrics().cfg_fails.get()), (16 * MIB, 1));
}

#[test]
fn sizes_are_whole_blocks_of_the_region() {
    let mut device = Rig::new().device;
    device.request(64 * MIB).unwrap();
    assert_eq!(device.request(66 * MIB), Err(BadSize::TooLarge(66 * MIB, 64 * MIB)));
    assert_eq!(device.request(MIB), Err(BadSize::NotBlocks(MIB, 2 * MIB)));
    assert_eq!(device.request(u64::MAX), Err(BadSize::TooLarge(u64::MAX, 64 * MIB)));
    let mut data = [0; 8];
    device.read_config(48, &mut data);
    assert_eq!(u64::from_le_bytes(data), 64 * MIB, "a refused size changes nothing");

    let shapes = [
        Shape { start: START + MIB, ..SHAPE },
        Shape { len: 60 * MIB, ..SHAPE },
        Shape { len: 0, ..SHAPE },
        Shape { block_len: 3 * MIB, slot_len: 9 * MIB, len: 63 * MIB, ..SHAPE },
        Shape { block_len: 0, ..SHAPE },
        Shape { slot_len: 7 * MIB, ..SHAPE },
        Shape { slot_len: 0, ..SHAPE },
        Shape { start: 0u64.wrapping_sub(8 * MIB), ..SHAPE },
    ];
    for shape in shapes {
        let spec = MemSpec { shape, backing: Box::new(Fake::default()), levels: Arc::default() };
        assert!(Mem::new(spec).is_err(), "{shape:x?}");
    }
}

/// A driver that does not know that unplugged memory is not there must not get at the device.
#[test]
fn drivers_of_old_are_refused() {
    let device = Rig::new().device;
    assert_eq!(device.required_features() & !device.features(), 0);
    assert_ne!(device.required_features() & 2, 0);
}

/// G22, and §5.15.6: what is not whole blocks of the region, once each, is an error; more than was asked for is denied.
#[test]
fn requests_out_of_bounds_are_refused() {
    let mut rig = Rig::request(16);
    let cases = [
        (START, 0),
        (START + MIB, 1),
        (START + 1, 1),
        (START - 2 * MIB, 1),
        (0, 1),
        (START + 64 * MIB, 1),
        (START + 62 * MIB, 2),
        (START, 33),
        (START, u16::MAX),
        (u64::MAX, 1),
        (u64::MAX - MIB + 1, u16::MAX),
    ];
    for (addr, nb_blocks) in cases {
        for kind in [PLUG, UNPLUG, STATE] {
            assert_eq!(rig.ask(kind, addr, nb_blocks).0, ERROR, "{kind} {addr:#x} {nb_blocks}");
        }
    }
    assert_eq!(rig.on(UNPLUG, 0, 1), ERROR, "nothing is plugged");
    assert_eq!(rig.on(PLUG, 0, 9), NACK);
    assert_eq!(rig.on(PLUG, 2, 6), ACK);
    assert_eq!(rig.on(PLUG, 7, 1), ERROR, "twice");
    assert_eq!(rig.on(PLUG, 6, 4), ERROR, "partly twice");
    assert_eq!(rig.on(UNPLUG, 1, 2), ERROR, "partly unplugged");
    assert_eq!(rig.on(PLUG, 20, 3), NACK);
    assert_eq!(rig.on(PLUG, 20, 2), ACK);
    assert_eq!(rig.on(PLUG, 30, 1), NACK);
    assert_eq!(rig.ask(4, START, 1).0, ERROR, "no such request");
    // Less wanted than there is: nothing more, but what is there stays until the driver gives it back.
    rig.device.request(2 * MIB).unwrap();
    assert_eq!(rig.on(PLUG, 30, 1), NACK);
    assert_eq!(rig.on(UNPLUG, 2, 6), ACK);
    let metrics = rig.device.metrics();
    assert_eq!((metrics.plug_bytes.get(), metrics.unplug_bytes.get()), (16 * MIB, 12 * MIB));
    assert_eq!((metrics.plug_count.get(), metrics.plug_fails.get()), (19, 17));
    assert_eq!((metrics.unplug_count.get(), metrics.unplug_fails.get()), (14, 13));
    assert_eq!((metrics.state_count.get(), metrics.state_fails.get(), metrics.unknown_count.get()), (11, 11, 1));
}

#[test]
fn states_are_told() {
    let mut rig = Rig::request(64);
    assert_eq!(rig.on(PLUG, 4, 8), ACK);
    assert_eq!(rig.state(4, 8), (ACK, 0));
    assert_eq!(rig.state(0, 4), (ACK, 1));
    assert_eq!(rig.state(3, 2), (ACK, 2));
    assert_eq!(rig.state(11, 2), (ACK, 2));
}

#[test]
fn requests_without_room_for_an_answer_come_back_empty() {
    let mut rig = Rig::request(64);
    let at = TestDriver::FREE;
    rig.driver.ram.write_slice(&[0; 64], GuestAddress(at)).unwrap();
    let buffer = |addr, len, writable| Buffer { addr, len, writable };
    rig.driver.offer(0, &[buffer(at, 24, false)]);
    rig.driver.offer(0, &[buffer(at, 24, false), buffer(at + 32, 9, true)]);
    rig.driver.offer(0, &[buffer(at, 23, false), buffer(at + 48, 10, true)]);
    rig.settle();
    let lens: Vec<_> = std::iter::from_fn(|| rig.driver.take_used(0)).map(|(_, len)| len).collect();
    assert_eq!(lens, [0, 0, 10]);
    assert_eq!(rig.driver.ram.read_obj::<u16>(GuestAddress(at + 48)).unwrap(), ERROR);
    assert_eq!(rig.device.metrics().queue_event_fails.get(), 2);
    rig.is_consistent(&[false; BLOCKS as usize]);
}

/// FC #5793: what was unplugged is out of reach or empty, whether or not the guest went on using it.
#[test]
fn nothing_of_an_unplugged_block_is_seen_again() {
    let mut rig = Rig::request(64);
    assert_eq!(rig.on(PLUG, 0, 8), ACK);
    rig.memory.store_everywhere();
    assert_eq!(rig.on(UNPLUG, 1, 2), ACK);
    assert_eq!(rig.memory.look().bytes[..8], [0x77, 0, 0, 0x77, 0x77, 0x77, 0x77, 0x77]);
    // The slot is still open, so the guest can use the blocks behind our back; not beyond the slot's end.
    rig.memory.store_everywhere();
    assert_eq!(rig.on(UNPLUG, 0, 1), ACK);
    assert_eq!(rig.on(UNPLUG, 3, 1), ACK);
    assert_eq!(rig.memory.look().bytes[..8], [0, 0, 0, 0, 0x77, 0x77, 0x77, 0x77]);
    assert!(!rig.memory.look().open[0]);
    assert_eq!(rig.ask(UNPLUG_ALL, 0, 0).0, ACK);
    assert_eq!(rig.memory.look().bytes, [0; BLOCKS as usize]);
    rig.is_consistent(&[false; BLOCKS as usize]);
}

#[test]
fn a_reset_leaves_plugged_blocks_as_they_are() {
    let mut rig = Rig::request(64);
    assert_eq!(rig.on(PLUG, 5, 7), ACK);
    rig.memory.store_everywhere();
    rig.device.reset();
    rig.driver = TestDriver::new(1, 64);
    rig.rings = rig.driver.rings(false, false);
    assert_eq!(rig.field(40), 14 * MIB);
    assert_eq!(rig.memory.look().bytes[5..12], [0x77; 7]);
    assert_eq!(rig.on(UNPLUG, 5, 7), ACK);
}

/// Whatever the host refuses and when: the answer is "busy", and blocks are as they were.
#[test]
fn a_host_that_refuses_changes_nothing() {
    for works in 0..12 {
        let mut rig = Rig::request(64);
        let mut plugged = [false; BLOCKS as usize];
        plugged[2..19].fill(true);
        rig.memory.look().works = Some(works);
        let answer = rig.on(PLUG, 2, 17);
        if rig.memory.look().works.take().is_none() {
            assert_eq!(answer, BUSY, "{works}");
            rig.is_consistent(&[false; BLOCKS as usize]);
            assert_eq!(rig.on(PLUG, 2, 17), ACK);
        } else {
            assert_eq!(answer, ACK, "{works}");
        }
        rig.is_consistent(&plugged);
        rig.memory.store_everywhere();

        rig.memory.look().works = Some(works);
        let answer = rig.on(UNPLUG, 2, 16);
        if rig.memory.look().works.take().is_none() && answer != ACK {
            assert_eq!(answer, BUSY, "{works}");
            rig.is_consistent(&plugged);
            assert_eq!(rig.on(UNPLUG, 2, 16), ACK);
        }
        plugged[2..18].fill(false);
        rig.is_consistent(&plugged);
        // Out of reach, pages that the host did not take back do no harm.
        let kept = rig.device.metrics().unplug_discard_fails.get();
        let memory = rig.memory.look();
        for (block, byte) in memory.bytes.iter().enumerate().take(18) {
            assert!(*byte == 0 || (kept > 0 && !memory.open[block / 4]), "block {block} of {works}");
        }
    }
}

/// A request that is half done when the machine is paused is done when it stands still.
#[test]
fn a_request_at_work_is_finished_before_a_pause() {
    let mut rig = Rig::request(64);
    assert_eq!(rig.on(PLUG, 0, 32), ACK);
    rig.memory.store_everywhere();
    let at = TestDriver::FREE;
    rig.driver.ram.write_obj(UNPLUG_ALL, GuestAddress(at)).unwrap();
    let buffer = |addr, len, writable| Buffer { addr, len, writable };
    rig.driver.offer(0, &[buffer(at, 24, false), buffer(at + 32, 10, true)]);
    // One look takes the request, the next two do two of eight slots.
    for _ in 0..3 {
        assert_eq!(rig.device.visit_for(Duration::ZERO, &mut rig.rings).unwrap(), Visit::More);
    }
    assert_eq!(rig.memory.look().open, [false, false, true, true, true, true, true, true]);
    assert!(rig.driver.take_used(0).is_none());
    rig.device.quiesce(&mut rig.rings).unwrap();
    assert_eq!(rig.driver.take_used(0).map(|(_, len)| len), Some(10));
    rig.is_consistent(&[false; BLOCKS as usize]);
}

#[derive(Debug, Clone)]
enum Step {
    Ask(u16, u64, u16),
    Want(u64),
    Store,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u16..5, 0u64..34, 0u16..12).prop_map(|(kind, block, count)| Step::Ask(kind, block, count)),
        2 => (0u64..33).prop_map(|blocks| Step::Want(blocks * SHAPE.block_len)),
        2 => Just(Step::Store),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any script, against a list of flags.
    #[test]
    fn as_the_standard_says(steps in proptest::collection::vec(step(), 0..60)) {
        let mut rig = Rig::new();
        let mut plugged = [false; BLOCKS as usize];
        let mut wanted = 0;
        for step in steps {
            match step {
                Step::Want(bytes) => {
                    rig.device.request(bytes).unwrap();
                    wanted = bytes;
                }
                Step::Store => rig.memory.store_everywhere(),
                Step::Reset => rig.device.reset(),
                Step::Ask(UNPLUG_ALL, ..) => {
                    prop_assert_eq!(rig.ask(UNPLUG_ALL, 0, 0).0, ACK);
                    plugged.fill(false);
                }
                Step::Ask(kind, block, count) => {
                    let answer = rig.ask(kind, START + block * SHAPE.block_len, count);
                    let range = block as usize..block as usize + usize::from(count);
                    let part = plugged.get(range.clone()).filter(|part| !part.is_empty());
                    let have = plugged.iter().filter(|flag| **flag).count() as u64;
                    let expected = match (kind, part) {
                        (PLUG, Some(part)) if part.contains(&true) => ERROR,
                        (PLUG, Some(_)) if (have + u64::from(count)) * SHAPE.block_len > wanted => NACK,
                        (UNPLUG, Some(part)) if part.contains(&false) => ERROR,
                        (PLUG | UNPLUG | STATE, Some(_)) => ACK,
                        _ => ERROR,
                    };
                    prop_assert_eq!(answer.0, expected);
                    if let (STATE, Some(part)) = (kind, part) {
                        let state = match (part.contains(&true), part.contains(&false)) {
                            (true, true) => 2,
                            (true, false) => 0,
                            (false, _) => 1,
                        };
                        prop_assert_eq!(answer.1, state);
                    }
                    if expected == ACK && kind != STATE {
                        plugged[range.clone()].fill(kind == PLUG);
                    }
                    if expected == ACK && kind == UNPLUG {
                        prop_assert!(rig.memory.look().bytes[range].iter().all(|byte| *byte == 0));
                    }
                }
            }
            rig.is_consistent(&plugged);
        }
    }
}
