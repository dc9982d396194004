//! `--config-file`: the whole configuration in one JSON document, in the shape of `GET /vm/config`, applied and booted at once.
//!
//! The sections are the wire structs of the API and take the same way into the VMM.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use vmm::config::{DriveConfig, FsConfig, MemoryHotplugConfig, NetConfig, PmemConfig, VsockConfig};
use vmm::requests::{
    PutBalloon, PutBootSource, PutCpuConfig, PutDrive, PutEntropy, PutFs, PutMachineConfig, PutMemoryHotplug,
    PutMmdsConfig, PutNet, PutPmem, PutVsock,
};
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
    vsock: Option<wire::Vsock>,
    balloon: Option<wire::Balloon>,
    entropy: Option<wire::Entropy>,
    pmem: Option<Vec<wire::Pmem>>,
    memory_hotplug: Option<wire::MemoryHotplug>,
    fs: Option<Vec<wire::Fs>>,
    mmds_config: Option<wire::MmdsConfig>,
    logger: Option<wire::Logger>,
    metrics: Option<wire::Metrics>,
    cpu_config: Option<CpuConfig>,
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
        if let Some(vsock) = self.vsock {
            handle.call(PutVsock(VsockConfig::try_from(vsock)?))?;
        }
        if let Some(balloon) = self.balloon {
            handle.call(PutBalloon(balloon.into()))?;
        }
        if let Some(mmds) = self.mmds_config {
            handle.call(PutMmdsConfig(mmds.try_into()?))?;
        }
        if let Some(entropy) = self.entropy {
            handle.call(PutEntropy(entropy.into()))?;
        }
        for pmem in self.pmem.unwrap_or_default() {
            handle.call(PutPmem(PmemConfig::try_from(pmem)?))?;
        }
        if let Some(memory) = self.memory_hotplug {
            handle.call(PutMemoryHotplug(MemoryHotplugConfig::try_from(memory)?))?;
        }
        for fs in self.fs.unwrap_or_default() {
            handle.call(PutFs(FsConfig::try_from(fs)?))?;
        }
        Ok(())
    }

    /// The first thing asked for that this version does not do.
    fn later(&self) -> Option<Later> {
        self.machine_config.as_ref().and_then(wire::MachineConfig::later)
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
    fn what_has_no_meaning_yet_is_refused_by_name() {
        let debugged = json!({"boot-source": {"kernel_image_path": "k"}, "drives": [],
            "machine-config": {"vcpu_count": 1, "mem_size_mib": 1, "gdb_socket_path": "/s"}});
        assert_eq!(parse(debugged).unwrap().later(), Some(Later("gdb_socket_path")));
    }
}
