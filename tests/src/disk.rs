//! Backing files for drives, with content a test can recompute.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A regular file used as a drive. It lives in the directory it was made in.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// A sparse file of `len_bytes` zero bytes called `name` in `dir`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sparse(dir: &Path, name: &str, len_bytes: u64) -> io::Result<Self> {
        let path = dir.join(name);
        File::create_new(&path)?.set_len(len_bytes)?;
        Ok(Self { path })
    }

    /// A file of `len_bytes` bytes of the sequence [`pattern`] makes from `seed`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn patterned(dir: &Path, name: &str, len_bytes: u64, seed: u64) -> io::Result<Self> {
        let disk = Self::sparse(dir, name, len_bytes)?;
        let file = File::options().write(true).open(&disk.path)?;
        let mut block = vec![0; 1 << 16];
        let mut at = 0;
        while at < len_bytes {
            let n = usize::try_from(len_bytes - at).map_or(block.len(), |left| left.min(block.len()));
            pattern(seed, at, &mut block[..n]);
            file.write_all_at(&block[..n], at)?;
            at += n as u64;
        }
        Ok(disk)
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads `len_bytes` bytes at `offset`.
    ///
    /// # Errors
    /// What the file system says; `UnexpectedEof` beyond the end.
    pub fn read(&self, offset: u64, len_bytes: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len_bytes];
        File::open(&self.path)?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Overwrites the bytes at `offset`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        File::options().write(true).open(&self.path)?.write_all_at(bytes, offset)
    }
}

/// Fills `out` with the bytes at `offset` of the endless sequence that `seed` names.
///
/// Byte `n` depends only on `seed` and `n`, so any slice can be checked alone.
pub fn pattern(seed: u64, offset: u64, out: &mut [u8]) {
    for (n, byte) in (offset..).zip(out) {
        // SplitMix64 of the 8-byte word's index; one byte of the word at a time.
        let mut z = seed.wrapping_add((n / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        *byte = (z ^ (z >> 31)).to_le_bytes()[(n % 8) as usize];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_slice_of_a_pattern_can_be_recomputed() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::patterned(dir.path(), "d", 200_001, 7).unwrap();
        let mut expected = vec![0; 1001];
        pattern(7, 70_003, &mut expected);
        assert_eq!(disk.read(70_003, 1001).unwrap(), expected);
        pattern(8, 70_003, &mut expected);
        assert_ne!(disk.read(70_003, 1001).unwrap(), expected, "the seed matters");
        disk.write(200_000, b"x").unwrap();
        assert_eq!(disk.read(200_000, 1).unwrap(), b"x");
        assert!(disk.read(200_000, 2).is_err());
    }
}
