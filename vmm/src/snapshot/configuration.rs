//! The configuration of a saved machine: what was asked for, in a form that lasts. Reading it is no different from hearing it from a client:
//! each value is made anew by its own rules.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::container::{BadFile, Reader, Section, Writer};
use crate::config::{
    BalloonConfig, BootSourceConfig, BucketSpec, CacheType, CpuTemplate, DriveBackend, DriveConfig, EntropyConfig,
    FullConfig, HugePages, IoEngine, MacAddr, MachineConfig, MachinePatch, MemoryHotplugConfig, MmdsConfig,
    MmdsVersion, Named, NetConfig, PmemConfig, QueueCount, RateLimits, ResourceId, VsockConfig,
};

/// What is wrong with a saved configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its configuration makes no sense: {0}")]
pub struct BadConfiguration(String);

fn wrong(what: impl std::fmt::Display) -> BadConfiguration {
    BadConfiguration(what.to_string())
}

/// Everything that `GET /vm/config` shows, but `track_dirty_pages` and a custom CPU template: the former is chosen anew, and what the latter
/// made of the processor is in the vCPUs' state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    machine: Machine,
    boot_source: Option<BootSource>,
    drives: Vec<Drive>,
    nets: Vec<Net>,
    balloon: Option<Balloon>,
    vsock: Option<Vsock>,
    entropy: Option<RateLimits>,
    pmems: Vec<Pmem>,
    memory_hotplug: Option<[u32; 3]>,
    mmds: Option<Mmds>,
    /// A section of its own, which older files do not have.
    #[serde(skip)]
    queues: Queues,
}

/// How many queues devices were asked to have, by the devices' ids. Only in files of machines where there is such a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Queues {
    drives: Vec<(String, u8)>,
    nets: Vec<(String, u8)>,
}

impl Section for Queues {
    const NAME: &'static str = "queues";
    const VERSION: u16 = 1;
}

impl Section for Configuration {
    const NAME: &'static str = "configuration";
    const VERSION: u16 = 1;
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Machine {
    vcpu_count: u8,
    mem_size_mib: u64,
    smt: bool,
    cpu_template: Option<Named>,
    huge_pages: Pages,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Pages {
    Small,
    Transparent,
    Huge2M,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct BootSource {
    kernel_image_path: PathBuf,
    initrd_path: Option<PathBuf>,
    boot_args: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Drive {
    id: String,
    path_on_host: PathBuf,
    is_root_device: bool,
    partuuid: Option<String>,
    is_read_only: bool,
    writeback: bool,
    asynchronous: bool,
    rate_limiter: RateLimits,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Net {
    id: String,
    host_dev_name: String,
    guest_mac: Option<String>,
    mtu: Option<u16>,
    rx_rate_limiter: RateLimits,
    tx_rate_limiter: RateLimits,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Balloon {
    amount_mib: u32,
    deflate_on_oom: bool,
    stats_polling_interval_s: u16,
    free_page_hinting: bool,
    free_page_reporting: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Vsock {
    guest_cid: u32,
    uds_path: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Pmem {
    id: String,
    path_on_host: PathBuf,
    root_device: bool,
    read_only: bool,
    rate_limiter: RateLimits,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mmds {
    network_interfaces: Vec<String>,
    v2: bool,
    ipv4_address: Ipv4Addr,
    imds_compat: bool,
}

impl From<&FullConfig> for Configuration {
    fn from(config: &FullConfig) -> Self {
        let machine = &config.machine;
        Self {
            queues: Queues::of(config),
            machine: Machine {
                vcpu_count: machine.vcpu_count(),
                mem_size_mib: machine.mem_size_mib(),
                smt: machine.smt(),
                cpu_template: match machine.cpu_template() {
                    CpuTemplate::Named(name) => Some(*name),
                    CpuTemplate::None | CpuTemplate::Custom(_) => None,
                },
                huge_pages: match machine.huge_pages() {
                    HugePages::None => Pages::Small,
                    HugePages::Transparent => Pages::Transparent,
                    HugePages::Hugetlbfs2M => Pages::Huge2M,
                },
            },
            boot_source: config.boot_source.as_ref().map(|source| BootSource {
                kernel_image_path: source.kernel_image_path.clone(),
                initrd_path: source.initrd_path.clone(),
                boot_args: source.boot_args.clone(),
            }),
            drives: config.drives.iter().map(Drive::from).collect(),
            nets: config.nets.iter().map(Net::from).collect(),
            balloon: config.balloon.as_ref().map(|balloon| Balloon {
                amount_mib: balloon.amount_mib,
                deflate_on_oom: balloon.deflate_on_oom,
                stats_polling_interval_s: balloon.stats_polling_interval_s,
                free_page_hinting: balloon.free_page_hinting,
                free_page_reporting: balloon.free_page_reporting,
            }),
            vsock: config
                .vsock
                .as_ref()
                .map(|vsock| Vsock { guest_cid: vsock.guest_cid(), uds_path: vsock.uds_path().to_owned() }),
            entropy: config.entropy.as_ref().map(|entropy| entropy.rate_limiter),
            pmems: config.pmems.iter().map(Pmem::from).collect(),
            memory_hotplug: config
                .memory_hotplug
                .map(|memory| [memory.total_size_mib(), memory.block_size_mib(), memory.slot_size_mib()]),
            mmds: config.mmds.as_ref().map(|mmds| Mmds {
                network_interfaces: mmds.network_interfaces().iter().map(ResourceId::to_string).collect(),
                v2: mmds.version() == MmdsVersion::V2,
                ipv4_address: mmds.ipv4_address(),
                imds_compat: mmds.imds_compat(),
            }),
        }
    }
}

impl From<&DriveConfig> for Drive {
    fn from(drive: &DriveConfig) -> Self {
        Self {
            id: drive.id.to_string(),
            // Machines with drives that other processes serve are not saved.
            path_on_host: drive.backend.path().to_owned(),
            is_root_device: drive.is_root_device,
            partuuid: drive.partuuid.clone(),
            is_read_only: drive.is_read_only,
            writeback: drive.cache_type == CacheType::Writeback,
            asynchronous: drive.io_engine == IoEngine::Async,
            rate_limiter: drive.rate_limiter,
        }
    }
}

impl From<&NetConfig> for Net {
    fn from(net: &NetConfig) -> Self {
        Self {
            id: net.id.to_string(),
            host_dev_name: net.host_dev_name.clone(),
            guest_mac: net.guest_mac.map(|mac| mac.to_string()),
            mtu: net.mtu,
            rx_rate_limiter: net.rx_rate_limiter,
            tx_rate_limiter: net.tx_rate_limiter,
        }
    }
}

impl From<&PmemConfig> for Pmem {
    fn from(pmem: &PmemConfig) -> Self {
        Self {
            id: pmem.id.to_string(),
            path_on_host: pmem.path_on_host.clone(),
            root_device: pmem.root_device,
            read_only: pmem.read_only,
            rate_limiter: pmem.rate_limiter,
        }
    }
}

fn id(text: &str) -> Result<ResourceId, BadConfiguration> {
    ResourceId::try_from(text).map_err(|e| wrong(format!("id {text:?}: {e}")))
}

pub(super) fn limits(limits: RateLimits) -> Result<RateLimits, BadConfiguration> {
    let empty = |bucket: Option<BucketSpec>| bucket.is_some_and(|bucket| bucket.size == 0 || bucket.refill_ms == 0);
    if empty(limits.bandwidth) || empty(limits.ops) {
        return Err(wrong("a rate limiter whose bucket has no size or no refill time"));
    }
    Ok(limits)
}

impl Queues {
    fn of(config: &FullConfig) -> Self {
        let entry = |id: &ResourceId, count: Option<QueueCount>| Some((id.to_string(), count?.get()));
        Self {
            drives: config.drives.iter().filter_map(|drive| entry(&drive.id, drive.num_queues)).collect(),
            nets: config.nets.iter().filter_map(|net| entry(&net.id, net.num_queues)).collect(),
        }
    }

    /// Enters the counts in devices that are there without.
    fn enter(self, drives: &mut [DriveConfig], nets: &mut [NetConfig]) -> Result<(), BadConfiguration> {
        let count = |count: u8| QueueCount::try_from(u64::from(count)).map_err(wrong);
        let nobody = |id: &str| wrong(format!("queues of {id:?}, which is not there"));
        for (id, queues) in self.drives {
            let drive = drives.iter_mut().find(|drive| drive.id.as_str() == id).ok_or_else(|| nobody(&id))?;
            drive.num_queues = Some(count(queues)?);
        }
        for (id, queues) in self.nets {
            let net = nets.iter_mut().find(|net| net.id.as_str() == id).ok_or_else(|| nobody(&id))?;
            net.num_queues = Some(count(queues)?);
        }
        Ok(())
    }
}

impl Configuration {
    /// Adds it to a file.
    pub(super) fn write(&self, writer: &mut Writer) -> Result<(), BadFile> {
        writer.add(self)?;
        if self.queues != Queues::default() { writer.add(&self.queues) } else { Ok(()) }
    }

    /// Takes it out of one.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, BadFile> {
        let config: Self = reader.take()?;
        let queues = if reader.has::<Queues>() { reader.take()? } else { Queues::default() };
        Ok(Self { queues, ..config })
    }

    /// The same as values that are known to be well formed. Whether they fit each other shows when they become a plan.
    pub fn check(self) -> Result<FullConfig, BadConfiguration> {
        let Machine { vcpu_count, mem_size_mib, smt, cpu_template, huge_pages } = self.machine;
        let patch = MachinePatch {
            smt: Some(smt),
            cpu_template: Some(cpu_template.map_or(CpuTemplate::None, CpuTemplate::Named)),
            huge_pages: Some(match huge_pages {
                Pages::Small => HugePages::None,
                Pages::Transparent => HugePages::Transparent,
                Pages::Huge2M => HugePages::Hugetlbfs2M,
            }),
            ..MachinePatch::default()
        };
        let machine = MachineConfig::new(vcpu_count, mem_size_mib).and_then(|machine| machine.patched(&patch));
        let mut drives = self.drives.into_iter().map(Drive::check).collect::<Result<Vec<_>, _>>()?;
        let mut nets = self.nets.into_iter().map(Net::check).collect::<Result<Vec<_>, _>>()?;
        self.queues.enter(&mut drives, &mut nets)?;
        Ok(FullConfig {
            machine: machine.map_err(wrong)?,
            boot_source: self.boot_source.map(|source| BootSourceConfig {
                kernel_image_path: source.kernel_image_path,
                initrd_path: source.initrd_path,
                boot_args: source.boot_args,
            }),
            drives,
            nets,
            balloon: self.balloon.map(|balloon| BalloonConfig {
                amount_mib: balloon.amount_mib,
                deflate_on_oom: balloon.deflate_on_oom,
                stats_polling_interval_s: balloon.stats_polling_interval_s,
                free_page_hinting: balloon.free_page_hinting,
                free_page_reporting: balloon.free_page_reporting,
            }),
            vsock: self
                .vsock
                .map(|vsock| VsockConfig::new(vsock.guest_cid, vsock.uds_path).map_err(wrong))
                .transpose()?,
            entropy: self
                .entropy
                .map(|entropy| Ok::<_, BadConfiguration>(EntropyConfig { rate_limiter: limits(entropy)? }))
                .transpose()?,
            pmems: self.pmems.into_iter().map(Pmem::check).collect::<Result<_, _>>()?,
            file_systems: Vec::new(),
            memory_hotplug: self
                .memory_hotplug
                .map(|[total, block, slot]| MemoryHotplugConfig::new(total, block, slot).map_err(wrong))
                .transpose()?,
            mmds: self.mmds.map(Mmds::check).transpose()?,
        })
    }
}

impl Drive {
    fn check(self) -> Result<DriveConfig, BadConfiguration> {
        Ok(DriveConfig {
            id: id(&self.id)?,
            backend: DriveBackend::File(self.path_on_host),
            is_root_device: self.is_root_device,
            partuuid: self.partuuid,
            is_read_only: self.is_read_only,
            cache_type: if self.writeback { CacheType::Writeback } else { CacheType::Unsafe },
            io_engine: if self.asynchronous { IoEngine::Async } else { IoEngine::Sync },
            rate_limiter: limits(self.rate_limiter)?,
            num_queues: None,
        })
    }
}

impl Net {
    fn check(self) -> Result<NetConfig, BadConfiguration> {
        Ok(NetConfig {
            id: id(&self.id)?,
            host_dev_name: self.host_dev_name,
            guest_mac: self.guest_mac.map(|mac| MacAddr::try_from(mac.as_str()).map_err(wrong)).transpose()?,
            mtu: self.mtu,
            rx_rate_limiter: limits(self.rx_rate_limiter)?,
            tx_rate_limiter: limits(self.tx_rate_limiter)?,
            num_queues: None,
        })
    }
}

impl Pmem {
    fn check(self) -> Result<PmemConfig, BadConfiguration> {
        Ok(PmemConfig {
            id: id(&self.id)?,
            path_on_host: self.path_on_host,
            root_device: self.root_device,
            read_only: self.read_only,
            rate_limiter: limits(self.rate_limiter)?,
        })
    }
}

impl Mmds {
    fn check(self) -> Result<MmdsConfig, BadConfiguration> {
        let ids = self.network_interfaces.iter().map(|text| id(text)).collect::<Result<_, _>>()?;
        let version = if self.v2 { MmdsVersion::V2 } else { MmdsVersion::V1 };
        MmdsConfig::new(ids, version, Some(self.ipv4_address), self.imds_compat).map_err(wrong)
    }
}
