use serde::Serialize;
use serde_json::Value;
use vmm::config;

use super::{BootSource, Drive, MachineConfig, Net};

/// Reply of `GET /vm/config`. Every key is always there; what this version does not have is null or empty.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct FullConfig {
    balloon: Value,
    drives: Vec<Drive>,
    boot_source: Option<BootSource>,
    cpu_config: Value,
    logger: Value,
    machine_config: MachineConfig,
    metrics: Value,
    mmds_config: Value,
    network_interfaces: Vec<Net>,
    vsock: Value,
    entropy: Value,
    pmem: Vec<Value>,
    memory_hotplug: Value,
}

impl From<config::FullConfig> for FullConfig {
    fn from(config: config::FullConfig) -> Self {
        Self {
            balloon: Value::Null,
            drives: config.drives.into_iter().map(Into::into).collect(),
            boot_source: config.boot_source.map(Into::into),
            cpu_config: Value::Null,
            logger: Value::Null,
            machine_config: config.machine.into(),
            metrics: Value::Null,
            mmds_config: Value::Null,
            network_interfaces: config.nets.into_iter().map(Into::into).collect(),
            vsock: Value::Null,
            entropy: Value::Null,
            pmem: Vec::new(),
            memory_hotplug: Value::Null,
        }
    }
}
