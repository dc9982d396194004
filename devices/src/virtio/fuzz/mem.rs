//! Hot-pluggable memory behind its register window, with memory that is made up.

use std::sync::Mutex;

use super::*;
use crate::virtio::mem::{Backing, Levels, Mem, MemSpec, Shape};

const START: u64 = 1 << 40;
const BLOCK: u64 = 1 << 21;
const BLOCKS: u64 = 64;
const PER_SLOT: u64 = 8;

/// Which slots are open, and whether anything was discarded out of bounds or twice opened.
#[derive(Default)]
struct Slots {
    open: [bool; (BLOCKS / PER_SLOT) as usize],
    /// Every so many calls fail; 0 means none.
    fails_every: u8,
    calls: u8,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Slots>>);

impl Fake {
    fn change(&self, slot: usize, open: bool) -> io::Result<()> {
        let mut slots = self.0.lock().expect("one thread");
        slots.calls = slots.calls.wrapping_add(1);
        if slots.fails_every != 0 && slots.calls.is_multiple_of(slots.fails_every) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        assert_ne!(slots.open[slot], open, "slot {slot} is that already");
        slots.open[slot] = open;
        Ok(())
    }
}

impl Backing for Fake {
    fn open(&mut self, slot: usize) -> io::Result<()> {
        self.change(slot, true)
    }

    fn close(&mut self, slot: usize) -> io::Result<()> {
        self.change(slot, false)
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        assert!(len != 0 && offset.is_multiple_of(BLOCK) && offset + len <= BLOCK * BLOCKS, "{offset:#x}+{len:#x}");
        Ok(())
    }
}

/// A request, more often right than not.
fn ask(machine: &mut Machine, input: &mut Input<'_>) {
    let request = 0x8000 + 32 * u64::from(input.byte());
    let addr = match input.byte() {
        0..=20 => input.u64(),
        21..=40 => START + u64::from(input.u32()),
        _ => START + BLOCK * (u64::from(input.byte()) % (BLOCKS + 2)),
    };
    let blocks = if input.byte() > 20 { u16::from(input.byte() % 20) } else { input.u16() };
    let kind = if input.byte() > 10 { u16::from(input.byte() & 3) } else { input.u16() };
    let _ = machine.ram.write_obj(u64::from(kind), GuestAddress(request));
    let _ = machine.ram.write_obj(addr, GuestAddress(request + 8));
    let _ = machine.ram.write_obj(u64::from(blocks), GuestAddress(request + 16));
    let first = u16::from(input.byte());
    let at = |i: u16| DESCRIPTORS + 16 * u64::from(i % 256);
    let len = |input: &mut Input<'_>, right: u32| if input.byte() > 20 { right } else { input.u32() };
    machine.descriptor(at(first), request, len(input, 24), 1, (first + 1) % 256);
    let answer = if input.byte() > 10 { 0xf000 + 16 * u64::from(input.byte()) } else { input.address() };
    machine.descriptor(at(first + 1), answer, len(input, 10), if input.byte() > 20 { 2 } else { input.u16() & 7 }, 0);
    machine.offer(first);
    if input.byte() > 60 {
        machine.write(0x50, 0);
    }
}

/// Registers, rings and requests at a memory device, as `data` says. Returns how many blocks were plugged or unplugged and how many requests
/// were refused.
pub fn mem(data: &[u8]) -> (u64, u64) {
    let mut input = Input(data);
    let how = input.byte();
    let (slots, levels) = (Fake::default(), Arc::new(Levels::default()));
    slots.0.lock().expect("one thread").fails_every = if how & 1 != 0 { 5 } else { 0 };
    let shape = Shape { start: START, len: BLOCK * BLOCKS, block_len: BLOCK, slot_len: BLOCK * PER_SLOT };
    let device =
        Mem::new(MemSpec { shape, backing: Box::new(slots.clone()), levels: levels.clone() }).expect("a device");
    let metrics = device.metrics();
    let mut machine = Machine::new("fuzzed memory", AnyDevice::Mem(Box::new(device)), ram());
    if how & 2 == 0 {
        machine.bring_up(u64::MAX);
    }
    let request = |machine: &Machine, bytes: u64| {
        machine.cell.reconfigure(|device| match device {
            AnyDevice::Mem(mem) => mem.request(bytes).map(|()| ((), ConfigChange::Announce)).map_err(|_| ()),
            _ => unreachable!("the device became another one"),
        })
    };
    request(&machine, u64::from(how) / 4 * BLOCK).expect("whole blocks of the region");
    let mut highest = levels.requested();
    while !input.0.is_empty() {
        match input.byte() {
            0..=60 => machine.step(&mut input),
            61..=80 => {
                let bytes = u64::from(input.byte()) * BLOCK / if input.byte() > 10 { 1 } else { 3 };
                let fine = bytes <= BLOCK * BLOCKS && bytes.is_multiple_of(BLOCK);
                assert_eq!(request(&machine, bytes).is_ok(), fine);
                highest = highest.max(levels.requested());
            }
            _ => ask(&mut machine, &mut input),
        }
        machine.turn();
        let slots = slots.0.lock().expect("one thread");
        let open = slots.open.iter().filter(|open| **open).count() as u64;
        assert!(levels.plugged() <= highest, "more is plugged than was ever asked for");
        assert!(levels.plugged() <= open * BLOCK * PER_SLOT, "something is plugged that vCPUs do not reach");
        assert!(open <= levels.plugged() / BLOCK, "a slot is open with nothing plugged in it");
    }
    slots.0.lock().expect("one thread").fails_every = 0;
    machine.reset();
    // Whatever happened before, a reset makes a working device of it, and everything can be given back.
    machine.cell.resume();
    machine.bring_up(u64::MAX);
    machine.descriptor(0x8000, 2, 0, 0, 0);
    machine.descriptor(DESCRIPTORS, 0x8000, 24, 1, 1);
    machine.descriptor(DESCRIPTORS + 16, 0x9000, 10, 2, 0);
    machine.ram.write_obj(0xeeeeu16, GuestAddress(0x9000)).expect("in RAM");
    machine.offer(0);
    machine.write(0x50, 0);
    machine.turn();
    machine.cell.pause();
    assert_eq!(machine.ram.read_obj::<u16>(GuestAddress(0x9000)).expect("in RAM"), 0, "the device did not recover");
    assert_eq!(levels.plugged(), 0);
    assert!(!slots.0.lock().expect("one thread").open.contains(&true), "a slot is still open");
    let fails = [&metrics.plug_fails, &metrics.unplug_fails, &metrics.state_fails, &metrics.unknown_count];
    let changed = (metrics.plug_bytes.get() + metrics.unplug_bytes.get()) / BLOCK;
    (changed, fails.map(|count| count.get()).iter().sum())
}
