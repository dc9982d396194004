//! The VMM thread's state and its loop.

use std::io;
use std::path::PathBuf;

use super::handle::Mailbox;
use crate::blueprint::Plan;
use crate::config::{InstanceId, ResourceId};
use crate::error::{Error, Kind, Subject};
use crate::exit::ExitReason;
use crate::lifecycle::{Phase, permit};
use crate::requests::Request;

/// What a VMM is started with, fixed for its life.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the machine.
    pub id: InstanceId,
    /// Give the guest the boot-timer byte at 0xC000_0000 and log when it is written.
    pub boot_timer: bool,
}

/// The state of the VMM thread. Reached by others only through requests.
pub struct Vmm {
    settings: Settings,
    mailbox: Mailbox,
    phase: Phase,
    plan: Plan,
}

impl Vmm {
    pub(super) fn new(settings: Settings, mailbox: Mailbox) -> io::Result<Self> {
        Ok(Self { settings, mailbox, phase: Phase::Configuring, plan: Plan::default() })
    }

    pub(super) fn run(mut self) -> ExitReason {
        loop {
            let mut fds = [libc::pollfd {
                fd: std::os::fd::AsRawFd::as_raw_fd(self.mailbox.bell()),
                events: libc::POLLIN,
                revents: 0,
            }];
            // SAFETY: one valid pollfd.
            unsafe { libc::poll(fds.as_mut_ptr(), 1, -1) };
            let _ = self.mailbox.bell().read();
            while let Some(job) = self.mailbox.next() {
                job(&mut self);
            }
        }
    }

    /// Judges a request by the phase table and applies it.
    pub(super) fn serve<R: Request>(&mut self, request: R) -> Result<R::Reply, Error> {
        permit(self.phase, R::ASK)?;
        request.apply(self)
    }

    /// What this VMM was started with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where the machine is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The plan of the machine.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) fn plan_mut(&mut self) -> &mut Plan {
        &mut self.plan
    }

    pub(crate) fn start(&mut self) -> Result<(), Error> {
        Err(Error::new(Kind::Unsupported, Subject::Start, "not written yet"))
    }

    pub(crate) fn pause(&mut self) -> Result<(), Error> {
        Ok(())
    }

    pub(crate) fn resume(&mut self) -> Result<(), Error> {
        Ok(())
    }

    pub(crate) fn flush_metrics(&mut self) -> Result<(), Error> {
        Ok(())
    }

    pub(crate) fn send_ctrl_alt_del(&mut self) -> Result<(), Error> {
        Ok(())
    }

    pub(crate) fn patch_drive(&mut self, _id: &ResourceId, _path: Option<PathBuf>) -> Result<(), Error> {
        Ok(())
    }

    pub(crate) fn patch_net(&mut self, _id: &ResourceId) -> Result<(), Error> {
        Ok(())
    }
}
