//! Snapshots: a machine's state in one file, its memory in another.
//!
//! [`container`] is the form of the state file, [`Configuration`] and [`crate::machine::State`] what is in it. [`save`] writes both files,
//! on the one thread that opens files; [`load()`] reads the state and finds the memory. What is read is believed no more than a guest or a
//! client: see where each part is taken up.

mod clone;
mod configuration;
pub mod container;
mod describe;
mod draft;
pub mod handover;
mod image;
mod memory;
mod progress;
mod working_set;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use devices::ram::GuestRam;
use serde::{Deserialize, Serialize};

pub use clone::{CloneOrder, Letters, load_clone};
pub use configuration::{BadConfiguration, Configuration};
pub use container::{BadFile, Reader, Section, VERSION, Version, Writer};
pub use describe::Description;
pub use handover::Became;
pub use image::{Exposed, Exposure, Image};
pub use progress::Progress;
pub use working_set::{BadWorkingSet, WorkingSet};

use crate::arch::host::{HostCpu, Misfit};
use crate::config::{FullConfig, MachinePatch};
use crate::error::{Error, Subject};
use crate::machine::{Devices, HotplugCpus, Platform, SavedPci, State, Vcpus};
use crate::memory::{DirtyMap, Handler, Layout, Mark, MemoryFile, Record, SavedMemory};
use crate::sys::process::kernel_release;
use draft::Draft;

/// Where a machine's memory is in its file, and what some of it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MemorySection {
    layout: Layout,
    marks: Vec<Mark>,
}

impl Section for MemorySection {
    const NAME: &'static str = "memory";
    const VERSION: u16 = 1;
}

/// Where a machine was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct HostSection {
    cpu: HostCpu,
    kernel: String,
}

impl HostSection {
    fn here() -> Self {
        Self { cpu: HostCpu::here(), kernel: kernel_release() }
    }
}

impl Section for HostSection {
    const NAME: &'static str = "host";
    const VERSION: u16 = 1;
}

/// Most marks that are looked at.
const MAX_MARKS: usize = 64;

/// How much of memory is written.
#[derive(Debug)]
pub enum Extent {
    /// All of it.
    Full,
    /// These pages.
    Written(DirtyMap),
    /// All pages that somebody has touched, because nobody knows which of them were written.
    Touched,
}

/// What is to be written where.
pub struct Job {
    /// The configuration.
    pub config: FullConfig,
    /// The state.
    pub state: State,
    /// The memory.
    pub ram: GuestRam,
    /// How much of it.
    pub extent: Extent,
    /// Where in the file its parts go.
    pub layout: Layout,
    /// Which parts are zeroes where nobody has touched them, by their guest addresses.
    pub anonymous: Vec<u64>,
    /// The state file.
    pub snapshot_path: PathBuf,
    /// The memory file.
    pub mem_file_path: PathBuf,
    /// How far it is, and whether it is still wanted.
    pub progress: Arc<Progress>,
}

fn cannot(what: impl std::fmt::Display) -> Error {
    Error::host(Subject::SaveSnapshot, what)
}

/// Writes both files. Neither has its name before both are whole and on the disk; after an error none of ours is left.
pub fn save(job: Job) -> Result<(), Error> {
    let Job { config, state, ram, extent, layout, anonymous, snapshot_path, mem_file_path, progress } = job;
    let memory_error =
        |e: &dyn std::fmt::Display| cannot(format!("Cannot write memory file: {}: {e}", mem_file_path.display()));
    let state_error =
        |e: &dyn std::fmt::Display| cannot(format!("Cannot write snapshot file: {}: {e}", snapshot_path.display()));
    heal(&snapshot_path, &mem_file_path).map_err(|e| memory_error(&e))?;
    let create = || match extent {
        Extent::Full => Draft::create(&mem_file_path),
        // A file that holds memory already becomes what memory is now.
        Extent::Written(_) | Extent::Touched => Draft::onto(&mem_file_path, layout.file_len()),
    };
    let mut memory = create().map_err(|e| memory_error(&e))?;
    let marks = match &extent {
        Extent::Full => memory::write_full(memory.file(), &ram, &layout, &anonymous, &progress),
        Extent::Written(dirty) => memory::write_diff(memory.file(), &ram, &layout, Some(dirty), &progress),
        Extent::Touched => memory::write_diff(memory.file(), &ram, &layout, None, &progress),
    };
    let marks = marks.map_err(|e| memory_error(&e))?;
    let bytes = write(&config, &MemorySection { layout, marks }, &state).map_err(|e| state_error(&e))?.finish();
    let draft = Draft::create(&snapshot_path).map_err(|e| state_error(&e))?;
    draft.write_all(&bytes).map_err(|e| state_error(&e))?;
    // Both are on the disk before either gets its name. The state gets it first, and from then on its memory is there, too, by one name or the
    // other (see `Loaded::memory_file`): a process that is killed leaves the old pair or the new one.
    let time = SystemTime::now();
    memory.mark(time).map_err(|e| memory_error(&e))?;
    draft.mark(time).map_err(|e| state_error(&e))?;
    memory.sync().map_err(|e| memory_error(&e))?;
    draft.sync().map_err(|e| state_error(&e))?;
    progress.advance(0).map_err(|e| memory_error(&e))?;
    let draft = draft.publish().map_err(|e| state_error(&e))?;
    memory.keep();
    let memory = memory.publish().map_err(|e| memory_error(&e))?;
    memory.settle().map_err(|e| memory_error(&e))?;
    draft.settle().map_err(|e| state_error(&e))
}

/// Gives the memory of the snapshot that is there its name, if whoever saved it did not live to do so: what is left is about to be written over.
fn heal(snapshot_path: &Path, mem_file_path: &Path) -> std::io::Result<()> {
    match draft::left_behind(mem_file_path, snapshot_path) {
        Some(left) => draft::bring_home(&left, mem_file_path),
        None => Ok(()),
    }
}

/// All that a state file has.
fn write(config: &FullConfig, memory: &MemorySection, state: &State) -> Result<Writer, BadFile> {
    let mut writer = Writer::default();
    writer.add(&HostSection::here())?;
    Configuration::from(config).write(&mut writer)?;
    write_machine(&mut writer, memory, state)?;
    Ok(writer)
}

/// What of it is the same for all clones of a machine.
fn write_machine(writer: &mut Writer, memory: &MemorySection, state: &State) -> Result<(), BadFile> {
    writer.add(memory)?;
    writer.add(&state.platform)?;
    writer.add(&state.vcpus)?;
    writer.add(&state.devices)?;
    state.cpus.as_ref().map_or(Ok(()), |cpus| writer.add(cpus))?;
    state.pci.as_ref().map_or(Ok(()), |pci| writer.add(pci))
}

/// What a state file holds.
#[derive(Debug)]
pub struct Loaded {
    /// The machine's configuration.
    pub config: FullConfig,
    /// Its state.
    pub state: State,
    memory: MemorySection,
}

/// Why a snapshot cannot be loaded. The texts are the v1 contract's.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The state file cannot be opened.
    #[error("Failed to get snapshot state from file: Failed to open snapshot file: {0}")]
    Open(std::io::Error),
    /// It cannot be read, or makes no sense.
    #[error("Failed to get snapshot state from file: Failed to load snapshot state from file: {0}")]
    State(String),
    /// The host is not one that the guest can go on on.
    #[error("The host does not fit: {0}")]
    Host(#[from] Misfit),
    /// The memory file cannot be used.
    #[error("Failed to load guest memory: {0}")]
    Memory(#[from] crate::memory::MemoryError),
}

/// Reads a state file: once, and no more of it than a machine can have.
pub fn read_file(path: &Path) -> Result<Vec<u8>, LoadError> {
    let file = crate::blueprint::open_image(path).map_err(|e| match e {
        crate::blueprint::FileError::Io(error) => LoadError::Open(error),
        other => LoadError::Open(std::io::Error::other(other.to_string())),
    })?;
    let bad = |e: std::io::Error| LoadError::State(e.to_string());
    let len = file.metadata().map_err(bad)?.len();
    if len > container::MAX_LEN {
        return Err(LoadError::State(BadFile::TooLong(len).to_string()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0).saturating_add(1));
    file.take(container::MAX_LEN).read_to_end(&mut bytes).map_err(bad)?;
    Ok(bytes)
}

/// All that is in a state file.
#[derive(Debug)]
struct Parts {
    host: HostSection,
    loaded: Loaded,
}

impl Parts {
    /// Whether the machine can go on on that host.
    fn fits(&self, host: &HostSection) -> Result<(), Misfit> {
        self.loaded.state.vcpus.0.iter().try_for_each(|vcpu| self.host.cpu.fits(&vcpu.cpuid, &host.cpu))
    }
}

/// Reads what is in a state file, and judges what can be judged without a machine and a host.
fn read(mut reader: Reader<'_>) -> Result<Parts, LoadError> {
    let parts = read_parts(&mut reader)?;
    reader.finish().map_err(|e| LoadError::State(e.to_string()))?;
    Ok(parts)
}

/// The same where something else may follow.
fn read_parts(reader: &mut Reader<'_>) -> Result<Parts, LoadError> {
    let bad = |e: BadFile| LoadError::State(e.to_string());
    let host: HostSection = reader.take().map_err(bad)?;
    let config = Configuration::read(reader).map_err(bad)?;
    let memory: MemorySection = reader.take().map_err(bad)?;
    let platform: Platform = reader.take().map_err(bad)?;
    let vcpus: Vcpus = reader.take().map_err(bad)?;
    let devices: Devices = reader.take().map_err(bad)?;
    let cpus: Option<HotplugCpus> = reader.take_if_there().map_err(bad)?;
    let mut config = config.check().map_err(|e| LoadError::State(e.to_string()))?;
    // It is no part of the configuration's section, so that machines without have the section they always had.
    let patch = MachinePatch { max_vcpus: Some(cpus.map(|cpus| cpus.max_vcpus)), ..MachinePatch::default() };
    config.machine = config.machine.patched(&patch).map_err(|e| LoadError::State(e.to_string()))?;
    let pci: Option<SavedPci> = reader.take_if_there().map_err(bad)?;
    let state = State { platform, vcpus, devices, cpus, pci };
    state.check(config.machine.most_vcpus()).map_err(LoadError::State)?;
    if memory.marks.len() > MAX_MARKS {
        return Err(LoadError::State(format!("it has {} marks, and {MAX_MARKS} are the most", memory.marks.len())));
    }
    Ok(Parts { host, loaded: Loaded { config, state, memory } })
}

/// Reads what is in a state file, and judges what can be judged without a machine. A host that does not fit is accepted if it is asked for by
/// `force`: whoever does knows that the guest does not use what is missing.
pub fn load(bytes: &[u8], force: bool) -> Result<Loaded, LoadError> {
    read(Reader::new(bytes).map_err(|e| LoadError::State(e.to_string()))?)?.judged(force)
}

impl Parts {
    fn judged(self, force: bool) -> Result<Loaded, LoadError> {
        let parts = self;
        let here = HostSection::here();
        match parts.fits(&here) {
            Err(misfit) if force => log::warn!("Loaded by force: {misfit}"),
            other => other?,
        }
        if parts.host != here {
            let HostSection { cpu, kernel } = &parts.host;
            log::warn!(
                "The snapshot was taken on a host with another processor or kernel: signature {:#x} and Linux {}, here {:#x} and {}.",
                cpu.signature,
                kernel.escape_default(),
                here.cpu.signature,
                here.kernel
            );
        }
        Ok(parts.loaded)
    }
}

impl Loaded {
    /// Where the parts of its memory are in a file.
    pub fn layout(&self) -> &Layout {
        &self.memory.layout
    }

    /// Its state, and its memory in the file at `path`.
    pub fn with_file(self, path: &Path, state_path: &Path) -> Result<(State, SavedMemory), LoadError> {
        let memory = self.memory_file(path, state_path)?;
        Ok((self.state, SavedMemory::File(memory)))
    }

    /// Its memory in the file at `path`, where the state is in that at `state_path`.
    ///
    /// A process that was killed right after the state had got its name has left the memory beside that path, whole.
    pub fn memory_file(&self, path: &Path, state_path: &Path) -> Result<MemoryFile, LoadError> {
        let left = draft::left_behind(path, state_path).and_then(|left| Some((self.memory_at(&left).ok()?, left)));
        let Some((file, left)) = left else { return self.memory_at(path) };
        log::warn!("The memory is in {}: whoever saved it was killed before it could rename that.", left.display());
        Ok(file)
    }

    fn memory_at(&self, path: &Path) -> Result<MemoryFile, LoadError> {
        let refuse = |e: &dyn std::fmt::Display| crate::memory::MemoryError::Saved(e.to_string());
        let file: File = crate::blueprint::open_image(path).map_err(|e| refuse(&e))?;
        Ok(MemoryFile::new(file, self.memory.layout.clone(), &self.memory.marks)?)
    }

    /// The same, page by page, and what is wanted is noted.
    pub fn with_record(
        self,
        path: &Path,
        state_path: &Path,
        record: Arc<Record>,
    ) -> Result<(State, SavedMemory), LoadError> {
        let memory = self.memory_file(path, state_path)?;
        Ok((self.state, SavedMemory::Recorded(memory, record)))
    }

    /// Its state, and its memory with the handler that listens at `path`.
    pub fn with_handler(self, path: &Path) -> Result<(State, SavedMemory), LoadError> {
        Ok((self.state, SavedMemory::Handler(Handler::connect(path, self.memory.layout)?)))
    }
}

/// Reads `data` as a state file, and as what is handed over to a clone, after giving it a checksum that fits. For fuzzing.
pub fn fuzz(data: &[u8]) {
    let mut bytes = data.to_vec();
    bytes.extend_from_slice(&crc32c::crc32c(data).to_le_bytes());
    let _ = load(&bytes, true);
    let _ = load_clone(&bytes);
}

#[cfg(test)]
mod tests;
