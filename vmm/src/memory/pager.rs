//! Memory that a thread of ours brings from a file, page by page, as it is missed; and notes in which order that was.
//!
//! That is slower than a mapping of the file, so it is done once, to learn what a guest wants first: see [`crate::snapshot::WorkingSet`].

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use devices::event::{Interest, Source, Subscriber};
use devices::ram::GuestRegion;

use super::{MemoryError, Part};
use crate::exit::{ExitLatch, ExitReason};
use crate::sys::pages::PAGE_LEN;
use crate::sys::uffd::{Fault, Removals, Uffd};

/// Most pages that are noted: 4 GiB of memory.
const MOST: usize = 1 << 20;

/// A page that was wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touched {
    /// Where it is in the file, in bytes.
    pub offset: u64,
    /// To be written to.
    pub write: bool,
}

/// What was wanted so far, in that order.
#[derive(Debug, Default)]
pub struct Record {
    touched: Mutex<Vec<Touched>>,
    over: AtomicBool,
}

impl Record {
    fn note(&self, touched: Touched) {
        if self.over.load(Ordering::Relaxed) {
            return;
        }
        let mut all = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < MOST {
            all.push(touched);
        }
    }

    /// Nothing more is noted. What was.
    pub fn end(&self) -> Vec<Touched> {
        self.over.store(true, Ordering::Relaxed);
        std::mem::take(&mut *self.touched.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A stretch of memory and where it is in the file.
#[derive(Debug)]
struct Stretch {
    at: u64,
    len: u64,
    offset: u64,
}

/// Brings pages.
#[derive(Debug)]
pub struct Pager {
    uffd: Uffd,
    file: File,
    stretches: Vec<Stretch>,
    record: Arc<Record>,
}

impl Pager {
    pub(super) fn new(file: File, record: Arc<Record>) -> Result<Self, MemoryError> {
        let uffd = Uffd::new(Removals::Untold).map_err(|e| {
            MemoryError::Saved(format!(
                "a working set is recorded by userfaultfd, which is not to be had: {e} (give this user access to /dev/userfaultfd, or set vm.unprivileged_userfaultfd)"
            ))
        })?;
        Ok(Self { uffd, file, stretches: Vec::new(), record })
    }

    /// Brings the pages of this part, too.
    pub(super) fn add(&mut self, part: &Part, region: &GuestRegion) -> Result<(), MemoryError> {
        self.uffd.register(region).map_err(|e| MemoryError::Saved(format!("memory cannot be watched: {e}")))?;
        self.stretches.push(Stretch { at: region.as_ptr() as u64, len: part.len, offset: part.offset });
        Ok(())
    }

    /// For the thread that does it.
    pub fn at_work(self, exit: Arc<ExitLatch>) -> Arc<dyn Subscriber> {
        Arc::new(AtWork { pager: self, exit })
    }

    fn bring(&self, fault: Fault) -> io::Result<()> {
        let page = fault.address & !(PAGE_LEN as u64 - 1);
        let holds = |stretch: &&Stretch| page >= stretch.at && page - stretch.at < stretch.len;
        let stretch = self.stretches.iter().find(holds).ok_or(io::ErrorKind::NotFound)?;
        let offset = stretch.offset + (page - stretch.at);
        let mut bytes = [0; PAGE_LEN];
        self.file.read_exact_at(&mut bytes, offset)?;
        self.record.note(Touched { offset, write: fault.write });
        if bytes.iter().all(|byte| *byte == 0) {
            self.uffd.give_zeroes(page, PAGE_LEN as u64)
        } else {
            self.uffd.give(page, &bytes)
        }
    }
}

struct AtWork {
    pager: Pager,
    exit: Arc<ExitLatch>,
}

impl Subscriber for AtWork {
    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.pager.uffd.as_raw_fd(), interest: Interest::Readable, token: 0 }]
    }

    fn ready(&self, _token: u32) {
        loop {
            let brought = match self.pager.uffd.next_fault() {
                Ok(None) => return,
                Ok(Some(fault)) => self.pager.bring(fault),
                Err(error) => Err(error),
            };
            if let Err(error) = brought {
                // Whoever waits for the page waits for ever: the end of the process frees it.
                log::error!("The machine is lost: a page of the memory file cannot be had: {error}");
                log::logger().flush();
                self.exit.report(ExitReason::Lost(format!("a page of the memory file cannot be had: {error}")));
                std::process::exit(i32::from(ExitReason::Lost(String::new()).code()));
            }
        }
    }
}
