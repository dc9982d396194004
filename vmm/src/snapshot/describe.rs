//! What a state file says, for people who want to know before they load it.

use std::path::Path;

use devices::virtio::state::Progress;

use super::container::{BadFile, Reader, Version};
use super::{HostSection, LoadError, Parts};
use crate::arch::host::Misfit;
use crate::config::FullConfig;

/// What a state file says.
#[derive(Debug)]
pub struct Description {
    /// Version of the format.
    pub version: Version,
    /// Name, version and length in bytes of each section.
    pub sections: Vec<(String, u16, usize)>,
    /// Maker of the processor on which it was taken, as CPUID spells it.
    pub vendor: String,
    /// Family, model and stepping of that processor, as CPUID has them.
    pub signature: u32,
    /// Release of the kernel on which it was taken.
    pub kernel: String,
    /// Why the machine cannot go on on this host.
    pub misfit: Option<Misfit>,
    /// The machine's configuration.
    pub config: FullConfig,
    /// Length of the memory file in bytes.
    pub memory_len: u64,
    /// Name of each virtio device, and in a few words how far its driver has come.
    pub devices: Vec<(String, &'static str)>,
    parts: Parts,
}

impl Description {
    /// Reads a state file. What is wrong with it is an error; that it does not fit the host is not.
    pub fn of(bytes: &[u8]) -> Result<Self, LoadError> {
        let reader = Reader::new(bytes).map_err(|e: BadFile| LoadError::State(e.to_string()))?;
        let version = reader.version();
        let sections = reader.sections().map(|(name, version, len)| (name.to_owned(), version, len)).collect();
        let parts = super::read(reader)?;
        Ok(Self {
            version,
            sections,
            vendor: parts.host.cpu.vendor.clone(),
            signature: parts.host.cpu.signature,
            kernel: parts.host.kernel.clone(),
            misfit: parts.fits(&HostSection::here()).err(),
            config: parts.loaded.config.clone(),
            memory_len: parts.loaded.memory.layout.file_len(),
            devices: parts
                .loaded
                .state
                .devices
                .0
                .iter()
                .map(|(name, cell)| (name.clone(), words(cell.progress)))
                .collect(),
            parts,
        })
    }

    /// Judges whether the file at `path` is this machine's memory, as a load does. Returns the number of pages that were compared.
    pub fn judge_memory(self, path: &Path, state_path: &Path) -> Result<usize, LoadError> {
        let marks = self.parts.loaded.memory.marks.len();
        self.parts.loaded.with_file(path, state_path).map(|_| marks)
    }
}

fn words(progress: Progress) -> &'static str {
    match progress {
        Progress::Idle => "none",
        Progress::Activating | Progress::Live => "at work",
        Progress::NeedsReset => "must reset the device",
    }
}
