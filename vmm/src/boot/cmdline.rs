//! The kernel command line: validated when it is made, extended by the machine, written once.
//!
//! Words after a standalone `--` belong to the guest's init and not to the kernel
//! (Documentation/admin-guide/kernel-parameters.rst). What the machine adds therefore goes in front of
//! it; a line that simply had it appended would boot without its root device.
//!
//! Called by the boot-source configuration (validation) and the machine room (appending).

use vm_memory::GuestAddress;

use crate::arch::layout::COMMAND_LINE_MAX_LEN;

/// The command line of a machine that was given none.
pub const DEFAULT: &str =
    "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";

/// Why a command line is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A byte that is not printable ASCII.
    #[error(
        "the kernel command line has the character {found:?} at byte {at}: only printable ASCII (space to ~) can be passed to a kernel"
    )]
    Unprintable {
        /// The offending character.
        found: char,
        /// Its byte offset in the line.
        at: usize,
    },
    /// Too long for the guest.
    #[error("the kernel command line would be {len} bytes with its terminating NUL, {max} fit: shorten boot_args")]
    TooLong {
        /// Length in bytes including the NUL.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A parameter the machine wants to add is not one word.
    #[error("the kernel parameter {0:?} must be one non-empty word without quotes")]
    NotAWord(String),
}

/// Where the guest's root file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// A device node as the guest names it, such as `/dev/vda`.
    Device(String),
    /// A partition of the root drive, by its unique id.
    PartUuid(String),
}

/// A kernel command line that fits and holds printable ASCII only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// What the kernel parses, trimmed.
    kernel: String,
    /// What follows a standalone `--`, if there is one, without it.
    init: Option<String>,
}

impl CommandLine {
    /// Checks a line as a user gave it. Spaces around it are dropped.
    pub fn new(line: &str) -> Result<Self, Error> {
        // Length first: a megabyte of control characters should be named for what it is, cheaply.
        check_len(line.trim_matches(' ').len())?;
        check_printable(line)?;
        let (kernel, init) = match find_separator(line) {
            Some(at) => (&line[..at], Some(line[at + 2..].trim_matches(' ').to_owned())),
            None => (line, None),
        };
        let cmdline = Self { kernel: kernel.trim_matches(' ').to_owned(), init };
        check_len(cmdline.len())?;
        Ok(cmdline)
    }

    /// Adds one parameter at the end of the kernel's part, in front of any `--`.
    pub fn push(&mut self, word: &str) -> Result<(), Error> {
        check_printable(word)?;
        if word.is_empty() || word == "--" || word.contains([' ', '"']) {
            return Err(Error::NotAWord(word.to_owned()));
        }
        let separator = usize::from(!self.kernel.is_empty());
        check_len(self.len() + separator + word.len())?;
        if separator == 1 {
            self.kernel.push(' ');
        }
        self.kernel.push_str(word);
        Ok(())
    }

    /// Tells the guest that there is no PCI bus to probe. Nothing is added if the line already says so.
    pub fn push_pci_off(&mut self) -> Result<(), Error> {
        if self.words().any(|word| word == "pci=off") { Ok(()) } else { self.push("pci=off") }
    }

    /// Names the root file system and how to mount it first: `root=… ro` or `root=… rw`.
    pub fn push_root(&mut self, root: &Root, read_only: bool) -> Result<(), Error> {
        let before = self.clone();
        let word = match root {
            Root::Device(path) => format!("root={path}"),
            Root::PartUuid(uuid) => format!("root=PARTUUID={uuid}"),
        };
        let pushed = self.push(&word).and_then(|()| self.push(if read_only { "ro" } else { "rw" }));
        if pushed.is_err() {
            *self = before;
        }
        pushed
    }

    /// Describes a virtio-mmio window of 4 KiB to kernels without ACPI
    /// (`CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES`).
    pub fn push_virtio_mmio(&mut self, window: GuestAddress, gsi: u32) -> Result<(), Error> {
        self.push(&format!("virtio_mmio.device=4K@{:#x}:{gsi}", window.0))
    }

    /// The words the kernel sees, split at spaces. A quoted value with spaces comes in pieces.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.kernel.split(' ').filter(|word| !word.is_empty())
    }

    /// The whole line with its terminating NUL, as it goes into guest RAM; at most
    /// [`COMMAND_LINE_MAX_LEN`] bytes.
    #[must_use]
    pub fn to_bytes_with_nul(&self) -> Vec<u8> {
        let mut bytes = self.to_string().into_bytes();
        bytes.push(0);
        bytes
    }

    /// Length in bytes without the NUL.
    fn len(&self) -> usize {
        self.kernel.len()
            + match &self.init {
                None => 0,
                Some(init) => usize::from(!self.kernel.is_empty()) + 2 + usize::from(!init.is_empty()) + init.len(),
            }
    }
}

impl std::fmt::Display for CommandLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.kernel)?;
        if let Some(init) = &self.init {
            f.write_str(if self.kernel.is_empty() { "--" } else { " --" })?;
            if !init.is_empty() {
                write!(f, " {init}")?;
            }
        }
        Ok(())
    }
}

fn check_len(len_without_nul: usize) -> Result<(), Error> {
    let len = len_without_nul.saturating_add(1);
    if len > COMMAND_LINE_MAX_LEN {
        return Err(Error::TooLong { len, max: COMMAND_LINE_MAX_LEN });
    }
    Ok(())
}

fn check_printable(text: &str) -> Result<(), Error> {
    match text.char_indices().find(|(_, c)| !matches!(c, ' '..='~')) {
        Some((at, found)) => Err(Error::Unprintable { found, at }),
        None => Ok(()),
    }
}

/// Byte offset of the first `--` that stands alone outside double quotes, as `parse_args()` of the
/// kernel (kernel/params.c) sees it.
fn find_separator(line: &str) -> Option<usize> {
    let bytes = line.as_bytes();
    let mut quoted = false;
    let mut word_start = 0;
    for (at, byte) in bytes.iter().copied().chain([b' ']).enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b' ' if !quoted => {
                if bytes.get(word_start..at) == Some(b"--") {
                    return Some(word_start);
                }
                word_start = at + 1;
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_default_is_valid_and_survives_unchanged() {
        assert_eq!(CommandLine::new(DEFAULT).unwrap().to_string(), DEFAULT);
    }

    #[test]
    fn what_the_machine_adds() {
        let mut line = CommandLine::new(" console=ttyS0 ").unwrap();
        line.push_pci_off().unwrap();
        line.push_pci_off().unwrap();
        line.push_root(&Root::Device("/dev/vda".into()), false).unwrap();
        line.push_virtio_mmio(GuestAddress(0xc000_1000), 5).unwrap();
        assert_eq!(
            line.to_bytes_with_nul(),
            b"console=ttyS0 pci=off root=/dev/vda rw virtio_mmio.device=4K@0xc0001000:5\0"
        );
        let mut line = CommandLine::new("").unwrap();
        line.push_root(&Root::PartUuid("0eaa91a0-01".into()), true).unwrap();
        assert_eq!(line.to_string(), "root=PARTUUID=0eaa91a0-01 ro");
    }

    #[test]
    fn additions_go_before_what_belongs_to_init() {
        for (given, expected) in [
            ("quiet -- single 3", "quiet pci=off -- single 3"),
            ("-- single", "pci=off -- single"),
            ("quiet --", "quiet pci=off --"),
            ("--", "pci=off --"),
            ("quiet --single", "quiet --single pci=off"),
            ("a=\"x -- y\" b -- c -- d", "a=\"x -- y\" b pci=off -- c -- d"),
        ] {
            let mut line = CommandLine::new(given).unwrap();
            assert_eq!(line.to_string(), given);
            line.push_pci_off().unwrap();
            assert_eq!(line.to_string(), expected);
        }
    }

    #[test]
    fn bad_characters_are_named() {
        for (line, found, at) in [("a\tb", '\t', 1), ("a\0", '\0', 1), ("é", 'é', 0), ("ab\x7f", '\x7f', 2)] {
            assert_eq!(CommandLine::new(line), Err(Error::Unprintable { found, at }));
        }
        let mut line = CommandLine::new("").unwrap();
        for word in ["", "a b", "--", "a\"b"] {
            assert_eq!(line.push(word), Err(Error::NotAWord(word.to_owned())));
        }
        assert!(matches!(line.push("a\nb"), Err(Error::Unprintable { .. })));
    }

    #[test]
    fn the_limit_counts_the_nul() {
        let mut line = CommandLine::new(&"a".repeat(2045)).unwrap();
        line.push("b").unwrap();
        assert_eq!(line.to_bytes_with_nul().len(), 2048);
        assert_eq!(line.push("c"), Err(Error::TooLong { len: 2050, max: 2048 }));
        assert_eq!(CommandLine::new(&"a".repeat(2048)), Err(Error::TooLong { len: 2049, max: 2048 }));
        assert_eq!(CommandLine::new(&"a".repeat(1 << 20)), Err(Error::TooLong { len: (1 << 20) + 1, max: 2048 }));
    }

    #[test]
    fn a_failed_addition_changes_nothing() {
        let mut line = CommandLine::new(&"a".repeat(2030)).unwrap();
        let before = line.clone();
        // "root=/dev/vda" fits (2044), " ro" does not fit any more after "xyz".
        assert!(line.push_root(&Root::Device("/dev/vdaxyz".into()), true).is_err());
        assert_eq!(line, before);
    }

    proptest! {
        #[test]
        fn any_accepted_line_fits_and_is_stable(text in "[ -~]{0,2100}", word in "[!#-~]{1,40}") {
            if let Ok(mut line) = CommandLine::new(&text) {
                prop_assert_eq!(line.len(), line.to_string().len());
                prop_assert_eq!(&CommandLine::new(&line.to_string()).unwrap(), &line);
                if line.push(&word).is_ok() {
                    prop_assert!(line.words().any(|w| w == word));
                }
                prop_assert!(line.to_bytes_with_nul().len() <= 2048);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,100}") {
            let _ = CommandLine::new(&text);
        }
    }
}
