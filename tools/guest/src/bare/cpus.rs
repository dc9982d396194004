//! `mode=cpus`: a second processor that comes and goes (`devices/src/legacy/cpu_hotplug.rs`).

use crate::{Machine, cpu, say, second};

/// First port of the registers.
const PORT: u16 = 0x610;
pub const SELECT: u16 = PORT;
pub const STATUS: u16 = PORT + 1;
pub const INSERTING: u8 = 1 << 1;
pub const REMOVING: u8 = 1 << 2;
pub const EJECT: u8 = 1 << 3;
/// The one that comes and goes.
const SECOND: u8 = 1;
/// How long a processor that must not run is watched, in milliseconds.
const WATCH_MS: u64 = 50;
/// How long one may take to come or to stop.
const PATIENCE_MS: u64 = 5000;

pub fn status(index: u8) -> u8 {
    cpu::out8(SELECT, index);
    cpu::in8(STATUS)
}

fn tell(index: u8, what: u8) {
    cpu::out8(SELECT, index);
    cpu::out8(STATUS, what);
}

/// How far it gets while it is watched.
fn watched(machine: &Machine) -> u64 {
    let before = second::rounds();
    let deadline = machine.clock.deadline_ms(WATCH_MS);
    while !deadline.passed() {
        cpu::pause();
    }
    second::rounds() - before
}

/// Whether it gets beyond what it has done.
fn moves_on(machine: &Machine, before: u64) -> bool {
    let deadline = machine.clock.deadline_ms(PATIENCE_MS);
    while second::rounds() == before {
        if deadline.passed() {
            return false;
        }
        cpu::pause();
    }
    true
}

/// Whether it comes to a standstill. One look could find its thread waiting for its turn on a host with much to do.
fn stops(machine: &Machine) -> bool {
    let deadline = machine.clock.deadline_ms(PATIENCE_MS);
    while watched(machine) + watched(machine) != 0 {
        if deadline.passed() {
            return false;
        }
    }
    true
}

pub fn run(machine: &mut Machine) {
    let fast = machine.command_line.switch("fast", false);
    // It is not ours, if it is there at all.
    let early = if status(SECOND) == 0 {
        second::wake();
        watched(machine)
    } else {
        0
    };
    say!("cpus=started s0={} s1={} s2={} s3={} early={early}", status(0), status(1), status(2), status(3));
    for step in 1..=machine.command_line.number("steps", 1) {
        let news = loop {
            let news = status(SECOND) & (INSERTING | REMOVING);
            if news != 0 {
                break news;
            }
            cpu::pause();
        };
        if news & INSERTING != 0 {
            tell(SECOND, INSERTING);
            // It waits for being started from now on, whatever it did before and was sent meanwhile.
            let stale = if fast { 0 } else { watched(machine) };
            let before = second::rounds();
            second::wake();
            let came = u8::from(moves_on(machine, before));
            say!("step={step} came={came} stale={stale} status={}", status(SECOND));
        } else {
            tell(SECOND, REMOVING);
            tell(SECOND, EJECT);
            let gone = u8::from(fast || stops(machine));
            if !fast {
                second::wake();
            }
            let moved = if fast { 0 } else { watched(machine) };
            say!("step={step} gone={gone} moved={moved} status={}", status(SECOND));
        }
    }
}
