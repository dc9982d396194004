//! Meeting the processes that serve devices, before there is a machine: on a thread for the occasion, since they may take their time.

use crate::actor::Vmm;
use crate::blueprint::{Drive, Fs, Plan};
use crate::config::{DriveConfig, FsConfig};
use crate::error::{Error, Subject};
use crate::lifecycle::{Ask, permit};
use crate::requests::Answer;
use crate::threads::{self, Role};

/// Enough for a conversation.
const STACK_LEN: usize = 256 << 10;

impl Vmm {
    /// Meets the backend of a drive, then adds the drive.
    pub(crate) fn meet_drive(&mut self, config: DriveConfig, answer: Answer<()>) {
        if let Err(refusal) = self.plan().check_drive(&config) {
            return answer(Err(refusal));
        }
        match self.plan_mut().drive_mut(&config.id).and_then(|drive| drive.met_again(&config)) {
            // Most backends serve one connection only: it goes on.
            Some(drive) => answer(self.plan_mut().add_drive(drive)),
            None => self.meet(answer, move || Drive::open(config), Plan::add_drive),
        }
    }

    /// Meets the backend of a file system, then adds the file system.
    pub(crate) fn meet_fs(&mut self, config: FsConfig, answer: Answer<()>) {
        if let Err(refusal) = self.plan().check_fs(&config) {
            return answer(Err(refusal));
        }
        let old = self.plan().file_systems().iter().find(|fs| fs.config.id() == config.id());
        match old.and_then(|fs| fs.met_again(&config)) {
            Some(fs) => answer(self.plan_mut().add_fs(fs)),
            None => self.meet(answer, move || Fs::open(config), Plan::add_fs),
        }
    }

    /// Has `open` done elsewhere, and comes back here to `add` what came of it, if that is still allowed.
    fn meet<T: Send + 'static>(
        &mut self,
        answer: Answer<()>,
        open: impl FnOnce() -> Result<T, Error> + Send + 'static,
        add: impl FnOnce(&mut Plan, T) -> Result<(), Error> + Send + 'static,
    ) {
        let handle = self.handle();
        let started = threads::spawn(Role::Files, STACK_LEN, move || {
            let opened = open();
            handle.send(move |vmm| {
                let outcome = permit(vmm.phase, Ask::Configure).map_err(Error::from).and(opened);
                answer(outcome.and_then(|opened| add(vmm.plan_mut(), opened)));
            });
        });
        if let Err(error) = started {
            // The answer went with the thread that is not: whoever waits hears that there is none.
            log::error!("{}", Error::host(Subject::Internal, format!("cannot start a thread: {error}")));
        }
    }
}
