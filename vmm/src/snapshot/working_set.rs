//! Which pages of memory a guest wants first, and in which order: the first restore of a snapshot records it, later ones have them brought
//! before they are missed.

use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::ram::GuestRam;
use serde::{Deserialize, Serialize};

use super::container::{self, BadFile, Reader, Section, Writer};
use super::draft::Draft;
use crate::memory::{Layout, Run, Touched};
use crate::sys::advice;
use crate::sys::pages::PAGE_LEN;

/// What is brought at once, in bytes: between two of these it can be given up.
const CHUNK_LEN: u64 = 2 << 20;

/// Pages that will be wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Wanted {
    run: Run,
    /// To be written to.
    write: bool,
}

/// In the order in which they are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkingSet {
    wanted: Vec<Wanted>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WorkingSetSection {
    /// Of the state file that it was recorded with.
    state_crc: u32,
    wanted: Vec<Wanted>,
}

impl Section for WorkingSetSection {
    const NAME: &'static str = "working set";
    const VERSION: u16 = 1;
}

/// Why a file with a working set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadWorkingSet {
    /// It cannot be read.
    #[error("{0}")]
    Io(String),
    /// It makes no sense.
    #[error(transparent)]
    File(#[from] BadFile),
    /// It names memory that there is none of.
    #[error("it names pages that the machine does not have")]
    Pages,
}

impl WorkingSet {
    /// What was recorded for the snapshot whose state file has this checksum. `None` if nothing was: there is no such file, or it was recorded
    /// for another one.
    pub fn read(path: &Path, state_crc: u32, layout: &Layout) -> Result<Option<Self>, BadWorkingSet> {
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| BadWorkingSet::Io(e.to_string()))?,
        };
        let file = crate::blueprint::open_image(path).map_err(|e| BadWorkingSet::Io(e.to_string()))?;
        let mut bytes = Vec::new();
        file.take(container::MAX_LEN).read_to_end(&mut bytes).map_err(|e| BadWorkingSet::Io(e.to_string()))?;
        let mut reader = Reader::new(&bytes)?;
        let section: WorkingSetSection = reader.take()?;
        reader.finish()?;
        if section.state_crc != state_crc {
            return Ok(None);
        }
        let fits = |wanted: &Wanted| wanted.run.is_pages() && layout.part_of(wanted.run).is_some();
        if !section.wanted.iter().all(fits) {
            return Err(BadWorkingSet::Pages);
        }
        Ok(Some(Self { wanted: section.wanted }))
    }

    /// Of pages that were wanted, in that order.
    pub fn of(touched: &[Touched]) -> Self {
        let mut wanted: Vec<Wanted> = Vec::new();
        for page in touched {
            match wanted.last_mut() {
                Some(last) if last.write == page.write && last.run.offset + last.run.len == page.offset => {
                    last.run.len += PAGE_LEN as u64;
                }
                _ => wanted.push(Wanted { run: Run { offset: page.offset, len: PAGE_LEN as u64 }, write: page.write }),
            }
        }
        Self { wanted }
    }

    /// Pages.
    pub fn page_count(&self) -> u64 {
        self.wanted.iter().map(|wanted| wanted.run.len / PAGE_LEN as u64).sum()
    }

    /// Writes it, whole or not at all.
    pub fn write(self, path: &Path, state_crc: u32) -> io::Result<()> {
        let mut writer = Writer::default();
        writer.add(&WorkingSetSection { state_crc, wanted: self.wanted }).map_err(io::Error::other)?;
        let draft = Draft::create(path)?;
        draft.write_all(&writer.finish())?;
        draft.sync()?;
        draft.publish()?.settle()
    }

    /// Has the pages mapped before the guest misses them, one after the other, until it is told to `stop`. What is hot-pluggable is there.
    pub fn bring(&self, ram: &GuestRam, layout: &Layout, stop: &AtomicBool) {
        for Wanted { run, write } in &self.wanted {
            let Some(part) = layout.part_of(*run) else { continue };
            let Some(region) = part.region(ram) else { continue };
            let (mut at, end) = (run.offset - part.offset, run.offset - part.offset + run.len);
            while at < end {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let len = CHUNK_LEN.min(end - at);
                if advice::populate(region, at, len, *write).is_err() {
                    // The file has become shorter, or there is no memory left: the guest will see for itself.
                    return;
                }
                at += len;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    const PAGE: u64 = PAGE_LEN as u64;

    fn layout() -> Layout {
        Layout::new([(GuestAddress(0), 64 * PAGE), (GuestAddress(1 << 30), 64 * PAGE)].into_iter())
    }

    fn touched(pages: &[(u64, bool)]) -> Vec<Touched> {
        pages.iter().map(|(page, write)| Touched { offset: page * PAGE, write: *write }).collect()
    }

    #[test]
    fn what_was_wanted_is_found_again_in_that_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("set");
        assert_eq!(WorkingSet::read(&path, 7, &layout()).unwrap(), None);
        let pages = [(5, false), (6, false), (7, true), (8, true), (3, false), (9, true), (100, false)];
        let set = WorkingSet::of(&touched(&pages));
        assert_eq!((set.wanted.len(), set.page_count()), (5, 7));
        set.clone().write(&path, 7).unwrap();
        assert_eq!(WorkingSet::read(&path, 7, &layout()).unwrap(), Some(set));
        assert_eq!(WorkingSet::read(&path, 8, &layout()).unwrap(), None, "of another snapshot");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("set");
        for run in
            [(1, PAGE), (0, 0), (0, PAGE + 1), (63 * PAGE, 2 * PAGE), (128 * PAGE, PAGE), (u64::MAX - PAGE + 1, PAGE)]
        {
            let wanted = vec![Wanted { run: Run { offset: run.0, len: run.1 }, write: false }];
            WorkingSet { wanted }.write(&path, 7).unwrap();
            let error = WorkingSet::read(&path, 7, &layout()).unwrap_err();
            assert!(matches!(error, BadWorkingSet::Pages), "{run:?}: {error}");
        }
        std::fs::write(&path, b"something").unwrap();
        WorkingSet::read(&path, 7, &layout()).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        WorkingSet::read(&path, 7, &layout()).unwrap_err();
    }

    #[test]
    fn it_is_brought_and_can_be_given_up() {
        let ranges = [(GuestAddress(0), 64 * PAGE as usize), (GuestAddress(1 << 30), 64 * PAGE as usize)];
        let ram = GuestRam::from_ranges(&ranges).unwrap();
        let resident = |start: u64| {
            let slice =
                vm_memory::GuestMemoryBackend::get_slice(&ram, GuestAddress(start), 64 * PAGE as usize).unwrap();
            let mut pages = Vec::new();
            crate::sys::pages::resident(&slice, &mut pages).unwrap();
            pages.iter().filter(|page| **page & 1 != 0).count()
        };
        let set = WorkingSet::of(&touched(&[(2, true), (3, true), (10, true), (70, true)]));
        set.bring(&ram, &layout(), &AtomicBool::new(true));
        assert_eq!((resident(0), resident(1 << 30)), (0, 0));
        set.bring(&ram, &layout(), &AtomicBool::new(false));
        assert_eq!((resident(0), resident(1 << 30)), (3, 1));
    }
}
