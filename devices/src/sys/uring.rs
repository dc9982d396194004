//! One io_uring, restricted to what drives need.
//!
//! The ring can only read, write, sync and allocate, and only files of its own registered table: what a taken-over thread could do with
//! it is what it could do with the drives anyway. (Seccomp does not see submissions, so the ring itself must be tame.)

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode};
use vmm_sys_util::eventfd::EventFd;

use super::iovec::GuestIoVec;

/// `IORING_REGISTER_FILES_UPDATE` (include/uapi/linux/io_uring.h): the one registration that stays allowed, for swapped files.
const REGISTER_FILES_UPDATE: u8 = 6;
/// `IOSQE_FIXED_FILE`.
const FIXED_FILE: u8 = 1;
/// Kernel workers for work that cannot be done without blocking, of each of its two kinds.
const WORKERS: u32 = 8;
/// Most completions the kernel keeps ready; more are kept aside (`IORING_FEAT_NODROP`).
const MAX_COMPLETIONS: u32 = 4096;

/// Work for the ring. Lengths and offsets are in bytes.
#[derive(Debug, Clone, Copy)]
pub enum Op<'a> {
    /// `preadv`.
    Read {
        /// Where in the file.
        offset: u64,
        /// Where to.
        pieces: &'a [GuestIoVec],
    },
    /// `pwritev`.
    Write {
        /// Where in the file.
        offset: u64,
        /// Where from.
        pieces: &'a [GuestIoVec],
    },
    /// `fdatasync`.
    Sync,
    /// `fallocate`.
    Allocate {
        /// `FALLOC_FL_*`.
        mode: i32,
        /// Where in the file.
        offset: u64,
        /// How much.
        len: u64,
    },
}

/// A restricted ring.
pub struct Ring {
    ring: IoUring,
    bell: EventFd,
}

impl Ring {
    /// A ring with room for `entries` submissions and `files` registered files, none of them set. Fails where the host has no io_uring
    /// or does not allow it.
    pub fn new(entries: u32, files: usize) -> io::Result<Self> {
        let completions =
            entries.saturating_mul(u32::try_from(files).unwrap_or(u32::MAX)).clamp(entries, MAX_COMPLETIONS);
        let ring = IoUring::builder().setup_cqsize(completions).setup_clamp().setup_r_disabled().build(entries)?;
        let needed = [
            (ring.params().is_feature_nodrop(), "IORING_FEAT_NODROP"),
            (ring.params().is_feature_submit_stable(), "IORING_FEAT_SUBMIT_STABLE"),
        ];
        if let Some((_, name)) = needed.iter().find(|(there, _)| !there) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("this kernel's io_uring lacks {name}")));
        }
        let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let submitter = ring.submitter();
        submitter.register_files(&vec![-1; files])?;
        submitter.register_eventfd(bell.as_raw_fd())?;
        // Since Linux 5.15; without it the kernel's own limit holds.
        let _ = submitter.register_iowq_max_workers(&mut [WORKERS; 2]);
        let codes = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        let mut restrictions: Vec<Restriction> = codes.iter().map(|code| Restriction::sqe_op(*code)).collect();
        restrictions.push(Restriction::register_op(REGISTER_FILES_UPDATE));
        restrictions.push(Restriction::sqe_flags_required(FIXED_FILE));
        submitter.register_restrictions(&mut restrictions)?;
        submitter.register_enable_rings()?;
        Ok(Self { ring, bell })
    }

    /// Becomes readable when something completes while nobody is in [`Self::quietly`].
    pub fn bell(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// Puts `file`, or nothing, into place `index` of the file table. Nothing that uses the place may be in flight.
    pub fn set_file(&self, index: u32, file: Option<&File>) -> io::Result<()> {
        let fd = file.map_or(-1, AsRawFd::as_raw_fd);
        self.ring.submitter().register_files_update(index, &[fd]).map(drop)
    }

    /// Queues work on file `index`, to be told by `tag`. It goes to the kernel with the next [`Self::submit`], or at once if the queue is
    /// full.
    ///
    /// The pieces, and the memory they point at, must stay as they are until the work completes: the caller owns the request until then.
    pub fn push(&mut self, index: u32, tag: u64, op: Op<'_>) -> io::Result<()> {
        let file = Fixed(index);
        let entry: Entry = match op {
            Op::Read { offset, pieces: [piece] } => {
                opcode::Read::new(file, piece.as_ptr(), len32(piece)).offset(offset).build()
            }
            Op::Write { offset, pieces: [piece] } => {
                opcode::Write::new(file, piece.as_ptr(), len32(piece)).offset(offset).build()
            }
            Op::Read { offset, pieces } => {
                let vectors = GuestIoVec::as_iovecs(pieces);
                opcode::Readv::new(file, vectors.as_ptr(), count32(vectors)).offset(offset).build()
            }
            Op::Write { offset, pieces } => {
                let vectors = GuestIoVec::as_iovecs(pieces);
                opcode::Writev::new(file, vectors.as_ptr(), count32(vectors)).offset(offset).build()
            }
            Op::Sync => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
            Op::Allocate { mode, offset, len } => opcode::Fallocate::new(file, len).offset(offset).mode(mode).build(),
        };
        let entry = entry.flags(Flags::FIXED_FILE).user_data(tag);
        for _ in 0..2 {
            // SAFETY: the entry's pointers are guest memory, which the owner of the request keeps mapped, and (until the submission, which
            // copies them) the caller's vector of pieces, which it keeps until completion.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.submit(0)?;
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Hands queued work to the kernel and waits for `completions` of any work.
    pub fn submit(&mut self, completions: usize) -> io::Result<()> {
        if completions == 0 && self.ring.submission().is_empty() {
            return Ok(());
        }
        loop {
            match self.ring.submit_and_wait(completions) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Completions are kept aside and must be taken first.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                other => return other.map(drop),
            }
        }
    }

    /// Does something without the bell being rung for what completes meanwhile; the caller looks at the completions itself, the last time
    /// after this returns.
    pub fn quietly<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        self.ring.completion().disable_eventfd();
        let outcome = work(self);
        self.ring.completion().enable_eventfd();
        outcome
    }

    /// Calls `each` with tag and result (negative: an error number) of everything that completed.
    pub fn completions(&mut self, mut each: impl FnMut(u64, i32)) {
        loop {
            let mut some = false;
            for entry in self.ring.completion() {
                some = true;
                each(entry.user_data(), entry.result());
            }
            if !some {
                return;
            }
        }
    }
}

fn len32(piece: &GuestIoVec) -> u32 {
    // A descriptor's length is 32 bits.
    u32::try_from(piece.len()).unwrap_or(u32::MAX)
}

fn count32(vectors: &[libc::iovec]) -> u32 {
    u32::try_from(vectors.len()).unwrap_or(u32::MAX)
}
