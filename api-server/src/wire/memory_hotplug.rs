use serde::{Deserialize, Serialize};
use vmm::config::{MIN_BLOCK_MIB, MIN_SLOT_MIB, MemoryHotplugConfig};
use vmm::requests::MemoryHotplugStatus;
use vmm::{Error, Subject};

/// Body of `PUT /hotplug/memory`, and its echo.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryHotplug {
    pub(crate) total_size_mib: u32,
    #[serde(default = "default_block")]
    pub(crate) block_size_mib: u32,
    #[serde(default = "default_slot")]
    pub(crate) slot_size_mib: u32,
}

fn default_block() -> u32 {
    MIN_BLOCK_MIB
}

fn default_slot() -> u32 {
    MIN_SLOT_MIB
}

/// Body of `PATCH /hotplug/memory`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryHotplugPatch {
    pub(crate) requested_size_mib: u32,
}

/// Reply of `GET /hotplug/memory`.
#[derive(Debug, Serialize)]
pub(crate) struct MemoryHotplugState {
    total_size_mib: u32,
    slot_size_mib: u32,
    block_size_mib: u32,
    plugged_size_mib: u32,
    requested_size_mib: u32,
}

impl TryFrom<MemoryHotplug> for MemoryHotplugConfig {
    type Error = Error;

    fn try_from(wire: MemoryHotplug) -> Result<Self, Error> {
        Self::new(wire.total_size_mib, wire.block_size_mib, wire.slot_size_mib)
            .map_err(|e| Error::invalid(Subject::MemoryHotplug, e))
    }
}

impl From<MemoryHotplugConfig> for MemoryHotplug {
    fn from(config: MemoryHotplugConfig) -> Self {
        Self {
            total_size_mib: config.total_size_mib(),
            block_size_mib: config.block_size_mib(),
            slot_size_mib: config.slot_size_mib(),
        }
    }
}

impl From<MemoryHotplugStatus> for MemoryHotplugState {
    fn from(status: MemoryHotplugStatus) -> Self {
        let MemoryHotplugStatus { config, plugged_size_mib, requested_size_mib } = status;
        Self {
            total_size_mib: config.total_size_mib(),
            slot_size_mib: config.slot_size_mib(),
            block_size_mib: config.block_size_mib(),
            plugged_size_mib,
            requested_size_mib,
        }
    }
}
