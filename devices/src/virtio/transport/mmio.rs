//! virtio over MMIO, version 2 (virtio 1.3 §4.2): a 4 KiB window of registers, then the configuration space.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::bus::BusDevice;
use crate::irq::{INTERRUPTS, IrqLine, VirtioIrq};
use crate::virtio::cell::VirtioCell;
use crate::virtio::registers::Area;

/// Length of a device's window in bytes.
pub const WINDOW_LEN: u64 = 0x1000;
/// Offset of the doorbell register, for ioeventfds.
pub const QUEUE_NOTIFY: u64 = 0x50;

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = 0;
const CONFIG_SPACE: u64 = 0x100;

const INTERRUPT_USED: u32 = 1;
const INTERRUPT_CONFIG: u32 = 2;

/// The interrupt status register and the line behind it. Read and acknowledged by the guest at every interrupt, so it needs no lock.
pub struct MmioIrq {
    status: AtomicU32,
    line: Box<dyn IrqLine>,
}

impl MmioIrq {
    /// Nothing pending on `line`.
    pub fn new(line: impl IrqLine + 'static) -> Self {
        Self { status: AtomicU32::new(0), line: Box::new(line) }
    }

    fn raise(&self, bit: u32) {
        INTERRUPTS.triggers.inc();
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.line.raise();
    }

    /// Raises the line again if the driver has not acknowledged everything. For the moment a line is unmasked: an edge on a masked line
    /// is lost.
    pub fn repeat(&self) {
        if self.status.load(Ordering::SeqCst) != 0 {
            self.line.raise();
        }
    }
}

impl VirtioIrq for MmioIrq {
    fn queue(&self, _index: u16) {
        self.raise(INTERRUPT_USED);
    }

    fn config(&self) {
        self.raise(INTERRUPT_CONFIG);
    }

    fn pending(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    fn renew(&self, pending: u32) {
        let known = pending & (INTERRUPT_USED | INTERRUPT_CONFIG);
        if self.status.fetch_or(known, Ordering::SeqCst) | known != 0 {
            self.line.raise();
        }
    }
}

/// The register window of one device.
pub struct MmioWindow {
    cell: Arc<VirtioCell>,
    irq: Arc<MmioIrq>,
}

impl MmioWindow {
    /// The window of `cell`, whose interrupt is `irq`.
    pub fn new(cell: Arc<VirtioCell>, irq: Arc<MmioIrq>) -> Self {
        Self { cell, irq }
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.cell.kind() as u32,
            0x0c => VENDOR,
            0x10 => self.cell.registers(|r| r.device_features()),
            0x34 => self.cell.registers(|r| r.queue_max_size().into()),
            0x44 => self.cell.registers(|r| r.queue().is_some_and(|q| q.ready).into()),
            0x60 => self.irq.status.load(Ordering::SeqCst),
            0x70 => self.cell.registers(|r| r.status().bits()),
            // Shared memory regions (§4.2.2.1): there are none, which is a length and a base of all ones.
            0xb0..=0xbc => u32::MAX,
            0xfc => self.cell.registers(|r| r.generation()),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        let address = |area, high| self.cell.registers(|r| r.set_queue_address(area, high, value));
        match offset {
            0x14 => self.cell.registers(|r| r.select_device_features(value)),
            0x20 => self.cell.registers(|r| r.accept_features(value)),
            0x24 => self.cell.registers(|r| r.select_driver_features(value)),
            0x30 => self.cell.registers(|r| r.select_queue(value)),
            0x38 => self.cell.registers(|r| r.set_queue_size(value)),
            0x44 => self.cell.registers(|r| r.set_queue_ready(value)),
            QUEUE_NOTIFY => self.cell.ring_doorbell(value),
            0x64 => {
                self.irq.status.fetch_and(!value, Ordering::SeqCst);
            }
            0x70 => {
                self.cell.write_status(value);
                if value == 0 {
                    self.irq.status.store(0, Ordering::SeqCst);
                }
            }
            0x80 => address(Area::Descriptors, false),
            0x84 => address(Area::Descriptors, true),
            0x90 => address(Area::Available, false),
            0x94 => address(Area::Available, true),
            0xa0 => address(Area::Used, false),
            0xa4 => address(Area::Used, true),
            _ => self.cell.refuse_write(),
        }
    }
}

impl BusDevice for MmioWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
            return self.cell.read_config(offset, data);
        }
        // §4.2.2.2: registers are 32 bits wide and aligned; nothing else is answered.
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) if offset.is_multiple_of(4) => *word = self.read_register(offset).to_le_bytes(),
            _ => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
            return self.cell.write_config(offset, data);
        }
        match <[u8; 4]>::try_from(data) {
            Ok(word) if offset.is_multiple_of(4) => self.write_register(offset, u32::from_le_bytes(word)),
            _ => self.cell.refuse_write(),
        }
    }
}

#[cfg(test)]
mod tests;
