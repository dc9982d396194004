use super::Request;
use crate::actor::Vmm;
use crate::config::{MachineConfig, MachinePatch};
use crate::error::{Error, Subject};
use crate::lifecycle::Ask;

/// Replaces the machine configuration. Every field is given but for the CPU template: without one the machine keeps that of
/// `/cpu-config` or of an earlier request, because the last one to write it wins.
#[derive(Debug)]
pub struct PutMachineConfig(pub MachinePatch);

impl Request for PutMachineConfig {
    type Reply = ();
    const ASK: Ask = Ask::Configure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        PatchMachineConfig(self.0).apply(vmm)
    }
}

/// Changes some fields of the machine configuration.
#[derive(Debug)]
pub struct PatchMachineConfig(pub MachinePatch);

impl Request for PatchMachineConfig {
    type Reply = ();
    const ASK: Ask = Ask::Configure;

    fn apply(self, vmm: &mut Vmm) -> Result<(), Error> {
        let plan = vmm.plan_mut();
        let machine = plan.machine.patched(&self.0).map_err(|e| Error::invalid(Subject::Machine, e))?;
        plan.put_machine(machine)
    }
}

/// Reads the machine configuration.
#[derive(Debug)]
pub struct GetMachineConfig;

impl Request for GetMachineConfig {
    type Reply = MachineConfig;
    const ASK: Ask = Ask::Look;

    fn apply(self, vmm: &mut Vmm) -> Result<MachineConfig, Error> {
        Ok(vmm.plan().machine.clone())
    }
}
