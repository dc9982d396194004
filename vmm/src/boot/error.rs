//! Why a kernel, initrd or command line cannot be booted: one sentence each, naming the field, the value
//! and, where there is one, the remedy.

use std::io;

use vm_memory::GuestMemoryError;

use super::cmdline;
use super::image::FileKind;

/// Result of the boot room.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can be wrong with what a guest is to be booted from.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is a directory, FIFO, device or socket.
    #[error("the {0} file is not a regular file: give the path of an image")]
    NotRegular(FileKind),
    /// The file has no bytes.
    #[error("the {0} file is empty")]
    Empty(FileKind),
    /// Reading (or asking for the length of) the file failed.
    #[error("reading {len} bytes at offset {offset:#x} of the {file} file failed: {source}")]
    Read {
        /// Which file.
        file: FileKind,
        /// Byte offset of the read.
        offset: u64,
        /// Bytes wanted.
        len: u64,
        /// What the host said.
        source: io::Error,
    },
    /// The file ends before something it declares.
    #[error(
        "the {file} file is truncated: {what} needs {len} bytes at offset {offset:#x}, but the file has {file_len} bytes"
    )]
    Truncated {
        /// Which file.
        file: FileKind,
        /// What lies past the end.
        what: &'static str,
        /// Where it starts, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
        /// The file's length in bytes.
        file_len: u64,
    },
    /// Neither an ELF file nor a bzImage.
    #[error(
        "the kernel file is neither an ELF file (vmlinux) nor a bzImage: it starts with {0:02x?}; compressed vmlinux files must be unpacked first"
    )]
    UnknownFormat([u8; 4]),
    /// An ELF file of the wrong kind.
    #[error("the kernel ELF header is not usable: {field} is {value:#x}, expected {expected}")]
    ElfHeader {
        /// Name of the ELF header field.
        field: &'static str,
        /// Its value in the file.
        value: u64,
        /// What would be acceptable.
        expected: &'static str,
    },
    /// An ELF program header that cannot be honoured.
    #[error(
        "program header {index} of the kernel is not usable: {problem} (p_paddr {paddr:#x}, p_filesz {filesz:#x}, p_memsz {memsz:#x})"
    )]
    ElfSegment {
        /// Index in the program header table.
        index: usize,
        /// What is wrong.
        problem: &'static str,
        /// Load address.
        paddr: u64,
        /// Bytes in the file.
        filesz: u64,
        /// Bytes in memory.
        memsz: u64,
    },
    /// The file declares nothing to load.
    #[error("the kernel ELF file has no loadable segment")]
    ElfNothingToLoad,
    /// A PVH note that cannot be used.
    #[error("the kernel's PVH note is not usable: {0}")]
    PvhNote(&'static str),
    /// A bzImage that this machine cannot start.
    #[error("the kernel bzImage is not usable: {field} is {value:#x}, expected {expected}")]
    BzImage {
        /// Name of the setup header field.
        field: &'static str,
        /// Its value in the file.
        value: u64,
        /// What would be acceptable.
        expected: &'static str,
    },
    /// The kernel does not fit.
    #[error(
        "the kernel needs guest memory from {start:#x} to {end:#x}, which is not all RAM: the first RAM region ends at {ram_end:#x}; give the machine more memory"
    )]
    KernelOutsideRam {
        /// First byte needed.
        start: u64,
        /// One past the last byte needed.
        end: u64,
        /// End of the first RAM region.
        ram_end: u64,
    },
    /// The kernel starts somewhere it did not load anything, or where the CPU could not fetch.
    #[error("the kernel's entry point {entry:#x} is not usable: {problem}")]
    Entry {
        /// Guest-physical entry address.
        entry: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The initrd does not fit.
    #[error(
        "the initrd of {len} bytes does not fit between the end of the kernel ({kernel_end:#x}) and {limit:#x}: give the machine more memory or a smaller initrd"
    )]
    InitrdDoesNotFit {
        /// Initrd length in bytes.
        len: u64,
        /// One past the last byte of the kernel.
        kernel_end: u64,
        /// One past the last byte an initrd may use.
        limit: u64,
    },
    /// The memory map has more entries than the boot protocol can carry.
    #[error("the guest memory map has {0} entries, more than the boot protocol carries")]
    MemoryMapTooLong(usize),
    /// The command line is not acceptable.
    #[error(transparent)]
    CommandLine(#[from] cmdline::Error),
    /// Guest memory is too small even for the boot structures.
    #[error("writing {what} at guest address {address:#x} failed (machine memory too small?): {source}")]
    GuestMemory {
        /// What was being written.
        what: &'static str,
        /// Where.
        address: u64,
        /// Why it failed.
        source: GuestMemoryError,
    },
}
