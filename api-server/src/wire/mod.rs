//! The JSON shapes of the v1 API: one file per resource.
//!
//! These structs say what may be *written*; whether it is meant well is decided by their `TryFrom` into [`vmm::config`]. Field order
//! and `deny_unknown_fields` are part of the contract: serde's messages list the expected fields in the order of the struct, and
//! clients compare those messages. Used by `routes` and by `config_file`; nothing here knows HTTP or asks the VMM anything.

mod actions;
mod balloon;
mod boot_source;
mod clones;
mod confinement;
mod cpu_config;
mod drive;
mod entropy;
mod fs;
mod full_config;
mod instance;
mod later;
mod logger;
mod machine_config;
mod memory_hotplug;
mod metrics;
mod mmds;
mod net;
mod object;
mod pmem;
mod queues;
mod rate_limiter;
mod serial;
mod snapshot;
mod vcpu_hotplug;
mod vm;
mod vsock;

pub(crate) use actions::{Action, ActionType};
pub(crate) use balloon::{Balloon, BalloonPatch, BalloonStatisticsPatch, Hinting, HintingStart, Statistics};
pub(crate) use boot_source::BootSource;
pub(crate) use clones::{MadeClones, MakeClones};
pub(crate) use confinement::Confinement;
pub(crate) use cpu_config::CpuConfig;
pub(crate) use drive::{Drive, DrivePatch};
pub(crate) use entropy::Entropy;
pub(crate) use fs::Fs;
pub(crate) use full_config::FullConfig;
pub(crate) use instance::{InstanceInfo, Version};
pub(crate) use later::{Later, later};
pub(crate) use logger::Logger;
pub(crate) use machine_config::{MachineConfig, MachineConfigPatch};
pub(crate) use memory_hotplug::{MemoryHotplug, MemoryHotplugPatch, MemoryHotplugState};
pub(crate) use metrics::Metrics;
pub(crate) use mmds::MmdsConfig;
pub(crate) use net::{Net, NetPatch};
pub(crate) use pmem::{Pmem, PmemPatch};
pub(crate) use serial::Serial;
pub(crate) use snapshot::{SnapshotCreate, SnapshotLoad, SnapshotProgress, SnapshotRestore};
pub(crate) use vcpu_hotplug::{Vcpus, VcpusPatch};
pub(crate) use vm::{Vm, VmState};
pub(crate) use vsock::Vsock;

#[cfg(test)]
mod tests;
