//! `mode=life`: keeps drive, network interface and entropy device at work for ever, checks everything it gets back, and tells how it goes, so
//! that whoever saves and restores the machine at any moment can see that nothing was lost, doubled or changed.

use crate::block::{self, Block, Options, request};
use crate::block_mode::word;
use crate::dma::Dma;
use crate::net::{self, Net};
use crate::rng::{self, Rng};
use crate::virtqueue::Piece;
use crate::{Machine, cpu, say};

/// Requests in flight at the drive.
const DEPTH: u16 = 8;
/// Bytes of each, and the sectors that a slot has for itself.
const BYTES: u64 = 4096;
const SECTORS: u64 = BYTES / 512;
/// Frame length without the header.
const FRAME: u64 = 60;
/// Bytes of random data asked for at a time.
const RANDOM: u64 = 64;
const PAGE: u64 = 4096;
/// Where the generation id is.
const GENERATION_ID: u64 = 0xd_0000;
/// After so long without an answer of the drive, one is lost.
const PATIENCE_MS: u64 = 10_000;

/// What a slot of the drive is doing.
#[derive(Clone, Copy, Default)]
struct Slot {
    in_flight: bool,
    reading: bool,
    sequence: u64,
}

#[derive(Default)]
struct Wrong {
    /// Answers to nothing.
    doubled: u64,
    /// Answers other than OK.
    failed: u64,
    /// Sectors that do not hold what was written.
    changed: u64,
    /// Pages of memory that do not.
    memory: u64,
    /// Random words that are zero.
    random: u64,
}

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let line = machine.command_line;
    let (after, pool_mib, pace_ms) = (line.number("after", 10), line.number("pool_mib", 4), line.number("pace_ms", 10));
    // To write to every page at once as soon as it was restored, and say so: for whoever wants to know how long that takes.
    let mut sweep = line.number("sweep", 0) != 0;
    let options = Options { depth: DEPTH, data_pieces: 1, indirect: true, event_idx: true };
    let mut block = match block::chosen_window(machine).map(|window| Block::start(machine, window, options)) {
        Some(Ok(block)) => Some(block),
        Some(Err(refusal)) => {
            say!("error={}", word(refusal));
            return;
        }
        None => None,
    };
    let mut net = net::chosen_window(machine).and_then(|window| Net::start(machine, window).ok());
    let mut rng = rng::chosen_window(machine).and_then(|window| Rng::start(machine, window).ok());
    let buffers = machine.arena.take(BYTES * u64::from(DEPTH), PAGE);
    let random = machine.arena.take(RANDOM, 64);
    let pages = pool_mib * (1 << 20) / PAGE;
    let pool = machine.arena.take(pages * PAGE, PAGE);
    (0..pages).for_each(|page| pool.write64(page * PAGE, page + 1));

    let mut slots = [Slot::default(); DEPTH as usize];
    let mut wrong = Wrong::default();
    let (mut answers, mut frames, mut draws, mut ticks, mut round) = (0u64, 0u64, 0u64, 0u64, 1u64);
    let mut page = 0;
    let mut sequence = 0;
    let depth = block.as_ref().map_or(0, |block| block.depth.min(DEPTH));
    let born = generation_id();
    let mut generation = born;
    let mut last = None;
    say!("life=started generation={:#x} pages={pages}", generation);
    if let Some(rng) = &mut rng {
        rng.ask(0, Piece::writable(random));
        rng.queue.kick();
    }
    let mut silence = machine.clock.deadline_ms(PATIENCE_MS);
    let mut next = machine.clock.deadline_ms(pace_ms);
    loop {
        if let Some(block) = &mut block {
            for slot in 0..depth {
                let state = &mut slots[usize::from(slot)];
                if !state.in_flight {
                    sequence += 1;
                    begin(block, slot, state, buffers, sequence);
                }
            }
            block.queue.kick();
            while let Some((slot, answer)) = block.poll() {
                answers += 1;
                silence = machine.clock.deadline_ms(PATIENCE_MS);
                let state = &mut slots[usize::from(slot)];
                if !state.in_flight {
                    wrong.doubled += 1;
                }
                wrong.failed += u64::from(answer.status != 0);
                if state.reading {
                    let data = buffer(buffers, slot);
                    let same = (0..BYTES / 8).all(|at| data.read64(at * 8) == state.sequence ^ at);
                    wrong.changed += u64::from(!same);
                }
                state.in_flight = false;
            }
            if silence.passed() {
                say!("life=stuck answers={answers}");
                return;
            }
        }
        if let Some(net) = &mut net {
            frames += net.reclaim();
            while let Some(slot) = net.claim() {
                let frame = net.frame(slot);
                frame.put(0, &[0xff; 6]);
                frame.put(6, &net.mac);
                frame.put(12, &[0x88, 0xb5]);
                net.transmit(slot, FRAME);
            }
            net.tx.kick();
        }
        if let Some(rng) = &mut rng {
            while rng.queue.poll().is_some() {
                draws += 1;
                wrong.random += (0..RANDOM / 8).filter(|at| random.read64(at * 8) == 0).count() as u64;
                rng.ask(0, Piece::writable(random));
            }
            rng.queue.kick();
        }
        // A few pages of memory at a time, each of which holds its number and how often it was its turn.
        for _ in 0..64.min(pages) {
            let expected = round << 32 | (page + 1);
            let before = if round == 1 { page + 1 } else { (round - 1) << 32 | (page + 1) };
            wrong.memory += u64::from(pool.read64(page * PAGE) != before);
            pool.write64(page * PAGE, expected);
            page += 1;
            if page == pages {
                (page, round) = (0, round + 1);
            }
        }
        if sweep && generation_id() != born {
            sweep = false;
            (0..pages).for_each(|page| pool.write64(page * PAGE + 8, round));
            say!("swept={pages}");
        }
        if next.passed() {
            next = machine.clock.deadline_ms(pace_ms);
            ticks += 1;
            let Wrong { doubled, failed, changed, memory, random } = wrong;
            say!(
                "tick={ticks} answers={answers} frames={frames} draws={draws} rounds={round} doubled={doubled} failed={failed} changed={changed} memory={memory} random={random}"
            );
            let now = generation_id();
            if now != generation {
                generation = now;
                say!("restored={:#x} cycles={:#x}", generation, cpu::cycles());
                last.get_or_insert(ticks + after);
            }
            if last.is_some_and(|last| ticks >= last) {
                say!("life=over answers={answers} frames={frames} draws={draws}");
                return;
            }
        }
    }
}

fn generation_id() -> u64 {
    Dma::left_by_loader(GENERATION_ID, 16).read64(0)
}

fn buffer(buffers: Dma, slot: u16) -> Dma {
    buffers.part(BYTES * u64::from(slot), BYTES)
}

/// Writes a slot's sectors, or reads back what was written.
fn begin(block: &mut Block, slot: u16, state: &mut Slot, buffers: Dma, sequence: u64) {
    let data = buffer(buffers, slot);
    let sector = SECTORS * u64::from(slot);
    let reading = !state.reading && state.sequence != 0;
    if reading {
        (0..BYTES / 8).for_each(|at| data.write64(at * 8, 0));
        block.submit(slot, request::IN, sector, &[Piece::writable(data)]);
    } else {
        state.sequence = sequence;
        (0..BYTES / 8).for_each(|at| data.write64(at * 8, sequence ^ at));
        block.submit(slot, request::OUT, sector, &[Piece::readable(data)]);
    }
    (state.reading, state.in_flight) = (reading, true);
}
