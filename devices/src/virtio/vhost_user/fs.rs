//! A file system behind a backend (virtio 1.3 §5.11): one ring for urgent requests, and others. The configuration space is ours.

use super::peer::Wishes;

/// Most bytes of a tag (§5.11.4).
pub const TAG_LEN: usize = 36;
/// Length of the configuration space.
const CONFIG_LEN: usize = TAG_LEN + 4;

/// What of the device is not the backend's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsModel {
    tag: String,
    request_queues: u16,
}

impl FsModel {
    /// A file system that the guest finds by its tag, of at most [`TAG_LEN`] bytes.
    pub fn new(tag: String, request_queues: u16) -> Self {
        Self { tag, request_queues }
    }

    /// What is wanted of a backend for so many rings of requests.
    pub fn wishes(request_queues: u16) -> Wishes {
        Wishes { queues: request_queues.saturating_add(1), config_len: 0 }
    }

    pub(super) fn config(&self) -> [u8; CONFIG_LEN] {
        let mut config = [0; CONFIG_LEN];
        let (tag, queues) = config.split_at_mut(TAG_LEN);
        for (to, from) in tag.iter_mut().zip(self.tag.bytes()) {
            *to = from;
        }
        queues.copy_from_slice(&u32::from(self.request_queues).to_le_bytes());
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_padded_and_may_fill_its_place() {
        let config = FsModel::new("share".to_owned(), 3).config();
        assert_eq!(config[..6], *b"share\0");
        assert_eq!(config[36..], [3, 0, 0, 0]);
        let full = "x".repeat(TAG_LEN);
        assert_eq!(FsModel::new(full.clone(), 1).config()[..36], *full.as_bytes());
    }
}
