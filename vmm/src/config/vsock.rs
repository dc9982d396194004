use std::path::{Path, PathBuf};

/// Why a socket device was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadVsock {
    /// A context id that no guest may have.
    #[error("guest_cid {0} is reserved: choose one from 3 to 4294967294.")]
    ReservedCid(u32),
    /// No name for the host socket.
    #[error("uds_path is empty: name the host socket to create.")]
    NoPath,
}

/// The socket device (`PUT /vsock`). Made only by [`VsockConfig::new`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockConfig {
    guest_cid: u32,
    uds_path: PathBuf,
}

impl VsockConfig {
    /// `guest_cid` is 3 to 2^32 - 2: 0 and 1 are reserved, 2 is the host, 2^32 - 1 is "any" (virtio 1.3 §5.10.4).
    pub fn new(guest_cid: u32, uds_path: PathBuf) -> Result<Self, BadVsock> {
        if guest_cid < 3 || guest_cid == u32::MAX {
            return Err(BadVsock::ReservedCid(guest_cid));
        }
        // To bind an empty path would succeed: Linux invents an abstract address.
        if uds_path.as_os_str().is_empty() {
            return Err(BadVsock::NoPath);
        }
        Ok(Self { guest_cid, uds_path })
    }

    /// Context id of the guest.
    pub fn guest_cid(&self) -> u32 {
        self.guest_cid
    }

    /// Host socket that host programs connect to; `<uds_path>_<port>` is where guest connections go.
    pub fn uds_path(&self) -> &Path {
        &self.uds_path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_cids_and_an_empty_path_are_refused() {
        for cid in [0, 1, 2, u32::MAX] {
            assert_eq!(VsockConfig::new(cid, "/s".into()), Err(BadVsock::ReservedCid(cid)));
        }
        for cid in [3, u32::MAX - 1] {
            assert_eq!(VsockConfig::new(cid, "/s".into()).unwrap().guest_cid(), cid);
        }
        assert_eq!(VsockConfig::new(3, "".into()), Err(BadVsock::NoPath));
    }
}
