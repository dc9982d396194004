//! Validated configuration values: what was asked for, already known to be well formed.
//!
//! Made from wire structs by `TryFrom` in `api-server`, echoed by `GET /vm/config`, turned into opened resources by `blueprint`.
//! Nothing here touches the host: no file is opened, no tap looked up. Nothing here is deserialisable.

mod boot;
mod drive;
mod id;
mod machine;
mod net;
mod serial;

pub use boot::BootSourceConfig;
pub use drive::{CacheType, DriveConfig, IoEngine};
pub use id::{BadId, InstanceId, ResourceId};
pub use machine::{BadMachine, CpuTemplate, HugePages, MAX_VCPUS, MachineConfig, MachinePatch};
pub use net::{BadMac, MacAddr, NetConfig};
pub use serial::SerialConfig;

/// Everything that was configured so far (`GET /vm/config`).
#[derive(Debug, Clone, Default)]
pub struct FullConfig {
    /// `boot-source`.
    pub boot_source: Option<BootSourceConfig>,
    /// `drives`, root first, then in the order they were first put.
    pub drives: Vec<DriveConfig>,
    /// `machine-config`.
    pub machine: MachineConfig,
    /// `network-interfaces`, in the order they were first put.
    pub nets: Vec<NetConfig>,
}
