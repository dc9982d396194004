//! The plan of a machine: configuration values together with the host resources they name, already opened.
//!
//! Files and taps are opened when they are configured, so that a wrong path is refused by the request that names it. Rules that
//! need more than one object (one root drive, no MAC twice) live here. The plan is consumed by `machine::assemble`.

mod boot;
mod drive;
mod file;
mod net;
mod serial;
mod vsock;

pub use boot::BootSource;
pub use drive::Drive;
pub use file::{FileError, open_disk, open_image};
pub use net::Net;
pub use serial::SerialOutput;
pub use vsock::Vsock;

use crate::config::{
    BalloonConfig, DriveConfig, EntropyConfig, FullConfig, MachineConfig, MemoryHotplugConfig, MmdsConfig, NetConfig,
    PmemConfig, ResourceId,
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
    /// The metadata service.
    pub mmds: Option<MmdsConfig>,
    drives: Vec<Drive>,
    nets: Vec<Net>,
    pmems: Vec<PmemConfig>,
}

impl Plan {
    /// The configuration behind the plan, as `GET /vm/config` shows it.
    pub fn config(&self) -> FullConfig {
        FullConfig {
            boot_source: self.boot_source.as_ref().map(|b| b.config.clone()),
            drives: self.drives.iter().map(|d| d.config.clone()).collect(),
            machine: self.machine.clone(),
            nets: self.nets.iter().map(|n| n.config.clone()).collect(),
            balloon: self.balloon.clone(),
            vsock: self.vsock.as_ref().map(|v| v.config.clone()),
            entropy: self.entropy.clone(),
            pmems: self.pmems.clone(),
            memory_hotplug: self.memory_hotplug,
            mmds: self.mmds.clone(),
        }
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

    /// The persistent-memory devices, root first. Their files are opened at the start.
    pub fn pmems(&self) -> &[PmemConfig] {
        &self.pmems
    }

    /// Opens a drive and adds it, or replaces the one of the same id. The root drive comes first, as `/dev/vda`.
    pub fn put_drive(&mut self, config: DriveConfig) -> Result<(), Error> {
        let other_root = self.drives.iter().any(|d| d.config.is_root_device && d.config.id != config.id);
        if config.is_root_device && other_root {
            return Err(Error::invalid(Subject::Drive, "A root block device already exists!"));
        }
        let drive = Drive::open(config)?;
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

    /// Opens a tap and adds the interface, or replaces the one of the same id (whose own tap is released first).
    pub fn put_net(&mut self, config: NetConfig) -> Result<(), Error> {
        if let Some(mac) = config.guest_mac
            && self.nets.iter().any(|n| n.config.id != config.id && n.config.guest_mac == Some(mac))
        {
            return Err(Error::invalid(Subject::Network, format!("The MAC address is already in use: {mac}")));
        }
        let place = self.nets.iter().position(|n| n.config.id == config.id);
        match place {
            Some(at) => {
                let old = self.nets.remove(at);
                let net = if old.config.host_dev_name == config.host_dev_name {
                    // Same tap: keep it open rather than close and reopen it, which for a temporary tap would destroy it.
                    Net { config, tap: old.tap }
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
