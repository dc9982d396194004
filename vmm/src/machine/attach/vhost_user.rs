use devices::virtio::any::AnyDevice;
use devices::virtio::queue::MAX_SIZE;
use devices::virtio::vhost_user::{
    BlockModel, FrontendSpec, FsModel, Model, Peer, SharedMemory, SharedRegion, VhostUser,
};

use super::{Board, block};
use crate::blueprint::{Drive, Fs};
use crate::config::CacheType;
use crate::error::{Error, Subject};
use crate::machine::roster::{DeviceName, Home};
use crate::memory::{Memory, Source};

/// Attaches a drive whose backend was met.
pub(super) fn attach_drive(board: &mut Board<'_>, drive: &Drive, peer: &Peer) -> Result<(), Error> {
    let config = &drive.config;
    block::push_root(board, drive)?;
    let name = DeviceName::VhostUserDrive(config.id.clone());
    let model = BlockModel { writeback: config.cache_type == CacheType::Writeback };
    let spec = |peer, memory| FrontendSpec {
        name: name.to_string(),
        socket: config.backend.path().to_owned(),
        wishes: BlockModel::WISHES,
        queue_size: MAX_SIZE,
        peer,
        memory,
    };
    attach(board, name.clone(), Model::Block(model), peer, spec)
}

/// Attaches a file system.
pub(super) fn attach_fs(board: &mut Board<'_>, fs: &Fs) -> Result<(), Error> {
    let Fs { config, peer } = fs;
    let name = DeviceName::Fs(config.id().clone());
    let spec = |peer, memory| FrontendSpec {
        name: name.to_string(),
        socket: config.socket().to_owned(),
        wishes: FsModel::wishes(config.num_queues()),
        queue_size: config.queue_size(),
        peer,
        memory,
    };
    let model = FsModel::new(config.tag().to_owned(), config.num_queues());
    attach(board, name.clone(), Model::Fs(model), peer, spec)
}

fn attach(
    board: &mut Board<'_>,
    name: DeviceName,
    model: Model,
    peer: &Peer,
    spec: impl FnOnce(Peer, SharedMemory) -> FrontendSpec,
) -> Result<(), Error> {
    let fail = |e: &dyn std::fmt::Display| Error::host(Subject::Start, format!("{name}: {e}"));
    let memory = shared_memory(board.memory).map_err(|e| fail(&e))?;
    // A copy: if the start fails later, the plan still has its own.
    let peer = peer.try_clone().map_err(|e| fail(&e))?;
    let device = VhostUser::new(model, spec(peer, memory)).map_err(|e| fail(&e))?;
    // To pause it is to wait for the backend.
    board.put(name, Home::Own, AnyDevice::VhostUser(Box::new(device)))?;
    Ok(())
}

/// Guest memory as backends get it.
fn shared_memory(memory: &Memory) -> Result<SharedMemory, String> {
    let Source::Memfd(file) = &memory.source else {
        return Err("guest memory is not in a file that could be shared".to_owned());
    };
    let regions = memory.layout();
    let regions = regions.parts().iter();
    let regions = regions.map(|part| SharedRegion { start: part.start, len: part.len, offset: part.offset });
    SharedMemory::new(file.clone(), regions.collect()).map_err(|e| e.to_string())
}
