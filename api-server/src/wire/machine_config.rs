use serde::{Deserialize, Serialize};
use vmm::config::{self, MachinePatch, Named};

use super::Later;

/// Named CPU templates; `None` is a template too, the one that does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    None,
}

/// Page size behind guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) enum HugePages {
    #[default]
    None,
    Transparent,
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// Body of `PUT /machine-config`, and of its GET.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineConfig {
    pub(crate) vcpu_count: u8,
    pub(crate) mem_size_mib: u64,
    #[serde(default)]
    pub(crate) smt: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_template: Option<CpuTemplate>,
    #[serde(default)]
    pub(crate) track_dirty_pages: bool,
    #[serde(default)]
    pub(crate) huge_pages: HugePages,
    #[serde(skip_serializing)]
    pub(crate) gdb_socket_path: Option<String>,
    /// Not in v1: without it, and in answers about machines without it, nothing is different from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_vcpus: Option<u8>,
}

/// Body of `PATCH /machine-config`.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineConfigPatch {
    pub(crate) vcpu_count: Option<u8>,
    pub(crate) mem_size_mib: Option<u64>,
    pub(crate) smt: Option<bool>,
    pub(crate) cpu_template: Option<CpuTemplate>,
    pub(crate) track_dirty_pages: Option<bool>,
    pub(crate) huge_pages: Option<HugePages>,
    pub(crate) gdb_socket_path: Option<String>,
    pub(crate) max_vcpus: Option<u8>,
}

const GDB: Later = Later("gdb_socket_path");

impl MachineConfig {
    /// What this version does not do.
    pub(crate) fn later(&self) -> Option<Later> {
        self.gdb_socket_path.as_ref().map(|_| GDB)
    }

    /// Whether a deprecated field was sent.
    pub(crate) fn deprecated(&self) -> bool {
        self.cpu_template.is_some()
    }
}

impl MachineConfigPatch {
    /// What this version does not do.
    pub(crate) fn later(&self) -> Option<Later> {
        self.gdb_socket_path.as_ref().map(|_| GDB)
    }

    /// Whether a deprecated field was sent.
    pub(crate) fn deprecated(&self) -> bool {
        self.cpu_template.is_some()
    }

    /// Whether nothing would change.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl From<CpuTemplate> for config::CpuTemplate {
    fn from(wire: CpuTemplate) -> Self {
        match wire {
            CpuTemplate::C3 => Self::Named(Named::C3),
            CpuTemplate::T2 => Self::Named(Named::T2),
            CpuTemplate::T2S => Self::Named(Named::T2S),
            CpuTemplate::T2CL => Self::Named(Named::T2CL),
            CpuTemplate::T2A => Self::Named(Named::T2A),
            CpuTemplate::None => Self::None,
        }
    }
}

impl From<HugePages> for config::HugePages {
    fn from(wire: HugePages) -> Self {
        match wire {
            HugePages::None => Self::None,
            HugePages::Transparent => Self::Transparent,
            HugePages::Hugetlbfs2M => Self::Hugetlbfs2M,
        }
    }
}

impl From<MachineConfigPatch> for MachinePatch {
    fn from(wire: MachineConfigPatch) -> Self {
        Self {
            vcpu_count: wire.vcpu_count,
            mem_size_mib: wire.mem_size_mib,
            smt: wire.smt,
            cpu_template: wire.cpu_template.map(Into::into),
            track_dirty_pages: wire.track_dirty_pages,
            huge_pages: wire.huge_pages.map(Into::into),
            max_vcpus: wire.max_vcpus.map(Some),
        }
    }
}

impl From<MachineConfig> for MachinePatch {
    /// What is not sent is reset, except for the template: `/cpu-config` may have put it there.
    fn from(wire: MachineConfig) -> Self {
        Self {
            vcpu_count: Some(wire.vcpu_count),
            mem_size_mib: Some(wire.mem_size_mib),
            smt: Some(wire.smt),
            cpu_template: wire.cpu_template.map(Into::into),
            track_dirty_pages: Some(wire.track_dirty_pages),
            huge_pages: Some(wire.huge_pages.into()),
            max_vcpus: Some(wire.max_vcpus),
        }
    }
}

impl From<config::MachineConfig> for MachineConfig {
    fn from(config: config::MachineConfig) -> Self {
        Self {
            vcpu_count: config.vcpu_count(),
            mem_size_mib: config.mem_size_mib(),
            smt: config.smt(),
            cpu_template: match config.cpu_template() {
                config::CpuTemplate::None | config::CpuTemplate::Custom(_) => None,
                config::CpuTemplate::Named(Named::C3) => Some(CpuTemplate::C3),
                config::CpuTemplate::Named(Named::T2) => Some(CpuTemplate::T2),
                config::CpuTemplate::Named(Named::T2S) => Some(CpuTemplate::T2S),
                config::CpuTemplate::Named(Named::T2CL) => Some(CpuTemplate::T2CL),
                config::CpuTemplate::Named(Named::T2A) => Some(CpuTemplate::T2A),
            },
            track_dirty_pages: config.track_dirty_pages(),
            huge_pages: match config.huge_pages() {
                config::HugePages::None => HugePages::None,
                config::HugePages::Transparent => HugePages::Transparent,
                config::HugePages::Hugetlbfs2M => HugePages::Hugetlbfs2M,
            },
            gdb_socket_path: None,
            max_vcpus: config.max_vcpus(),
        }
    }
}
