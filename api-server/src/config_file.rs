//! `--config-file`: the whole configuration in one JSON document, in the shape of `GET /vm/config`, applied and booted at once.
//!
//! The sections are the wire structs of the API and take the same way into the VMM.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use vmm::config::{DriveConfig, NetConfig};
use vmm::requests::{PutBootSource, PutCpuConfig, PutDrive, PutMachineConfig, PutNet};
use vmm::{Error, Vmm};

use crate::error::Fault;
use crate::logger;
use crate::metrics;
use crate::wire::{self, Later};

/// The document. Unknown keys at this level are ignored, as the contract has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ConfigFile {
    boot_source: wire::BootSource,
    drives: Vec<wire::Drive>,
    machine_config: Option<wire::MachineConfig>,
    network_interfaces: Option<Vec<wire::Net>>,
    logger: Option<wire::Logger>,
    metrics: Option<wire::Metrics>,
    cpu_config: Option<CpuConfig>,
    // Known sections that this version cannot honour; an echo of GET /vm/config has them as null or [].
    balloon: Option<Value>,
    vsock: Option<Value>,
    mmds_config: Option<Value>,
    entropy: Option<Value>,
    pmem: Option<Vec<Value>>,
    memory_hotplug: Option<Value>,
}

/// A CPU template, or the path of a file with one.
#[derive(Debug)]
enum CpuConfig {
    File(PathBuf),
    Inline(wire::CpuConfig),
}

impl<'de> Deserialize<'de> for CpuConfig {
    /// By hand and not untagged, so that a wrong template is refused with the words of `PUT /cpu-config`.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(path) => Ok(Self::File(path.into())),
            value => wire::CpuConfig::deserialize(value).map(Self::Inline).map_err(serde::de::Error::custom),
        }
    }
}

impl CpuConfig {
    fn read(self) -> Result<wire::CpuConfig, BadConfigFile> {
        let path = match self {
            Self::Inline(template) => return Ok(template),
            Self::File(path) => path,
        };
        let refused = |why: String| {
            BadConfigFile::Refused(format!("Configure CPU error: the CPU template file {}: {why}", path.display()))
        };
        let text = std::fs::read(&path).map_err(|e| refused(e.to_string()))?;
        serde_json::from_slice(&text).map_err(|e| refused(e.to_string()))
    }
}

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadConfigFile {
    /// It cannot be read.
    #[error("Unable to open or read from the configuration file {0}: {1}")]
    Unreadable(PathBuf, std::io::Error),
    /// It is not the JSON it should be.
    #[error("Invalid JSON in the configuration file {0}: {1}")]
    Json(PathBuf, serde_json::Error),
    /// One of its sections is refused.
    #[error("{0}")]
    Refused(String),
}

impl From<Fault> for BadConfigFile {
    fn from(fault: Fault) -> Self {
        Self::Refused(fault.message().to_owned())
    }
}

impl From<Error> for BadConfigFile {
    fn from(error: Error) -> Self {
        Self::Refused(error.to_string())
    }
}

impl From<Later> for BadConfigFile {
    fn from(later: Later) -> Self {
        Fault::from(later).into()
    }
}

impl ConfigFile {
    /// Reads the file at `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, BadConfigFile> {
        let text = std::fs::read(path).map_err(|e| BadConfigFile::Unreadable(path.to_owned(), e))?;
        serde_json::from_slice(&text).map_err(|e| BadConfigFile::Json(path.to_owned(), e))
    }

    /// Sends all sections to the VMM, in the contract's order. Does not start the machine.
    pub(crate) fn apply(self, handle: &mut Vmm) -> Result<(), BadConfigFile> {
        if let Some(later) = self.later() {
            return Err(later.into());
        }
        if let Some(options) = self.logger {
            logger::configure(options).map_err(|e| BadConfigFile::Refused(format!("Logger error: {e}")))?;
        }
        if let Some(options) = self.metrics {
            let id = handle.settings().id.as_str();
            metrics::configure(options, id).map_err(|e| BadConfigFile::Refused(format!("Metrics error: {e}")))?;
        }
        if let Some(machine) = self.machine_config {
            handle.call(PutMachineConfig(machine.into()))?;
        }
        if let Some(template) = self.cpu_config {
            handle.call(PutCpuConfig(template.read()?.into()))?;
        }
        handle.call(PutBootSource(self.boot_source.into()))?;
        for drive in self.drives {
            handle.call(PutDrive(DriveConfig::try_from(drive)?))?;
        }
        for net in self.network_interfaces.unwrap_or_default() {
            handle.call(PutNet(NetConfig::try_from(net)?))?;
        }
        Ok(())
    }

    /// The first thing asked for that this version does not do.
    fn later(&self) -> Option<Later> {
        let sections = [
            (self.balloon.is_some(), Later("balloon")),
            (self.vsock.is_some(), Later("vsock")),
            (self.mmds_config.is_some(), Later("mmds-config")),
            (self.entropy.is_some(), Later("entropy")),
            (self.pmem.as_ref().is_some_and(|list| !list.is_empty()), Later("pmem")),
            (self.memory_hotplug.is_some(), Later("memory-hotplug")),
        ];
        sections
            .into_iter()
            .find_map(|(there, later)| there.then_some(later))
            .or_else(|| self.machine_config.as_ref().and_then(wire::MachineConfig::later))
            .or_else(|| self.drives.iter().find_map(wire::Drive::later))
            .or_else(|| self.network_interfaces.iter().flatten().find_map(wire::Net::later))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<ConfigFile, serde_json::Error> {
        serde_json::from_value(value)
    }

    #[test]
    fn boot_source_and_drives_are_mandatory() {
        let missing = |value| parse(value).unwrap_err().to_string();
        assert_eq!(missing(json!({"drives": []})), "missing field `boot-source`");
        assert_eq!(missing(json!({"boot-source": {"kernel_image_path": "k"}})), "missing field `drives`");
        assert!(parse(json!({"boot-source": {"kernel_image_path": "k"}, "drives": [], "serial": 1, "x": {}})).is_ok());
    }

    #[test]
    fn an_echo_of_the_configuration_can_be_read_back() {
        let mut echo = serde_json::to_value(wire::FullConfig::from(vmm::config::FullConfig::default())).unwrap();
        echo["boot-source"] = json!({"kernel_image_path": "k", "initrd_path": null, "boot_args": null});
        assert_eq!(parse(echo).unwrap().later(), None);
    }

    #[test]
    fn sections_without_a_meaning_are_refused_by_name() {
        for section in ["balloon", "vsock", "mmds-config", "entropy", "memory-hotplug"] {
            let mut document = json!({"boot-source": {"kernel_image_path": "k"}, "drives": []});
            document[section] = json!({});
            assert_eq!(parse(document).unwrap().later(), Some(Later(section)));
        }
        let limited = json!({"boot-source": {"kernel_image_path": "k"}, "drives": [
            {"drive_id": "a", "is_root_device": true, "path_on_host": "p", "rate_limiter": {"ops": {"size": 1, "refill_time": 1}}}
        ]});
        assert_eq!(parse(limited).unwrap().later(), Some(Later("rate_limiter")));
    }
}
