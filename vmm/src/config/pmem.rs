use std::path::PathBuf;

use super::{RateLimits, ResourceId};

/// One persistent-memory device (`PUT /pmem/{id}`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PmemConfig {
    /// Name of the device.
    pub id: ResourceId,
    /// Backing file.
    pub path_on_host: PathBuf,
    /// The device the guest mounts as `/`.
    pub root_device: bool,
    /// The guest may not write; enforced by a read-only memory slot.
    pub read_only: bool,
    /// Flushes per time.
    pub rate_limiter: RateLimits,
}
