use crate::actor::Vmm;
use crate::config::MemoryHotplugConfig;
use crate::error::{Error, Subject};
use crate::requests::MemoryHotplugStatus;

fn refuse(what: impl std::fmt::Display) -> Error {
    Error::invalid(Subject::MemoryHotplugUpdate, what)
}

impl Vmm {
    /// Changes how much memory should be plugged, and tells the guest.
    pub(crate) fn patch_memory_hotplug(&mut self, requested_mib: u32) -> Result<(), Error> {
        self.planned_memory()?.check_request(requested_mib).map_err(refuse)?;
        Err(super::unsupported(Subject::MemoryHotplugUpdate, "To plug memory"))
    }

    /// How much memory is plugged.
    pub(crate) fn memory_hotplug_status(&mut self) -> Result<MemoryHotplugStatus, Error> {
        self.planned_memory()?;
        Err(super::unsupported(Subject::MemoryHotplugUpdate, "To say how much memory is plugged"))
    }

    fn planned_memory(&self) -> Result<MemoryHotplugConfig, Error> {
        self.plan.memory_hotplug.ok_or_else(|| refuse("No memory hotplug device found."))
    }
}
