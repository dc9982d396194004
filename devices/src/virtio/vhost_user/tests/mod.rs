//! The frontend against backends of the test's own, good ones and others.

mod backend;
mod greeting;
mod life;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::message::Request;
use super::*;
use crate::event::Source;
use crate::virtio::device::{Doorbells, Rings, VirtioDevice};
use crate::virtio::queue::RingError;
use crate::virtio::registers::{F_EVENT_IDX, F_VERSION_1};
use crate::virtio::test_driver::TestDriver;
use backend::{Backend, Quirk, Traits};

const PATIENCE: Duration = Duration::from_secs(10);
const FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX;

/// A drive, its backend and its driver.
struct Rig {
    backend: Backend,
    device: VhostUser,
    driver: TestDriver,
    rings: Rings,
    bell: EventFd,
    end: EventFd,
}

impl Rig {
    fn new(traits: Traits) -> Self {
        let backend = Backend::new(traits);
        let peer = Peer::meet(&backend.path, BlockModel::WISHES).unwrap();
        let file = Arc::new(tempfile::tempfile().unwrap());
        let regions = vec![SharedRegion { start: 0, len: TestDriver::RAM_LEN as u64, offset: 0x1000 }];
        let spec = FrontendSpec {
            name: "drive".to_owned(),
            socket: backend.path.clone(),
            wishes: BlockModel::WISHES,
            queue_size: 256,
            peer,
            memory: SharedMemory::new(file, regions).unwrap(),
        };
        let mut device = VhostUser::new(Model::Block(BlockModel { writeback: true }), spec).unwrap();
        let bell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let Doorbells::Taken(end) = device.take_doorbells(std::slice::from_ref(&bell)).unwrap() else { panic!() };
        let driver = TestDriver::new(1, 128);
        let rings = driver.rings(true, false);
        backend.until(Request::SetBackendReqFd);
        Self { backend, device, driver, rings, bell, end }
    }

    /// With a driver that is set up.
    fn at_work(traits: Traits) -> Self {
        let mut rig = Self::new(traits);
        rig.device.activate(FEATURES, &mut rig.rings).unwrap();
        rig.turn_until(|_| true).unwrap();
        rig
    }

    /// What the event loop does, until something has come about.
    #[track_caller]
    fn turn_until(&mut self, done: impl Fn(&VhostUser) -> bool) -> Result<(), RingError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let sources = self.device.sources();
            let mut fds: Vec<libc::pollfd> = sources
                .iter()
                .map(|Source { fd, .. }| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 })
                .collect();
            // SAFETY: as many entries as are said.
            unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, 10) };
            for (source, _) in sources.iter().zip(&fds).filter(|(_, fd)| fd.revents != 0) {
                self.device.on_source(source.token, &mut self.rings)?;
            }
            if done(&self.device) {
                return Ok(());
            }
            assert!(Instant::now() < deadline, "nothing came of it");
        }
    }

    fn losses(&self) -> u64 {
        self.device.metrics().connection_losses.get()
    }

    /// Until a backend was found again so many times.
    #[track_caller]
    fn until_back(&mut self, times: u64) {
        self.turn_until(|device| device.metrics().reconnect_count.get() >= times).unwrap();
    }
}

fn inode(fd: &impl AsRawFd) -> u64 {
    // SAFETY: a struct of the right type to write to.
    let mut about: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    assert_eq!(unsafe { libc::fstat(fd.as_raw_fd(), &raw mut about) }, 0);
    about.st_ino
}
