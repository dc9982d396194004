use std::path::PathBuf;

use super::BucketSpec;

/// Where the serial console goes (`PUT /serial`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SerialConfig {
    /// File, FIFO or terminal to write to; `None` means standard output.
    pub serial_out_path: Option<PathBuf>,
    /// Bytes of output per time; what is above it is dropped.
    pub rate_limiter: Option<BucketSpec>,
}
