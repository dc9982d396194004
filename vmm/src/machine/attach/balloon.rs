use std::time::Duration;

use devices::virtio::any::AnyDevice;
use devices::virtio::balloon::{Balloon, BalloonSpec};

use super::Board;
use crate::config::BalloonConfig;
use crate::error::{Error, Subject};
use crate::machine::roster::{DeviceName, Home};

/// Attaches the balloon.
pub(super) fn attach(board: &mut Board<'_>, config: &BalloonConfig) -> Result<(), Error> {
    let name = DeviceName::Balloon;
    let interval_s = config.stats_polling_interval_s;
    let spec = BalloonSpec {
        target_pages: config.target_pages(),
        deflate_on_oom: config.deflate_on_oom,
        stats_interval: (interval_s > 0).then(|| Duration::from_secs(interval_s.into())),
        hinting: config.free_page_hinting,
        reporting: config.free_page_reporting,
    };
    let device = Balloon::new(spec).map_err(|e| Error::host(Subject::Start, format!("{name}: {e}")))?;
    // To give memory back takes time, but nothing to wait for: the device does a little at each visit.
    board.put(name, Home::Vmm, AnyDevice::Balloon(Box::new(device)))?;
    Ok(())
}
