use std::fs::File;
use std::sync::Arc;

use devices::virtio::any::AnyDevice;
use devices::virtio::block::{Block, BlockSpec, Engine, UringHub};
use devices::virtio::cell::VirtioCell;

use super::{Board, Lanes};
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
    let name = DeviceName::Drive(drive.config.id.clone());
    let queues = board.transport.queues(drive.config.num_queues, vcpus);
    let threads = board.spread.threads(queues.into());
    let fail = |e| Error::host(Subject::Start, format!("{name}: {e}"));
    let made = Made::of(drive, file, queues, threads, hubs).map_err(fail)?;
    push_root(board, drive)?;
    let Made { lanes: Lanes { first, others, home }, seats } = made;
    let cell = board.put_lanes(name, home, first, others)?;
    seats.attach(&cell);
    Ok(())
}

/// A drive that was made, and where its lanes sit on io_urings.
pub(in crate::machine) struct Made {
    pub(in crate::machine) lanes: Lanes,
    pub(in crate::machine) seats: Seats,
}

/// Which lane sits where on which ring.
pub(in crate::machine) struct Seats(Vec<(Arc<UringHub>, usize)>);

impl Seats {
    /// Has the lanes visited when their work completes.
    pub(in crate::machine) fn attach(&self, cell: &Arc<VirtioCell>) {
        for (lane, (hub, seat)) in self.0.iter().enumerate() {
            hub.attach(*seat, cell, lane);
        }
    }
}

impl Made {
    /// Of a drive with so many queues that so many threads serve; `hubs` are the threads' rings, if it is to use them.
    pub(in crate::machine) fn of(
        drive: &Drive,
        file: &File,
        queues: u8,
        threads: usize,
        hubs: &[Arc<UringHub>],
    ) -> std::io::Result<Self> {
        // Each lane has the ring of the thread that serves it.
        let hub = |lane: u8| match drive.config.io_engine {
            IoEngine::Async => usize::from(lane).checked_rem(threads).and_then(|thread| hubs.get(thread)),
            IoEngine::Sync => None,
        };
        let engine = |lane| hub(lane).map_or(Engine::Sync, |hub| Engine::Async(hub.clone()));
        let first = open(drive, file, queues, engine(0))?;
        let others = (1..queues).map(|lane| first.lane(engine(lane))).collect::<Result<Vec<_>, _>>()?;
        let seats = (0..queues).zip(std::iter::once(&first).chain(&others));
        let seats = Seats(seats.filter_map(|(lane, part)| Some((hub(lane)?.clone(), part.uring_seat()?))).collect());
        let home = if hub(0).is_some() { Home::Uring } else { Home::Own };
        let lane = |part| AnyDevice::Block(Box::new(part));
        Ok(Self { lanes: Lanes { first: lane(first), others: others.into_iter().map(lane).collect(), home }, seats })
    }
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
