use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::config::{FsConfig, ResourceId};
use vmm::{Error, Subject};

/// Body of `PUT /fs/{id}`, and its echo.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fs {
    pub(crate) fs_id: String,
    pub(crate) tag: String,
    pub(crate) socket: PathBuf,
    pub(crate) num_queues: Option<u16>,
    pub(crate) queue_size: Option<u16>,
}

impl TryFrom<Fs> for FsConfig {
    type Error = Error;

    fn try_from(wire: Fs) -> Result<Self, Error> {
        let id = ResourceId::try_from(wire.fs_id.as_str()).map_err(|e| Error::invalid(Subject::None, e))?;
        let queues = wire.num_queues.unwrap_or(Self::DEFAULT_QUEUES);
        let size = wire.queue_size.unwrap_or(Self::DEFAULT_QUEUE_SIZE);
        Self::new(id, wire.tag, wire.socket, queues, size).map_err(|e| Error::invalid(Subject::Fs, e))
    }
}

impl From<FsConfig> for Fs {
    fn from(config: FsConfig) -> Self {
        Self {
            fs_id: config.id().as_str().to_owned(),
            tag: config.tag().to_owned(),
            socket: config.socket().to_owned(),
            num_queues: Some(config.num_queues()),
            queue_size: Some(config.queue_size()),
        }
    }
}
