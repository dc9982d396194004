//! How everyone else reaches the VMM thread: a channel of requests and an eventfd that says "look".

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, mpsc};

use vmm_sys_util::eventfd::EventFd;

use super::vmm::{Settings, Vmm};
use crate::error::Error;
use crate::exit::ExitReason;
use crate::requests::Submit;
use crate::threads::{self, Role};

/// Of a VMM thread, if it is not the main one.
const STACK_LEN: usize = 2 << 20;

/// A request with its reply callback, ready to run on the VMM thread.
pub(super) type Job = Box<dyn FnOnce(&mut Vmm) + Send>;

/// The VMM thread's end of the channel.
pub(super) struct Mailbox {
    jobs: Receiver<Job>,
    bell: Arc<EventFd>,
}

/// Asks the VMM thread to do things. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    jobs: Sender<Job>,
    bell: Arc<EventFd>,
    has_machine: Arc<AtomicBool>,
}

impl Handle {
    /// Whether there is, or was, a machine: one that was started or loaded.
    pub fn has_machine(&self) -> bool {
        self.has_machine.load(Ordering::Relaxed)
    }

    /// There is one now.
    pub(super) fn note_machine(&self) {
        self.has_machine.store(true, Ordering::Relaxed);
    }

    /// Sends `request`; `reply` runs on the VMM thread when it is done, so it must not block. If the VMM has ended, `reply` is
    /// dropped without being called.
    pub fn submit<R: Submit>(&self, request: R, reply: impl FnOnce(Result<R::Reply, Error>) + Send + 'static) {
        self.send(move |vmm| vmm.serve(request, Box::new(reply)));
    }

    /// Runs `job` on the VMM thread, after those sent before.
    pub(super) fn send(&self, job: impl FnOnce(&mut Vmm) + Send + 'static) {
        if self.jobs.send(Box::new(job)).is_ok() {
            // The counter can only overflow after 2^64 unread requests.
            let _ = self.bell.write(1);
        }
    }

    /// Sends `request` and waits for the answer.
    pub fn call<R: Submit>(&self, request: R) -> Result<R::Reply, Error> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.submit(request, move |reply| {
            let _ = sender.send(reply);
        });
        receiver.recv().unwrap_or_else(|_| Err(Error::gone()))
    }
}

impl Mailbox {
    pub(super) fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// The next request, if there is one.
    pub(super) fn next(&self) -> Option<Job> {
        self.jobs.try_recv().ok()
    }
}

/// Makes a VMM, which serves once [`Vmm::run`] is called, and how others reach it.
///
/// SIGTERM and SIGINT are taken over by the VMM from now on.
pub fn create(settings: Settings) -> io::Result<(Vmm, Handle)> {
    let (sender, receiver) = channel();
    let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
    let mailbox = Mailbox { jobs: receiver, bell: bell.clone() };
    let handle = Handle { jobs: sender, bell, has_machine: Arc::default() };
    let vmm = Vmm::new(settings, mailbox, handle.clone())?;
    Ok((vmm, handle))
}

/// Makes a VMM and runs it on a thread of its own. `on_exit` runs on it, last, with the reason why the machine ended. See [`create`].
pub fn launch(settings: Settings, on_exit: impl FnOnce(ExitReason) + Send + 'static) -> io::Result<Handle> {
    let (vmm, handle) = create(settings)?;
    threads::spawn(Role::Vmm, STACK_LEN, move || on_exit(vmm.run()))?;
    Ok(handle)
}
