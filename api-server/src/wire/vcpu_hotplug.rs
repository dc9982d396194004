use serde::{Deserialize, Serialize};
use vmm::requests::VcpuStatus;

/// Body of `PATCH /hotplug/vcpus`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VcpusPatch {
    pub(crate) vcpu_count: u8,
}

/// Reply of `GET /hotplug/vcpus`.
#[derive(Debug, Serialize)]
pub(crate) struct Vcpus {
    vcpu_count: u8,
    plugged_vcpu_count: u8,
    max_vcpus: u8,
}

impl From<VcpuStatus> for Vcpus {
    fn from(status: VcpuStatus) -> Self {
        let VcpuStatus { vcpu_count, plugged_vcpu_count, max_vcpus } = status;
        Self { vcpu_count, plugged_vcpu_count, max_vcpus }
    }
}
