//! The virtio-mmio bus: finding windows and talking to their registers
//! (virtio 1.3 §4.2.2). A machine may have a PCI bus instead, see [`crate::pci`].

use crate::command_line::CommandLine;
use crate::{cpu, pci};

/// First window; the windows are 4 KiB each and follow one another.
const FIRST_WINDOW: u64 = 0xc000_1000;
/// Distance from one window to the next.
pub const WINDOW: u64 = 0x1000;
/// Most windows a machine has.
const WINDOWS_MAX: u64 = 19;

/// Where the windows are. Other monitors put them elsewhere, so the command
/// line may say `mayfly.mmio=ADDRESS mayfly.mmio_step=BYTES`.
#[derive(Clone, Copy)]
pub struct Bus {
    first: u64,
    step: u64,
    /// Devices are on a PCI bus instead.
    pci: bool,
}
/// "virt".
const MAGIC: u32 = 0x7472_6976;

/// Register offsets.
pub mod reg {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC: u64 = 0x080;
    pub const QUEUE_DRIVER: u64 = 0x090;
    pub const QUEUE_DEVICE: u64 = 0x0a0;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// Device status bits (virtio 1.3 §2.1).
pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 0x40;
}

/// The bit of a configuration change in the interrupt status (virtio 1.3 §4.2.2).
pub const CONFIG_CHANGED: u32 = 2;

/// Device ids (virtio 1.3 §5).
pub mod kind {
    pub const NET: u32 = 1;
    pub const BLOCK: u32 = 2;
    pub const BALLOON: u32 = 5;
    pub const MEM: u32 = 24;
    pub const FS: u32 = 26;
    pub const PMEM: u32 = 27;
    pub const RNG: u32 = 4;
    pub const VSOCK: u32 = 19;
}

/// One window with a device behind it.
#[derive(Clone, Copy)]
pub struct Window {
    /// Guest-physical address of the registers.
    pub address: u64,
    /// Device id.
    pub kind: u32,
}

impl Bus {
    /// The bus of this machine.
    pub fn new(command_line: CommandLine) -> Self {
        let first = command_line.number("mmio", FIRST_WINDOW);
        let pci = command_line.text("mmio").is_none() && pci::exists();
        Self { first, step: command_line.number("mmio_step", WINDOW), pci }
    }

    /// All devices in address order. The scan stops at the first window without
    /// the magic number: windows are handed out without gaps.
    pub fn scan(self) -> impl Iterator<Item = Window> {
        let on_pci = self.pci.then(pci::scan).into_iter().flatten();
        let windows = (0..if self.pci { 0 } else { WINDOWS_MAX })
            .map(move |i| Window { address: self.first + i * self.step, kind: 0 })
            .take_while(|w| w.read(reg::MAGIC) == MAGIC)
            .map(|w| Window { kind: w.read(reg::DEVICE_ID), ..w })
            .filter(|w| w.kind != 0 && w.read(reg::VERSION) == 2);
        on_pci.chain(windows)
    }

    /// The `index`-th device of this kind.
    pub fn find(self, kind: u32, index: u64) -> Option<Window> {
        self.scan().filter(|w| w.kind == kind).nth(index as usize)
    }
}

impl Window {
    /// Reads a register.
    pub fn read(self, register: u64) -> u32 {
        if pci::is_function(self.address) {
            return pci::read(self, register);
        }
        cpu::read32(self.address + register)
    }

    /// Writes a register.
    pub fn write(self, register: u64, value: u32) {
        if pci::is_function(self.address) {
            return pci::write(self, register, value);
        }
        cpu::write32(self.address + register, value);
    }

    /// Where the device's configuration space is, for accesses of other widths.
    pub fn config_space(self) -> u64 {
        self.address + if pci::is_function(self.address) { pci::DEVICE } else { reg::CONFIG }
    }

    /// Writes a 64-bit address register pair (low at `register`, high after it).
    pub fn write_address(self, register: u64, value: u64) {
        self.write(register, value as u32);
        self.write(register + 4, (value >> 32) as u32);
    }

    /// The device status.
    pub fn status(self) -> u32 {
        self.read(reg::STATUS)
    }

    /// The 64 feature bits the device offers.
    pub fn offered(self) -> u64 {
        self.write(reg::DEVICE_FEATURES_SEL, 0);
        let low = self.read(reg::DEVICE_FEATURES);
        self.write(reg::DEVICE_FEATURES_SEL, 1);
        u64::from(self.read(reg::DEVICE_FEATURES)) << 32 | u64::from(low)
    }

    /// Tells the device which features are wanted.
    pub fn want(self, features: u64) {
        self.write(reg::DRIVER_FEATURES_SEL, 0);
        self.write(reg::DRIVER_FEATURES, features as u32);
        self.write(reg::DRIVER_FEATURES_SEL, 1);
        self.write(reg::DRIVER_FEATURES, (features >> 32) as u32);
    }

    /// The largest size of queue `index`; zero if there is no such queue.
    pub fn queue_max(self, index: u32) -> u32 {
        self.write(reg::QUEUE_SEL, index);
        self.read(reg::QUEUE_NUM_MAX)
    }

    /// A 64-bit field of the device's configuration space.
    pub fn config64(self, offset: u64) -> u64 {
        let at = reg::CONFIG + offset;
        u64::from(self.read(at + 4)) << 32 | u64::from(self.read(at))
    }
}
