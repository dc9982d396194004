use std::path::PathBuf;

use devices::virtio::vhost_user::TAG_LEN;

use super::ResourceId;

/// Most rings of requests.
const MAX_QUEUES: u16 = 64;
/// Sizes of rings.
const QUEUE_SIZES: std::ops::RangeInclusive<u16> = 2..=1024;

/// Why a file system was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadFs {
    /// No tag, or one that does not fit.
    #[error("tag has {0} bytes: choose one of 1 to {TAG_LEN} bytes.")]
    TagLength(usize),
    /// A tag that would end earlier for the guest.
    #[error("tag holds a zero byte: leave it out.")]
    TagZero,
    /// No name for the socket.
    #[error("socket is empty: name the socket at which the backend listens.")]
    NoSocket,
    /// Too many rings, or none.
    #[error("num_queues is {0}: choose 1 to {MAX_QUEUES}.")]
    Queues(u16),
    /// Rings of another size than any may have.
    #[error("queue_size is {0}: choose a power of two from {min} to {max}.", min = QUEUE_SIZES.start(), max = QUEUE_SIZES.end())]
    QueueSize(u16),
}

/// A file system that another process serves (`PUT /fs/{id}`). Made only by [`FsConfig::new`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsConfig {
    id: ResourceId,
    tag: String,
    socket: PathBuf,
    num_queues: u16,
    queue_size: u16,
}

impl FsConfig {
    /// Rings of requests, unless told otherwise.
    pub const DEFAULT_QUEUES: u16 = 1;
    /// Their size.
    pub const DEFAULT_QUEUE_SIZE: u16 = 256;

    /// A file system that the guest mounts by `tag`, with so many rings of requests of this size; its backend listens at `socket`.
    pub fn new(id: ResourceId, tag: String, socket: PathBuf, num_queues: u16, queue_size: u16) -> Result<Self, BadFs> {
        if tag.is_empty() || tag.len() > TAG_LEN {
            return Err(BadFs::TagLength(tag.len()));
        }
        if tag.contains('\0') {
            return Err(BadFs::TagZero);
        }
        if socket.as_os_str().is_empty() {
            return Err(BadFs::NoSocket);
        }
        if num_queues == 0 || num_queues > MAX_QUEUES {
            return Err(BadFs::Queues(num_queues));
        }
        if !QUEUE_SIZES.contains(&queue_size) || !queue_size.is_power_of_two() {
            return Err(BadFs::QueueSize(queue_size));
        }
        Ok(Self { id, tag, socket, num_queues, queue_size })
    }

    /// Name of the device.
    pub fn id(&self) -> &ResourceId {
        &self.id
    }

    /// What the guest mounts.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Where the backend listens.
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Rings of requests; there is one more for urgent ones.
    pub fn num_queues(&self) -> u16 {
        self.num_queues
    }

    /// Size of each ring.
    pub fn queue_size(&self) -> u16 {
        self.queue_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_with_the_field_and_the_remedy() {
        let id = || ResourceId::try_from("share").unwrap();
        let new = |tag: &str, socket: &str, queues, size| {
            FsConfig::new(id(), tag.to_owned(), socket.into(), queues, size).map(|_| ()).map_err(|e| e.to_string())
        };
        assert_eq!(new(&"x".repeat(36), "s", 64, 1024), Ok(()));
        for (outcome, text) in [
            (new("", "s", 1, 256), "tag has 0 bytes: choose one of 1 to 36 bytes."),
            (new(&"x".repeat(37), "s", 1, 256), "tag has 37 bytes: choose one of 1 to 36 bytes."),
            (new("a\0b", "s", 1, 256), "tag holds a zero byte: leave it out."),
            (new("t", "", 1, 256), "socket is empty: name the socket at which the backend listens."),
            (new("t", "s", 0, 256), "num_queues is 0: choose 1 to 64."),
            (new("t", "s", 65, 256), "num_queues is 65: choose 1 to 64."),
            (new("t", "s", 1, 100), "queue_size is 100: choose a power of two from 2 to 1024."),
            (new("t", "s", 1, 2048), "queue_size is 2048: choose a power of two from 2 to 1024."),
        ] {
            assert_eq!(outcome, Err(text.to_owned()));
        }
    }
}
