use devices::virtio::any::AnyDevice;
use devices::virtio::rng::{Rng, RngSpec};

use super::Board;
use crate::config::EntropyConfig;
use crate::error::{Error, Subject};
use crate::machine::roster::{DeviceName, Home};

/// Attaches the entropy device.
pub(super) fn attach(board: &mut Board<'_>, config: &EntropyConfig) -> Result<(), Error> {
    let name = DeviceName::Rng;
    let spec = RngSpec { limits: config.rate_limiter };
    let device = Rng::new(spec).map_err(|e| Error::host(Subject::Start, format!("{name}: {e}")))?;
    board.put(name, Home::Vmm, AnyDevice::Rng(Box::new(device)))?;
    Ok(())
}
