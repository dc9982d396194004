//! `mode=block-queues`: two queues of a drive, from one processor or from two.

use crate::block::{self, Block, Options, request};
use crate::block_mode::word;
use crate::clock::Clock;
use crate::dma::Dma;
use crate::pattern::{self, SECTOR};
use crate::virtqueue::Piece;
use crate::{Machine, say, second};

const SECTOR_BYTES: u64 = SECTOR as u64;

/// What came of a queue's requests.
#[derive(Default)]
struct Tally {
    requests: u64,
    errors: u64,
    mismatches: u64,
}

/// One queue, and which requests are its own: every second one, of which it has several in flight.
struct Lane {
    block: Block,
    first: u64,
    buffers: Dma,
    tally: Tally,
}

/// What to do.
#[derive(Clone, Copy)]
struct Plan {
    /// Read and compare with the pattern, else write it.
    verify: bool,
    seed: u64,
    /// Requests of both queues.
    requests: u64,
    /// Sectors in each.
    sectors: u64,
}

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let line = machine.command_line;
    let options = Options { depth: 8, data_pieces: 1, indirect: false, event_idx: line.switch("event_idx", true) };
    let Some(window) = block::chosen_window(machine) else {
        say!("error=no-drive");
        return;
    };
    let blocks = match Block::start_two(machine, window, options) {
        Ok(blocks) => blocks,
        Err(refusal) => {
            say!("error={}", word(refusal));
            return;
        }
    };
    let plan = Plan {
        verify: line.text("op").unwrap_or("verify") == "verify",
        seed: line.number("seed", 1),
        requests: line.number("sectors", 64) / line.number("request", 8).max(1),
        sectors: line.number("request", 8).max(1),
    };
    say!(
        "mq={} queues={}",
        u8::from(blocks[0].features & block::MQ != 0),
        window.read(crate::mmio::reg::CONFIG + 32) >> 16
    );
    let clock = machine.clock;
    let mut first = 0;
    let [mut here, mut there] = blocks.map(|block| {
        let buffers = machine.arena.take(plan.sectors * SECTOR_BYTES * u64::from(block.depth), 4096);
        first += 1;
        Lane { block, first: first - 1, buffers, tally: Tally::default() }
    });
    match line.number("cpus", 1) {
        1 => {
            // Both have requests in flight before either is waited for.
            let (mut one, mut other) = (here.first, there.first);
            while one < plan.requests || other < plan.requests {
                let (a, b) = (here.submit(plan, one), there.submit(plan, other));
                here.collect(plan, clock, one, a);
                there.collect(plan, clock, other, b);
                (one, other) = (one + 2 * a, other + 2 * b);
            }
        }
        _ => {
            if !second::side_by_side(machine, &mut || there.work(plan, clock), || here.work(plan, clock)) {
                say!("error=one-processor");
                return;
            }
        }
    }
    for lane in [here, there] {
        let Tally { requests, errors, mismatches } = lane.tally;
        let (index, kicks) = (lane.block.queue.index, lane.block.queue.kicks);
        say!("queue={index} requests={requests} errors={errors} mismatches={mismatches} kicks={kicks}");
    }
}

impl Lane {
    fn work(&mut self, plan: Plan, clock: Clock) {
        let mut next = self.first;
        while next < plan.requests {
            let count = self.submit(plan, next);
            self.collect(plan, clock, next, count);
            next += 2 * count;
        }
    }

    fn buffer(&self, plan: Plan, slot: u64) -> Dma {
        let len = plan.sectors * SECTOR_BYTES;
        self.buffers.part(len * slot, len)
    }

    /// Has as many requests done as there is room for, from this one on; how many.
    fn submit(&mut self, plan: Plan, first: u64) -> u64 {
        let mut count = 0;
        while count < u64::from(self.block.depth) && first + 2 * count < plan.requests {
            let sector = (first + 2 * count) * plan.sectors;
            let buffer = self.buffer(plan, count);
            if plan.verify {
                buffer.fill(0xee);
            } else {
                for i in 0..plan.sectors {
                    pattern::fill(plan.seed, sector + i, buffer.part(i * SECTOR_BYTES, SECTOR_BYTES).bytes_mut());
                }
            }
            let kind = if plan.verify { request::IN } else { request::OUT };
            let piece = Piece { writable: plan.verify, ..Piece::readable(buffer) };
            self.block.submit(count as u16, kind, sector, &[piece]);
            count += 1;
        }
        self.block.queue.kick();
        count
    }

    /// Waits for those requests.
    fn collect(&mut self, plan: Plan, clock: Clock, first: u64, count: u64) {
        let mut expected = [0; SECTOR];
        for _ in 0..count {
            let Some((slot, answer)) = self.block.wait(clock, crate::bring_up::PATIENCE_MS) else {
                self.tally.errors += 1;
                continue;
            };
            self.tally.requests += 1;
            self.tally.errors += u64::from(answer.status != 0);
            let sector = (first + 2 * u64::from(slot)) * plan.sectors;
            for i in (0..plan.sectors).filter(|_| plan.verify) {
                pattern::fill(plan.seed, sector + i, &mut expected);
                let found = self.buffer(plan, slot.into()).part(i * SECTOR_BYTES, SECTOR_BYTES);
                self.tally.mismatches += u64::from(found.bytes() != expected);
            }
        }
    }
}
