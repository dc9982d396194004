//! The bare-metal guest, as bytes, and what a host needs to talk to it.
//!
//! `build.rs` compiles the freestanding program in `src/bare` from source; this
//! library embeds the result. The demo boots it, the functional tests and the
//! benchmarks select its work with a kernel command line ([`Job`]) and read its
//! console ([`Report`]), and the malicious-guest tests check it against a table
//! ([`hostile::CASES`]).
//!
//! The guest needs no kernel, no disk and no interrupts. It runs on any KVM,
//! including hosts where guest supervisor code is emulated, because a dozen
//! instructions after the entry point it is in ring 3 for good. Give it 32 MiB
//! of RAM; benchmarks with large buffers need the buffers' size on top.
//!
//! The console begins with [`READY`] and ends with [`DONE`]. Between them are
//! result lines: words of `key=value`, several to a line. A line beginning with
//! `panic=` means the guest itself gave up; `error=` that it could not do the job
//! (no such device, device refused to start).

pub mod hostile;
mod job;
pub mod pattern;
mod report;

pub use job::{Block, BlockOp, Direction, End, Job, Mode, Net, Pmem, PmemOp, Transfer, Workload};
pub use report::{Line, Report};

/// The guest as an ELF image for the 64-bit Linux boot protocol.
pub static ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

/// The same image with a PVH note, which makes loaders use its 32-bit entry
/// point. It differs from [`ELF`] in one program header's type.
pub static ELF_PVH: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest-pvh.elf"));

/// First line on the console.
pub const READY: &str = "mayfly-guest ready";

/// Last line on the console, before the machine is switched off.
pub const DONE: &str = "mayfly-guest done";

#[cfg(test)]
mod tests {
    use super::{ELF, ELF_PVH};

    fn program_header_types(elf: &[u8]) -> Vec<u32> {
        let half = |at: usize| usize::from(u16::from_le_bytes([elf[at], elf[at + 1]]));
        let (table, size, count) = (half(32), half(54), half(56));
        (0..count)
            .map(|i| table + i * size)
            .map(|at| u32::from_le_bytes([elf[at], elf[at + 1], elf[at + 2], elf[at + 3]]))
            .collect()
    }

    #[test]
    fn images_are_elf64_for_x86_64_linked_at_16_mib() {
        for elf in [ELF, ELF_PVH] {
            assert_eq!(elf[..5], *b"\x7fELF\x02");
            assert_eq!(elf[18..20], [62, 0]);
            assert_eq!(elf[24..32], 0x100_0000_u64.to_le_bytes());
        }
    }

    #[test]
    fn only_the_pvh_image_has_a_note() {
        assert_eq!(program_header_types(ELF), [1, 0]);
        assert_eq!(program_header_types(ELF_PVH), [1, 4]);
    }

    #[test]
    fn image_stays_small() {
        assert!(ELF.len() < 328 * 1024, "{} bytes", ELF.len());
    }
}
