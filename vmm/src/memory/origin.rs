//! Guest memory in a file: the parts of it one after another, lowest address first, hot-pluggable memory last.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use devices::ram::{GuestRam, GuestRegion};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::MemoryError;
use crate::sys::map::{self, Writes};
use crate::sys::memfd;
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

    /// The part in which all of a run is.
    pub fn part_of(&self, run: Run) -> Option<&Part> {
        let end = run.offset.checked_add(run.len)?;
        self.parts.iter().find(|part| part.offset <= run.offset && end <= part.offset.saturating_add(part.len))
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.offset.saturating_add(part.len))
    }
}

/// Bytes of the file; whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Where they begin.
    pub offset: u64,
    /// How many there are.
    pub len: u64,
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
    over: Option<Overlay>,
}

/// A second file of the same layout, which holds what the first one does not: these runs of pages, and all hot-pluggable memory.
#[derive(Debug)]
struct Overlay {
    file: File,
    runs: Vec<Run>,
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
        Ok(Self { file, layout, over: None })
    }

    /// The same with other contents in `runs`, which another file of the same length holds, as it does all of hot-pluggable memory.
    pub fn with_overlay(self, file: File, runs: Vec<Run>) -> Result<Self, MemoryError> {
        let refuse = |what: String| Err(MemoryError::Saved(what));
        let len = file.metadata().map_err(|e| MemoryError::Saved(e.to_string()))?.len();
        if len != self.layout.file_len() {
            return refuse(format!(
                "the second file has {len} bytes, and the machine's memory {}",
                self.layout.file_len()
            ));
        }
        let mut end = 0;
        for run in &runs {
            let whole = run.len > 0 && [run.offset, run.len].iter().all(|n| n.is_multiple_of(PAGE_LEN as u64));
            if !whole || run.offset < end || self.layout.part_of(*run).is_none() {
                return refuse(format!("there is no memory for {run:?} of the second file"));
            }
            end = run.offset + run.len;
        }
        Ok(Self { over: Some(Overlay { file, runs }), ..self })
    }

    /// The first file, to be shared with clones.
    pub fn base(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// What does not come from the first file.
    pub(super) fn runs(&self) -> &[Run] {
        self.over.as_ref().map_or(&[], |over| &over.runs)
    }

    /// Pages that nobody has touched are zeroes: both files are in memory, and stay as they are.
    pub(super) fn is_in_memory(&self) -> bool {
        memfd::is_sealed(&self.file) && self.over.as_ref().is_none_or(|over| memfd::is_sealed(&over.file))
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
                _ => self.map(part, region),
            };
            done.map_err(|e| MemoryError::Saved(e.to_string()))?;
        }
        Ok(())
    }

    /// Maps a part: the first file, then over it what the second one holds.
    fn map(&self, part: &Part, region: &GuestRegion) -> io::Result<()> {
        map::file_behind(region, (0, region.size()), &self.file, part.offset, Writes::Private)?;
        let Some(over) = &self.over else { return Ok(()) };
        for run in over.runs.iter().filter(|run| self.layout.part_of(**run) == Some(part)) {
            let place = (usize::try_from(run.offset - part.offset), usize::try_from(run.len));
            let (Ok(at), Ok(len)) = place else { return Err(io::ErrorKind::InvalidInput.into()) };
            map::file_behind(region, (at, len), &over.file, run.offset, Writes::Private)?;
        }
        Ok(())
    }

    /// Copies what there is of a part; holes stay zeroes that nobody has touched.
    fn copy(&self, part: &Part, region: &GuestRegion) -> io::Result<()> {
        let file = self.over.as_ref().map_or(&self.file, |over| &over.file);
        let mut chunk = vec![0; CHUNK_LEN];
        let end = part.offset.saturating_add(part.len);
        let mut at = part.offset;
        while let Some((data, hole)) = pages::next_data(file, at, end)? {
            at = data;
            while at < hole {
                let count = usize::try_from(hole - at).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
                let bytes = chunk.get_mut(..count).unwrap_or_default();
                file.read_exact_at(bytes, at)?;
                region.write_slice(bytes, MemoryRegionAddress(at - part.offset)).map_err(io::Error::other)?;
                at += count as u64;
            }
        }
        Ok(())
    }
}
