//! Attaching virtio devices: from a plan's opened resources to live cells on the MMIO bus.

use std::sync::Arc;

use devices::bus::BusBuilder;
use devices::legacy::ioapic::IoApic;
use devices::ram::GuestRam;
use devices::virtio::any::AnyDevice;
use devices::virtio::block::{Block, BlockSpec, Engine};
use devices::virtio::cell::VirtioCell;
use devices::virtio::net::{Net, NetSpec};
use devices::virtio::transport::mmio::{MmioIrq, MmioWindow, WINDOW_LEN};
use kvm_ioctls::VmFd;
use vm_memory::GuestAddress;

use super::assemble::irq_line;
use super::placement::Placement;
use crate::arch::acpi::VirtioNode;
use crate::blueprint::{Drive, Plan};
use crate::boot::CommandLine;
use crate::boot::cmdline::Root;
use crate::config::{CacheType, ResourceId};
use crate::error::{Error, Subject};
use crate::kvm::Doorbell;

/// The virtio devices of a machine.
#[derive(Default)]
pub(super) struct Attached {
    pub(super) cells: Vec<Arc<VirtioCell>>,
    pub(super) drives: Vec<(ResourceId, Arc<VirtioCell>)>,
    pub(super) nodes: Vec<VirtioNode>,
}

/// Where devices are attached.
struct Board<'a> {
    vm: &'a Arc<VmFd>,
    ram: &'a GuestRam,
    ioapic: &'a Arc<IoApic>,
    mmio: &'a mut BusBuilder,
    line: &'a mut CommandLine,
    placement: Placement,
    nodes: Vec<VirtioNode>,
}

impl Board<'_> {
    /// Gives a device a window and an interrupt, and describes it to the guest.
    fn put(&mut self, name: String, device: AnyDevice) -> Result<Arc<VirtioCell>, Error> {
        let fail = |e: &dyn std::fmt::Display| Error::host(Subject::Start, format!("{name}: {e}"));
        let place = self.placement.next().map_err(|e| fail(&e))?;
        let irq = Arc::new(MmioIrq::new(irq_line(self.vm, place.gsi)?));
        let repeat = irq.clone();
        self.ioapic.connect(place.gsi, move || repeat.repeat());
        let doorbell = Arc::new(Doorbell::new(self.vm.clone(), place.window));
        let cell =
            VirtioCell::new(name.clone(), device, self.ram.clone(), irq.clone(), doorbell).map_err(|e| fail(&e))?;
        let cell = Arc::new(cell);
        let window = Arc::new(MmioWindow::new(cell.clone(), irq));
        self.mmio.insert(place.window, WINDOW_LEN, window).map_err(|e| fail(&e))?;
        self.line.push_virtio_mmio(GuestAddress(place.window), place.gsi).map_err(|e| fail(&e))?;
        let base = u32::try_from(place.window).map_err(|e| fail(&e))?;
        self.nodes.push(VirtioNode { base, len: WINDOW_LEN as u32, gsi: place.gsi });
        Ok(cell)
    }
}

fn block(drive: &Drive) -> std::io::Result<Block> {
    let engine = Engine::Sync;
    Block::new(BlockSpec {
        // A copy: if the start fails later, the plan still has its own.
        file: drive.file.try_clone()?,
        read_only: drive.config.is_read_only,
        writeback: drive.config.cache_type == CacheType::Writeback,
        engine,
    })
}

impl Attached {
    /// Attaches drives, root first, then network interfaces.
    pub(super) fn attach(
        plan: &Plan,
        vm: &Arc<VmFd>,
        ram: &GuestRam,
        ioapic: &Arc<IoApic>,
        mmio: &mut BusBuilder,
        line: &mut CommandLine,
    ) -> Result<Self, Error> {
        let mut attached = Self::default();
        let mut board = Board { vm, ram, ioapic, mmio, line, placement: Placement::default(), nodes: Vec::new() };
        for drive in plan.drives() {
            let config = &drive.config;
            let name = format!("drive {}", config.id);
            let device = block(drive).map_err(|e| Error::host(Subject::Start, format!("{name}: {e}")))?;
            if config.is_root_device {
                let root = match &config.partuuid {
                    Some(uuid) => Root::PartUuid(uuid.clone()),
                    None => Root::Device("/dev/vda".to_owned()),
                };
                board.line.push_root(&root, config.is_read_only).map_err(|e| Error::invalid(Subject::Start, e))?;
            }
            let cell = board.put(name, AnyDevice::Block(Box::new(device)))?;
            attached.drives.push((config.id.clone(), cell.clone()));
            attached.cells.push(cell);
        }
        for net in plan.nets() {
            let name = format!("network interface {}", net.config.id);
            let fail = |e: std::io::Error| Error::host(Subject::Start, format!("{name}: {e}"));
            let spec = NetSpec {
                tap: net.tap.try_clone().map_err(fail)?,
                mac: net.config.guest_mac.map(|mac| mac.bytes()),
                mtu: net.config.mtu,
            };
            let device = Net::new(spec).map_err(fail)?;
            attached.cells.push(board.put(name, AnyDevice::Net(Box::new(device)))?);
        }
        attached.nodes = board.nodes;
        Ok(attached)
    }
}
