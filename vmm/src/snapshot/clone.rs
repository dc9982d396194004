//! The state of a machine that is handed over: what a state file has, and what is told to the clone besides.

use std::path::PathBuf;

use devices::mmds::Document;
use serde::{Deserialize, Serialize};

use super::configuration::{Configuration, limits};
use super::container::{BadFile, Reader, Section, Writer};
use super::{HostSection, LoadError, Loaded, MemorySection, read_parts, write_machine};
use crate::blueprint::Disk;
use crate::config::{FullConfig, InstanceId, RateLimits, SerialConfig};
use crate::machine::State;
use crate::memory::{Layout, Run};

/// What a clone is told that is no part of a saved machine.
#[derive(Debug, Clone, Default)]
pub struct CloneOrder {
    /// Another name.
    pub id: Option<InstanceId>,
    /// Go on at once.
    pub resume: bool,
    /// The guest's clock goes on from the time of day.
    pub clock_realtime: bool,
    /// Log written pages.
    pub track_dirty_pages: bool,
    /// Another console.
    pub serial: Option<SerialConfig>,
    /// What the metadata service says.
    pub mmds: Option<Document>,
    /// Which pages are in the second memory file.
    pub runs: Vec<Run>,
    /// What the original writes to, and the clone must not.
    pub taken: Vec<Disk>,
}

/// The same, as it is written.
#[derive(Debug, Serialize, Deserialize)]
struct OrderSection {
    id: Option<String>,
    resume: bool,
    clock_realtime: bool,
    track_dirty_pages: bool,
    serial: Option<(Option<PathBuf>, RateLimits)>,
    mmds: Option<String>,
    runs: Vec<Run>,
    taken: Vec<Disk>,
}

impl Section for OrderSection {
    const NAME: &'static str = "clone";
    const VERSION: u16 = 1;
}

impl From<&CloneOrder> for OrderSection {
    fn from(order: &CloneOrder) -> Self {
        let serial = |serial: &SerialConfig| {
            let rate_limiter = RateLimits { bandwidth: serial.rate_limiter, ..RateLimits::default() };
            (serial.serial_out_path.clone(), rate_limiter)
        };
        Self {
            id: order.id.as_ref().map(|id| id.as_str().to_owned()),
            resume: order.resume,
            clock_realtime: order.clock_realtime,
            track_dirty_pages: order.track_dirty_pages,
            serial: order.serial.as_ref().map(serial),
            mmds: order.mmds.as_ref().map(Document::to_text),
            runs: order.runs.clone(),
            taken: order.taken.clone(),
        }
    }
}

impl OrderSection {
    fn check(self) -> Result<CloneOrder, String> {
        let serial = |(serial_out_path, rate_limiter): (_, RateLimits)| {
            let rate_limiter = limits(rate_limiter).map_err(|e| e.to_string())?.bandwidth;
            Ok::<_, String>(SerialConfig { serial_out_path, rate_limiter })
        };
        Ok(CloneOrder {
            id: self.id.map(|id| InstanceId::try_from(id.as_str()).map_err(|e| e.to_string())).transpose()?,
            resume: self.resume,
            clock_realtime: self.clock_realtime,
            track_dirty_pages: self.track_dirty_pages,
            serial: self.serial.map(serial).transpose()?,
            mmds: self.mmds.map(|text| Document::of_text(&text).ok_or("its metadata is no JSON object")).transpose()?,
            runs: self.runs,
            taken: self.taken,
        })
    }
}

/// What is written to the clones of a machine.
#[derive(Debug)]
pub struct Letters(Writer);

impl Letters {
    /// To clones of a machine in this state.
    pub fn new(layout: &Layout, state: &State) -> Result<Self, BadFile> {
        let mut writer = Writer::default();
        writer.add(&HostSection::here())?;
        // The memory is not a file that could be mistaken for another one.
        write_machine(&mut writer, &MemorySection { layout: layout.clone(), marks: Vec::new() }, state)?;
        Ok(Self(writer))
    }

    /// To the one that is to have this configuration, and what it is told.
    pub fn to(&self, config: &FullConfig, order: &CloneOrder) -> Result<Vec<u8>, BadFile> {
        let mut writer = self.0.clone();
        Configuration::from(config).write(&mut writer)?;
        writer.add(&OrderSection::from(order))?;
        Ok(writer.finish())
    }
}

/// Reads what [`Letters`] say, and judges what can be judged without a machine.
pub fn load_clone(bytes: &[u8]) -> Result<(Loaded, CloneOrder), LoadError> {
    let bad = |e: BadFile| LoadError::State(e.to_string());
    let mut reader = Reader::new(bytes).map_err(bad)?;
    let parts = read_parts(&mut reader)?;
    let order: OrderSection = reader.take().map_err(bad)?;
    reader.finish().map_err(bad)?;
    let order = order.check().map_err(LoadError::State)?;
    Ok((parts.judged(false)?, order))
}
