//! A PCI bus with a few virtio functions, and everything a guest can do to it: configuration spaces by both ways, BARs wherever it likes, slots
//! that are emptied and filled, and states that were saved and taken up by another bus, as they were or spoiled.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::irq::{Msi, VirtioIrq};
use crate::pci::bus::{BarWindow, ConfigPorts, ECAM_BUS_LEN, Ecam, Function, PciBus};
use crate::pci::hotplug::HotplugPorts;
use crate::pci::msix::{Entry, Vectors};
use crate::virtio::rng::{Rng, RngSpec};
use crate::virtio::transport::pci::{BAR_LEN, PciIrq, PciState, VirtioPci, doorbell};

const SPACE: u64 = 0x7f_c000_0000;
const SPACE_LEN: u64 = 40 * BAR_LEN;
const HOST_BRIDGE: u32 = 0x0d57_8086;
/// The slots that have functions, and how many queues these have: two drives, and between them an entropy device.
const SLOTS: [(u8, u16); 3] = [(1, 1), (4, 1), (31, 2)];
/// Registers of the common configuration and a few others, in the BAR.
const REGISTERS: [u64; 26] = [
    0x00, 0x04, 0x08, 0x0c, 0x10, 0x12, 0x14, 0x14, 0x15, 0x16, 0x18, 0x1a, 0x1c, 0x1e, 0x20, 0x24, 0x28, 0x2c, 0x30,
    0x34, 0x38, 0x2000, 0x4000, 0x4020, 0x6000, 0x6004,
];
/// Message control and the window capability, as these functions have them.
const MSIX_CONTROL: u64 = 0x42;
/// In RAM: what a driver of the function with that index has.
fn rings(index: usize) -> u64 {
    0x1_0000 * (index as u64 + 1)
}

/// A function's vectors: they go to local APICs, and nowhere once they are given back.
#[derive(Default)]
struct Lines {
    count: u16,
    gone: AtomicU64,
    raised: AtomicU64,
}

impl Vectors for Lines {
    fn route(&self, vector: u16, msi: Msi) {
        assert!(vector < self.count, "vector {vector} of {}", self.count);
        assert_eq!(msi.address >> 20, 0xfee, "a message that is no interrupt");
        assert_eq!(self.gone.load(Ordering::SeqCst), 0, "a route of a function that is gone");
    }

    fn raise(&self, vector: u16) {
        assert!(vector < self.count, "vector {vector} of {}", self.count);
        assert_eq!(self.gone.load(Ordering::SeqCst), 0, "an interrupt of a function that is gone");
        self.raised.fetch_add(1, Ordering::SeqCst);
    }

    fn release(&self) {
        self.gone.store(1, Ordering::SeqCst);
    }
}

/// Where a function's doorbells are, and where they are bound.
#[derive(Default)]
struct Bells {
    place: Mutex<Option<u64>>,
    bound: Mutex<Vec<(u16, Option<u64>)>>,
}

impl Bells {
    fn place(&self) -> Option<u64> {
        *self.place.lock().expect("no panic before")
    }
}

impl DoorbellBinder for Bells {
    fn bind(&self, index: u16, _bell: &EventFd) -> io::Result<()> {
        let mut bound = self.bound.lock().expect("no panic before");
        assert!(bound.iter().all(|(other, _)| *other != index), "doorbell {index} is bound twice");
        bound.push((index, self.place()));
        Ok(())
    }

    fn unbind(&self, index: u16, _bell: &EventFd) {
        let mut bound = self.bound.lock().expect("no panic before");
        let before = bound.len();
        let place = self.place();
        bound.retain(|bell| *bell != (index, place));
        assert_eq!(bound.len() + 1, before, "doorbell {index} is unbound where it is not bound");
    }
}

/// A function and what it is made of.
struct Card {
    slot: u8,
    cell: Arc<VirtioCell>,
    irq: Arc<PciIrq>,
    lines: Arc<Lines>,
    bells: Arc<Bells>,
    function: Arc<VirtioPci>,
    /// The driver's index in queue 0.
    available: u16,
}

impl Card {
    fn new(index: usize, file: &File, ram: &GuestRam) -> Self {
        let (slot, queues) = SLOTS[index];
        let device = || {
            if index == 1 {
                let limits = RateLimits::default();
                return AnyDevice::Rng(Box::new(Rng::new(RngSpec { limits }).expect("spare descriptors")));
            }
            let file = file.try_clone().expect("a spare descriptor");
            let limits = RateLimits::default();
            let spec = BlockSpec { file, read_only: false, writeback: true, engine: Engine::Sync, queues, limits };
            AnyDevice::Block(Box::new(Block::new(spec).expect("a drive")))
        };
        let lines = Arc::new(Lines { count: PciIrq::vectors(queues), ..Lines::default() });
        let irq = Arc::new(PciIrq::new(queues, lines.clone()));
        let bells = Arc::new(Bells::default());
        let first = device();
        let others = match &first {
            AnyDevice::Block(block) if queues > 1 => {
                vec![AnyDevice::Block(Box::new(block.lane(Engine::Sync).expect("spare descriptors")))]
            }
            _ => Vec::new(),
        };
        let name = format!("fuzzed function {index}");
        let cell = VirtioCell::with_lanes(name, first, others, ram.clone(), irq.clone(), bells.clone());
        let cell = Arc::new(cell.expect("spare descriptors").with_sized_queues());
        let place = bells.clone();
        let moved = move |base| *place.place.lock().expect("no panic before") = base;
        let function = Arc::new(VirtioPci::new(cell.clone(), irq.clone(), home(slot), moved));
        Self { slot, cell, irq, lines, bells, function, available: 0 }
    }

    fn turn(&self) {
        for source in self.cell.sources() {
            self.cell.ready(source.token);
        }
    }
}

/// Where the function in a slot has its memory at first.
fn home(slot: u8) -> u64 {
    SPACE + u64::from(slot) * BAR_LEN
}

struct Board {
    ram: GuestRam,
    file: File,
    bus: Arc<PciBus>,
    ecam: Ecam,
    ports: ConfigPorts,
    window: BarWindow,
    hotplug: HotplugPorts,
    /// By the index in [`SLOTS`]; some may be out.
    cards: [Option<Card>; 3],
    /// How many were asked to leave.
    asked: u32,
}

impl Board {
    fn empty(ram: GuestRam, file: File) -> Self {
        let bus = Arc::new(PciBus::new(SPACE..SPACE + SPACE_LEN));
        Self {
            ram,
            file,
            ecam: Ecam(bus.clone()),
            ports: ConfigPorts::new(bus.clone()),
            window: BarWindow(bus.clone()),
            hotplug: HotplugPorts::new(|| (), || ()),
            bus,
            cards: [None, None, None],
            asked: 0,
        }
    }

    fn insert(&mut self, index: usize, card: Card) {
        self.bus.insert(card.slot, card.function.clone()).expect("the slot is free");
        self.cards[index] = Some(card);
    }

    fn plug(&mut self, index: usize) {
        if self.cards[index].is_none() {
            let card = Card::new(index, &self.file, &self.ram);
            let slot = card.slot;
            self.insert(index, card);
            self.hotplug.fill(slot);
        }
    }

    /// As the VMM thread takes a function away, while a vCPU is still at it.
    fn unplug(&mut self, index: usize, input: &mut Input<'_>) {
        let Some(card) = self.cards[index].take() else { return };
        self.bus.remove(card.slot);
        self.hotplug.emptied(card.slot);
        card.cell.retire().expect("a file in memory");
        assert!(card.bells.bound.lock().expect("no panic before").is_empty(), "doorbells of a function that is gone");
        card.function.release();
        // What a vCPU does that found the function before.
        for _ in 0..input.byte() % 4 {
            let data: [u8; 8] = input.take();
            match input.byte() % 3 {
                0 => card.function.write_config(usize::from(input.byte()) & !3, &data[..4]),
                1 => card.function.write_bar(0x8000 + u64::from(input.byte() & 0x3c), &data[..4]),
                _ => card.function.write_bar(REGISTERS[usize::from(input.byte()) % REGISTERS.len()], &data[..1]),
            }
        }
        card.irq.queue(0);
    }

    fn configure(&self, slot: u8, at: u64, data: &[u8]) {
        self.ecam.write(u64::from(slot) << 15 | at, data);
    }

    fn configuration<const N: usize>(&self, slot: u8, at: u64) -> [u8; N] {
        let mut data = [0xee; N];
        self.ecam.read(u64::from(slot) << 15 | at, &mut data);
        data
    }

    /// Puts a function's memory somewhere, as a kernel does it.
    fn place(&self, slot: u8, base: u64) {
        self.configure(slot, 4, &0u16.to_le_bytes());
        self.configure(slot, 0x10, &(base as u32).to_le_bytes());
        self.configure(slot, 0x14, &((base >> 32) as u32).to_le_bytes());
        self.configure(slot, 4, &6u16.to_le_bytes());
    }

    /// Writes to a function's memory, wherever it is.
    fn write(&self, index: usize, offset: u64, data: &[u8]) {
        if let Some(base) = self.cards[index].as_ref().and_then(|card| card.bells.place()) {
            self.window.write(base - SPACE + offset, data);
        }
    }

    fn read<const N: usize>(&self, index: usize, offset: u64) -> [u8; N] {
        let mut data = [0xee; N];
        if let Some(base) = self.cards[index].as_ref().and_then(|card| card.bells.place()) {
            self.window.read(base - SPACE + offset, &mut data);
        }
        data
    }

    /// What a proper driver does with queue 0 of a function that answers.
    fn bring_up(&mut self, index: usize, features: u32) {
        let base = rings(index);
        self.ram.write_slice(&[0; 0x3000], GuestAddress(base)).expect("in RAM");
        for vector in 0..3u64 {
            self.write(index, 0x8000 + 16 * vector, &0xfee0_0000u64.to_le_bytes());
            self.write(index, 0x8008 + 16 * vector, &(0x30 + vector).to_le_bytes());
        }
        self.configure(SLOTS[index].0, MSIX_CONTROL, &0x8000u16.to_le_bytes());
        for status in [0u8, 1, 3] {
            self.write(index, 0x14, &[status]);
        }
        self.write(index, 0, &0u32.to_le_bytes());
        let offered = u32::from_le_bytes(self.read(index, 4));
        for (page, bits) in [(0u32, features & offered), (1, 1)] {
            self.write(index, 0x08, &page.to_le_bytes());
            self.write(index, 0x0c, &bits.to_le_bytes());
        }
        self.write(index, 0x14, &[11]);
        self.write(index, 0x10, &0u16.to_le_bytes());
        self.write(index, 0x16, &0u16.to_le_bytes());
        self.write(index, 0x18, &256u16.to_le_bytes());
        self.write(index, 0x1a, &1u16.to_le_bytes());
        for (at, address) in [(0x20, base), (0x28, base + 0x1000), (0x30, base + 0x2000)] {
            self.write(index, at, &address.to_le_bytes());
        }
        self.write(index, 0x1c, &1u16.to_le_bytes());
        self.write(index, 0x14, &[15]);
        if let Some(card) = &mut self.cards[index] {
            card.available = 0;
            card.turn();
        }
    }

    fn descriptor(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let bytes = u128::from(addr) | u128::from(len) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
        self.ram.write_slice(&bytes.to_le_bytes(), GuestAddress(at)).expect("in RAM");
    }

    /// One request of 512 bytes at a function: the answer is behind the rings.
    fn request(&mut self, index: usize) {
        let base = rings(index);
        let Some(card) = &mut self.cards[index] else { return };
        let slot = base + 0x1004 + 2 * u64::from(card.available % 256);
        card.available = card.available.wrapping_add(1);
        let available = card.available;
        self.ram.write_obj(0u16, GuestAddress(slot)).expect("in RAM");
        self.ram.write_obj(available, GuestAddress(base + 0x1002)).expect("in RAM");
        if index == 1 {
            self.descriptor(base, base + 0x4000, 512, 2, 0);
        } else {
            self.ram.write_slice(&[0; 16], GuestAddress(base + 0x3000)).expect("in RAM");
            self.descriptor(base, base + 0x3000, 16, 1, 1);
            self.descriptor(base + 16, base + 0x4000, 513, 2, 0);
        }
        self.write(index, doorbell(0), &0u16.to_le_bytes());
    }

    fn used(&self, index: usize) -> u16 {
        self.ram.read_obj(GuestAddress(rings(index) + 0x2002)).expect("in RAM")
    }

    /// A base that is somewhere: at home, at somebody else's, at an edge, or nowhere near.
    fn base(&self, input: &mut Input<'_>) -> u64 {
        let (slot, _) = SLOTS[usize::from(input.byte()) % SLOTS.len()];
        match input.byte() % 8 {
            0 => input.u64(),
            1 => home(slot) + u64::from(input.u32()),
            2 => SPACE - BAR_LEN,
            3 => SPACE + SPACE_LEN - BAR_LEN * u64::from(input.byte() % 3),
            4 => u64::from(input.byte()) << 20,
            _ => SPACE + BAR_LEN * u64::from(input.byte() % 44),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let index = usize::from(input.byte()) % SLOTS.len();
        let (slot, _) = SLOTS[index];
        let data: [u8; 8] = input.take();
        let width = [1, 2, 4, 8, 1, 2, 4, 3][usize::from(input.byte() & 7)];
        match input.byte() % 16 {
            0 => self.configure(slot, u64::from(input.u16() % 0x180), &data[..width]),
            1 => {
                let mut data = data;
                let at = u64::from(input.u32()) % ECAM_BUS_LEN;
                if input.byte() & 1 == 0 {
                    self.ecam.write(at, &data[..width])
                } else {
                    self.ecam.read(at, &mut data[..width])
                }
            }
            2 => {
                let address = 1 << 31 | u32::from(slot) << 11 | u32::from(input.byte() & 0xfc);
                self.ports.write(0, &address.to_le_bytes());
                let port = 4 + u64::from(input.byte() & 3);
                self.ports.write(port, &data[..width.min(4)]);
            }
            3 => {
                let mut data = data;
                let port = u64::from(input.byte()) % 8;
                if input.byte() & 1 == 0 {
                    self.ports.write(port, &data[..width])
                } else {
                    self.ports.read(port, &mut data[..width])
                }
            }
            4 | 5 => self.write(index, REGISTERS[usize::from(input.byte()) % REGISTERS.len()], &data[..width]),
            6 => self.write(index, 0x8000 + u64::from(input.byte() % 0x40), &data[..width]),
            7 => {
                let mut data = data;
                let at = u64::from(input.u32()) % (SPACE_LEN + 16);
                if input.byte() & 1 == 0 {
                    self.window.write(at, &data[..width])
                } else {
                    self.window.read(at, &mut data[..width])
                }
            }
            8 => {
                let base = self.base(input);
                self.place(slot, base);
            }
            9 => {
                // Half of an address while the function answers there, or the question how long it is.
                let half = if input.byte() < 100 { u32::MAX } else { self.base(input) as u32 };
                self.configure(slot, 0x10 + 4 * u64::from(input.byte() & 1), &half.to_le_bytes());
            }
            10 => {
                let mut data = data;
                let port = u64::from(input.byte()) % 16;
                let bits = 1u32 << (data[0] & 31) | if data[1] < 100 { u32::MAX } else { 0 };
                match input.byte() % 3 {
                    0 => self.hotplug.read(port, &mut data[..width]),
                    1 => self.hotplug.write(port, &data[..width]),
                    _ => self.hotplug.write(port & 12, &bits.to_le_bytes()),
                }
            }
            11 => match input.byte() % 4 {
                0 => self.plug(index),
                1 => self.unplug(index, input),
                _ if self.cards[index].is_some() => {
                    self.hotplug.ask_to_leave(slot);
                    self.asked |= 1 << slot;
                }
                _ => {}
            },
            12 => {
                if self.cards[index].as_ref().is_some_and(|card| card.bells.place().is_none()) {
                    self.place(slot, home(slot));
                }
                self.bring_up(index, input.u32());
            }
            13 => self.request(index),
            14 => {
                let Some(card) = &self.cards[index] else { return };
                card.irq.queue(u16::from(input.byte() & 3));
                if input.byte() & 1 == 0 {
                    card.irq.config();
                }
                card.irq.renew(0);
            }
            _ => {
                let Some(card) = &self.cards[index] else { return };
                card.cell.pause();
                if input.byte() > 10 {
                    card.cell.resume();
                }
            }
        }
    }

    /// The VMM thread hears of what the guest let go of: only of what it was asked for.
    fn take_back(&mut self, input: &mut Input<'_>) {
        let ejected = self.hotplug.take_ejected();
        assert_eq!(ejected & !self.asked, 0, "slots that nobody asked for");
        for (index, (slot, _)) in SLOTS.into_iter().enumerate() {
            if ejected >> slot & 1 != 0 {
                self.unplug(index, input);
                self.asked &= !(1 << slot);
            }
        }
    }

    fn check(&self) {
        assert_eq!(self.configuration(0, 0), HOST_BRIDGE.to_le_bytes(), "the host bridge changed");
        let mut places = Vec::new();
        for (index, card) in self.cards.iter().enumerate() {
            let (slot, queues) = SLOTS[index];
            let id = u32::from_le_bytes(self.configuration(slot, 0));
            let Some(card) = card else {
                assert_eq!(id, u32::MAX, "there is something in slot {slot}");
                continue;
            };
            assert_eq!(id, [0x1042_1af4, 0x1044_1af4, 0x1042_1af4][index], "slot {slot} is another one");
            let place = card.bells.place();
            let bound = card.bells.bound.lock().expect("no panic before");
            assert!(bound.iter().all(|(_, at)| *at == place), "doorbells are bound where the function is not");
            drop(bound);
            if let Some(base) = place {
                let (on, bar) = (self.configuration::<1>(slot, 4)[0] & 2 != 0, self.configuration::<8>(slot, 0x10));
                let low = self.configuration::<4>(slot, 0x10);
                let high = self.configuration::<4>(slot, 0x14);
                assert_eq!(bar, [0xff; 8], "an access of 8 bytes is none");
                let bar = u64::from(u32::from_le_bytes(low) & !15) | u64::from(u32::from_le_bytes(high)) << 32;
                assert!(on && bar == base, "slot {slot} answers at {base:#x}, its BAR says {bar:#x}");
                assert!(base >= SPACE && base + BAR_LEN <= SPACE + SPACE_LEN, "slot {slot} answers at {base:#x}");
                assert_eq!(self.read(index, 0x12), queues.to_le_bytes(), "somebody else answers at {base:#x}");
                places.push(base);
            }
        }
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[0] + BAR_LEN <= pair[1]), "functions share memory: {places:#x?}");
    }

    /// The same machine in another process; `None` if it refuses what was spoiled.
    fn again(&self, input: &mut Input<'_>) -> Option<Self> {
        let spoils = input.byte() % 3;
        let file = self.file.try_clone().expect("a spare descriptor");
        let mut next = Self::empty(self.ram.clone(), file);
        next.asked = self.asked;
        next.hotplug.restore(self.hotplug.save());
        next.ports.set_address(self.ports.address());
        for (index, card) in self.cards.iter().enumerate() {
            let Some(card) = card else { continue };
            card.cell.pause();
            let cell = card.cell.save().expect("it stands still");
            let mut state = card.function.save();
            (0..spoils).for_each(|_| spoil(&mut state, input));
            let new = Card { available: card.available, ..Card::new(index, &next.file, &next.ram) };
            if let Err(bad) = new.cell.restore(&cell).and_then(|()| new.function.restore(&state)) {
                assert!(spoils > 0, "what was saved is not taken up: {bad}");
                return None;
            }
            assert!(spoils > 0 || new.function.save() == state, "what was saved came back as something else");
            next.insert(index, new);
        }
        assert_eq!(next.hotplug.save(), self.hotplug.save());
        Some(next)
    }

    fn resume(&self) {
        self.cards.iter().flatten().for_each(|card| card.cell.resume());
    }
}

/// Changes something that a file could say otherwise.
fn spoil(state: &mut PciState, input: &mut Input<'_>) {
    let at = usize::from(input.byte());
    match input.byte() % 10 {
        0 => {
            if let Some(byte) = state.config.get_mut(at) {
                *byte = input.byte();
            }
        }
        1 => state.config.truncate(at),
        2 => state.config.extend([input.byte(); 300]),
        3 => state.msix.control = input.u16(),
        4 | 5 => {
            let entry =
                Entry { address: input.u64() >> (input.byte() & 63), data: input.u32(), masked: input.byte() & 1 == 0 };
            let count = state.msix.entries.len().max(1);
            match state.msix.entries.get_mut(at % count) {
                Some(old) if input.byte() > 20 => *old = entry,
                _ => state.msix.entries.push(entry),
            }
        }
        6 => state.msix.pending.iter_mut().for_each(|pending| *pending ^= true),
        7 => drop(state.msix.pending.pop()),
        8 => state.config_vector = input.u16(),
        _ => match state.queue_vectors.first_mut() {
            Some(vector) if at > 20 => *vector = input.u16(),
            _ => state.queue_vectors.push(0),
        },
    }
}

/// What a guest can do to a PCI bus and its functions, as `data` says. Returns how many interrupts were sent and how often the bus was
/// taken up as it was saved.
pub fn pci(data: &[u8]) -> (u64, u64) {
    let mut input = Input(data);
    let mut board = Board::empty(ram(), disk());
    let how = input.byte();
    for (index, (slot, _)) in SLOTS.into_iter().enumerate() {
        board.plug(index);
        if how >> index & 1 == 0 {
            board.place(slot, home(slot));
            board.bring_up(index, u32::MAX);
        }
    }
    let (mut raised, mut times) = (0, 0);
    let sent =
        |board: &Board| -> u64 { board.cards.iter().flatten().map(|c| c.lines.raised.load(Ordering::SeqCst)).sum() };
    while !input.0.is_empty() {
        board.step(&mut input);
        board.cards.iter().flatten().for_each(Card::turn);
        board.take_back(&mut input);
        board.check();
        if input.byte() < 12 {
            raised += sent(&board);
            if let Some(next) = board.again(&mut input) {
                board = next;
                board.check();
                times += 1;
            }
            board.resume();
        }
    }
    raised += sent(&board);
    // Whatever happened before, a reset makes working functions of them, at their places.
    board.resume();
    for (slot, _) in SLOTS {
        board.configure(slot, 4, &[0, 0]);
    }
    for (index, (slot, _)) in SLOTS.into_iter().enumerate() {
        board.plug(index);
        board.place(slot, home(slot));
        board.bring_up(index, 0);
        board.ram.write_slice(&[0xee; 513], GuestAddress(rings(index) + 0x4000)).expect("in RAM");
        let before = sent(&board);
        board.request(index);
        board.cards.iter().flatten().for_each(Card::turn);
        assert_eq!(board.used(index), 1, "the function in slot {slot} did not recover");
        assert!(sent(&board) > before, "the function in slot {slot} does not interrupt");
    }
    board.check();
    (raised, times)
}
