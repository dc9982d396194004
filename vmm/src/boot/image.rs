//! A kernel or initrd file, read in few large pieces straight into guest RAM.
//!
//! The length is taken once, when the file is looked at; every later read is checked against it, and a
//! file that shrinks meanwhile is an ordinary read error. Used by the format readers of the
//! architecture and by [`initrd`](super::initrd).

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend, ReadVolatile, VolatileMemoryError};

use super::{Error, Result};
use devices::ram::GuestRam;

/// Which of the two files an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// The kernel image.
    Kernel,
    /// The initial RAM disk.
    Initrd,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileKind::Kernel => "kernel",
            FileKind::Initrd => "initrd",
        })
    }
}

/// A regular, non-empty file and the length it had when it was looked at.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    file: &'a File,
    kind: FileKind,
    len: u64,
}

impl<'a> Image<'a> {
    /// Looks at an open file. Directories, FIFOs, devices and empty files are refused, so no later read
    /// can block or be endless.
    pub fn new(file: &'a File, kind: FileKind) -> Result<Self> {
        let meta = file.metadata().map_err(|source| Error::Read { file: kind, offset: 0, len: 0, source })?;
        if !meta.is_file() {
            return Err(Error::NotRegular(kind));
        }
        if meta.len() == 0 {
            return Err(Error::Empty(kind));
        }
        Ok(Self { file, kind, len: meta.len() })
    }

    /// The file's length in bytes; never zero.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an image is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Checks that `len` bytes at `offset` lie in the file; `what` names them in the error.
    pub fn check(&self, what: &'static str, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(Error::Truncated { file: self.kind, what, offset, len, file_len: self.len }),
        }
    }

    /// Reads a plain structure at `offset`; `what` names it in the error.
    pub fn read_obj<T: ByteValued + Default>(&self, what: &'static str, offset: u64) -> Result<T> {
        let mut value = T::default();
        self.read_bytes(what, offset, value.as_mut_slice())?;
        Ok(value)
    }

    /// Fills `buf` from `offset`; `what` names the bytes in the error.
    pub fn read_bytes(&self, what: &'static str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        self.check(what, offset, len)?;
        self.file.read_exact_at(buf, offset).map_err(|source| Error::Read { file: self.kind, offset, len, source })
    }

    /// Reads `len` bytes at `offset` of the file into guest RAM at `address`, with no buffer between.
    ///
    /// The range must lie in one RAM region; the caller has checked that it may be overwritten.
    pub fn read_into(
        &self,
        what: &'static str,
        offset: u64,
        len: u64,
        ram: &GuestRam,
        address: GuestAddress,
    ) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.check(what, offset, len)?;
        let failed = |source| Error::Read { file: self.kind, offset, len, source };
        let count = usize::try_from(len).map_err(|_| failed(io::ErrorKind::FileTooLarge.into()))?;
        let mut target =
            ram.get_slice(address, count).map_err(|source| Error::GuestMemory { what, address: address.0, source })?;
        let mut file = self.file;
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        file.read_exact_volatile(&mut target).map_err(|e| match e {
            VolatileMemoryError::IOError(source) => failed(source),
            other => failed(io::Error::other(other)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use vm_memory::Bytes;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn ram() -> GuestRam {
        GuestRam::from_ranges(&[(GuestAddress(0), 0x3000)]).unwrap()
    }

    #[test]
    fn only_regular_files_with_content_are_images() {
        let null = File::open("/dev/null").unwrap();
        assert!(matches!(Image::new(&null, FileKind::Kernel), Err(Error::NotRegular(FileKind::Kernel))));
        let dir = File::open("/").unwrap();
        assert!(matches!(Image::new(&dir, FileKind::Initrd), Err(Error::NotRegular(FileKind::Initrd))));
        assert!(matches!(Image::new(&file(b""), FileKind::Initrd), Err(Error::Empty(FileKind::Initrd))));
    }

    #[test]
    fn reads_land_in_ram_whatever_the_file_cursor() {
        let file = file(b"0123456789");
        let ram = ram();
        let image = Image::new(&file, FileKind::Kernel).unwrap();
        for _ in 0..2 {
            image.read_into("data", 3, 4, &ram, GuestAddress(0x1000)).unwrap();
            let mut got = [0; 6];
            ram.read_slice(&mut got, GuestAddress(0x0fff)).unwrap();
            assert_eq!(&got, b"\x003456\0");
        }
    }

    #[test]
    fn lengths_past_the_end_are_named() {
        let file = file(b"0123456789");
        let ram = ram();
        let image = Image::new(&file, FileKind::Kernel).unwrap();
        let e = image.read_into("segment 1", 8, 3, &ram, GuestAddress(0)).unwrap_err();
        assert_eq!(
            e.to_string(),
            "the kernel file is truncated: segment 1 needs 3 bytes at offset 0x8, but the file has 10 bytes"
        );
        assert!(image.check("x", u64::MAX, 2).is_err());
        assert!(image.check("x", 0, u64::MAX).is_err());
        assert!(image.check("x", 10, 0).is_ok());
    }

    #[test]
    fn a_file_that_shrinks_is_a_read_error() {
        let file = file(&[7; 100]);
        let ram = ram();
        let image = Image::new(&file, FileKind::Kernel).unwrap();
        file.set_len(10).unwrap();
        assert!(matches!(image.read_into("x", 0, 100, &ram, GuestAddress(0)), Err(Error::Read { .. })));
        let mut buf = [0; 20];
        assert!(matches!(image.read_bytes("x", 0, &mut buf), Err(Error::Read { .. })));
    }

    #[test]
    fn ranges_outside_ram_are_refused() {
        let file = file(&[7; 100]);
        let ram = ram();
        let image = Image::new(&file, FileKind::Kernel).unwrap();
        for address in [0x2fff, 0x3000, u64::MAX - 10] {
            let e = image.read_into("x", 0, 100, &ram, GuestAddress(address)).unwrap_err();
            assert!(matches!(e, Error::GuestMemory { .. }), "{e}");
        }
    }
}
