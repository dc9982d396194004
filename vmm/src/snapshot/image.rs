//! The memory of a machine that goes on, as it is at one moment, for clones to share.
//!
//! A machine whose RAM is a file in memory gives that file away: it stays as it is from then on, and the machine itself becomes one of those
//! that have a private mapping of it, so that the kernel copies a page when one of them writes to it. That takes as long as a call of mmap,
//! however much memory there is. Later clones of the same machine, and those of one that was loaded from a file, get that file and a second
//! one with the pages that were written since, which is the price of each. Without a log of them, all of memory is copied.

use std::fs::File;
use std::io;
use std::sync::Arc;

use devices::ram::GuestRam;

use super::{Progress, memory};
use crate::memory::{DirtyMap, Layout, MemoryFile, NotShared, Run, Source, new_file, settle};
use crate::sys::map::Aside;
use crate::sys::memfd;

/// Most runs of pages that are mapped over others: each costs every clone a call of mmap.
const MAX_RUNS: usize = 256;

/// Memory that stays as it is.
#[derive(Debug, Clone)]
pub struct Image {
    /// The file that is shared.
    pub base: Arc<File>,
    /// Another one with what is in it otherwise: these runs, and all hot-pluggable memory.
    pub over: Option<(Arc<File>, Vec<Run>)>,
    /// Where the parts of memory are, in either.
    pub layout: Layout,
}

/// What is needed to make one. The machine stands still.
pub struct Exposure {
    /// The memory.
    pub ram: GuestRam,
    /// Where its parts go.
    pub layout: Layout,
    /// What is behind it.
    pub source: Source,
    /// What was written since that was behind it, if somebody kept a log.
    pub written: Option<DirtyMap>,
    /// Parts that are zeroes where nobody has touched them, by their guest addresses.
    pub anonymous: Vec<u64>,
    /// Guest address of the hot-pluggable memory, if there is any.
    pub hotplug: Option<u64>,
    /// How far it is, and whether it is still wanted.
    pub progress: Arc<Progress>,
}

/// What came of it.
pub struct Exposed {
    /// The image.
    pub image: Image,
    /// What is behind the machine's own memory from now on, if that is something else.
    pub source: Option<Source>,
    /// How much was copied, in bytes.
    pub copied: u64,
    /// What is to be unmapped when nobody waits.
    pub aside: Vec<Aside>,
}

impl Exposure {
    /// Makes the image.
    pub fn make(self) -> Result<Exposed, NotShared> {
        match (self.source.clone(), &self.written) {
            (Source::Anonymous | Source::Handler, _) => {
                Err(io::Error::other("it is memory that cannot be shared").into())
            }
            (Source::Memfd(file), _) => {
                let over = match self.hotplug {
                    Some(_) => Some(self.copy_over(Vec::new())?),
                    None => None,
                };
                let aside = settle(&file, &self.ram, &self.layout, self.hotplug)?;
                Ok(Exposed { aside, ..self.exposed(&file, over, true) })
            }
            (Source::Below(base, runs), Some(written)) => {
                let mut all = written.clone();
                runs.iter().for_each(|run| all.add_run(&self.layout, *run));
                let mut runs = all.runs(&self.layout, MAX_RUNS);
                // That goes along as a whole.
                let is_hotplug =
                    |run: &Run| self.layout.part_of(*run).is_some_and(|part| Some(part.start) == self.hotplug);
                runs.retain(|run| !is_hotplug(run));
                let over = self.copy_over(runs)?;
                Ok(self.exposed(&base, Some(over), false))
            }
            (Source::Below(..), None) => {
                let file = new_file(&self.layout)?;
                memory::write_full(&file, &self.ram, &self.layout, &self.anonymous, &self.progress)?;
                let file = Arc::new(file);
                // The machine shares it, too: else there would be two copies of everything.
                let aside = settle(&file, &self.ram, &self.layout, self.hotplug)?;
                let copied = self.layout.file_len();
                Ok(Exposed { copied, aside, ..self.exposed(&file, None, true) })
            }
        }
    }

    /// A file with these runs, and with all hot-pluggable memory.
    fn copy_over(&self, runs: Vec<Run>) -> io::Result<(Arc<File>, Vec<Run>)> {
        let file = new_file(&self.layout)?;
        memory::write_over(&file, &self.ram, &self.layout, &runs, self.hotplug, &self.progress)?;
        memfd::seal(&file)?;
        Ok((Arc::new(file), runs))
    }

    fn exposed(&self, base: &Arc<File>, over: Option<(Arc<File>, Vec<Run>)>, settled: bool) -> Exposed {
        let copied = over.as_ref().map_or(0, |(_, runs)| runs.iter().map(|run| run.len).sum());
        let image = Image { base: base.clone(), over, layout: self.layout.clone() };
        let source = settled.then(|| Source::Below(base.clone(), Vec::new()));
        Exposed { image, source, copied, aside: Vec::new() }
    }
}

impl Image {
    /// Memory that was saved in a file.
    pub fn of_file(file: &MemoryFile, layout: Layout) -> io::Result<Self> {
        Ok(Self { base: Arc::new(file.base()?), over: None, layout })
    }
}
