//! The serial console, output only.
//!
//! Every byte is an exit to the VMM, so nobody here asks the line status
//! first: an emulated UART is always ready. Lines end in `\n` alone.

use core::fmt;

use crate::cpu;

/// Transmit holding register of COM1.
const COM1: u16 = 0x3f8;

/// COM1 as a text sink.
pub struct Console;

impl fmt::Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            cpu::out8(COM1, byte);
        }
        Ok(())
    }
}

/// Writes one line to the console.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {{
        use core::fmt::Write as _;
        let _ = writeln!($crate::console::Console, $($argument)*);
    }};
}
