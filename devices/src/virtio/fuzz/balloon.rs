//! A balloon behind its register window: page numbers, free pages, hints and statistics.

use std::time::Duration;

use super::queues::{BUFFERS, Queues, ring};
use super::*;
use crate::virtio::balloon::{Balloon, BalloonSpec};

/// Most queues there are.
const QUEUES: usize = 5;
/// Requests, and one page that belongs to the last of them.
const REQUESTS: u64 = 0x6_0000;
const LAST: u64 = 0x7_0000;

struct Rig(Queues<QUEUES>);

impl Rig {
    /// A request of one to four buffers, of the kind that fits the queue more often than not.
    fn request(&mut self, input: &mut Input<'_>) {
        let queue = usize::from(input.byte()) % QUEUES;
        let (first, pieces) = (u16::from(input.byte()), u16::from(input.byte() % 4) + 1);
        for n in 0..pieces {
            let at = REQUESTS + u64::from(input.byte()) * 64;
            // A tag and its value, a command, or a page number.
            let _ = self.0.machine.ram.write_obj(u64::from(input.u16() % 300), GuestAddress(at));
            let writable = queue >= 3 && input.byte() > 60;
            let addr = match input.byte() {
                0..=20 => input.address(),
                _ if writable => BUFFERS + u64::from(input.byte()) * 0x800,
                _ => at,
            };
            let len = match input.byte() {
                0..=20 => input.u32(),
                21..=40 => u32::from(input.byte()),
                _ if writable => u32::from(input.u16()),
                _ => [4, 8, 10, 64][usize::from(input.byte() % 4)],
            };
            let odd = if input.byte() < 10 { input.u16() & 7 } else { 0 };
            let flags = (u16::from(n + 1 < pieces) | u16::from(writable) << 1) ^ odd;
            let slot = first.wrapping_add(n) % 256;
            let place = ring(queue) + 16 * u64::from(slot);
            self.0.machine.descriptor(place, addr, len, flags, (slot + 1) % 256);
        }
        self.0.offer(queue, first);
        if input.byte() > 60 {
            self.0.machine.write(0x50, queue as u32);
        }
    }

    /// What the operator asks of a balloon.
    fn operate(&mut self, input: &mut Input<'_>) {
        let (what, value) = (input.byte(), input.byte());
        let change = |balloon: &mut Balloon| match what % 5 {
            0 => balloon.set_target(value.into()),
            1 => balloon.set_stats_interval(Duration::from_millis(u64::from(value) + 1)),
            2 => drop(balloon.start_hinting(value & 1 != 0)),
            3 => drop(balloon.stop_hinting()),
            _ => drop((balloon.stats(), balloon.hinting(), balloon.actual_pages())),
        };
        let changed = self.0.machine.cell.reconfigure(|device| match device {
            AnyDevice::Balloon(balloon) => {
                change(balloon);
                Ok::<_, ()>(((), ConfigChange::Announce))
            }
            _ => unreachable!("the device became another one"),
        });
        changed.expect("it cannot fail");
    }
}

/// Registers, rings and requests at a balloon, as `data` says. Returns how many requests named memory and how many bytes of it went back.
pub fn balloon(data: &[u8]) -> (u64, u64) {
    let mut input = Input(data);
    let how = input.byte();
    let spec = BalloonSpec {
        target_pages: u32::from(how),
        deflate_on_oom: how & 1 != 0,
        stats_interval: (how & 2 == 0).then_some(Duration::from_millis(1)),
        hinting: how & 4 == 0,
        reporting: how & 8 == 0,
    };
    let device = Balloon::new(spec).expect("spare descriptors");
    let metrics = device.metrics();
    let machine = Machine::new("fuzzed balloon", AnyDevice::Balloon(Box::new(device)), ram());
    let mut rig = Rig(Queues::new(machine));
    rig.0.bring_up_some(if how & 16 == 0 { u64::MAX } else { how.into() }, if how & 32 == 0 { 0xff } else { how });
    while !input.0.is_empty() {
        match input.byte() {
            0..=20 => rig.0.machine.step(&mut input),
            21..=30 => rig.0.bring_up_some(input.u64(), input.byte() | 3),
            31..=60 => rig.operate(&mut input),
            _ => rig.request(&mut input),
        }
        rig.0.machine.turn();
    }
    rig.0.machine.reset();
    // Whatever happened before, a reset makes a working device of it: the page that is named goes, its neighbour stays.
    rig.0.machine.cell.resume();
    rig.0.bring_up_some(0, 3);
    let pages = [LAST, LAST + 0x1000].map(GuestAddress);
    pages.iter().for_each(|page| rig.0.machine.ram.write_obj(0xeeu8, *page).expect("in RAM"));
    rig.0.machine.ram.write_obj((LAST >> 12) as u32, GuestAddress(REQUESTS)).expect("in RAM");
    rig.0.machine.descriptor(ring(0), REQUESTS, 4, 0, 0);
    rig.0.offer(0, 0);
    rig.0.machine.write(0x50, 0);
    // A visit is short, and on a busy machine it may be over before the work is done.
    let answered = GuestAddress(ring(0) + 0x2000 + 2);
    for _ in 0..1000 {
        rig.0.machine.turn();
        if rig.0.machine.ram.read_obj::<u16>(answered).expect("in RAM") == 1 {
            break;
        }
    }
    rig.0.machine.cell.pause();
    let found = pages.map(|page| rig.0.machine.ram.read_obj::<u8>(page).expect("in RAM"));
    assert_eq!(found, [0, 0xee], "the device did not recover");
    let named = [&metrics.inflate_count, &metrics.free_page_report_count, &metrics.free_page_hint_count];
    let gone = [&metrics.inflate_bytes, &metrics.free_page_report_freed, &metrics.free_page_hint_freed];
    let sum = |counters: [&crate::metrics::Counter; 3]| counters.iter().map(|counter| counter.get()).sum();
    (sum(named), sum(gone))
}
