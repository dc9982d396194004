use std::path::PathBuf;

/// Where the serial console goes (`PUT /serial`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SerialConfig {
    /// File, FIFO or terminal to write to; `None` means standard output.
    pub serial_out_path: Option<PathBuf>,
}
