//! virtio over PCI (virtio 1.3 §4.1): modern devices with one 512 KiB BAR and MSI-X, and no interrupt pin.
//!
//! | offset in BAR 0 | what |
//! |---|---|
//! | 0x0 | common configuration |
//! | 0x2000 | interrupt status, which is always zero: only an interrupt pin would need it |
//! | 0x4000 | the device's own configuration |
//! | 0x6000 | doorbells, 4 bytes for each queue |
//! | 0x8000 | the MSI-X table |
//! | 0x48000 | its pending bits |

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::irq::{INTERRUPTS, VirtioIrq};
use crate::pci::bus::Function;
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::msix::{Msix, MsixState, Vectors};
use crate::virtio::cell::VirtioCell;
use crate::virtio::device::Kind;
use crate::virtio::registers::Area;
use crate::virtio::state::BadState;

/// Length of BAR 0 in bytes.
pub const BAR_LEN: u64 = 512 << 10;

const COMMON: u64 = 0;
const COMMON_LEN: u32 = 0x40;
const STATUS: u64 = 0x2000;
const DEVICE: u64 = 0x4000;
const DEVICE_LEN: u32 = 0x1000;
const NOTIFY: u64 = 0x6000;
/// Bytes between the doorbells of two queues.
const NOTIFY_STEP: u32 = 4;
const TABLE: u64 = 0x8000;
const PENDING: u64 = 0x4_8000;
/// What a region that is not the table has for itself.
const REGION_LEN: u64 = 0x2000;

/// Where the doorbell of queue `index` is in BAR 0.
pub fn doorbell(index: u16) -> u64 {
    NOTIFY.saturating_add(u64::from(index).saturating_mul(NOTIFY_STEP.into()))
}

/// PCI ids (§4.1.2.1).
const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
/// Transitional devices have 0.
const REVISION: u8 = 1;

/// Capability ids (PCI 3.0 appendix H).
const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;
/// Kinds of vendor capabilities (§4.1.4).
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;
/// Offsets in such a capability.
const CAP_BAR: usize = 4;
const CAP_OFFSET: usize = 8;
const CAP_LENGTH: usize = 12;
const CAP_DATA: usize = 16;
/// Offset of message control in MSI-X's.
const CAP_CONTROL: usize = 2;

/// VIRTIO_MSI_NO_VECTOR (§4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;

/// The class that a guest's tools show.
fn class(kind: Kind) -> [u8; 3] {
    match kind {
        // Ethernet.
        Kind::Net => [0x02, 0x00, 0],
        // Storage that is none of the kinds that have a number.
        Kind::Block | Kind::Pmem | Kind::Fs => [0x01, 0x80, 0],
        // What has no number of its own.
        Kind::Rng | Kind::Balloon | Kind::Vsock | Kind::Mem => [0xff, 0x00, 0],
    }
}

/// A device's interrupts: which vector is whose.
pub struct PciIrq {
    msix: Msix,
    config: AtomicU16,
    queues: Box<[AtomicU16]>,
}

impl PciIrq {
    /// Of a device with so many queues: one vector for each, and one for changes of the configuration.
    pub fn new(queues: u16, vectors: Arc<dyn Vectors>) -> Self {
        Self {
            msix: Msix::new(Self::vectors(queues), vectors),
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        }
    }

    /// How many vectors a device with so many queues has.
    pub fn vectors(queues: u16) -> u16 {
        queues.saturating_add(1)
    }

    fn trigger(&self, vector: &AtomicU16) {
        INTERRUPTS.triggers.inc();
        // NO_VECTOR is one that does not exist.
        self.msix.trigger(vector.load(Ordering::SeqCst));
    }

    fn queue_vector(&self, index: u16) -> u16 {
        self.queues.get(usize::from(index)).map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    /// A driver assigns a vector. One that does not exist reads back as none, by which the driver notices (§4.1.5.1.2).
    fn assign(&self, to: Option<&AtomicU16>, vector: u16) {
        if let Some(to) = to {
            to.store(if vector < self.msix.count() { vector } else { NO_VECTOR }, Ordering::SeqCst);
        }
    }

    fn reset(&self) {
        for vector in self.queues.iter().chain([&self.config]) {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
        self.msix.clear_pending();
    }
}

impl VirtioIrq for PciIrq {
    fn queue(&self, index: u16) {
        if let Some(vector) = self.queues.get(usize::from(index)) {
            self.trigger(vector);
        }
    }

    fn config(&self) {
        self.trigger(&self.config);
    }

    fn renew(&self, _pending: u32) {
        // An interrupt may have been on its way between us and the local APIC. Messages are not acknowledged, so repeat all.
        for vector in &self.queues {
            self.trigger(vector);
        }
    }
}

/// What of the transport outlives the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciState {
    /// The configuration space.
    pub config: Vec<u8>,
    /// MSI-X.
    pub msix: MsixState,
    /// The vector for changes of the configuration.
    pub config_vector: u16,
    /// The vectors of queues.
    pub queue_vectors: Vec<u16>,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    cell: Arc<VirtioCell>,
    irq: Arc<PciIrq>,
    config: Mutex<ConfigSpace>,
    /// Where the capabilities are that do something.
    msix_at: usize,
    window_at: usize,
    /// Hears where BAR 0 is now, with the doorbells unbound.
    moved: Box<dyn Fn(Option<u64>) + Send + Sync>,
}

impl VirtioPci {
    /// The function of `cell`, whose interrupts are `irq`, with its BAR at `base` until the guest moves it. `moved` is told where it is, and
    /// whether it is anywhere, before doorbells are bound there.
    pub fn new(
        cell: Arc<VirtioCell>,
        irq: Arc<PciIrq>,
        base: u64,
        moved: impl Fn(Option<u64>) + Send + Sync + 'static,
    ) -> Self {
        let kind = cell.kind();
        let number = kind as u16;
        let mut space = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: DEVICE_BASE.wrapping_add(number),
            class: class(kind),
            revision: REVISION,
            subsystem_vendor: VENDOR,
            subsystem: DEVICE_BASE.wrapping_add(number),
        });
        space.add_bar(base, BAR_LEN);
        let mut msix = irq.msix.count().saturating_sub(1).to_le_bytes().to_vec();
        msix.extend((TABLE as u32).to_le_bytes());
        msix.extend((PENDING as u32).to_le_bytes());
        let msix_at = space.add_capability(CAP_MSIX, &msix, &[0, 0xc0]);
        let queues = u32::from(cell.queue_count());
        for (kind, offset, len, more) in [
            (CFG_COMMON, COMMON, COMMON_LEN, &[][..]),
            (CFG_ISR, STATUS, 1, &[]),
            (CFG_DEVICE, DEVICE, DEVICE_LEN, &[]),
            (CFG_NOTIFY, NOTIFY, queues.saturating_mul(NOTIFY_STEP), &NOTIFY_STEP.to_le_bytes()),
        ] {
            space.add_capability(CAP_VENDOR, &capability(kind, offset as u32, len, more), &[]);
        }
        // §4.1.4.9: BAR, offset, length and data are the driver's.
        let mut writable = [0xff; CAP_DATA + 2];
        writable[..CAP_BAR - 2].fill(0);
        writable[CAP_BAR - 1..CAP_OFFSET - 2].fill(0);
        let window_at = space.add_capability(CAP_VENDOR, &capability(CFG_PCI, 0, 0, &[0; 4]), &writable);
        Self { cell, irq, config: Mutex::new(space), msix_at, window_at, moved: Box::new(moved) }
    }

    fn lock(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where in BAR 0 an access to the data of the window capability goes (§4.1.4.9.1), if the driver set it up for such an access.
    fn window(&self, at: usize, len: usize) -> Option<u64> {
        if at != self.window_at.saturating_add(CAP_DATA) {
            return None;
        }
        let space = self.lock();
        let [bar] = space.array(self.window_at.saturating_add(CAP_BAR));
        let offset = u32::from_le_bytes(space.array(self.window_at.saturating_add(CAP_OFFSET)));
        let length = u32::from_le_bytes(space.array(self.window_at.saturating_add(CAP_LENGTH)));
        let fits = u64::from(offset).checked_add(u64::from(length)).is_some_and(|end| end <= BAR_LEN);
        (bar == 0 && usize::try_from(length) == Ok(len) && fits && offset.is_multiple_of(length))
            .then_some(offset.into())
    }

    fn read_common(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let registers = |read: &dyn Fn(&crate::virtio::registers::Registers) -> u64| self.cell.registers(|r| read(r));
        let (len, value) = match offset {
            0x00 => (4, registers(&|r| r.device_features_page().into())),
            0x04 => (4, registers(&|r| r.device_features().into())),
            0x08 => (4, registers(&|r| r.driver_features_page().into())),
            0x0c => (4, registers(&|r| r.driver_features().into())),
            0x10 => (2, self.irq.config.load(Ordering::SeqCst).into()),
            0x12 => (2, self.cell.queue_count().into()),
            0x14 => (1, registers(&|r| r.status().bits().into())),
            0x15 => (1, registers(&|r| r.generation().into())),
            0x16 => (2, registers(&|r| r.queue_select().into())),
            0x18 => (2, registers(&|r| r.queue().map_or(0, |q| q.size.into()))),
            0x1a => (2, self.irq.queue_vector(self.selected()).into()),
            0x1c => (2, registers(&|r| r.queue().is_some_and(|q| q.ready).into())),
            0x1e => (2, registers(&|r| r.queue_select().into())),
            0x20..0x38 => {
                let area = area(offset);
                let address = registers(&|r| r.queue().map_or(0, |q| q.address(area)));
                match (offset % 8, data.len()) {
                    (0, len) => (len, address),
                    (4, 4) => (4, address >> 32),
                    _ => return,
                }
            }
            _ => return,
        };
        if data.len() == len && matches!(len, 1 | 2 | 4 | 8) {
            for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
                *to = from;
            }
        }
    }

    fn selected(&self) -> u16 {
        self.cell.registers(|r| u16::try_from(r.queue_select()).unwrap_or(NO_VECTOR))
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let wide = u64::from_le_bytes(bytes);
        let value = wide as u32;
        let registers = |write: &dyn Fn(&mut crate::virtio::registers::Registers)| self.cell.registers(|r| write(r));
        match (offset, data.len()) {
            (0x00, 4) => registers(&|r| r.select_device_features(value)),
            (0x08, 4) => registers(&|r| r.select_driver_features(value)),
            (0x0c, 4) => registers(&|r| r.accept_features(value)),
            (0x10, 2) => self.irq.assign(Some(&self.irq.config), value as u16),
            (0x14, 1) => {
                self.cell.write_status(value);
                if value == 0 {
                    self.irq.reset();
                }
            }
            (0x16, 2) => registers(&|r| r.select_queue(value)),
            (0x18, 2) => registers(&|r| r.set_queue_size(value)),
            (0x1a, 2) => self.irq.assign(self.irq.queues.get(usize::from(self.selected())), value as u16),
            (0x1c, 2) => registers(&|r| r.set_queue_ready(value)),
            (0x20..0x38, 4) if offset.is_multiple_of(4) => {
                registers(&|r| r.set_queue_address(area(offset), !offset.is_multiple_of(8), value));
            }
            (0x20..0x38, 8) if offset.is_multiple_of(8) => registers(&|r| {
                r.set_queue_address(area(offset), false, value);
                r.set_queue_address(area(offset), true, (wide >> 32) as u32);
            }),
            _ => self.cell.refuse_write(),
        }
    }

    /// The function is on no bus any more, and will not be: its interrupt vectors are given back.
    pub fn release(&self) {
        self.irq.msix.release();
    }

    /// What outlives the process.
    pub fn save(&self) -> PciState {
        PciState {
            config: self.lock().save(),
            msix: self.irq.msix.save(),
            config_vector: self.irq.config.load(Ordering::SeqCst),
            queue_vectors: self.irq.queues.iter().map(|vector| vector.load(Ordering::SeqCst)).collect(),
        }
    }

    /// Takes up what was saved, in a function that is not on a bus yet.
    pub fn restore(&self, state: &PciState) -> Result<(), BadState> {
        let impossible = || BadState::Impossible("its interrupt vectors are those of another device".to_owned());
        if state.queue_vectors.len() != self.irq.queues.len() {
            return Err(impossible());
        }
        self.lock().restore(&state.config);
        self.irq.assign(Some(&self.irq.config), state.config_vector);
        for (to, vector) in self.irq.queues.iter().zip(&state.queue_vectors) {
            self.irq.assign(Some(to), *vector);
        }
        if self.irq.msix.restore(&state.msix) { Ok(()) } else { Err(impossible()) }
    }
}

/// Which address is at `offset` of the common configuration.
fn area(offset: u64) -> Area {
    match offset {
        0x20..0x28 => Area::Descriptors,
        0x28..0x30 => Area::Available,
        _ => Area::Used,
    }
}

/// What follows the first two bytes of a vendor capability of BAR 0 (§4.1.4).
fn capability(kind: u8, offset: u32, len: u32, more: &[u8]) -> Vec<u8> {
    let total = CAP_DATA.saturating_add(more.len());
    let mut body = vec![total as u8, kind, 0, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(more);
    body
}

impl Function for VirtioPci {
    fn read_config(&self, at: usize, data: &mut [u8]) {
        match self.window(at, data.len()) {
            Some(offset) => self.read_bar(offset, data),
            None => self.lock().read(at, data),
        }
    }

    fn write_config(&self, at: usize, data: &[u8]) {
        if let Some(offset) = self.window(at, data.len()) {
            return self.write_bar(offset, data);
        }
        let control_at = self.msix_at.saturating_add(CAP_CONTROL);
        let mut space = self.lock();
        space.write(at, data);
        if at < control_at.saturating_add(2) && control_at < at.saturating_add(data.len()) {
            // Of two vCPUs that write it, the later one counts here as there.
            self.irq.msix.set_control(u16::from_le_bytes(space.array(control_at)));
        }
    }

    fn bar(&self) -> Option<u64> {
        self.lock().bar()
    }

    fn bar_len(&self) -> u64 {
        BAR_LEN
    }

    fn move_to(&self, base: Option<u64>) {
        self.cell.move_doorbells(|| (self.moved)(base));
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        match offset {
            TABLE..PENDING => self.irq.msix.read_table(offset.wrapping_sub(TABLE), data),
            PENDING.. => self.irq.msix.read_pending(offset.wrapping_sub(PENDING), data),
            _ => match (offset / REGION_LEN * REGION_LEN, offset % REGION_LEN) {
                (COMMON, at) => self.read_common(at, data),
                (DEVICE, at) => self.cell.read_config(at, data),
                _ => data.fill(0),
            },
        }
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        match offset {
            TABLE..PENDING => {
                if !self.irq.msix.write_table(offset.wrapping_sub(TABLE), data) {
                    self.cell.refuse_write();
                }
            }
            // Pending bits are not for writing.
            PENDING.. => self.cell.refuse_write(),
            _ => match (offset / REGION_LEN * REGION_LEN, offset % REGION_LEN) {
                (COMMON, at) => self.write_common(at, data),
                (DEVICE, at) => self.cell.write_config(at, data),
                // The queue is where the doorbell is; what is written there says nothing else.
                (NOTIFY, at) => self.cell.ring_doorbell((at / u64::from(NOTIFY_STEP)) as u32),
                _ => self.cell.refuse_write(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
