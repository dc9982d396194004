//! Guest memory in a file: the parts of it one after another, lowest address first, hot-pluggable memory last.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use devices::ram::{GuestRam, GuestRegion};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::{MemoryError, Pager, Record};
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
    pub(crate) fn region<'a>(&self, memory: &'a GuestRam) -> Option<&'a GuestRegion> {
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

impl Run {
    /// Whether it is pages, at least one, and whole ones.
    pub(crate) fn is_pages(self) -> bool {
        self.len > 0 && [self.offset, self.len].iter().all(|n| n.is_multiple_of(PAGE_LEN as u64))
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
            if !run.is_pages() || run.offset < end || self.layout.part_of(*run).is_none() {
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
    /// mapping of the file would not be. Says how many bytes that were.
    pub(super) fn put_behind(&self, memory: &GuestRam, hotplug: Option<GuestAddress>) -> Result<u64, MemoryError> {
        let mut copied = 0;
        for part in self.layout.parts() {
            let region = self.region(part, memory)?;
            let done = match hotplug {
                Some(start) if start.0 == part.start => self.copy(part, region),
                _ => self.map(part, region).map(|()| 0),
            };
            copied += done.map_err(|e| MemoryError::Saved(e.to_string()))?;
        }
        Ok(copied)
    }

    /// Has it brought page by page into memory that was just mapped, by a [`Pager`]. What is hot-pluggable is copied.
    pub(super) fn page_in(
        &self,
        memory: &GuestRam,
        hotplug: Option<GuestAddress>,
        record: Arc<Record>,
    ) -> Result<Pager, MemoryError> {
        let refuse = |e: io::Error| MemoryError::Saved(e.to_string());
        let mut pager = Pager::new(self.file.try_clone().map_err(refuse)?, record)?;
        for part in self.layout.parts() {
            let region = self.region(part, memory)?;
            match hotplug {
                Some(start) if start.0 == part.start => {
                    self.copy(part, region).map_err(refuse)?;
                }
                _ => pager.add(part, region)?,
            }
        }
        Ok(pager)
    }

    fn region<'a>(&self, part: &Part, memory: &'a GuestRam) -> Result<&'a GuestRegion, MemoryError> {
        part.region(memory).ok_or_else(|| {
            MemoryError::Saved(format!("it has memory at {:#x}+{:#x}, and the machine does not", part.start, part.len))
        })
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

    /// Copies what there is of a part, so many bytes; holes stay zeroes that nobody has touched.
    fn copy(&self, part: &Part, region: &GuestRegion) -> io::Result<u64> {
        let file = self.over.as_ref().map_or(&self.file, |over| &over.file);
        let mut chunk = vec![0; CHUNK_LEN];
        let end = part.offset.saturating_add(part.len);
        let (mut at, mut copied) = (part.offset, 0);
        while let Some((data, hole)) = pages::next_data(file, at, end)? {
            at = data;
            while at < hole {
                let count = usize::try_from(hole - at).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
                let bytes = chunk.get_mut(..count).unwrap_or_default();
                file.read_exact_at(bytes, at)?;
                region.write_slice(bytes, MemoryRegionAddress(at - part.offset)).map_err(io::Error::other)?;
                at += count as u64;
                copied += count as u64;
            }
        }
        Ok(copied)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const PAGE: u64 = PAGE_LEN as u64;

    fn file(len: u64, byte: u8) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![byte; len as usize], 0).unwrap();
        file
    }

    /// Two parts of eight pages.
    fn base() -> MemoryFile {
        let layout = Layout::new([(GuestAddress(0), 8 * PAGE), (GuestAddress(1 << 20), 8 * PAGE)].into_iter());
        MemoryFile::new(file(16 * PAGE, 1), layout, &[]).unwrap()
    }

    #[test]
    fn the_second_file_lies_over_the_first() {
        let len = 8 * PAGE as usize;
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), len), (GuestAddress(1 << 20), len)]).unwrap();
        let runs = vec![Run { offset: PAGE, len: 2 * PAGE }, Run { offset: 15 * PAGE, len: PAGE }];
        let both = base().with_overlay(file(16 * PAGE, 2), runs).unwrap();
        both.put_behind(&memory, None).unwrap();
        let byte = |at: u64| memory.read_obj::<u8>(GuestAddress(at)).unwrap();
        let second = 1 << 20;
        let places = [0, PAGE - 1, PAGE, 3 * PAGE - 1, 3 * PAGE, second, second + 7 * PAGE - 1, second + 7 * PAGE];
        assert_eq!(places.map(byte), [1, 1, 2, 2, 1, 1, 1, 2]);
        // What can be unplugged is copied, and from the second file.
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), len), (GuestAddress(second), len)]).unwrap();
        both.put_behind(&memory, Some(GuestAddress(second))).unwrap();
        let byte = |at: u64| memory.read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!([0, PAGE, second, second + 7 * PAGE].map(byte), [1, 2, 2, 2]);
    }

    #[test]
    fn runs_that_make_no_sense_are_refused() {
        let run = |offset, len| Run { offset, len };
        for runs in [
            vec![run(1, PAGE)],
            vec![run(0, PAGE - 1)],
            vec![run(0, 0)],
            vec![run(16 * PAGE, PAGE)],
            vec![run(7 * PAGE, 2 * PAGE)],
            vec![run(0, u64::MAX - PAGE + 1)],
            vec![run(u64::MAX - PAGE + 1, PAGE)],
            vec![run(2 * PAGE, PAGE), run(PAGE, PAGE)],
            vec![run(PAGE, 2 * PAGE), run(2 * PAGE, PAGE)],
        ] {
            let error = base().with_overlay(file(16 * PAGE, 2), runs.clone()).unwrap_err().to_string();
            assert!(error.contains("there is no memory for"), "{runs:?}: {error}");
        }
        let error = base().with_overlay(file(15 * PAGE, 2), Vec::new()).unwrap_err().to_string();
        assert!(error.contains("the second file has"), "{error}");
    }
}
