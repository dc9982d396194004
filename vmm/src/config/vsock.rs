use std::path::PathBuf;

/// The socket device (`PUT /vsock`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockConfig {
    /// Context id of the guest, 3 to 2^32 - 2.
    pub guest_cid: u32,
    /// Host socket that host programs connect to; `<uds_path>_<port>` is where guest connections go.
    pub uds_path: PathBuf,
}
