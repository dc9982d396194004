use std::sync::Arc;

use devices::virtio::any::AnyDevice;
use devices::virtio::pmem::{Pmem, PmemSpec, WriteTrap};

use super::Board;
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
    let device = Pmem::new(PmemSpec {
        file: region.file.try_clone().map_err(|e| fail(&e))?,
        read_only: config.read_only,
        start: region.start.0,
        len: region.len,
        limits: config.rate_limiter,
    })
    .map_err(|e| fail(&e))?;
    if config.read_only {
        let trap = Arc::new(WriteTrap::new(name.to_string(), device.metrics()));
        board.mmio.insert(region.start.0, region.len, trap).map_err(|e| fail(&e))?;
    }
    if config.root_device {
        let root = Root::Device(format!("/dev/pmem{index}"));
        board.line.push_root(&root, config.read_only).map_err(|e| Error::invalid(Subject::Start, e))?;
    }
    // A flush waits for the host's disk.
    board.put(name, Home::Own, AnyDevice::Pmem(Box::new(device)))?;
    Ok(())
}
