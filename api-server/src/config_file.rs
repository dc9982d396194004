//! `--config-file`: the same JSON sections as the API's bodies, applied in the contract's order, then started.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use vmm::Handle;
use vmm::requests::{PutBootSource, PutDrive, PutMachineConfig, PutNet, Start};

use crate::error::Fault;
use crate::logger;
use crate::wire::{BootSource, Drive, Later, Logger, MachineConfig, Net};

/// The file. Unknown sections are ignored, as the contract has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ConfigFile {
    boot_source: BootSource,
    drives: Vec<Drive>,
    machine_config: Option<MachineConfig>,
    #[serde(default)]
    network_interfaces: Vec<Net>,
    logger: Option<Logger>,
    // Known to the contract, not to this version: refused by name, because to boot without them would be a surprise.
    metrics: Option<Value>,
    cpu_config: Option<Value>,
    vsock: Option<Value>,
    balloon: Option<Value>,
    mmds_config: Option<Value>,
    entropy: Option<Value>,
    #[serde(default)]
    pmem: Vec<Value>,
    memory_hotplug: Option<Value>,
}

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigFileError {
    #[error("Unable to open or read from the configuration file {0}: {1}")]
    Read(PathBuf, std::io::Error),
    #[error("Invalid JSON in the configuration file: {0}")]
    Json(serde_json::Error),
    #[error("{0}")]
    Refused(String),
}

impl From<Fault> for ConfigFileError {
    fn from(fault: Fault) -> Self {
        Self::Refused(fault.message().to_owned())
    }
}

impl From<Later> for ConfigFileError {
    fn from(later: Later) -> Self {
        Fault::from(later).into()
    }
}

impl From<vmm::Error> for ConfigFileError {
    fn from(error: vmm::Error) -> Self {
        Fault::from(error).into()
    }
}

/// Reads the file, applies it and starts the machine.
pub(crate) fn boot(handle: &Handle, path: &Path) -> Result<(), ConfigFileError> {
    let text = std::fs::read(path).map_err(|e| ConfigFileError::Read(path.to_owned(), e))?;
    let file: ConfigFile = serde_json::from_slice(&text).map_err(ConfigFileError::Json)?;
    apply(handle, file)
}

fn apply(handle: &Handle, file: ConfigFile) -> Result<(), ConfigFileError> {
    if let Some(options) = file.logger {
        logger::configure(options).map_err(|e| ConfigFileError::Refused(format!("Logger error: {e}")))?;
    }
    let later = [
        (file.metrics.is_some(), "metrics"),
        (file.cpu_config.is_some(), "cpu-config"),
        (file.vsock.is_some(), "vsock"),
        (file.balloon.is_some(), "balloon"),
        (file.mmds_config.is_some(), "mmds-config"),
        (file.entropy.is_some(), "entropy"),
        (!file.pmem.is_empty(), "pmem"),
        (file.memory_hotplug.is_some(), "memory-hotplug"),
    ];
    supported(later.into_iter().find_map(|(given, section)| given.then_some(Later(section))))?;
    if let Some(machine) = file.machine_config {
        supported(machine.later())?;
        let machine = machine.try_into().map_err(|bad| vmm::Error::invalid(vmm::Subject::Machine, bad))?;
        handle.call(PutMachineConfig(machine))?;
    }
    handle.call(PutBootSource(file.boot_source.into()))?;
    for drive in file.drives {
        supported(drive.later())?;
        handle.call(PutDrive(drive.try_into()?))?;
    }
    for net in file.network_interfaces {
        supported(net.later())?;
        handle.call(PutNet(net.try_into()?))?;
    }
    handle.call(Start)?;
    Ok(())
}

fn supported(later: Option<Later>) -> Result<(), Later> {
    later.map_or(Ok(()), Err)
}
