use std::sync::Arc;

use devices::virtio::any::AnyDevice;
use devices::virtio::pmem::{Pmem, PmemSpec, WriteTrap};

use super::{Board, Places};
use crate::boot::cmdline::Root;
use crate::config::PmemConfig;
use crate::error::{Error, Subject};
use crate::machine::roster::{DeviceName, Home};
use crate::memory::PmemRegion;

/// Attaches the persistent-memory device whose place among them is `index`: the guest calls it `/dev/pmemINDEX`.
pub(super) fn attach(
    board: &mut Board<'_>,
    index: usize,
    config: &PmemConfig,
    region: &PmemRegion,
) -> Result<(), Error> {
    let name = DeviceName::Pmem(config.id.clone());
    let fail = |e: &dyn std::fmt::Display| Error::host(Subject::Start, format!("{name}: {e}"));
    let (device, trap) = make(config, region).map_err(|e| fail(&e))?;
    if let Some(trap) = trap {
        match &board.places {
            Places::Mmio(_) => board.mmio.insert(region.start.0, region.len, trap).map_err(|e| fail(&e))?,
            Places::Pci(pci, _) => pci.traps.set(region.start.0, region.len, trap),
        }
    }
    if config.root_device {
        let root = Root::Device(format!("/dev/pmem{index}"));
        board.line.push_root(&root, config.read_only).map_err(|e| Error::invalid(Subject::Start, e))?;
    }
    board.put(name, HOME, device)?;
    Ok(())
}

/// A flush waits for the host's disk.
pub(in crate::machine) const HOME: Home = Home::Own;

/// Makes the device, and what hears of writes to one that is read-only.
pub(in crate::machine) fn make(
    config: &PmemConfig,
    region: &PmemRegion,
) -> std::io::Result<(AnyDevice, Option<Arc<WriteTrap>>)> {
    let device = Pmem::new(PmemSpec {
        file: region.file.try_clone()?,
        read_only: config.read_only,
        start: region.start.0,
        len: region.len,
        limits: config.rate_limiter,
    })?;
    let name = DeviceName::Pmem(config.id.clone()).to_string();
    let trap = config.read_only.then(|| Arc::new(WriteTrap::new(name, device.metrics())));
    Ok((AnyDevice::Pmem(Box::new(device)), trap))
}
