//! `mode=busy`: one processor that never rests and keeps the queues of drive,
//! network interface and entropy device full, whatever they let through.

use crate::block::{self, Block, Options, request};
use crate::block_mode::word;
use crate::dma::Dma;
use crate::net::{self, Net};
use crate::rng::{self, Rng};
use crate::virtqueue::Piece;
use crate::{Machine, say};

/// Requests to keep waiting at each device.
const DEPTH: u16 = 64;
/// Frame length without the header.
const FRAME: u64 = 60;
/// Bytes of random data a request asks for.
const RANDOM: u64 = 64;

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let line = machine.command_line;
    let (ops, kicks) = (line.number("ops", 20), line.switch("kicks", false));
    let Some(window) = block::chosen_window(machine) else {
        say!("error=no-drive");
        return;
    };
    let options = Options { depth: DEPTH, data_pieces: 1, indirect: false, event_idx: true };
    let mut block = match Block::start(machine, window, options) {
        Ok(block) => block,
        Err(refusal) => {
            say!("error={}", word(refusal));
            return;
        }
    };
    let mut net = net::chosen_window(machine).and_then(|window| Net::start(machine, window).ok());
    let mut rng = rng::chosen_window(machine).and_then(|window| Rng::start(machine, window).ok());
    let data = machine.arena.take(512, 512);
    let random = machine.arena.take(RANDOM, 64);

    for slot in 0..block.depth {
        read(&mut block, slot, data);
    }
    if let Some(net) = &mut net {
        (0..DEPTH).for_each(|_| send(net));
    }
    if let Some(rng) = &mut rng {
        (0..DEPTH).for_each(|slot| rng.ask(slot, Piece::writable(random)));
    }
    say!("busy=started");
    let (mut reads, mut errors, mut frames, mut draws) = (0u64, 0u64, 0u64, 0u64);
    let deadline = machine.clock.deadline_ms(line.number("ms", 120_000));
    while reads < ops && !deadline.passed() {
        while let Some((slot, answer)) = block.poll() {
            reads += 1;
            errors += u64::from(answer.status != 0);
            read(&mut block, slot, data);
        }
        block.queue.kick();
        if let Some(net) = &mut net {
            let back = net.reclaim();
            frames += back;
            (0..back).for_each(|_| send(net));
            net.tx.kick();
        }
        if let Some(rng) = &mut rng {
            while let Some(used) = rng.queue.poll() {
                draws += 1;
                rng.ask(used.head, Piece::writable(random));
            }
            rng.queue.kick();
        }
        if kicks {
            // Against all manners, whether the device wants to hear it or not.
            block.queue.ring();
        }
    }
    say!("busy=ended reads={reads} errors={errors} frames={frames} draws={draws} kicks={}", block.queue.kicks);
}

fn read(block: &mut Block, slot: u16, data: Dma) {
    block.submit(slot, request::IN, 0, &[Piece::writable(data)]);
}

fn send(net: &mut Net) {
    if let Some(slot) = net.claim() {
        let frame = net.frame(slot);
        frame.put(0, &[0xff; 6]);
        frame.put(6, &net.mac);
        frame.put(12, &[0x88, 0xb5]);
        net.transmit(slot, FRAME);
    }
}
