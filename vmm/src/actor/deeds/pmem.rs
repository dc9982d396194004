use crate::actor::Vmm;
use crate::error::{Error, Subject};
use crate::requests::{Answer, PatchPmem};

fn refuse(why: &dyn std::fmt::Display) -> Error {
    let what = format!("Unable to patch the pmem device: {why} Please verify the request arguments.");
    Error::invalid(Subject::Pmem, what)
}

impl Vmm {
    /// Judges the request here and changes the limiter where the device is served.
    pub(crate) fn patch_pmem(&mut self, patch: PatchPmem, answer: Answer<()>) {
        let PatchPmem { id, rate_limiter } = patch;
        answer(match self.plan.pmem_mut(&id) {
            None => Err(refuse(&format!("pmem device `{id}` not found."))),
            Some(_) if rate_limiter == Default::default() => Ok(()),
            Some(_) => Err(super::unsupported(Subject::Pmem, "To change the rate_limiter of a started machine's pmem")),
        });
    }
}
