use super::Request;
use crate::actor::Vmm;
use crate::config::{FullConfig, InstanceId};
use crate::error::Error;
use crate::lifecycle::{Ask, Phase};

/// Who the machine is and how it is (`GET /`).
#[derive(Debug)]
pub struct GetInstance;

/// Reply to [`GetInstance`].
#[derive(Debug, Clone)]
pub struct InstanceInfo {
    /// The machine's id.
    pub id: InstanceId,
    /// Where it is in its life.
    pub phase: Phase,
}

impl Request for GetInstance {
    type Reply = InstanceInfo;
    const ASK: Ask = Ask::Look;

    fn apply(self, vmm: &mut Vmm) -> Result<InstanceInfo, Error> {
        Ok(InstanceInfo { id: vmm.settings().id.clone(), phase: vmm.phase() })
    }
}

/// Everything configured so far (`GET /vm/config`).
#[derive(Debug)]
pub struct GetConfig;

impl Request for GetConfig {
    type Reply = FullConfig;
    const ASK: Ask = Ask::Look;

    fn apply(self, vmm: &mut Vmm) -> Result<FullConfig, Error> {
        Ok(vmm.plan().config())
    }
}
