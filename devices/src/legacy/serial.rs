//! COM1, a 16550A UART (the registers are `vm-superio`'s), with its output and its input.
//!
//! vCPUs reach it over the port bus, the event loop as a [`Subscriber`]. Neither waits for the outside: see [`SerialSink`], and input is
//! read only as far as the guest's receive FIFO has room.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, SerialState, Trigger};
use vmm_sys_util::eventfd::EventFd;

pub use super::serial_sink::SerialSink;
use crate::bus::BusDevice;
use crate::event::{Interest, Source, Subscriber};
use crate::irq::IrqLine;
use crate::sys::nonblocking::NonBlocking;

/// Size of the chip's receive FIFO in `vm-superio`.
const FIFO_LEN: usize = 64;
/// Modem control register, and its loopback bit.
const MODEM_CONTROL: u8 = 4;
const LOOPBACK: u8 = 1 << 4;
/// "No interrupt pending" in the interrupt identification register.
const NOTHING_PENDING: u8 = 1;

const OUTPUT: u32 = 0;
const LINE_TIMER: u32 = 1;
const INPUT: u32 = 2;
const ROOM: u32 = 3;

crate::metric_group! {
    /// What went through a UART.
    pub struct UartMetrics {
        /// Times that output was lost or input could not be read.
        error_count: Counter,
        /// Writes to the output.
        flush_count: Counter,
        /// Reads that made no sense.
        missed_read_count: Counter,
        /// Writes that made no sense.
        missed_write_count: Counter,
        /// Register reads.
        read_count: Counter,
        /// Register writes.
        write_count: Counter,
        /// Bytes of output that the rate limiter dropped.
        rate_limiter_dropped_bytes: Counter,
    }
    beyond v1 {
        /// Bytes of output that were lost, because nobody read them or the output failed.
        dropped_bytes: Counter,
    }
}

/// What is typed into a console.
#[derive(Debug)]
pub struct SerialInput(NonBlocking);

impl SerialInput {
    /// Standard input, if it is a terminal or a FIFO. Files and `/dev/null` are no one's keyboard.
    pub fn stdin() -> io::Result<Option<Self>> {
        Self::new(io::stdin().as_fd())
    }

    fn new(fd: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let is_fifo = std::fs::File::from(fd.try_clone_to_owned()?).metadata()?.file_type().is_fifo();
        if !is_fifo && !std::io::IsTerminal::is_terminal(&fd) {
            return Ok(None);
        }
        Ok(Some(Self(NonBlocking::reader(fd)?)))
    }
}

/// The chip's registers and what waits in its receive FIFO.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Com1State {
    /// Divisor latch, low and high byte.
    pub divisor: [u8; 2],
    /// Interrupt enable and interrupt identification.
    pub interrupts: [u8; 2],
    /// Line control and line status.
    pub line: [u8; 2],
    /// Modem control and modem status.
    pub modem: [u8; 2],
    /// Scratch register.
    pub scratch: u8,
    /// Received and not yet read, at most 64 bytes.
    pub received: Vec<u8>,
}

struct Line(Box<dyn IrqLine>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.raise();
        Ok(())
    }
}

struct Uart {
    chip: Serial<Line, NoEvents, SerialSink>,
    loopback: bool,
    /// There may be input that the FIFO had no room for.
    input_waits: bool,
}

impl Uart {
    fn has_room(&self) -> bool {
        // In loopback the chip is deaf.
        !self.loopback && self.chip.fifo_capacity() > 0
    }
}

/// COM1.
pub struct Com1 {
    uart: Mutex<Uart>,
    input: Option<SerialInput>,
    /// Rung when the guest made room for input that waits.
    room: EventFd,
    metrics: Arc<UartMetrics>,
}

impl Com1 {
    /// First port.
    pub const PORT: u64 = 0x3f8;
    /// Number of ports.
    pub const LEN: u64 = 8;
    /// ISA interrupt.
    pub const IRQ: u32 = 4;

    /// A UART on `line` between `input` and `output`.
    pub fn new(line: impl IrqLine + 'static, output: SerialSink, input: Option<SerialInput>) -> io::Result<Self> {
        Self::with_chip(SerialState::default(), line, output, input)
    }

    /// The same, as it was when its state was saved.
    pub fn restored(
        state: &Com1State,
        line: impl IrqLine + 'static,
        output: SerialSink,
        input: Option<SerialInput>,
    ) -> io::Result<Self> {
        let Com1State { divisor, interrupts, line: lines, modem, scratch, received } = state;
        let chip = SerialState {
            baud_divisor_low: divisor[0],
            baud_divisor_high: divisor[1],
            interrupt_enable: interrupts[0],
            interrupt_identification: interrupts[1],
            line_control: lines[0],
            line_status: lines[1],
            modem_control: modem[0],
            modem_status: modem[1],
            scratch: *scratch,
            in_buffer: received.clone(),
        };
        Self::with_chip(chip, line, output, input)
    }

    fn with_chip(
        state: SerialState,
        line: impl IrqLine + 'static,
        mut output: SerialSink,
        input: Option<SerialInput>,
    ) -> io::Result<Self> {
        let metrics = Arc::<UartMetrics>::default();
        output.count_into(metrics.clone());
        let chip = Serial::from_state(&state, Line(Box::new(line)), NoEvents, output)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{e:?}")))?;
        let loopback = state.modem_control & LOOPBACK != 0;
        Ok(Self {
            uart: Mutex::new(Uart { chip, loopback, input_waits: false }),
            input,
            room: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            metrics,
        })
    }

    /// Counters.
    pub fn metrics(&self) -> Arc<UartMetrics> {
        self.metrics.clone()
    }

    /// What outlives the process. Call it while no vCPU runs.
    pub fn save(&self) -> Com1State {
        let chip = self.lock().chip.state();
        Com1State {
            divisor: [chip.baud_divisor_low, chip.baud_divisor_high],
            interrupts: [chip.interrupt_enable, chip.interrupt_identification],
            line: [chip.line_control, chip.line_status],
            modem: [chip.modem_control, chip.modem_status],
            scratch: chip.scratch,
            received: chip.in_buffer,
        }
    }

    /// Raises the line again if an interrupt is pending. For the moment the line is unmasked.
    pub fn repeat(&self) {
        let uart = self.lock();
        if uart.chip.state().interrupt_identification & NOTHING_PENDING == 0 {
            uart.chip.interrupt_evt().0.raise();
        }
    }

    /// Writes out what the guest has said so far; waits at most a moment for a slow reader. For the end of the machine.
    pub fn finish(&self) {
        self.lock().chip.writer_mut().finish();
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands input to the chip until there is no more of it or no more room.
    fn take_input(&self) {
        let Some(input) = &self.input else { return };
        let mut uart = self.lock();
        uart.input_waits = false;
        loop {
            if !uart.has_room() {
                uart.input_waits = true;
                return;
            }
            let mut bytes = [0; FIFO_LEN];
            let room = uart.chip.fifo_capacity();
            let Some(wanted) = bytes.get_mut(..room) else { return };
            match input.0.read(wanted) {
                // The end. A FIFO that is opened again, or a terminal after Ctrl-D, brings a new event.
                Ok(0) => return,
                Ok(len) => {
                    let typed = wanted.get(..len).unwrap_or_default();
                    if uart.chip.enqueue_raw_bytes(typed).is_err() {
                        self.metrics.error_count.inc();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.metrics.error_count.inc(),
            }
        }
    }

    /// After an access: lets input that waits come in, if there is room now.
    fn offer_room(&self, uart: &mut Uart) {
        if uart.input_waits && uart.has_room() {
            uart.input_waits = false;
            // Never read, watched by edge; fails after 2^64 rings.
            let _ = self.room.write(1);
        }
    }
}

impl BusDevice for Com1 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let ([byte], Ok(register)) = (&mut *data, u8::try_from(offset)) else {
            self.metrics.missed_read_count.inc();
            return data.fill(0);
        };
        self.metrics.read_count.inc();
        let mut uart = self.lock();
        *byte = uart.chip.read(register);
        self.offer_room(&mut uart);
    }

    /// More than one byte is taken for a string output, each byte to the same register.
    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(register) = u8::try_from(offset) else { return self.metrics.missed_write_count.inc() };
        let mut uart = self.lock();
        for byte in data {
            self.metrics.write_count.inc();
            // The sink and the line take everything.
            if uart.chip.write(register, *byte).is_err() {
                self.metrics.error_count.inc();
            }
            if register == MODEM_CONTROL {
                // With DLAB set, too: it moves registers 0 and 1 only.
                uart.loopback = byte & LOOPBACK != 0;
            }
        }
        self.offer_room(&mut uart);
    }
}

impl Subscriber for Com1 {
    fn sources(&self) -> Vec<Source> {
        let readable = |fd, token| Source { fd, interest: Interest::Readable, token };
        let uart = self.lock();
        let sink = uart.chip.writer();
        let mut sources = vec![readable(sink.timer_fd(), LINE_TIMER), readable(self.room.as_raw_fd(), ROOM)];
        sources.extend(sink.watched_fd().map(|fd| Source { fd, interest: Interest::Writable, token: OUTPUT }));
        sources.extend(self.input.iter().map(|input| readable(input.0.as_raw_fd(), INPUT)));
        sources
    }

    fn ready(&self, token: u32) {
        match token {
            OUTPUT => self.lock().chip.writer_mut().on_writable(),
            LINE_TIMER => self.lock().chip.writer_mut().on_timer(),
            INPUT | ROOM => self.take_input(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
