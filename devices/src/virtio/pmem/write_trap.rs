//! Where a guest's writes to read-only memory end.

use std::sync::Arc;

use super::PmemMetrics;
use crate::bus::BusDevice;

/// Stands on the bus at the addresses of a read-only region. KVM serves reads from the region's memory; only writes come here, and are
/// counted and ignored.
pub struct WriteTrap {
    name: String,
    metrics: Arc<PmemMetrics>,
}

impl WriteTrap {
    /// For the device called `name`.
    pub fn new(name: String, metrics: Arc<PmemMetrics>) -> Self {
        Self { name, metrics }
    }
}

impl BusDevice for WriteTrap {
    /// Only an instruction that KVM must emulate and that reads and writes at once could come here. There is nothing to see but the bus.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.metrics.refused_writes_count.inc();
        crate::guest_warn!(
            "{}: a write of {} bytes at {offset:#x} was ignored: it is read-only",
            self.name,
            data.len()
        );
    }
}
