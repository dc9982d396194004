use std::fs::File;
use std::sync::Arc;

use devices::virtio::any::AnyDevice;
use devices::virtio::block::{Block, BlockSpec, Engine, UringHub};

use super::Board;
use crate::blueprint::Drive;
use crate::boot::cmdline::Root;
use crate::config::{CacheType, IoEngine};
use crate::error::{Error, Subject};
use crate::machine::roster::{DeviceName, Home};

/// Attaches one drive. Its first place makes it `/dev/vda`.
pub(super) fn attach(
    board: &mut Board<'_>,
    drive: &Drive,
    file: &File,
    vcpus: u8,
    hubs: &[Arc<UringHub>],
) -> Result<(), Error> {
    let config = &drive.config;
    let name = DeviceName::Drive(config.id.clone());
    let queues = board.transport.queues(config.num_queues, vcpus);
    // Each lane has the ring of the thread that serves it.
    let threads = board.spread.threads(queues.into());
    let hub = |lane: u8| match config.io_engine {
        IoEngine::Async => usize::from(lane).checked_rem(threads).and_then(|thread| hubs.get(thread)),
        IoEngine::Sync => None,
    };
    let engine = |lane| hub(lane).map_or(Engine::Sync, |hub| Engine::Async(hub.clone()));
    let fail = |e| Error::host(Subject::Start, format!("{name}: {e}"));
    let device = open(drive, file, queues, engine(0)).map_err(fail)?;
    let others = (1..queues).map(|lane| device.lane(engine(lane))).collect::<Result<Vec<_>, _>>().map_err(fail)?;
    push_root(board, drive)?;
    let seats: Vec<Option<usize>> = std::iter::once(&device).chain(&others).map(Block::uring_seat).collect();
    let home = if hub(0).is_some() { Home::Uring } else { Home::Own };
    let others = others.into_iter().map(|lane| AnyDevice::Block(Box::new(lane))).collect();
    let cell = board.put_lanes(name, home, AnyDevice::Block(Box::new(device)), others)?;
    for (lane, seat) in (0..queues).zip(seats) {
        if let (Some(hub), Some(seat)) = (hub(lane), seat) {
            hub.attach(seat, &cell, lane.into());
        }
    }
    Ok(())
}

/// Tells the guest's kernel, if this is its root.
pub(super) fn push_root(board: &mut Board<'_>, drive: &Drive) -> Result<(), Error> {
    let config = &drive.config;
    if !config.is_root_device {
        return Ok(());
    }
    let root = match &config.partuuid {
        Some(uuid) => Root::PartUuid(uuid.clone()),
        None => Root::Device("/dev/vda".to_owned()),
    };
    board.line.push_root(&root, drive.is_read_only()).map_err(|e| Error::invalid(Subject::Start, e))
}

fn open(drive: &Drive, file: &File, queues: u8, engine: Engine) -> std::io::Result<Block> {
    Block::new(BlockSpec {
        // A copy: if the start fails later, the plan still has its own.
        file: file.try_clone()?,
        read_only: drive.config.is_read_only,
        writeback: drive.config.cache_type == CacheType::Writeback,
        engine,
        queues: queues.into(),
        limits: drive.config.rate_limiter,
    })
}
