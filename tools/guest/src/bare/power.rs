//! The ways a run can end, chosen by `mayfly.end=`.

use crate::command_line::CommandLine;
use crate::cpu;

/// Keyboard controller command port, and its "pulse the reset line" command.
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;
/// ACPI sleep control register of the hardware-reduced FADT, and the value
/// for S5: SLP_TYP 5, SLP_EN (ACPI 6.5 §4.8.3.7).
pub const SLEEP_CONTROL: u16 = 0x600;
const SLEEP_S5: u8 = 5 << 2 | 1 << 5;

/// The pvpanic port.
pub const PANIC: u16 = 0x505;

/// Ends the machine the way the command line asks for; `reset` by default. With `panic=EVENTS` it tells of a panic before that.
pub fn end(command_line: CommandLine) -> ! {
    match u8::try_from(command_line.number("panic", 0)) {
        Ok(events @ 1..) => cpu::out8(PANIC, events),
        _ => {}
    }
    match command_line.text("end") {
        Some("s5") => cpu::out8(SLEEP_CONTROL, SLEEP_S5),
        Some("triple-fault") => cpu::undefined_instruction(),
        Some("spin") => {}
        _ => reset(),
    }
    spin()
}

/// Asks the keyboard controller for a reset.
pub fn reset() {
    cpu::out8(I8042_COMMAND, I8042_RESET);
}

/// Stays alive and does nothing.
pub fn spin() -> ! {
    loop {
        cpu::pause();
    }
}
