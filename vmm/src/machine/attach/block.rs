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
pub(super) fn attach(board: &mut Board<'_>, drive: &Drive, hub: Option<&Arc<UringHub>>) -> Result<(), Error> {
    let config = &drive.config;
    let name = DeviceName::Drive(config.id.clone());
    let device = open(drive, hub).map_err(|e| Error::host(Subject::Start, format!("{name}: {e}")))?;
    if config.is_root_device {
        let root = match &config.partuuid {
            Some(uuid) => Root::PartUuid(uuid.clone()),
            None => Root::Device("/dev/vda".to_owned()),
        };
        board.line.push_root(&root, config.is_read_only).map_err(|e| Error::invalid(Subject::Start, e))?;
    }
    let seat = device.uring_seat();
    let home = if seat.is_some() { Home::Uring } else { Home::Own };
    let cell = board.put(name, home, AnyDevice::Block(Box::new(device)))?;
    if let (Some(hub), Some(seat)) = (hub, seat) {
        hub.attach(seat, &cell);
    }
    Ok(())
}

fn open(drive: &Drive, hub: Option<&Arc<UringHub>>) -> std::io::Result<Block> {
    let engine = match (drive.config.io_engine, hub) {
        (IoEngine::Async, Some(hub)) => Engine::Async(hub.clone()),
        _ => Engine::Sync,
    };
    Block::new(BlockSpec {
        // A copy: if the start fails later, the plan still has its own.
        file: drive.file.try_clone()?,
        read_only: drive.config.is_read_only,
        writeback: drive.config.cache_type == CacheType::Writeback,
        engine,
        limits: drive.config.rate_limiter,
    })
}
