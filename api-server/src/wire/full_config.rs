use serde::Serialize;
use serde_json::Value;
use vmm::config;

use super::{Balloon, BootSource, Drive, Entropy, Fs, MachineConfig, MemoryHotplug, MmdsConfig, Net, Pmem, Vsock};

/// Reply of `GET /vm/config`. Every key is always there; what was not configured is null or empty, and some keys always are.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct FullConfig {
    balloon: Option<Balloon>,
    drives: Vec<Drive>,
    boot_source: Option<BootSource>,
    cpu_config: Value,
    logger: Value,
    machine_config: MachineConfig,
    metrics: Value,
    mmds_config: Option<MmdsConfig>,
    network_interfaces: Vec<Net>,
    vsock: Option<Vsock>,
    entropy: Option<Entropy>,
    pmem: Vec<Pmem>,
    memory_hotplug: Option<MemoryHotplug>,
    /// Beyond v1, so it is there only if there are some.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fs: Vec<Fs>,
}

impl From<config::FullConfig> for FullConfig {
    fn from(config: config::FullConfig) -> Self {
        Self {
            balloon: config.balloon.map(Into::into),
            drives: config.drives.into_iter().map(Into::into).collect(),
            boot_source: config.boot_source.map(Into::into),
            cpu_config: Value::Null,
            logger: Value::Null,
            machine_config: config.machine.into(),
            metrics: Value::Null,
            mmds_config: config.mmds.map(Into::into),
            network_interfaces: config.nets.into_iter().map(Into::into).collect(),
            vsock: config.vsock.map(Into::into),
            entropy: config.entropy.map(Into::into),
            pmem: config.pmems.into_iter().map(Into::into).collect(),
            memory_hotplug: config.memory_hotplug.map(Into::into),
            fs: config.file_systems.into_iter().map(Into::into).collect(),
        }
    }
}
