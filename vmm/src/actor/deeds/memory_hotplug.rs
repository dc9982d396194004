use devices::virtio::any::AnyDevice;
use devices::virtio::cell::ConfigChange;

use crate::actor::Vmm;
use crate::config::MemoryHotplugConfig;
use crate::error::{Error, Subject};
use crate::machine::DeviceName;
use crate::requests::{Answer, MemoryHotplugStatus};

fn refuse(what: impl std::fmt::Display) -> Error {
    Error::invalid(Subject::MemoryHotplugUpdate, what)
}

impl Vmm {
    /// Judges the request here; changes how much memory should be plugged, and tells the guest, where the device is served.
    pub(crate) fn patch_memory_hotplug(&mut self, requested_mib: u32, answer: Answer<()>) {
        let judged = self.planned_memory().and_then(|memory| memory.check_request(requested_mib).map_err(refuse));
        if let Err(refusal) = judged {
            return answer(Err(refusal));
        }
        self.do_at_device(
            DeviceName::Memory,
            answer,
            move |cell| {
                cell.reconfigure(|device| match device {
                    AnyDevice::Mem(memory) => memory
                        .request(u64::from(requested_mib) << 20)
                        .map(|()| ((), ConfigChange::Announce))
                        .map_err(refuse),
                    _ => Err(refuse(format!("{} cannot be plugged.", cell.name()))),
                })
            },
            |_, ()| (),
        );
    }

    /// How much memory is plugged. The device is not asked: it may be busy giving memory back.
    pub(crate) fn memory_hotplug_status(&mut self) -> Result<MemoryHotplugStatus, Error> {
        let config = self.planned_memory()?;
        let levels = self.live_machine()?.hotplug_levels().ok_or_else(Error::gone)?;
        // Never more than the region, whose size in MiB is 32 bits long.
        let mib = |bytes: u64| u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
        let (plugged_size_mib, requested_size_mib) = (mib(levels.plugged()), mib(levels.requested()));
        Ok(MemoryHotplugStatus { config, plugged_size_mib, requested_size_mib })
    }

    fn planned_memory(&self) -> Result<MemoryHotplugConfig, Error> {
        self.plan.memory_hotplug.ok_or_else(|| refuse("No memory hotplug device found."))
    }
}
