//! Writing an initramfs: the "newc" cpio format of the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive being written. Everything belongs to root; parents must come first.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    /// Inode numbers only have to differ from each other.
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// An empty archive that is written to `out`.
    pub fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    /// Adds a directory with mode 0755.
    ///
    /// # Errors
    /// What `out` says.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a regular file with those permission bits.
    ///
    /// # Errors
    /// What `out` says; `InvalidInput` for 4 GiB or more.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, FILE | permissions, (0, 0), content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// What `out` says.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device with mode 0600.
    ///
    /// # Errors
    /// What `out` says.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// Ends the archive and returns the writer.
    ///
    /// # Errors
    /// What `out` says.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let name = path.trim_start_matches('/');
        let too_large = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name.as_bytes())?;
        // The header is 110 bytes; name and content are each padded to a multiple of four.
        self.out.write_all(&[0; 4][..1 + padding(110 + name.len() + 1)])?;
        self.out.write_all(content)?;
        self.out.write_all(&[0; 4][..padding(content.len())])
    }
}

fn padding(len: usize) -> usize {
    len.next_multiple_of(4) - len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_documented_layout() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("/bin").unwrap();
        archive.file("bin/sh", 0o755, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).unwrap();
        // magic, inode, mode (040755), uid, gid, links, time, size, 4 device numbers, name size, 0
        let first = concat!(
            "070701", "00000001", "000041ed", "00000000", "00000000", "00000001", "00000000", "00000000", "00000000",
            "00000000", "00000000", "00000000", "00000004", "00000000", "bin\0"
        );
        assert!(text.starts_with(first), "{text:?}");
        let second = text.find("bin/sh\0").unwrap();
        assert_eq!(&text[second - 110..second - 110 + 6], "070701");
        assert_eq!(&text[second - 110 + 6 + 6 * 8..][..8], "00000005");
        assert!(text.contains("hello\0\0\x00070701"), "the content is padded");
        assert!(text.contains("TRAILER!!!\0"));
    }
}
