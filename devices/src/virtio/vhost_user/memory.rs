//! Guest memory as a backend gets it.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::message::MemoryRegion;
use crate::sys::fd_stream::MAX_FDS;

/// A part of guest memory, and where in its file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedRegion {
    /// Guest address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Offset in the file.
    pub offset: u64,
}

/// All guest memory, in one file that is mapped and shared.
#[derive(Debug, Clone)]
pub struct SharedMemory {
    file: Arc<File>,
    regions: Vec<SharedRegion>,
}

/// There are more regions than the protocol takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest memory has {0} regions, and a vhost-user backend is given {MAX_FDS} at most")]
pub struct TooManyRegions(usize);

impl SharedMemory {
    /// Memory that is these regions of `file`.
    ///
    /// # Errors
    /// There are too many of them.
    pub fn new(file: Arc<File>, regions: Vec<SharedRegion>) -> Result<Self, TooManyRegions> {
        match regions.len() {
            1..=MAX_FDS => Ok(Self { file, regions }),
            count => Err(TooManyRegions(count)),
        }
    }

    /// As `VHOST_USER_SET_MEM_TABLE` has it: each region comes with a descriptor of its file.
    pub(super) fn table(&self) -> (Vec<u8>, Vec<RawFd>) {
        let mut body = [U32::new(self.regions.len() as u32), U32::ZERO].as_bytes().to_vec();
        for region in &self.regions {
            let start = U64::new(region.start);
            let region =
                MemoryRegion { guest: start, len: U64::new(region.len), user: start, offset: U64::new(region.offset) };
            body.extend_from_slice(region.as_bytes());
        }
        (body, vec![self.file.as_raw_fd(); self.regions.len()])
    }
}
