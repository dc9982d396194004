//! `mode=bench-block`: requests per second and latency.

use crate::block::{self, Block, Options, PIECES_MAX, request};
use crate::block_mode::word;
use crate::bring_up::PATIENCE_MS;
use crate::clock::Clock;
use crate::dma::Dma;
use crate::pattern::Random;
use crate::virtqueue::Piece;
use crate::{Machine, cpu, say, second};

/// Most latency samples kept; later requests are not sampled.
const SAMPLES_MAX: u64 = 1 << 18;

/// One workload.
struct Load {
    writing: bool,
    random: bool,
    /// Bytes per request.
    bytes: u64,
    ops: u64,
}

/// What came out.
#[derive(Default)]
struct Outcome {
    completed: u64,
    errors: u64,
    elapsed: u64,
    stalled: bool,
}

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let line = machine.command_line;
    let rw = line.text("rw").unwrap_or("randread");
    let queues = line.number("queues", 1);
    // Of each queue.
    let load = Load {
        writing: rw.ends_with("write"),
        random: rw.starts_with("rand"),
        bytes: line.number("bs", 4096),
        ops: line.number("ops", 10_000) / queues.max(1),
    };
    let options = Options {
        depth: (line.number("qd", 32) / queues.max(1)).clamp(1, 256) as u16,
        data_pieces: line.number("chain", 1).clamp(1, PIECES_MAX as u64 - 2) as u16,
        indirect: line.switch("indirect", false),
        event_idx: line.switch("event_idx", true),
    };
    let Some(window) = block::chosen_window(machine) else {
        say!("error=no-drive");
        return;
    };
    let two = queues == 2;
    let started = match two {
        false => Block::start(machine, window, options).map(|block| (block, None)),
        true => Block::start_two(machine, window, options).map(|[block, other]| (block, Some(other))),
    };
    let (mut block, mut other) = match started {
        Ok(blocks) => blocks,
        Err(refusal) => {
            say!("error={}", word(refusal));
            return;
        }
    };
    let units = block.capacity * 512 / load.bytes.max(512);
    if units == 0 || !load.bytes.is_multiple_of(512) {
        say!("error=bad-block-size");
        return;
    }

    let buffers = machine.arena.take(load.bytes * u64::from(block.depth), 4096);
    let samples = machine.arena.take(4 * load.ops.min(SAMPLES_MAX), 64);
    // Touch every page first: the first touch of guest RAM is the host's work.
    buffers.fill(0x5a);
    samples.fill(0);
    let mut feeder = Feeder {
        load: &load,
        units,
        pieces: options.data_pieces.into(),
        buffers,
        random: Random::new(line.number("seed", 1)),
        submitted: 0,
        submitted_at: [0; 256],
    };
    let clock = machine.clock;
    let (outcome, sampled) = match &mut other {
        None => {
            let outcome = drive(&mut block, &mut feeder, clock, samples);
            let sampled = outcome.completed;
            (outcome, sampled)
        }
        Some(other) => {
            // The half of the work, with other data, on the other processor.
            let buffers = machine.arena.take(load.bytes * u64::from(other.depth), 4096);
            let more_samples = machine.arena.take(4 * load.ops.min(SAMPLES_MAX), 64);
            buffers.fill(0x5a);
            more_samples.fill(0);
            let random = Random::new(line.number("seed", 1) ^ 0x5a5a);
            let mut more = Feeder { buffers, random, ..feeder };
            let (mut here, mut there) = (Outcome::default(), Outcome::default());
            let both =
                second::side_by_side(machine, &mut || there = drive(other, &mut more, clock, more_samples), || {
                    here = drive(&mut block, &mut feeder, clock, samples)
                });
            if !both {
                say!("error=one-processor");
                return;
            }
            let outcome = Outcome {
                completed: here.completed + there.completed,
                errors: here.errors + there.errors,
                elapsed: here.elapsed.max(there.elapsed),
                stalled: here.stalled || there.stalled,
            };
            (outcome, here.completed)
        }
    };

    // Those of the first queue.
    let kept = sampled.min(samples.len() / 4);
    let mut kept_samples = samples.part(0, kept * 4);
    let sorted = kept_samples.words_mut();
    sorted.sort_unstable();
    let at = |permille: u64| {
        let index = kept.saturating_sub(1) * permille / 1000;
        sorted.get(index as usize).copied().map_or(0, u64::from)
    };
    say!(
        "rw={rw} bs={} qd={} completed={} errors={} kicks={} stalled={}",
        load.bytes,
        block.depth,
        outcome.completed,
        outcome.errors,
        block.queue.kicks,
        u8::from(outcome.stalled)
    );
    say!(
        "elapsed_cycles={} elapsed_ns={} tsc_khz={} iops={} bytes_per_s={}",
        outcome.elapsed,
        clock.nanoseconds(outcome.elapsed),
        clock.khz(),
        clock.per_second(outcome.completed, outcome.elapsed),
        clock.per_second(outcome.completed * load.bytes, outcome.elapsed),
    );
    say!(
        "p50_cycles={} p99_cycles={} min_ns={} p50_ns={} p99_ns={}",
        at(500),
        at(990),
        clock.nanoseconds(at(0)),
        clock.nanoseconds(at(500)),
        clock.nanoseconds(at(990))
    );
}

/// The requests in flight and where the next one goes.
struct Feeder<'a> {
    load: &'a Load,
    /// Requests that fit on the disk.
    units: u64,
    /// Data pieces per request.
    pieces: u64,
    buffers: Dma,
    random: Random,
    submitted: u64,
    /// By slot.
    submitted_at: [u64; 256],
}

impl Feeder<'_> {
    /// Submits the next request in a free slot, if there is one left.
    fn feed(&mut self, block: &mut Block, slot: u16) {
        if self.submitted == self.load.ops {
            return;
        }
        let unit = if self.load.random { self.random.below(self.units) } else { self.submitted % self.units };
        self.submitted += 1;
        let bytes = self.load.bytes;
        let buffer = self.buffers.part(bytes * u64::from(slot), bytes);
        let mut list = [Piece::readable(buffer); PIECES_MAX];
        let each = bytes / self.pieces;
        for (i, piece) in (0..self.pieces).zip(&mut list) {
            let len = if i + 1 == self.pieces { bytes - i * each } else { each };
            *piece = Piece { writable: !self.load.writing, ..Piece::readable(buffer.part(i * each, len)) };
        }
        let kind = if self.load.writing { request::OUT } else { request::IN };
        self.submitted_at[usize::from(slot)] = cpu::cycles();
        block.submit(slot, kind, unit * (bytes / 512), &list[..self.pieces as usize]);
    }
}

/// Keeps the queue full until all requests are done. Everything that is
/// complete is refilled before one kick.
fn drive(block: &mut Block, feeder: &mut Feeder<'_>, clock: Clock, samples: Dma) -> Outcome {
    let mut outcome = Outcome::default();
    let start = cpu::cycles();
    for slot in 0..block.depth {
        feeder.feed(block, slot);
    }
    block.queue.kick();
    while outcome.completed < feeder.submitted {
        let Some(first) = block.poll().or_else(|| block.wait(clock, PATIENCE_MS)) else {
            outcome.stalled = true;
            break;
        };
        let mut next = Some(first);
        while let Some((slot, answer)) = next {
            if outcome.completed < samples.len() / 4 {
                let cycles = cpu::cycles() - feeder.submitted_at[usize::from(slot)];
                samples.write32(outcome.completed * 4, cycles.min(u32::MAX.into()) as u32);
            }
            outcome.completed += 1;
            outcome.errors += u64::from(answer.status != 0);
            feeder.feed(block, slot);
            next = block.poll();
        }
        block.queue.kick();
    }
    outcome.elapsed = cpu::cycles() - start;
    outcome
}
