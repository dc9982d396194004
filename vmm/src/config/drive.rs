use std::path::{Path, PathBuf};

use super::{QueueCount, RateLimits, ResourceId};

/// When a guest's FLUSH reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheType {
    /// FLUSH is not offered to the guest; the host page cache decides.
    #[default]
    Unsafe,
    /// FLUSH is offered and becomes `fdatasync`.
    Writeback,
}

/// How requests reach the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoEngine {
    /// One `preadv`/`pwritev` per request on the device's thread.
    #[default]
    Sync,
    /// io_uring.
    Async,
}

/// What is behind a drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriveBackend {
    /// A file or block device, always raw.
    File(PathBuf),
    /// A process that serves the drive (vhost-user) and listens at this socket. It decides what of a drive is said for a file: whether it
    /// can be written, how requests reach it and how many.
    Socket(PathBuf),
}

impl DriveBackend {
    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Socket(path) => path,
        }
    }
}

/// One block device (`PUT /drives/{id}`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveConfig {
    /// Name of the drive.
    pub id: ResourceId,
    /// What is behind it.
    pub backend: DriveBackend,
    /// The drive the guest mounts as `/`.
    pub is_root_device: bool,
    /// Partition of the root drive, for `root=PARTUUID=`.
    pub partuuid: Option<String>,
    /// Refuse guest writes.
    pub is_read_only: bool,
    /// See [`CacheType`].
    pub cache_type: CacheType,
    /// See [`IoEngine`].
    pub io_engine: IoEngine,
    /// Bytes and requests per time.
    pub rate_limiter: RateLimits,
    /// Queues, if so many were asked for. See [`super::Transport::queues`].
    pub num_queues: Option<QueueCount>,
}
