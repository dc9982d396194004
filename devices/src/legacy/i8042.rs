//! The i8042 keyboard controller: a guest's way to reset the machine, and the operator's way to press Ctrl-Alt-Del.
//!
//! As much of it as Linux's `i8042` and `atkbd` drivers probe (drivers/input/serio/i8042.c), with a keyboard and without a mouse.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::power::{PowerEvent, PowerSink};
use crate::bus::BusDevice;
use crate::irq::IrqLine;

// Offsets from the first port.
const DATA: u64 = 0;
/// Port 0x61, "system control port B", lies between the two.
const PORT_B: u64 = 1;
const COMMAND: u64 = 4;

/// Port B says that the PIT's refresh output is high: kernels that calibrate with the PIT wait for that bit, and give up on this
/// machine, which has no PIT, only if they see it.
const PORT_B_REFRESH: u8 = 0x20;

// Status register.
const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;

// Controller configuration ("command byte").
const CONFIG_INTERRUPT: u8 = 1 << 0;
const CONFIG_SYSTEM: u8 = 1 << 2;
const CONFIG_KEYBOARD_OFF: u8 = 1 << 4;
const CONFIG_MOUSE_OFF: u8 = 1 << 5;
const CONFIG_TRANSLATE: u8 = 1 << 6;

// Commands of the controller.
const READ_CONFIG: u8 = 0x20;
const WRITE_CONFIG: u8 = 0x60;
const MOUSE_OFF: u8 = 0xa7;
const MOUSE_ON: u8 = 0xa8;
const TEST_MOUSE_PORT: u8 = 0xa9;
const SELF_TEST: u8 = 0xaa;
const TEST_KEYBOARD_PORT: u8 = 0xab;
const KEYBOARD_OFF: u8 = 0xad;
const KEYBOARD_ON: u8 = 0xae;
const READ_OUTPUT_PORT: u8 = 0xd0;
const WRITE_OUTPUT_PORT: u8 = 0xd1;
const FAKE_KEYBOARD: u8 = 0xd2;
const FAKE_MOUSE: u8 = 0xd3;
const WRITE_MOUSE: u8 = 0xd4;

const SELF_TEST_PASSED: u8 = 0x55;
const PORT_WORKS: u8 = 0x00;
/// "Clock stuck low": nothing is plugged in.
const PORT_BROKEN: u8 = 0x01;
/// Reset line (active low) and A20 gate high.
const OUTPUT_PORT: u8 = 0x03;
/// Bit of the output port, and of the pulse commands 0xf0 to 0xff, that resets when low.
const RESET_LINE: u8 = 1;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;

/// Ctrl, Alt and Delete pressed and released, in scan code set 1 (what a translating controller delivers).
const CTRL_ALT_DEL_SET_1: [u8; 8] = [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d];
/// The same in set 2.
const CTRL_ALT_DEL_SET_2: [u8; 11] = [0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];
/// Bytes the keyboard keeps while the guest does not read.
const KEYBOARD_BUFFER: usize = 16;

crate::metric_group! {
    /// What happened to an [`I8042`].
    pub struct I8042Metrics {
        /// Keys that were lost because the guest did not read.
        error_count: Counter,
        /// Reads that made no sense.
        missed_read_count: Counter,
        /// Writes that made no sense.
        missed_write_count: Counter,
        /// Reads.
        read_count: Counter,
        /// Resets the guest asked for.
        reset_count: Counter,
        /// Writes.
        write_count: Counter,
    }
}

/// Where the next byte written to the data port goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Expecting {
    Keyboard,
    /// The argument of a keyboard command.
    KeyboardArgument,
    Config,
    OutputPort,
    FakeKeyboard,
    Nobody,
}

/// A controller and its keyboard, as they outlive the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State(Chip);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Chip {
    config: u8,
    expecting: Expecting,
    /// The last write went to the command port.
    last_was_command: bool,
    /// A byte of the controller's own; it goes before the keyboard's.
    reply: Option<u8>,
    keyboard: VecDeque<u8>,
}

/// What a write led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Nothing,
    Reset,
}

impl Chip {
    fn new() -> Self {
        Self {
            // As firmware leaves it: keyboard on, translating, no mouse.
            config: CONFIG_INTERRUPT | CONFIG_SYSTEM | CONFIG_MOUSE_OFF | CONFIG_TRANSLATE,
            expecting: Expecting::Keyboard,
            last_was_command: false,
            reply: None,
            keyboard: VecDeque::with_capacity(KEYBOARD_BUFFER),
        }
    }

    fn output_full(&self) -> bool {
        self.reply.is_some() || (self.config & CONFIG_KEYBOARD_OFF == 0 && !self.keyboard.is_empty())
    }

    /// Whether the interrupt line should have been raised for what is in the output buffer.
    fn interrupting(&self) -> bool {
        self.output_full() && self.config & CONFIG_INTERRUPT != 0
    }

    fn status(&self) -> u8 {
        let mut status = STATUS_UNLOCKED | (self.config & CONFIG_SYSTEM);
        if self.output_full() {
            status |= STATUS_OUTPUT_FULL;
        }
        if self.last_was_command {
            status |= STATUS_COMMAND;
        }
        status
    }

    fn take(&mut self) -> u8 {
        if let Some(reply) = self.reply.take() {
            return reply;
        }
        if self.config & CONFIG_KEYBOARD_OFF == 0 { self.keyboard.pop_front().unwrap_or(0) } else { 0 }
    }

    /// Bytes from the keyboard, all or none.
    fn type_in(&mut self, bytes: &[u8]) -> bool {
        let fits = self.keyboard.len().saturating_add(bytes.len()) <= KEYBOARD_BUFFER;
        if fits {
            self.keyboard.extend(bytes);
        }
        fits
    }

    fn command(&mut self, command: u8) -> Outcome {
        self.last_was_command = true;
        self.expecting = Expecting::Keyboard;
        match command {
            READ_CONFIG => self.reply = Some(self.config),
            WRITE_CONFIG => self.expecting = Expecting::Config,
            // Controller RAM: nothing depends on it, so it reads as zero and forgets.
            0x21..=0x3f => self.reply = Some(0),
            0x61..=0x7f | WRITE_MOUSE | FAKE_MOUSE => self.expecting = Expecting::Nobody,
            MOUSE_OFF => self.config |= CONFIG_MOUSE_OFF,
            MOUSE_ON => self.config &= !CONFIG_MOUSE_OFF,
            TEST_MOUSE_PORT => self.reply = Some(PORT_BROKEN),
            SELF_TEST => {
                self.config |= CONFIG_SYSTEM;
                self.reply = Some(SELF_TEST_PASSED);
            }
            TEST_KEYBOARD_PORT => self.reply = Some(PORT_WORKS),
            KEYBOARD_OFF => self.config |= CONFIG_KEYBOARD_OFF,
            KEYBOARD_ON => self.config &= !CONFIG_KEYBOARD_OFF,
            READ_OUTPUT_PORT => self.reply = Some(OUTPUT_PORT),
            WRITE_OUTPUT_PORT => self.expecting = Expecting::OutputPort,
            FAKE_KEYBOARD => self.expecting = Expecting::FakeKeyboard,
            // Pulses low those of the lower four output lines whose bit is 0; only the reset line leads anywhere.
            0xf0..=0xff if command & RESET_LINE == 0 => return Outcome::Reset,
            _ => {}
        }
        Outcome::Nothing
    }

    fn data(&mut self, byte: u8) -> Outcome {
        self.last_was_command = false;
        match std::mem::replace(&mut self.expecting, Expecting::Keyboard) {
            Expecting::Config => self.config = byte,
            Expecting::OutputPort if byte & RESET_LINE == 0 => return Outcome::Reset,
            Expecting::OutputPort | Expecting::Nobody => {}
            Expecting::FakeKeyboard => self.reply = Some(byte),
            Expecting::Keyboard => self.ask_keyboard(byte),
            Expecting::KeyboardArgument => {
                self.type_in(&[ACK]);
            }
        }
        Outcome::Nothing
    }

    fn ask_keyboard(&mut self, command: u8) {
        // Sending to the keyboard also lets it talk.
        self.config &= !CONFIG_KEYBOARD_OFF;
        let answer: &[u8] = match command {
            // LEDs, scan code set, typematic rate: an argument follows.
            0xed | 0xf0 | 0xf3 => {
                self.expecting = Expecting::KeyboardArgument;
                &[ACK]
            }
            0xee => &[0xee],
            // Identify: a translated MF2 keyboard.
            0xf2 if self.config & CONFIG_TRANSLATE != 0 => &[ACK, 0xab, 0x41],
            0xf2 => &[ACK, 0xab, 0x83],
            // Enable, disable, defaults.
            0xf4..=0xf6 => &[ACK],
            // Reset and self-test.
            0xff => &[ACK, 0xaa],
            _ => &[RESEND],
        };
        self.type_in(answer);
    }
}

/// An i8042 with a keyboard.
pub struct I8042 {
    chip: Mutex<Chip>,
    power: Arc<dyn PowerSink>,
    line: Box<dyn IrqLine>,
    metrics: Arc<I8042Metrics>,
}

impl I8042 {
    /// First port.
    pub const PORT: u64 = 0x60;
    /// Number of ports; 0x61 to 0x63 among them are not the controller's.
    pub const LEN: u64 = 5;
    /// ISA interrupt of the keyboard.
    pub const IRQ: u32 = 1;

    /// A controller whose keyboard raises `line` and whose reset line ends at `power`.
    pub fn new(line: impl IrqLine + 'static, power: Arc<dyn PowerSink>) -> Self {
        Self { chip: Mutex::new(Chip::new()), power, line: Box::new(line), metrics: Arc::default() }
    }

    /// What outlives the process.
    pub fn save(&self) -> I8042State {
        I8042State(self.lock().clone())
    }

    /// Takes up what was saved. A keyboard that has more to say than it can loses the rest.
    pub fn restore(&self, state: &I8042State) {
        let mut chip = self.lock();
        chip.clone_from(&state.0);
        chip.keyboard.truncate(KEYBOARD_BUFFER);
    }

    /// Counters.
    pub fn metrics(&self) -> Arc<I8042Metrics> {
        self.metrics.clone()
    }

    /// Presses Ctrl-Alt-Del. `false` if the guest has not read the keyboard for so long that its buffer is full.
    pub fn press_ctrl_alt_del(&self) -> bool {
        let mut chip = self.lock();
        let translated = chip.config & CONFIG_TRANSLATE != 0;
        let pressed = chip.type_in(if translated { &CTRL_ALT_DEL_SET_1 } else { &CTRL_ALT_DEL_SET_2 });
        let raise = chip.interrupting();
        drop(chip);
        if !pressed {
            self.metrics.error_count.inc();
        }
        if raise {
            self.line.raise();
        }
        pressed
    }

    /// Raises the line again if something waits to be read. For the moment the line is unmasked.
    pub fn repeat(&self) {
        if self.lock().interrupting() {
            self.line.raise();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let [byte] = data else {
            self.metrics.missed_read_count.inc();
            return data.fill(0);
        };
        self.metrics.read_count.inc();
        match offset {
            DATA => {
                let mut chip = self.lock();
                *byte = chip.take();
                let more = chip.interrupting();
                drop(chip);
                if more {
                    self.line.raise();
                }
            }
            PORT_B => *byte = PORT_B_REFRESH,
            COMMAND => *byte = self.lock().status(),
            _ => {
                self.metrics.missed_read_count.inc();
                *byte = 0;
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let [byte] = data else { return self.metrics.missed_write_count.inc() };
        self.metrics.write_count.inc();
        let (outcome, raise) = {
            let mut chip = self.lock();
            let before = chip.interrupting();
            let outcome = match offset {
                DATA => chip.data(*byte),
                COMMAND => chip.command(*byte),
                PORT_B => Outcome::Nothing,
                _ => return self.metrics.missed_write_count.inc(),
            };
            (outcome, !before && chip.interrupting())
        };
        if raise {
            self.line.raise();
        }
        if outcome == Outcome::Reset {
            self.metrics.reset_count.inc();
            self.power.request(PowerEvent::Reset);
        }
    }
}

const _: () = assert!(STATUS_SYSTEM == CONFIG_SYSTEM, "the status register repeats the configuration's bit");

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::power::tests::Heard;
    use super::*;

    struct Edges(Arc<AtomicU32>);

    impl IrqLine for Edges {
        fn raise(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Bench {
        chip: I8042,
        edges: Arc<AtomicU32>,
        heard: Arc<Heard>,
    }

    impl Bench {
        fn new() -> Self {
            let (edges, heard) = (Arc::new(AtomicU32::new(0)), Arc::new(Heard::default()));
            Self { chip: I8042::new(Edges(edges.clone()), heard.clone()), edges, heard }
        }

        fn command(&self, byte: u8) {
            self.chip.write(COMMAND, &[byte]);
        }

        fn data(&self, byte: u8) {
            self.chip.write(DATA, &[byte]);
        }

        fn get(&self, offset: u64) -> u8 {
            let mut byte = [0xcc];
            self.chip.read(offset, &mut byte);
            byte[0]
        }

        fn edges(&self) -> u32 {
            self.edges.swap(0, Ordering::Relaxed)
        }

        /// Reads like a driver: as long as the status says there is something.
        fn drain(&self) -> Vec<u8> {
            std::iter::from_fn(|| (self.get(COMMAND) & STATUS_OUTPUT_FULL != 0).then(|| self.get(DATA))).collect()
        }
    }

    #[test]
    fn reset_in_both_ways() {
        let bench = Bench::new();
        bench.command(0xff);
        bench.command(0xd1);
        bench.data(0xdf);
        assert!(bench.heard.0.lock().unwrap().is_empty());
        bench.command(0xfe);
        bench.command(0xd1);
        bench.data(0xfe);
        assert_eq!(*bench.heard.0.lock().unwrap(), [PowerEvent::Reset; 2]);
        assert_eq!(bench.chip.metrics().reset_count.get(), 2);
    }

    #[test]
    fn what_linux_probes() {
        let bench = Bench::new();
        assert!(bench.drain().is_empty());
        bench.command(SELF_TEST);
        assert_eq!(bench.drain(), [0x55]);
        bench.command(READ_CONFIG);
        let config = bench.get(DATA);
        assert_ne!(config & CONFIG_TRANSLATE, 0);
        // i8042_controller_init: keyboard off, no interrupt.
        bench.command(WRITE_CONFIG);
        bench.data((config | CONFIG_KEYBOARD_OFF) & !CONFIG_INTERRUPT);
        assert!(bench.chip.press_ctrl_alt_del());
        assert!(bench.drain().is_empty());
        bench.edges();
        // i8042_enable_kbd_port.
        bench.command(WRITE_CONFIG);
        bench.data((config & !CONFIG_KEYBOARD_OFF) | CONFIG_INTERRUPT);
        assert_eq!(bench.edges(), 1);
        assert_eq!(bench.drain(), CTRL_ALT_DEL_SET_1);
        bench.command(TEST_KEYBOARD_PORT);
        assert_eq!(bench.drain(), [0]);
        bench.command(TEST_MOUSE_PORT);
        assert_eq!(bench.drain(), [1]);
        bench.data(0xf2);
        assert_eq!(bench.drain(), [0xfa, 0xab, 0x41]);
        bench.data(0xed);
        bench.data(0x02);
        assert_eq!(bench.drain(), [0xfa, 0xfa]);
    }

    #[test]
    fn one_edge_for_every_byte_that_can_be_read() {
        let bench = Bench::new();
        assert!(bench.chip.press_ctrl_alt_del());
        let mut got = Vec::new();
        while bench.edges() > 0 {
            got.push(bench.get(DATA));
        }
        assert_eq!(got, CTRL_ALT_DEL_SET_1);
        bench.chip.repeat();
        assert_eq!(bench.edges(), 0);
        assert!(bench.chip.press_ctrl_alt_del());
        bench.edges();
        bench.chip.repeat();
        assert_eq!(bench.edges(), 1);
    }

    #[test]
    fn untranslated_keys_are_set_2() {
        let bench = Bench::new();
        bench.command(WRITE_CONFIG);
        bench.data(CONFIG_INTERRUPT);
        assert!(bench.chip.press_ctrl_alt_del());
        assert_eq!(bench.drain(), CTRL_ALT_DEL_SET_2);
    }

    #[test]
    fn a_deaf_guest_costs_nothing() {
        let bench = Bench::new();
        let pressed = (0..1000).filter(|_| bench.chip.press_ctrl_alt_del()).count();
        assert_eq!(pressed, 2);
        assert_eq!(bench.chip.metrics().error_count.get(), 998);
        for round in 0..3u32 {
            for byte in 0..=u8::MAX {
                for offset in 0..8 {
                    bench.chip.write(offset, &[byte ^ round as u8]);
                    bench.chip.write(offset, &[byte; 3]);
                    bench.get(offset);
                }
            }
        }
        assert!(bench.chip.lock().keyboard.len() <= KEYBOARD_BUFFER);
    }
}
