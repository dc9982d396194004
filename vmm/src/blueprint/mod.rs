//! The plan of a machine: configuration values together with the host resources they name, already opened.
//!
//! Files and taps are opened when they are configured, so that a wrong path is refused by the request that names it. Rules that
//! need more than one object (one root, no MAC twice) live here. The plan is consumed by `machine::assemble`.

mod boot;
mod drive;
mod file;
mod fs;
mod net;
mod serial;
mod vsock;

pub use boot::BootSource;
pub use drive::{Backing, Disk, Drive};
pub use file::{FileError, open_disk, open_image};
pub use fs::Fs;
pub use net::Net;
pub use serial::SerialOutput;
pub use vsock::Vsock;

use crate::config::{
    BadMmds, BalloonConfig, BootSourceConfig, DriveBackend, DriveConfig, EntropyConfig, FsConfig, FullConfig,
    MachineConfig, MemoryHotplugConfig, MmdsConfig, NetConfig, PmemConfig, ResourceId, Transport, VsockConfig,
    check_balloon,
};
use crate::error::{Error, Subject};

/// Everything a machine will be made of.
#[derive(Debug, Default)]
pub struct Plan {
    /// vCPUs and memory.
    pub machine: MachineConfig,
    /// What to boot.
    pub boot_source: Option<BootSource>,
    /// Where the serial console goes.
    pub serial: SerialOutput,
    /// The balloon.
    pub balloon: Option<BalloonConfig>,
    /// The socket device.
    pub vsock: Option<Vsock>,
    /// The entropy device.
    pub entropy: Option<EntropyConfig>,
    /// Hot-pluggable memory.
    pub memory_hotplug: Option<MemoryHotplugConfig>,
    mmds: Option<MmdsConfig>,
    drives: Vec<Drive>,
    nets: Vec<Net>,
    pmems: Vec<PmemConfig>,
    file_systems: Vec<Fs>,
    /// What a restored machine was booted from, once.
    booted_from: Option<BootSourceConfig>,
    /// vCPUs and memory were chosen.
    machine_chosen: bool,
}

impl Plan {
    /// The configuration behind the plan, as `GET /vm/config` shows it.
    pub fn config(&self) -> FullConfig {
        FullConfig {
            boot_source: self.boot_source.as_ref().map(|b| b.config.clone()).or_else(|| self.booted_from.clone()),
            drives: self.drives.iter().map(|d| d.config.clone()).collect(),
            machine: self.machine.clone(),
            nets: self.nets.iter().map(|n| n.config.clone()).collect(),
            balloon: self.balloon.clone(),
            vsock: self.vsock.as_ref().map(|v| v.config.clone()),
            entropy: self.entropy.clone(),
            pmems: self.pmems.clone(),
            file_systems: self.file_systems.iter().map(|fs| fs.config.clone()).collect(),
            memory_hotplug: self.memory_hotplug,
            mmds: self.mmds.clone(),
        }
    }

    /// Whether nothing was chosen that a snapshot brings along. Serial console, CPU template and what the metadata service says do not count.
    pub fn is_pristine(&self) -> bool {
        let Self { machine: _, serial: _, boot_source, balloon, vsock, entropy, memory_hotplug, mmds, .. } = self;
        let Self { drives, nets, pmems, file_systems, machine_chosen, booted_from: _, .. } = self;
        !machine_chosen
            && boot_source.is_none()
            && balloon.is_none()
            && vsock.is_none()
            && entropy.is_none()
            && memory_hotplug.is_none()
            && mmds.is_none()
            && drives.is_empty()
            && nets.is_empty()
            && pmems.is_empty()
            && file_systems.is_empty()
    }

    /// The plan of a machine that was saved with this configuration: its files and taps are opened as if they were named now. The console
    /// is not part of it.
    pub fn revived(config: FullConfig) -> Result<Self, Error> {
        let FullConfig { boot_source, drives, machine, nets, balloon, vsock, entropy, pmems, .. } = config;
        let FullConfig { file_systems, memory_hotplug, mmds, .. } = config;
        let mut plan = Self { entropy, memory_hotplug, booted_from: boot_source, ..Self::default() };
        plan.put_machine(machine)?;
        if let Some(balloon) = balloon {
            plan.put_balloon(balloon)?;
        }
        for drive in drives {
            plan.put_drive(drive)?;
        }
        for net in nets {
            plan.put_net(net)?;
        }
        for pmem in pmems {
            plan.put_pmem(pmem)?;
        }
        for fs in file_systems {
            plan.add_fs(Fs::open(fs)?)?;
        }
        if let Some(vsock) = vsock {
            plan.put_vsock(vsock)?;
        }
        if let Some(mmds) = mmds {
            plan.put_mmds(mmds)?;
        }
        Ok(plan)
    }

    /// The drives, root first.
    pub fn drives(&self) -> &[Drive] {
        &self.drives
    }

    /// The drive called `id`.
    pub fn drive_mut(&mut self, id: &ResourceId) -> Option<&mut Drive> {
        self.drives.iter_mut().find(|d| &d.config.id == id)
    }

    /// The network interfaces in the order they were put.
    pub fn nets(&self) -> &[Net] {
        &self.nets
    }

    /// The network interface called `id`.
    pub fn net_mut(&mut self, id: &ResourceId) -> Option<&mut Net> {
        self.nets.iter_mut().find(|n| &n.config.id == id)
    }

    /// The persistent-memory devices in the order they were put, which is how the guest numbers them. Their files are opened at the
    /// start.
    pub fn pmems(&self) -> &[PmemConfig] {
        &self.pmems
    }

    /// The persistent-memory device called `id`.
    pub fn pmem_mut(&mut self, id: &ResourceId) -> Option<&mut PmemConfig> {
        self.pmems.iter_mut().find(|p| &p.id == id)
    }

    /// Sets vCPUs and memory. The balloon must still fit.
    pub fn put_machine(&mut self, machine: MachineConfig) -> Result<(), Error> {
        if let Some(balloon) = &self.balloon
            && check_balloon(balloon.amount_mib, machine.mem_size_mib()).is_err()
        {
            let what = "The memory size (MiB) is smaller than the previously set balloon device target size.";
            return Err(Error::invalid(Subject::Machine, what));
        }
        self.machine = machine;
        self.machine_chosen = true;
        Ok(())
    }

    /// Sets the balloon. It must fit into memory.
    pub fn put_balloon(&mut self, balloon: BalloonConfig) -> Result<(), Error> {
        check_balloon(balloon.amount_mib, self.machine.mem_size_mib())
            .map_err(|e| Error::invalid(Subject::Balloon, e))?;
        self.balloon = Some(balloon);
        Ok(())
    }

    /// Binds the socket device's host socket. That of the device it replaces is removed.
    pub fn put_vsock(&mut self, config: VsockConfig) -> Result<(), Error> {
        self.vsock = Some(match self.vsock.take() {
            Some(old) => match old.replaced_by(config) {
                Ok(new) => new,
                Err((old, refusal)) => {
                    self.vsock = Some(old);
                    return Err(refusal);
                }
            },
            None => Vsock::open(config)?,
        });
        Ok(())
    }

    /// How guests reach the metadata service, if they can.
    pub fn mmds(&self) -> Option<&MmdsConfig> {
        self.mmds.as_ref()
    }

    /// Sets how guests reach the metadata service. The interfaces it names exist.
    pub fn put_mmds(&mut self, config: MmdsConfig) -> Result<(), Error> {
        let exists = |id: &ResourceId| self.nets.iter().any(|net| net.config.id == *id);
        if !config.network_interfaces().iter().all(exists) {
            return Err(Error::invalid(Subject::MmdsConfig, BadMmds::UnknownInterface));
        }
        self.mmds = Some(config);
        Ok(())
    }

    /// Whether a persistent-memory device may be added as things are.
    pub fn check_pmem(&self, config: &PmemConfig) -> Result<(), Error> {
        if config.root_device {
            if self.drives.iter().any(|d| d.config.is_root_device) {
                let what = "Attempt to add pmem as a root device while the root device defined as a block device";
                return Err(Error::invalid(Subject::Pmem, what));
            }
            if self.pmems.iter().any(|p| p.root_device && p.id != config.id) {
                return Err(Error::invalid(Subject::Pmem, "A root pmem device already exist"));
            }
        }
        Ok(())
    }

    /// Adds a persistent-memory device, or replaces the one of the same id.
    pub fn put_pmem(&mut self, config: PmemConfig) -> Result<(), Error> {
        self.check_pmem(&config)?;
        match self.pmem_mut(&config.id) {
            Some(old) => *old = config,
            None => self.pmems.push(config),
        }
        Ok(())
    }

    /// Whether a device has more than one queue that may be served beside others.
    pub fn has_several_queues(&self, transport: Transport) -> bool {
        let drives = self.drives.iter().map(|drive| drive.config.num_queues);
        let nets = self.nets.iter().map(|net| net.config.num_queues);
        drives.chain(nets).any(|asked| transport.queues(asked, self.machine.vcpu_count()) > 1)
    }

    /// The file systems in the order they were put.
    pub fn file_systems(&self) -> &[Fs] {
        &self.file_systems
    }

    /// Whether a file system may be added as things are.
    pub fn check_fs(&self, config: &FsConfig) -> Result<(), Error> {
        let same = self.file_systems.iter().map(|fs| &fs.config).find(|fs| fs.tag() == config.tag());
        match same.filter(|fs| fs.id() != config.id()) {
            None => Ok(()),
            Some(other) => {
                let what = format!("tag {} is that of {}: choose another one.", config.tag(), other.id());
                Err(Error::invalid(Subject::Fs, what))
            }
        }
    }

    /// Adds a file system, or replaces the one of the same id.
    pub fn add_fs(&mut self, fs: Fs) -> Result<(), Error> {
        self.check_fs(&fs.config)?;
        match self.file_systems.iter_mut().find(|old| old.config.id() == fs.config.id()) {
            Some(old) => *old = fs,
            None => self.file_systems.push(fs),
        }
        Ok(())
    }

    /// Devices that other processes serve, which can neither be saved nor cloned, by the contract's names for them.
    pub fn served_elsewhere(&self) -> Vec<String> {
        let drives = self.drives.iter().map(|drive| &drive.config);
        let drives = drives.filter(|drive| matches!(drive.backend, DriveBackend::Socket(_)));
        let drives = drives.map(|drive| format!("vhost-user-block(id: {})", drive.id));
        drives.chain(self.file_systems.iter().map(|fs| format!("vhost-user-fs(id: {})", fs.config.id()))).collect()
    }

    /// Refuses memory that cannot be shared with those who serve devices of the machine.
    pub fn check_sharing(&self) -> Result<(), Error> {
        let devices = self.served_elsewhere();
        let cannot = match self {
            _ if devices.is_empty() => return Ok(()),
            Self { memory_hotplug: Some(_), .. } => "hotplug memory",
            Self { pmems, .. } if !pmems.is_empty() => "pmem",
            _ => return Ok(()),
        };
        let what = format!(
            "{cannot} cannot be shared with the backends of {}, where the guest may have them read and write: leave one or the other out",
            devices.join(", ")
        );
        Err(Error::invalid(Subject::Start, what))
    }

    /// Opens a drive and adds it, or replaces the one of the same id. The root drive comes first, as `/dev/vda`.
    pub fn put_drive(&mut self, config: DriveConfig) -> Result<(), Error> {
        self.check_drive(&config)?;
        self.add_drive(Drive::open(config)?)
    }

    /// Whether a drive may be added as things are.
    pub fn check_drive(&self, config: &DriveConfig) -> Result<(), Error> {
        let other_root = self.drives.iter().any(|d| d.config.is_root_device && d.config.id != config.id);
        if config.is_root_device && other_root {
            return Err(Error::invalid(Subject::Drive, "A root block device already exists!"));
        }
        if config.is_root_device && self.pmems.iter().any(|p| p.root_device) {
            let what = "Attempt to add block as a root device while the root device defined as a pmem device";
            return Err(Error::invalid(Subject::Drive, what));
        }
        Ok(())
    }

    /// Adds a drive, or replaces the one of the same id.
    pub fn add_drive(&mut self, drive: Drive) -> Result<(), Error> {
        self.check_drive(&drive.config)?;
        let place = self.drives.iter().position(|d| d.config.id == drive.config.id);
        match place {
            Some(at) if !drive.config.is_root_device => self.drives[at] = drive,
            Some(at) => {
                self.drives.remove(at);
                self.drives.insert(0, drive);
            }
            None if drive.config.is_root_device => self.drives.insert(0, drive),
            None => self.drives.push(drive),
        }
        Ok(())
    }

    /// Whether a network interface may be added as things are.
    pub fn check_net(&self, config: &NetConfig) -> Result<(), Error> {
        if let Some(mac) = config.guest_mac
            && self.nets.iter().any(|n| n.config.id != config.id && n.config.guest_mac == Some(mac))
        {
            return Err(Error::invalid(Subject::Network, format!("The MAC address is already in use: {mac}")));
        }
        Ok(())
    }

    /// Adds an interface whose tap is open, of an id that no other one has.
    pub fn add_net(&mut self, net: Net) -> Result<(), Error> {
        self.check_net(&net.config)?;
        self.nets.push(net);
        Ok(())
    }

    /// Whether the guest's root file system is on the drive called `id`.
    pub fn is_root_drive(&self, id: &ResourceId) -> bool {
        self.drives.iter().any(|drive| drive.config.id == *id && drive.config.is_root_device)
    }

    /// Whether it is in the persistent memory called `id`.
    pub fn is_root_pmem(&self, id: &ResourceId) -> bool {
        self.pmems.iter().any(|pmem| pmem.id == *id && pmem.root_device)
    }

    /// Forgets a drive that has gone.
    pub fn remove_drive(&mut self, id: &ResourceId) {
        self.drives.retain(|drive| drive.config.id != *id);
    }

    /// Forgets an interface that has gone; nobody reaches the metadata service by it any more.
    pub fn remove_net(&mut self, id: &ResourceId) {
        self.nets.retain(|net| net.config.id != *id);
        self.mmds = self.mmds.take().and_then(|mmds| mmds.without(id));
    }

    /// Forgets a persistent-memory device that has gone.
    pub fn remove_pmem(&mut self, id: &ResourceId) {
        self.pmems.retain(|pmem| pmem.id != *id);
    }

    /// Opens a tap and adds the interface, or replaces the one of the same id (whose own tap is released first).
    pub fn put_net(&mut self, config: NetConfig) -> Result<(), Error> {
        self.check_net(&config)?;
        let place = self.nets.iter().position(|n| n.config.id == config.id);
        match place {
            Some(at) => {
                let old = self.nets.remove(at);
                let net = if old.config.host_dev_name == config.host_dev_name {
                    let (net, outcome) = old.become_another(config);
                    net.into_iter().for_each(|net| self.nets.insert(at, net));
                    return outcome;
                } else {
                    match Net::open(config) {
                        Ok(net) => net,
                        Err(error) => {
                            self.nets.insert(at, old);
                            return Err(error);
                        }
                    }
                };
                self.nets.insert(at, net);
            }
            None => self.nets.push(Net::open(config)?),
        }
        Ok(())
    }
}
