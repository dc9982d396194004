use devices::virtio::any::AnyDevice;
use devices::virtio::cell::ConfigChange;

use crate::actor::Vmm;
use crate::error::{Error, Subject};
use crate::machine::DeviceName;
use crate::requests::{Answer, PatchPmem};

fn refuse(why: &dyn std::fmt::Display) -> Error {
    let what = format!("Unable to patch the pmem device: {why} Please verify the request arguments.");
    Error::invalid(Subject::Pmem, what)
}

impl Vmm {
    /// Judges the request here and changes the limiter where the device is served.
    pub(crate) fn patch_pmem(&mut self, patch: PatchPmem, answer: Answer<()>) {
        let PatchPmem { id, rate_limiter } = patch;
        if self.plan.pmem_mut(&id).is_none() {
            return answer(Err(refuse(&format!("pmem device `{id}` not found."))));
        }
        self.do_at_device(
            DeviceName::Pmem(id.clone()),
            answer,
            move |cell| {
                cell.reconfigure(|device| match device {
                    AnyDevice::Pmem(pmem) => {
                        pmem.change_limits(rate_limiter);
                        Ok(((), ConfigChange::Silent))
                    }
                    _ => Err(refuse(&format!("{} is not persistent memory.", cell.name()))),
                })
            },
            move |vmm, ()| {
                if let Some(noted) = vmm.plan.pmem_mut(&id) {
                    noted.rate_limiter = noted.rate_limiter.changed(rate_limiter);
                }
            },
        );
    }
}
