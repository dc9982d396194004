//! `mode=watch`: waits until a drive says that its configuration changed, as
//! after the host has swapped the file behind it.

use crate::block::{self, Block, Options, request};
use crate::block_mode::word;
use crate::mmio::{CONFIG_CHANGED, reg};
use crate::virtqueue::Piece;
use crate::{Machine, say};

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let Some(window) = block::chosen_window(machine) else {
        say!("error=no-drive");
        return;
    };
    let mut block = match Block::start(machine, window, Options::PLAIN) {
        Ok(block) => block,
        Err(refusal) => {
            say!("error={}", word(refusal));
            return;
        }
    };
    let generation = window.read(reg::CONFIG_GENERATION);
    say!("watch=started capacity={}", block.capacity);

    let deadline = machine.clock.deadline_ms(machine.command_line.number("ms", 20_000));
    while window.read(reg::CONFIG_GENERATION) == generation {
        if deadline.passed() {
            say!("changed=0");
            return;
        }
    }
    // The generation tells about the fields, the interrupt that there is something to look at; the one may be a little before the other.
    let mut signalled = 0;
    while signalled == 0 && !deadline.passed() {
        signalled = u32::from(window.read(reg::INTERRUPT_STATUS) & CONFIG_CHANGED != 0);
    }
    window.write(reg::INTERRUPT_ACK, CONFIG_CHANGED);
    let still = window.read(reg::INTERRUPT_STATUS) & CONFIG_CHANGED;
    let capacity = window.config64(0);
    let buffer = machine.arena.take(512, 512);
    let last = block.run(machine.clock, request::IN, capacity.saturating_sub(1), &[Piece::writable(buffer)]);
    let beyond = block.run(machine.clock, request::IN, capacity, &[Piece::writable(buffer)]);
    let status = |answer: Option<block::Answer>| answer.map_or(block::UNTOUCHED, |a| a.status);
    say!(
        "changed=1 signalled={signalled} acknowledged={} new_capacity={capacity} last={} beyond={}",
        u8::from(still == 0),
        status(last),
        status(beyond)
    );
}
