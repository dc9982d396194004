//! `mode=hotplug`: a guest whose devices come and go, as ACPI would tell a kernel (see [`crate::pci::hotplug`]).

use crate::block::{Block, Options, request};
use crate::bring_up;
use crate::mmio::{Window, kind};
use crate::pci::{self, hotplug};
use crate::pmem::Pmem;
use crate::virtqueue::Piece;
use crate::{Machine, cpu, say};

/// Slots of the bus.
const SLOTS: u64 = 32;

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let steps = machine.command_line.number("steps", u64::MAX);
    // A guest that does not let go of anything.
    let keeps = machine.command_line.switch("keep", false);
    let quiet = machine.command_line.switch("quiet", false);
    let mark = machine.arena.mark();
    // Slots whose devices have rings of ours.
    let mut live = 0u32;
    let mut done = 0;
    say!("hotplug=started");
    while done < steps {
        let (filled, leaving) = (hotplug::filled(), hotplug::leaving());
        if filled | leaving == 0 {
            cpu::pause();
            continue;
        }
        for slot in (1..SLOTS).filter(|slot| filled >> slot & 1 != 0) {
            done += 1;
            live = (1..SLOTS)
                .filter(|slot| live >> slot & 1 != 0 && pci::is_there(*slot))
                .fold(0, |all, slot| all | 1 << slot);
            if live == 0 {
                machine.arena.rewind(mark);
            }
            live |= 1 << slot;
            let found = match pci::function(slot) {
                Some(window) => greet(machine, window),
                None => ("nothing", 0),
            };
            if !quiet {
                say!("plugged={slot} {}={:#x}", found.0, found.1);
            }
        }
        for slot in (1..SLOTS).filter(|slot| leaving >> slot & 1 != 0) {
            done += 1;
            if !quiet {
                say!("leaving={slot}");
            }
            if keeps {
                continue;
            }
            if let Some(window) = pci::function(slot)
                && bring_up::reset(window, machine.clock).is_err()
            {
                say!("error=reset slot={slot}");
            }
            live &= !(1 << slot);
            hotplug::eject(1 << slot);
        }
    }
    say!("hotplug=over steps={done}");
}

/// Brings a device up, and reads what it has: a drive's first eight bytes, those of persistent memory, the address of a network interface.
fn greet(machine: &mut Machine, window: Window) -> (&'static str, u64) {
    match window.kind {
        kind::BLOCK => {
            let Ok(mut block) = Block::start(machine, window, Options::PLAIN) else { return ("refused", 2) };
            let data = machine.arena.take(512, 512);
            match block.run(machine.clock, request::IN, 0, &[Piece::writable(data)]) {
                Some(answer) if answer.status == 0 => ("drive", data.read64(0)),
                _ => ("silent", 2),
            }
        }
        kind::PMEM => match Pmem::start(machine, window) {
            Ok(pmem) => ("pmem", pmem.memory(0, 8).map_or(0, |memory| memory.read64(0))),
            Err(_) => ("refused", 27),
        },
        kind::NET => {
            let address = (0..6).fold(0, |all, at| all << 8 | u64::from(cpu::read8(window.config_space() + at)));
            match bring_up::negotiate(window, 1 << 5, machine.clock).map(|_| ()) {
                Ok(()) => ("net", address),
                Err(_) => ("refused", 1),
            }
        }
        other => ("other", other.into()),
    }
}
