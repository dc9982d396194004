//! Validated configuration values: what was asked for, already known to be well formed.
//!
//! Made from wire structs by `TryFrom` in `api-server`, echoed by `GET /vm/config`, turned into opened resources by `blueprint`.
//! Nothing here touches the host: no file is opened, no tap looked up. Nothing here is deserialisable.

mod balloon;
mod boot;
mod cpu_template;
mod drive;
mod entropy;
mod fs;
mod id;
mod machine;
mod memory_hotplug;
mod mmds;
mod net;
mod pmem;
mod queues;
mod serial;
mod vsock;

pub use balloon::{BalloonConfig, TooMuch, check_balloon, pages_of_mib};
pub use boot::BootSourceConfig;
pub use cpu_template::{
    BadCapability, Bitmap, Capability, CpuTemplate, CpuidModifier, CustomTemplate, MsrModifier, Named, Register,
    Template,
};
pub use drive::{CacheType, DriveBackend, DriveConfig, IoEngine};
pub use entropy::EntropyConfig;
pub use fs::{BadFs, FsConfig};
pub use id::{BadId, InstanceId, ResourceId};
pub use machine::{BadMachine, BadVcpuRequest, HugePages, MAX_VCPUS, MachineConfig, MachinePatch};
pub use memory_hotplug::{BadMemoryHotplug, MIN_BLOCK_MIB, MIN_SLOT_MIB, MemoryHotplugConfig};
pub use mmds::{BadMmds, MmdsConfig, MmdsVersion};
pub use net::{BadMac, MacAddr, NetConfig};
pub use pmem::PmemConfig;
pub use queues::{BadQueueCount, MAX_QUEUES, QueueCount, Transport};
pub use serial::SerialConfig;
pub use vsock::{BadVsock, VsockConfig};
// Plain values of the devices that need no second spelling here.
pub use devices::rate_limit::{BucketChange, BucketSpec, RateLimitChange, RateLimits};

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
    /// `balloon`.
    pub balloon: Option<BalloonConfig>,
    /// `vsock`.
    pub vsock: Option<VsockConfig>,
    /// `entropy`.
    pub entropy: Option<EntropyConfig>,
    /// `pmem`, in the order they were first put.
    pub pmems: Vec<PmemConfig>,
    /// `fs`, in the order they were first put.
    pub file_systems: Vec<FsConfig>,
    /// `memory-hotplug`.
    pub memory_hotplug: Option<MemoryHotplugConfig>,
    /// `mmds-config`.
    pub mmds: Option<MmdsConfig>,
}
