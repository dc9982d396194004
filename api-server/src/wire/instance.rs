use serde::Serialize;
use vmm::Phase;

/// Reply of `GET /`.
#[derive(Debug, Serialize)]
pub(crate) struct InstanceInfo {
    pub(crate) id: String,
    pub(crate) state: &'static str,
    pub(crate) vmm_version: &'static str,
    pub(crate) app_name: &'static str,
}

/// Reply of `GET /version`.
#[derive(Debug, Serialize)]
pub(crate) struct Version {
    pub(crate) firecracker_version: &'static str,
}

/// The contract's word for a phase. A machine that has ended is never seen: its process ends with it.
pub(crate) fn state(phase: Phase) -> &'static str {
    match phase {
        Phase::Configuring => "Not started",
        Phase::Running | Phase::Ended => "Running",
        Phase::Paused => "Paused",
    }
}

impl InstanceInfo {
    /// The reply for a machine called `id`.
    pub(crate) fn new(id: String, phase: Phase, vmm_version: &'static str, app_name: &'static str) -> Self {
        Self { id, state: state(phase), vmm_version, app_name }
    }
}
