//! Guest memory in a file: the parts of it one after another, lowest address first, hot-pluggable memory last.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use devices::ram::{GuestRam, GuestRegion};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::MemoryError;
use crate::sys::map::{self, Writes};
use crate::sys::pages::{self, PAGE_LEN};

/// What is copied at once, in bytes.
const CHUNK_LEN: usize = 1 << 20;

/// A part of guest memory, and where in the file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Guest address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Offset in the file.
    pub offset: u64,
}

impl Part {
    /// The region of `memory` that is exactly this part.
    pub(super) fn region<'a>(&self, memory: &'a GuestRam) -> Option<&'a GuestRegion> {
        let region = memory.find_region(GuestAddress(self.start))?;
        (region.start_addr().0 == self.start && region.len() == self.len).then_some(region)
    }
}

/// All parts of guest memory that is a file's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    parts: Vec<Part>,
}

impl Layout {
    /// Of parts at these guest addresses, with these lengths in bytes.
    pub fn new(parts: impl Iterator<Item = (GuestAddress, u64)>) -> Self {
        let mut offset = 0u64;
        let place = |(start, len): (GuestAddress, u64)| {
            let part = Part { start: start.0, len, offset };
            offset = offset.saturating_add(len);
            part
        };
        Self { parts: parts.map(place).collect() }
    }

    /// In the order of the file.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.offset.saturating_add(part.len))
    }
}

/// What some page of a saved machine's memory holds, by which a file is known to belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Of the page in the file.
    pub offset: u64,
    /// CRC-32C of the page.
    pub crc: u32,
}

/// A saved machine's memory, in a file that is opened and looked at.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
    layout: Layout,
}

impl MemoryFile {
    /// Judges whether `file` can hold memory of this layout, and does hold that of the machine with these marks.
    pub fn new(file: File, layout: Layout, marks: &[Mark]) -> Result<Self, MemoryError> {
        let refuse = |what: String| MemoryError::Saved(what);
        let len = file.metadata().map_err(|e| refuse(e.to_string()))?.len();
        if len != layout.file_len() {
            let wanted = layout.file_len();
            return Err(refuse(format!(
                "the file has {len} bytes, and the machine's memory {wanted}: it is not this machine's, or incomplete"
            )));
        }
        let mut page = [0; PAGE_LEN];
        for mark in marks {
            file.read_exact_at(&mut page, mark.offset).map_err(|e: io::Error| refuse(e.to_string()))?;
            if crc32c::crc32c(&page) != mark.crc {
                let at = mark.offset;
                return Err(refuse(format!(
                    "the page at offset {at:#x} is not what the state file says: the two files are not of the same snapshot, or a diff was not merged"
                )));
            }
        }
        Ok(Self { file, layout })
    }

    /// Puts it behind memory that was just mapped. What is hot-pluggable is copied: it must be zeroes again when it was unplugged, which a
    /// mapping of the file would not be.
    pub(super) fn put_behind(&self, memory: &GuestRam, hotplug: Option<GuestAddress>) -> Result<(), MemoryError> {
        for part in self.layout.parts() {
            let region = part.region(memory).ok_or_else(|| {
                MemoryError::Saved(format!(
                    "it has memory at {:#x}+{:#x}, and the machine does not",
                    part.start, part.len
                ))
            })?;
            let done = match hotplug {
                Some(start) if start.0 == part.start => self.copy(part, region),
                _ => map::file_behind(region, (0, region.size()), &self.file, part.offset, Writes::Private),
            };
            done.map_err(|e| MemoryError::Saved(e.to_string()))?;
        }
        Ok(())
    }

    /// Copies what there is of a part; holes stay zeroes that nobody has touched.
    fn copy(&self, part: &Part, region: &GuestRegion) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_LEN];
        let end = part.offset.saturating_add(part.len);
        let mut at = part.offset;
        while let Some((data, hole)) = pages::next_data(&self.file, at, end)? {
            at = data;
            while at < hole {
                let count = usize::try_from(hole - at).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
                let bytes = chunk.get_mut(..count).unwrap_or_default();
                self.file.read_exact_at(bytes, at)?;
                region.write_slice(bytes, MemoryRegionAddress(at - part.offset)).map_err(io::Error::other)?;
                at += count as u64;
            }
        }
        Ok(())
    }
}
