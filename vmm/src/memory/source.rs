//! What is behind a machine's RAM, and how clones come to share it.

use std::fs::File;
use std::io;
use std::sync::Arc;

use devices::ram::{GuestRam, GuestRegion};

use super::{Layout, MemoryError, MemoryFile, Run};
use crate::config::HugePages;
use crate::sys::advice;
use crate::sys::map::{self, Aside, Writes};
use crate::sys::memfd;

/// What `/proc/PID/maps` calls memory that is shared with clones, or with those who serve devices.
const NAME: &std::ffi::CStr = c"guest memory";

/// What is behind RAM.
#[derive(Debug, Clone)]
pub enum Source {
    /// Nothing that could be shared.
    Anonymous,
    /// A file in memory, into which the guest writes. Nobody else has it yet but those who serve devices.
    Memfd(Arc<File>),
    /// A file that stays as it is: RAM is a private mapping of it, with other contents in these runs since the beginning.
    Below(Arc<File>, Vec<Run>),
    /// A process that brings pages.
    Handler,
}

/// Why memory is not shared.
#[derive(Debug, thiserror::Error)]
pub enum NotShared {
    /// It was cancelled, or the host does not give that much. Nothing has changed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is in part shared, and in part not.
    #[error("memory could not be mapped anew: {0}")]
    Lost(io::Error),
}

impl Source {
    /// Puts a file in memory of `len` bytes behind RAM that was just mapped.
    pub(super) fn shared(ram: &GuestRam, len: u64, huge_pages: HugePages) -> Result<Self, MemoryError> {
        let refuse = |e: io::Error| MemoryError::Map(io::Error::other(format!("memory that can be shared: {e}")));
        memfd::check_limit(len).map_err(refuse)?;
        let file = match huge_pages {
            HugePages::Hugetlbfs2M => memfd::create_huge(NAME, len),
            HugePages::None | HugePages::Transparent => memfd::create(NAME, len),
        };
        let file = file.map_err(refuse)?;
        let layout = super::lay_out(ram, None);
        for part in layout.parts() {
            let region = part.region(ram).ok_or_else(|| refuse(io::ErrorKind::NotFound.into()))?;
            let whole = (0, region.size());
            map::file_behind(region, whole, &file, part.offset, Writes::Shared).map_err(refuse)?;
            if huge_pages == HugePages::Transparent {
                advice::huge_pages(region);
            }
        }
        Ok(Self::Memfd(Arc::new(file)))
    }

    /// A saved machine's.
    pub(super) fn below(file: &MemoryFile) -> Result<Self, MemoryError> {
        let base = file.base().map_err(|e| MemoryError::Saved(e.to_string()))?;
        Ok(Self::Below(Arc::new(base), file.runs().to_vec()))
    }
}

/// A new file in memory for guest memory of this layout.
pub fn new_file(layout: &Layout) -> io::Result<File> {
    memfd::create(NAME, layout.file_len())
}

/// `file`, which holds what is in these parts of memory, stays as it is from now on, and is behind them: what the guest writes is its own. It
/// stands still. What is left to be unmapped is returned.
pub fn settle(file: &File, memory: &GuestRam, layout: &Layout, hotplug: Option<u64>) -> Result<Vec<Aside>, NotShared> {
    let mut regions: Vec<(&GuestRegion, u64)> = Vec::new();
    for part in layout.parts().iter().filter(|part| Some(part.start) != hotplug) {
        let region = part.region(memory).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        regions.push((region, part.offset));
    }
    let mut aside = Vec::new();
    for (region, offset) in regions {
        aside.extend(map::move_aside(region));
        map::file_behind(region, (0, region.size()), file, offset, Writes::Private).map_err(NotShared::Lost)?;
    }
    memfd::seal(file).map_err(NotShared::Lost)?;
    Ok(aside)
}
