//! The processor: ports, device registers, time stamps.
//!
//! With [`crate::dma`], [`crate::cpuid`] and [`crate::memory_intrinsics`] the only
//! file that talks to the machine directly; everything above is safe Rust.

use core::arch::asm;
use core::arch::x86_64::_rdtsc;
use core::hint::spin_loop;
use core::sync::atomic;

use crate::tables::FAR_DEVICES;

/// Writes one byte to an I/O port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: port I/O touches no memory of this program; IOPL is 3.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

/// Writes two bytes to an I/O port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as in `out8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) }
}

/// Writes four bytes to an I/O port.
pub fn out32(port: u16, value: u32) {
    // SAFETY: as in `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) }
}

/// Reads one byte from an I/O port.
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as in `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}

/// Reads two bytes from an I/O port.
pub fn in16(port: u16) -> u16 {
    let value;
    // SAFETY: as in `out8`.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack)) }
    value
}

/// Reads four bytes from an I/O port.
pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as in `out8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) }
    value
}

/// First byte that is never RAM below 4 GiB: device windows start here.
pub const DEVICE_SPACE: u64 = 0xc000_0000;

/// Panics unless `address..address + len` is in the 32-bit device space, or in that of PCI functions, so
/// that a register access can never hit this program's own memory.
fn check_device_space(address: u64, len: u64) {
    let far = FAR_DEVICES.0..FAR_DEVICES.0 + FAR_DEVICES.1;
    let near = DEVICE_SPACE..1 << 32;
    assert!([near, far].iter().any(|space| space.start <= address && address + len <= space.end));
}

macro_rules! device_access {
    ($read:ident, $write:ident, $int:ty, $class:ident, $template:literal) => {
        /// Reads a device register of this width.
        pub fn $read(address: u64) -> $int {
            check_device_space(address, size_of::<$int>() as u64);
            let value;
            // SAFETY: the address is device space, which holds nothing of ours.
            // Plain moves only: every VMM's instruction emulator knows them.
            unsafe {
                asm!(
                    concat!("mov ", $template, ", [{address}]"),
                    address = in(reg) address,
                    value = out($class) value,
                    options(nostack, preserves_flags),
                )
            }
            value
        }

        /// Writes a device register of this width.
        pub fn $write(address: u64, value: $int) {
            check_device_space(address, size_of::<$int>() as u64);
            // SAFETY: as for reading. Not `nomem`: a doorbell orders earlier stores.
            unsafe {
                asm!(
                    concat!("mov [{address}], ", $template),
                    address = in(reg) address,
                    value = in($class) value,
                    options(nostack, preserves_flags),
                )
            }
        }
    };
}

device_access!(read8, write8, u8, reg_byte, "{value}");
device_access!(read16, write16, u16, reg, "{value:x}");
device_access!(read32, write32, u32, reg, "{value:e}");
device_access!(read64, write64, u64, reg, "{value:r}");

/// Copies `count` bytes to device space with one `rep movsb`.
pub fn copy_to_device(address: u64, source: &[u8]) {
    check_device_space(address, source.len() as u64);
    // SAFETY: reads `source`, writes device space only.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") source.len() => _,
            inout("rsi") source.as_ptr() => _,
            inout("rdi") address => _,
            options(nostack, preserves_flags),
        )
    }
}

/// Copies bytes from device space with one `rep movsb`.
pub fn copy_from_device(target: &mut [u8], address: u64) {
    check_device_space(address, target.len() as u64);
    // SAFETY: reads device space only, writes `target`.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") target.len() => _,
            inout("rsi") address => _,
            inout("rdi") target.as_mut_ptr() => _,
            options(nostack, preserves_flags),
        )
    }
}

/// Jumps to an address in device space: there is nothing to execute there.
pub fn jump_to_device(address: u64) -> ! {
    check_device_space(address, 1);
    // SAFETY: never returns, so nothing of ours is violated; what happens is
    // for the VMM to decide, which is the point of the exercise.
    unsafe { asm!("jmp {}", in(reg) address, options(noreturn)) }
}

/// An undefined instruction: with no IDT, a triple fault.
pub fn undefined_instruction() -> ! {
    // SAFETY: never returns.
    unsafe { asm!("ud2", options(noreturn)) }
}

/// A software interrupt: with no IDT, a triple fault.
pub fn software_interrupt() {
    // SAFETY: no handler exists that could touch our memory.
    unsafe { asm!("int 0x80", options(nomem, nostack)) }
}

/// The time-stamp counter, in cycles.
pub fn cycles() -> u64 {
    // SAFETY: CR4.TSD is clear, so ring 3 may read it.
    unsafe { _rdtsc() }
}

/// Tells the processor that this is a polling loop.
pub fn pause() {
    spin_loop();
}

/// Orders earlier stores before later loads (rings need it once per kick).
pub fn fence() {
    atomic::fence(atomic::Ordering::SeqCst);
}
