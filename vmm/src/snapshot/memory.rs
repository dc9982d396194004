//! Writing guest memory to a file. The guest stands still.

use std::fs::File;
use std::io;

use devices::ram::{GuestRam, GuestSlice};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::Progress;
use crate::memory::{DirtyMap, Layout, Mark, Part, Run};
use crate::sys::pages::{self, PAGE_LEN};

/// What is looked at and written at once, in bytes.
const CHUNK_LEN: usize = 2 << 20;
/// Marks of a snapshot.
const MARKS: usize = 16;
/// Candidates for marks that are kept; a power of two.
const CANDIDATES: usize = 4096;

/// Writes all of memory. Pages of zeroes become holes, and so do pages that nobody has touched, which are not even looked at.
pub fn write_full(
    file: &File,
    ram: &GuestRam,
    layout: &Layout,
    anonymous: &[u64],
    progress: &Progress,
) -> io::Result<Vec<Mark>> {
    file.set_len(layout.file_len())?;
    let mut marker = Marker::default();
    for part in layout.parts() {
        write_data(file, ram, part, anonymous.contains(&part.start), progress, &mut marker)?;
    }
    Ok(marker.marks())
}

/// Writes the pages of a part that are not zeroes. Those that nobody has touched need not be looked at if they are `anonymous`.
fn write_data(
    file: &File,
    ram: &GuestRam,
    part: &Part,
    anonymous: bool,
    progress: &Progress,
    marker: &mut Marker,
) -> io::Result<()> {
    // A page that is swapped out is not in memory either.
    let untouched_is_zero = anonymous && !pages::has_swap();
    let mut resident = Vec::new();
    for_chunks(&slice(ram, part)?, progress, |chunk, at| {
        if untouched_is_zero {
            pages::resident(chunk, &mut resident)?;
        }
        let holds_data = |page: usize| -> io::Result<bool> {
            if untouched_is_zero && resident.get(page).is_none_or(|byte| byte & 1 == 0) {
                return Ok(false);
            }
            Ok(!pages::is_zero(&page_of(chunk, page)?))
        };
        for_runs(chunk.len() / PAGE_LEN, holds_data, |first, count| {
            let offset = part.offset + (at + first * PAGE_LEN) as u64;
            let run = sub(chunk, first * PAGE_LEN, count * PAGE_LEN)?;
            marker.saw(&run, offset)?;
            pages::write_all(file, &run, offset)
        })
    })
}

/// Writes these runs of memory, and all of the hot-pluggable part that is not zeroes.
pub fn write_over(
    file: &File,
    ram: &GuestRam,
    layout: &Layout,
    runs: &[Run],
    hotplug: Option<u64>,
    progress: &Progress,
) -> io::Result<()> {
    for run in runs {
        let part = layout.part_of(*run).ok_or(io::ErrorKind::InvalidInput)?;
        let piece = Part { start: part.start + (run.offset - part.offset), len: run.len, offset: run.offset };
        pages::write_all(file, &slice(ram, &piece)?, run.offset)?;
        progress.advance(run.len)?;
    }
    if let Some(part) = layout.parts().iter().find(|part| Some(part.start) == hotplug) {
        write_data(file, ram, part, true, progress, &mut Marker::default())?;
    }
    Ok(())
}

/// Writes the pages that are in `dirty`, or all that somebody has touched, zeroes too, over what is in the file; of a file that is new, the
/// rest are holes.
///
/// The marks are of these pages and of others: a file that holds these pages only is not taken for all of memory.
pub fn write_diff(
    file: &File,
    ram: &GuestRam,
    layout: &Layout,
    dirty: Option<&DirtyMap>,
    progress: &Progress,
) -> io::Result<Vec<Mark>> {
    file.set_len(layout.file_len())?;
    let look_at_resident = dirty.is_none() && !pages::has_swap();
    let mut marker = Marker::default();
    let mut resident = Vec::new();
    for part in layout.parts() {
        let memory = slice(ram, part)?;
        for_chunks(&memory, progress, |chunk, at| {
            if look_at_resident {
                pages::resident(chunk, &mut resident)?;
            }
            let belongs = |page: usize| match dirty {
                Some(dirty) => dirty.holds(part.start, (at / PAGE_LEN + page) as u64),
                None => !look_at_resident || resident.get(page).is_some_and(|byte| byte & 1 != 0),
            };
            let count = chunk.len() / PAGE_LEN;
            for_runs(
                count,
                |page| Ok(belongs(page)),
                |first, count| {
                    let offset = part.offset + (at + first * PAGE_LEN) as u64;
                    let run = sub(chunk, first * PAGE_LEN, count * PAGE_LEN)?;
                    marker.saw(&run, offset)?;
                    pages::write_all(file, &run, offset)
                },
            )?;
            if dirty.is_some() {
                mark_another(chunk, &belongs, part.offset + at as u64, &mut marker)?;
            }
            Ok(())
        })?;
    }
    Ok(marker.marks())
}

/// Marks the first page with data that is not written, if somebody has touched it: a look at others would fill memory with zeroes.
fn mark_another(
    chunk: &GuestSlice<'_>,
    written: &impl Fn(usize) -> bool,
    offset: u64,
    marker: &mut Marker,
) -> io::Result<()> {
    let mut resident = Vec::new();
    pages::resident(chunk, &mut resident)?;
    for (page, _) in resident.iter().enumerate().filter(|(page, byte)| **byte & 1 != 0 && !written(*page)) {
        let memory = page_of(chunk, page)?;
        if !pages::is_zero(&memory) {
            return marker.saw(&memory, offset + (page * PAGE_LEN) as u64);
        }
    }
    Ok(())
}

/// Calls `on_chunk` with one chunk of `memory` after the other and where it begins.
fn for_chunks(
    memory: &GuestSlice<'_>,
    progress: &Progress,
    mut on_chunk: impl FnMut(&GuestSlice<'_>, usize) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = 0;
    while at < memory.len() {
        let count = CHUNK_LEN.min(memory.len() - at);
        on_chunk(&sub(memory, at, count)?, at)?;
        progress.advance(count as u64)?;
        at += count;
    }
    Ok(())
}

/// Calls `on_run` with the first and the number of pages of each run of pages that `belongs` chooses among so many.
fn for_runs(
    count: usize,
    mut belongs: impl FnMut(usize) -> io::Result<bool>,
    mut on_run: impl FnMut(usize, usize) -> io::Result<()>,
) -> io::Result<()> {
    let mut first = None;
    for page in 0..count {
        match (belongs(page)?, first) {
            (true, None) => first = Some(page),
            (false, Some(start)) => {
                on_run(start, page - start)?;
                first = None;
            }
            _ => {}
        }
    }
    first.map_or(Ok(()), |start| on_run(start, count - start))
}

fn slice<'a>(ram: &'a GuestRam, part: &Part) -> io::Result<GuestSlice<'a>> {
    let len = usize::try_from(part.len).map_err(io::Error::other)?;
    ram.get_slice(GuestAddress(part.start), len).map_err(io::Error::other)
}

fn sub<'a>(memory: &GuestSlice<'a>, at: usize, len: usize) -> io::Result<GuestSlice<'a>> {
    memory.subslice(at, len).map_err(io::Error::other)
}

fn page_of<'a>(chunk: &GuestSlice<'a>, page: usize) -> io::Result<GuestSlice<'a>> {
    sub(chunk, page * PAGE_LEN, PAGE_LEN)
}

/// Chooses pages all over memory to recognise it by.
#[derive(Debug)]
struct Marker {
    candidates: Vec<Mark>,
    /// One run in so many is a candidate.
    stride: usize,
    runs: usize,
}

impl Default for Marker {
    fn default() -> Self {
        Self { candidates: Vec::new(), stride: 1, runs: 0 }
    }
}

impl Marker {
    /// A run of pages with data, from `offset` in the file on.
    fn saw(&mut self, run: &GuestSlice<'_>, offset: u64) -> io::Result<()> {
        let chosen = self.runs.is_multiple_of(self.stride);
        self.runs += 1;
        if !chosen {
            return Ok(());
        }
        if self.candidates.len() == CANDIDATES {
            let mut at = 0;
            self.candidates.retain(|_| {
                at += 1;
                at % 2 == 1
            });
            self.stride *= 2;
            if !(self.runs - 1).is_multiple_of(self.stride) {
                return Ok(());
            }
        }
        let mut page = [0; PAGE_LEN];
        sub(run, 0, PAGE_LEN)?.copy_to(&mut page[..]);
        self.candidates.push(Mark { offset, crc: crc32c::crc32c(&page) });
        Ok(())
    }

    fn marks(self) -> Vec<Mark> {
        let step = self.candidates.len().div_ceil(MARKS).max(1);
        self.candidates.into_iter().step_by(step).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use vm_memory::Bytes;

    use super::*;
    use crate::memory::MemoryFile;

    const MIB: u64 = 1 << 20;

    fn ram() -> (GuestRam, Layout) {
        let parts = [(GuestAddress(0), 8 * MIB), (GuestAddress(64 * MIB), 4 * MIB)];
        let ranges = parts.map(|(start, len)| (start, len as usize));
        (GuestRam::from_ranges(&ranges).unwrap(), Layout::new(parts.into_iter()))
    }

    #[test]
    fn what_is_there_is_written_and_the_rest_are_holes() {
        let (ram, layout) = ram();
        for (at, byte) in [(0, 1u8), (0x3000, 2), (0x3fff, 3), (8 * MIB - 1, 4), (64 * MIB, 5), (66 * MIB, 6)] {
            ram.write_obj(byte, GuestAddress(at)).unwrap();
        }
        // Touched, and zero.
        ram.write_obj(0u64, GuestAddress(4 * MIB)).unwrap();
        let whole = |anonymous: &[u64]| {
            let file = tempfile::tempfile().unwrap();
            let marks = write_full(&file, &ram, &layout, anonymous, &Progress::new(0)).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 12 * MIB);
            assert!(file.metadata().unwrap().blocks() * 512 <= 16 * PAGE_LEN as u64, "holes");
            let byte = |at: u64| {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                byte[0]
            };
            let found = [0, 1, 0x3000, 0x3fff, 4 * MIB, 8 * MIB - 1, 8 * MIB, 10 * MIB, 12 * MIB - 1].map(byte);
            assert_eq!(found, [1, 0, 2, 3, 0, 4, 5, 6, 0]);
            assert_eq!(marks.len(), 5);
            MemoryFile::new(file, layout.clone(), &marks).unwrap()
        };
        whole(&[0, 64 * MIB]);
        whole(&[]);
    }

    /// Whole memory, then three changes, each in a file of its own and in the whole one.
    #[test]
    fn differences_add_up() {
        let (ram, layout) = ram();
        let put = |byte: u8, at: u64| ram.write_obj(byte, GuestAddress(at)).unwrap();
        (0..200).for_each(|page| put(7, page * 0x5000));
        let whole = tempfile::tempfile().unwrap();
        write_full(&whole, &ram, &layout, &[], &Progress::new(0)).unwrap();
        for round in 1..4u8 {
            let mut dirty = DirtyMap::new(&layout);
            for page in [u64::from(round), 40, 512 + u64::from(round), 1024] {
                let address = if page < 2048 { page << 12 } else { 0 };
                // A page of zeroes is a change, too.
                put(if page == 40 { 0 } else { round }, address);
                dirty.add(0, &one(page));
            }
            put(round, 64 * MIB + 5);
            dirty.add(64 * MIB, &[1]);
            let alone = tempfile::tempfile().unwrap();
            let marks = write_diff(&alone, &ram, &layout, Some(&dirty), &Progress::new(0)).unwrap();
            assert!(alone.metadata().unwrap().blocks() * 512 <= 16 * PAGE_LEN as u64);
            MemoryFile::new(alone, layout.clone(), &marks).expect_err("it is not all of memory");
            let marks = write_diff(&whole, &ram, &layout, Some(&dirty), &Progress::new(0)).unwrap();
            MemoryFile::new(whole.try_clone().unwrap(), layout.clone(), &marks).unwrap();
            let full = tempfile::tempfile().unwrap();
            write_full(&full, &ram, &layout, &[], &Progress::new(0)).unwrap();
            let bytes = |file: &File| {
                let mut bytes = vec![0; 12 << 20];
                file.read_exact_at(&mut bytes, 0).unwrap();
                bytes
            };
            assert!(bytes(&full) == bytes(&whole), "round {round}");
        }
    }

    fn one(page: u64) -> Vec<u64> {
        let mut words = vec![0; page as usize / 64 + 1];
        words[page as usize / 64] = 1 << (page % 64);
        words
    }

    #[test]
    fn another_file_is_not_taken_for_it() {
        let (ram, layout) = ram();
        ram.write_obj(1u8, GuestAddress(5000)).unwrap();
        let file = tempfile::tempfile().unwrap();
        let marks = write_full(&file, &ram, &layout, &[], &Progress::new(0)).unwrap();
        file.write_all_at(&[2], 5000).unwrap();
        let error = MemoryFile::new(file.try_clone().unwrap(), layout.clone(), &marks).unwrap_err().to_string();
        assert!(error.contains("not of the same snapshot"), "{error}");
        for len in [12 * MIB - 1, 12 * MIB + 1, 0] {
            file.set_len(len).unwrap();
            let error = MemoryFile::new(file.try_clone().unwrap(), layout.clone(), &marks).unwrap_err().to_string();
            assert!(error.contains(&format!("the file has {len} bytes")), "{error}");
        }
    }

    #[test]
    fn marks_are_few_and_from_everywhere() {
        let (ram, _) = ram();
        let page = ram.get_slice(GuestAddress(0), PAGE_LEN).unwrap();
        for runs in [1, 15, 16, 17, 5000, 100_000] {
            let mut marker = Marker::default();
            for run in 0..runs {
                marker.saw(&page, run as u64).unwrap();
            }
            let marks = marker.marks();
            assert!(marks.len() <= MARKS && marks.len() >= runs.min(8), "{runs}: {}", marks.len());
            assert!(marks.last().unwrap().offset >= runs as u64 * 3 / 4, "{runs}");
        }
    }
}
