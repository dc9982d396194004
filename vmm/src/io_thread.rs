//! A second event loop, for devices whose work may block: a drive whose host file answers after seconds keeps its own thread waiting, and
//! nobody else.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use devices::event::Subscriber;
use vmm_sys_util::eventfd::EventFd;

use crate::confine::{Fence, Gate};
use crate::event_loop::EventLoop;
use crate::exit::{ExitLatch, ExitReason};
use crate::threads::{self, Role};

type Job = Box<dyn FnOnce(&mut EventLoop) + Send>;

const BELL: u32 = 0;
/// Enough for a system call's depth; of it only what is touched costs memory.
const STACK_LEN: usize = 256 << 10;

/// A thread with an event loop of its own. Dropping it ends the thread after the work at hand.
pub struct IoThread {
    /// `None` once the thread is told to end.
    jobs: Option<Sender<Job>>,
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    role: Role,
}

impl IoThread {
    /// Starts a thread that serves `subscribers` behind `fence`.
    pub fn start(
        fence: Fence,
        gate: &Arc<Gate>,
        subscribers: Vec<Arc<dyn Subscriber>>,
        exit: Arc<ExitLatch>,
    ) -> io::Result<Self> {
        let (jobs, receiver) = channel();
        let bell = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        let mut events = EventLoop::new()?;
        events.watch(bell.as_raw_fd(), BELL)?;
        for subscriber in subscribers {
            events.add(subscriber)?;
        }
        let inner = bell.clone();
        let role = fence.role();
        let thread = threads::spawn_fenced(fence, gate, STACK_LEN, move || live(events, &receiver, &inner, &exit))?;
        Ok(Self { jobs: Some(jobs), bell, thread: Some(thread), role })
    }

    /// Runs `job` on the thread, between two events and after the jobs given before.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        self.send(move |_| job());
    }

    /// What the thread is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// It serves no more whoever has one of these descriptors among his sources.
    pub fn forget(&self, fds: Vec<RawFd>) {
        self.send(move |events| events.forget(&fds));
    }

    fn send(&self, job: impl FnOnce(&mut EventLoop) + Send + 'static) {
        if let Some(jobs) = &self.jobs {
            // The thread ends early only if the machine is lost, which everyone hears of from the exit latch.
            let _ = jobs.send(Box::new(job));
            let _ = self.bell.write(1);
        }
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.jobs = None;
        let _ = self.bell.write(1);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has already been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn live(mut events: EventLoop, jobs: &Receiver<Job>, bell: &EventFd, exit: &ExitLatch) {
    use std::sync::mpsc::TryRecvError;
    loop {
        let mut rung = false;
        if let Err(error) = events.turn(|_| rung = true) {
            return exit.report(ExitReason::Lost(format!("the event loop of an io thread failed: {error}")));
        }
        if !rung {
            continue;
        }
        // Cleared before the jobs are taken: one that arrives later rings again.
        let _ = bell.read();
        loop {
            match jobs.try_recv() {
                Ok(job) => job(&mut events),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex, PoisonError};

    use devices::event::{Interest, Source};

    use super::*;

    struct Slow {
        bell: EventFd,
        gate: Arc<(Mutex<bool>, Condvar)>,
        served: Sender<()>,
    }

    impl Subscriber for Slow {
        fn sources(&self) -> Vec<Source> {
            vec![Source { fd: self.bell.as_raw_fd(), interest: Interest::Readable, token: 0 }]
        }

        fn ready(&self, _token: u32) {
            let (open, changed) = &*self.gate;
            let closed = open.lock().unwrap_or_else(PoisonError::into_inner);
            drop(changed.wait_while(closed, |open| !*open).unwrap());
            self.served.send(()).unwrap();
        }
    }

    #[test]
    fn jobs_wait_for_the_subscriber_at_work_and_nobody_else_does() {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let (served, hears) = channel();
        let slow = Arc::new(Slow { bell: EventFd::new(libc::EFD_NONBLOCK).unwrap(), gate: gate.clone(), served });
        let exit = Arc::new(ExitLatch::new().unwrap());
        let fenced = Arc::default();
        let fence = |index| Fence::none(Role::Io(index));
        let thread = IoThread::start(fence(0), &fenced, vec![slow.clone()], exit.clone()).unwrap();
        let other = IoThread::start(fence(1), &fenced, Vec::new(), exit).unwrap();
        fenced.wait().unwrap();
        slow.bell.write(1).unwrap();
        let (sender, order) = channel();
        for n in 0..3 {
            let sender = sender.clone();
            thread.run(move || sender.send(n).unwrap());
        }
        let (sender, free) = channel();
        other.run(move || sender.send(()).unwrap());
        free.recv().unwrap();
        *gate.0.lock().unwrap() = true;
        gate.1.notify_all();
        hears.recv().unwrap();
        assert_eq!(order.iter().take(3).collect::<Vec<_>>(), [0, 1, 2]);
        drop(thread);
    }
}
