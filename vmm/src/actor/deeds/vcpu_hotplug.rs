use crate::actor::Vmm;
use crate::actor::vmm::EJECTED;
use crate::config::BadVcpuRequest;
use crate::error::{Error, Subject};
use crate::machine::Machine;
use crate::requests::VcpuStatus;

fn refuse(what: impl std::fmt::Display) -> Error {
    Error::invalid(Subject::VcpuHotplug, what)
}

impl Vmm {
    /// Judges the request; new vCPUs may run at once, and the guest is asked for those it should not have.
    pub(crate) fn patch_vcpus(&mut self, vcpus: u8) -> Result<(), Error> {
        self.plan.machine.check_vcpu_request(vcpus).map_err(refuse)?;
        let plugged = self.live_machine()?.plug_vcpus(vcpus);
        plugged.map_err(|e| Error::host(Subject::VcpuHotplug, format!("Not all of {vcpus} vCPUs may run: {e}")))
    }

    /// From now on this VMM hears of vCPUs that the guest gives back.
    pub(super) fn listen_to_ejects(&self, machine: &Machine) -> Result<(), Error> {
        let Some(bell) = machine.eject_bell() else { return Ok(()) };
        self.events.watch(bell, EJECTED).map_err(|e| Error::host(Subject::Start, e))
    }

    /// How many vCPUs there are and should be.
    pub(crate) fn vcpu_status(&self) -> Result<VcpuStatus, Error> {
        let machine = self.live_machine()?;
        // One that was ejected a moment ago is not plugged any more.
        machine.settle_vcpus();
        let (vcpu_count, plugged_vcpu_count) = machine.vcpu_levels().ok_or_else(|| refuse(BadVcpuRequest::None))?;
        Ok(VcpuStatus { vcpu_count, plugged_vcpu_count, max_vcpus: self.plan.machine.most_vcpus() })
    }
}
