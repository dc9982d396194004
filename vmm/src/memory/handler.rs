//! Guest memory that a page-fault handler brings: another process, reached by a Unix socket, that has the snapshot's memory.
//!
//! The handshake is v1's, to the byte: one message with a JSON array that says what is where, and the userfaultfd beside it. Nothing else is
//! ever sent. Handlers of others rely on it.

use std::fmt::Write;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use devices::event::{Interest, Source, Subscriber};
use devices::ram::GuestRam;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use vmm_sys_util::timerfd::TimerFd;

use super::{Layout, MemoryError};
use crate::config::HugePages;
use crate::exit::{ExitLatch, ExitReason};
use crate::sys::pages::PAGE_LEN;
use crate::sys::uffd::{self, Removals, Uffd};

/// How long the end in good order may take before the process ends without it.
const GOOD_ORDER: Duration = Duration::from_secs(1);

/// The same where the handler is there, and disks may be what takes so long.
const LONG_ORDER: Duration = Duration::from_secs(10);

/// How long a load may wait for the handler.
const LOAD_TIME: Duration = Duration::from_secs(15);

/// How often to look whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A handler that listens, and the layout of the memory that it is to bring.
#[derive(Debug)]
pub struct Handler {
    stream: UnixStream,
    layout: Layout,
}

/// What keeps memory coming.
#[derive(Debug)]
pub struct Faults {
    /// Open as long as the machine lives: without it, missing pages would be zeroes.
    _uffd: Uffd,
    /// Open as long as the machine lives: by its end the handler notices that of the machine.
    _stream: UnixStream,
    /// Readable when the handler has ended.
    end: Option<OwnedFd>,
}

impl Faults {
    /// Who sees to it that the machine ends when the handler has, or when it brings nothing.
    pub fn watch(&mut self, exit: Arc<ExitLatch>) -> io::Result<Arc<Watch>> {
        let mut time = TimerFd::new()?;
        time.reset(LOAD_TIME, None)?;
        let (over, loaded) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Arc::new(Watch { end: self.end.take(), time, exit, loaded, over }))
    }
}

/// Waits for the end of a handler, on a thread of its own: all others may wait for a page that nobody brings.
pub struct Watch {
    /// Readable when the handler has ended. `None` if it cannot be seen.
    end: Option<OwnedFd>,
    /// Rings when the load should be over.
    time: TimerFd,
    exit: Arc<ExitLatch>,
    loaded: AtomicBool,
    /// The machine has ended in good order.
    over: AtomicBool,
}

const END: u32 = 0;
const TIME: u32 = 1;
const EXIT: u32 = 2;

impl Watch {
    /// The machine is there: from now on a handler may take its time.
    pub fn machine_is_loaded(&self) {
        self.loaded.store(true, Ordering::Relaxed);
    }

    /// Gives the end in good order its time. If a thread waits for memory there is none.
    fn wait_for_the_end(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        let code = self.exit.reason().map_or(1, ExitReason::code);
        let reason = self.exit.reason().map_or_else(String::new, |reason| format!("{reason}. "));
        log::error!("The microVM ended: {reason}It does not end in good order, because a thread waits for memory.");
        log::logger().flush();
        std::process::exit(i32::from(code));
    }

    fn lose(&self, why: &str) {
        self.exit.report(ExitReason::Lost(why.to_owned()));
        self.wait_for_the_end(GOOD_ORDER);
    }

    /// The machine has ended, and nobody waits for memory any more.
    pub fn machine_is_gone(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Subscriber for Watch {
    fn sources(&self) -> Vec<Source> {
        let readable = |fd, token| Source { fd, interest: Interest::Readable, token };
        let end = self.end.as_ref().map(|end| readable(end.as_raw_fd(), END));
        let others = [readable(self.time.as_raw_fd(), TIME), readable(self.exit.wake().as_raw_fd(), EXIT)];
        end.into_iter().chain(others).collect()
    }

    fn ready(&self, token: u32) {
        match token {
            END => self.lose("the page-fault handler has ended, and with it all memory that it had not brought yet"),
            TIME if !self.loaded.load(Ordering::Relaxed) => {
                let seconds = LOAD_TIME.as_secs();
                self.lose(&format!("the page-fault handler has not brought in {seconds} s what the load waits for"));
            }
            EXIT => self.wait_for_the_end(LONG_ORDER),
            _ => {}
        }
    }
}

impl Handler {
    /// Connects to the handler's socket.
    pub fn connect(path: &Path, layout: Layout) -> Result<Self, MemoryError> {
        let stream = UnixStream::connect(path)
            .map_err(|e| MemoryError::Handler(format!("Failed to connect to UDS Unix stream: {e}")))?;
        Ok(Self { stream, layout })
    }

    /// Hands memory that was just mapped over to it.
    pub(super) fn hand_over(&self, memory: &GuestRam, huge_pages: HugePages) -> Result<Faults, MemoryError> {
        let fail = |what: &str, e: io::Error| MemoryError::Handler(format!("{what}: {e}"));
        let uffd = Uffd::new(Removals::Told).map_err(|e| {
            fail("Failed to create userfaultfd (give this user access to /dev/userfaultfd, or set vm.unprivileged_userfaultfd)", e)
        })?;
        let page_len = match huge_pages {
            HugePages::None | HugePages::Transparent => PAGE_LEN,
            HugePages::Hugetlbfs2M => 2 << 20,
        };
        let mut message = String::from("[");
        for part in self.layout.parts() {
            let region = part.region(memory).ok_or_else(|| {
                let (start, len) = (part.start, part.len);
                MemoryError::Handler(format!(
                    "the snapshot has memory at {start:#x}+{len:#x}, and the machine does not"
                ))
            })?;
            uffd.register(region).map_err(|e| fail("Failed to register memory with userfaultfd", e))?;
            let comma = if message.len() > 1 { "," } else { "" };
            // The last one is in bytes too: older handlers read it by that name.
            let _ = write!(
                message,
                r#"{comma}{{"base_host_virt_addr":{},"size":{},"offset":{},"page_size":{page_len},"page_size_kib":{page_len}}}"#,
                region.as_ptr() as u64,
                part.len,
                part.offset
            );
        }
        message.push(']');
        let sent = self.stream.send_with_fd(message.as_bytes(), uffd.as_raw_fd());
        match sent.map_err(|e| fail("Failed to send file descriptor", io::Error::from_raw_os_error(e.errno())))? {
            count if count == message.len() => {}
            count => return Err(MemoryError::Handler(format!("{count} of {} bytes were sent", message.len()))),
        }
        let stream = self.stream.try_clone().map_err(|e| fail("Failed to keep the connection", e))?;
        Ok(Faults { end: uffd::end_of_peer(&stream), _uffd: uffd, _stream: stream })
    }
}
