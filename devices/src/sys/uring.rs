//! A restricted io_uring: reads, writes, flushes and allocation changes on files from its own table, and nothing else.
//!
//! Whatever gains control of the ring's memory can do no more than that: the kernel refuses other operations and plain descriptors
//! (`IORING_REGISTER_RESTRICTIONS`), which a seccomp filter cannot see.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use io_uring::register::Restriction;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use vmm_sys_util::eventfd::EventFd;

use super::iovec::GuestIoVec;

/// Submission entries: a queue's worth, so that a visit to a drive needs one system call.
const SUBMISSIONS: u32 = 256;
/// Room for the vectors of one submission: eight for each entry. More are submitted in several goes.
const VECTORS: usize = 2048;
/// Kernel threads for what cannot be done without waiting, per task that submits: bounded and unbounded work.
const MAX_WORKERS: [u32; 2] = [8, 2];

/// `IORING_REGISTER_FILES_UPDATE` and `IORING_ENTER_GETEVENTS` (include/uapi/linux/io_uring.h).
const REGISTER_FILES_UPDATE: u8 = 6;
const ENTER_GETEVENTS: libc::c_uint = 1;
/// `IOSQE_FIXED_FILE`, bit 0 of an entry's flags.
const SQE_FIXED_FILE: u8 = 1;

/// What the kernel is asked to do. Offsets and lengths are in bytes.
#[derive(Debug, Clone, Copy)]
pub enum Op<'a> {
    /// `preadv`.
    Read {
        /// Where in the file.
        offset: u64,
        /// What to fill.
        pieces: &'a [GuestIoVec],
    },
    /// `pwritev`.
    Write {
        /// Where in the file.
        offset: u64,
        /// What to write.
        pieces: &'a [GuestIoVec],
    },
    /// `fdatasync`.
    SyncData,
    /// `fallocate`.
    Allocate {
        /// As for the system call.
        mode: i32,
        /// Where in the file.
        offset: u64,
        /// How much.
        len: u64,
    },
}

/// The ring does not take the entry now: flush it, or wait for completions.
#[derive(Debug)]
pub struct Full;

/// The ring. The memory behind pushed pieces must stay mapped until their completion was popped: see [`GuestIoVec`].
pub struct Ring {
    ring: IoUring,
    /// Vectors of the entries that the kernel has not seen yet. Fixed in place; the kernel copies them when it takes the entry
    /// (`IORING_FEAT_SUBMIT_STABLE`).
    vectors: Box<[GuestIoVec]>,
    used: usize,
}

impl Ring {
    /// A ring with a table of `files` empty slots and room for `completions` results, which adds to `event` at every completion.
    ///
    /// # Errors
    /// EPERM where io_uring is switched off (`kernel.io_uring_disabled`) or filtered, ENOSYS where it does not exist, EINVAL on kernels
    /// before 5.19.
    pub fn new(files: u32, completions: u32, event: &EventFd) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_r_disabled()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(completions.max(SUBMISSIONS).next_power_of_two())
            .build(SUBMISSIONS)?;
        if !ring.params().is_feature_submit_stable() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let submitter = ring.submitter();
        submitter.register_files_sparse(files)?;
        submitter.register_eventfd(event.as_raw_fd())?;
        submitter.register_iowq_max_workers(&mut MAX_WORKERS.clone())?;
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_op(opcode::Fallocate::CODE),
            Restriction::sqe_flags_required(SQE_FIXED_FILE),
            Restriction::register_op(REGISTER_FILES_UPDATE),
        ])?;
        submitter.register_enable_rings()?;
        Ok(Self { ring, vectors: vec![GuestIoVec::empty(); VECTORS].into(), used: 0 })
    }

    /// Puts a file into a slot of the table, or empties the slot.
    pub fn set_file(&self, slot: u32, file: Option<&File>) -> io::Result<()> {
        let fd: RawFd = file.map_or(-1, AsRawFd::as_raw_fd);
        self.ring.submitter().register_files_update(slot, &[fd]).map(drop)
    }

    /// Adds an entry for the file in `slot`, to be submitted by the next [`Self::flush`].
    pub fn push(&mut self, slot: u32, op: Op<'_>, user_data: u64) -> Result<(), Full> {
        let file = Fixed(slot);
        let mut vectors = 0;
        let entry = match op {
            Op::Read { offset, pieces } => {
                let (start, count) = self.stage(pieces)?;
                vectors = pieces.len();
                opcode::Readv::new(file, start, count).offset(offset).build()
            }
            Op::Write { offset, pieces } => {
                let (start, count) = self.stage(pieces)?;
                vectors = pieces.len();
                opcode::Writev::new(file, start, count).offset(offset).build()
            }
            Op::SyncData => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
            Op::Allocate { mode, offset, len } => opcode::Fallocate::new(file, len).offset(offset).mode(mode).build(),
        };
        self.push_entry(entry.user_data(user_data))?;
        self.used = self.used.saturating_add(vectors);
        Ok(())
    }

    fn push_entry(&mut self, entry: squeue::Entry) -> Result<(), Full> {
        // SAFETY: the vectors lie in `self.vectors`, which neither moves nor is reused before the kernel has taken the entry; the memory
        // they describe stays mapped until the completion (contract of the type).
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| Full)
    }

    /// Copies vectors to where they stay until the kernel has seen them.
    fn stage(&mut self, pieces: &[GuestIoVec]) -> Result<(*const libc::iovec, u32), Full> {
        let end = self.used.checked_add(pieces.len()).ok_or(Full)?;
        let room = self.vectors.get_mut(self.used..end).ok_or(Full)?;
        room.copy_from_slice(pieces);
        Ok((GuestIoVec::as_iovecs(room).as_ptr(), u32::try_from(pieces.len()).map_err(|_| Full)?))
    }

    /// Whether entries wait for [`Self::flush`].
    pub fn has_unsubmitted(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Hands the entries to the kernel: one system call unless it takes only some of them. On an error, entries may be left for a later
    /// try.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.has_unsubmitted() {
            match self.ring.submit() {
                Ok(0) => return Err(io::ErrorKind::WouldBlock.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.used = 0;
        Ok(())
    }

    /// The next result: the entry's user data and what its system call would have returned, errors as negative numbers.
    pub fn pop(&mut self) -> Option<(u64, i32)> {
        self.ring.completion().next().map(|entry| (entry.user_data(), entry.result()))
    }

    /// Has `work` done without the event being raised for what completes meanwhile. The caller looks for completions afterwards.
    pub fn quietly<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        self.ring.completion().disable_eventfd();
        let outcome = work(self);
        self.ring.completion().enable_eventfd();
        // The kernel posts a completion before it looks whether the event is wanted; the next look for completions must come after.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        outcome
    }

    /// Makes the kernel hand over results that did not fit into the completion queue. `true` if there were any.
    pub fn fetch_overflow(&mut self) -> bool {
        self.ring.submission().cq_overflow() && self.ring.submit().is_ok()
    }

    /// A way to wait for results without borrowing the ring.
    pub fn waiter(&self) -> io::Result<Waiter> {
        // SAFETY: F_DUPFD_CLOEXEC makes a new descriptor of one we own.
        let fd = unsafe { libc::fcntl(self.ring.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody else.
        Ok(Waiter(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) }))
    }
}

/// Waits for results of a [`Ring`], which others may use meanwhile.
pub struct Waiter(OwnedFd);

impl Waiter {
    /// Waits until there is a result to pop, counted from the ones popped when the call begins; may also return for no reason.
    pub fn wait(&self) {
        // SAFETY: submits nothing and passes no pointers. An error (EINTR) is one of the returns for no reason.
        unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.0.as_raw_fd(),
                0,
                1,
                ENTER_GETEVENTS,
                std::ptr::null::<libc::sigset_t>(),
                0,
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn ring() -> (Ring, EventFd) {
        let event = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).unwrap();
        (Ring::new(2, 16, &event).unwrap(), event)
    }

    fn result(ring: &mut Ring) -> (u64, i32) {
        ring.flush().unwrap();
        let waiter = ring.waiter().unwrap();
        loop {
            match ring.pop() {
                Some(result) => return result,
                None => waiter.wait(),
            }
        }
    }

    #[test]
    fn works_on_its_own_files_only() {
        let (mut ring, event) = ring();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"0123456789", 0).unwrap();
        let memory = crate::ram::GuestRam::from_ranges(&[(vm_memory::GuestAddress(0), 4096)]).unwrap();
        let piece = crate::ram::piece(&memory, vm_memory::GuestAddress(0), 4).unwrap();
        let read = Op::Read { offset: 3, pieces: &[piece] };
        ring.push(1, read, 7).unwrap();
        assert_eq!(result(&mut ring), (7, -libc::EBADF), "an empty slot");
        ring.set_file(1, Some(&file)).unwrap();
        ring.push(1, read, 8).unwrap();
        assert_eq!(result(&mut ring), (8, 4));
        let mut bytes = [0; 4];
        piece.copy_to(&mut bytes);
        assert_eq!(&bytes, b"3456");
        assert!(event.read().unwrap() >= 2);
        ring.set_file(1, None).unwrap();
        ring.push(1, read, 9).unwrap();
        assert_eq!(result(&mut ring), (9, -libc::EBADF));
    }

    /// U1: other operations, and files by descriptor, are refused by the kernel.
    #[test]
    fn restrictions_hold() {
        let (mut ring, _event) = ring();
        let file = tempfile::tempfile().unwrap();
        ring.set_file(0, Some(&file)).unwrap();
        let by_descriptor = opcode::Fsync::new(io_uring::types::Fd(file.as_raw_fd())).build().user_data(1);
        ring.push_entry(by_descriptor).unwrap();
        assert_eq!(result(&mut ring), (1, -libc::EACCES));
        let close = opcode::Close::new(Fixed(0)).build().user_data(2);
        ring.push_entry(close).unwrap();
        assert_eq!(result(&mut ring), (2, -libc::EACCES));
        let nop = opcode::Nop::new().build().user_data(3).flags(squeue::Flags::FIXED_FILE);
        ring.push_entry(nop).unwrap();
        assert_eq!(result(&mut ring), (3, -libc::EACCES));
        assert_eq!(ring.ring.submitter().unregister_files().unwrap_err().raw_os_error(), Some(libc::EACCES));
        ring.push(0, Op::SyncData, 4).unwrap();
        assert_eq!(result(&mut ring), (4, 0));
    }

    #[test]
    fn a_full_ring_says_so() {
        let (mut ring, _event) = ring();
        let file = tempfile::tempfile().unwrap();
        ring.set_file(0, Some(&file)).unwrap();
        let pieces = vec![GuestIoVec::empty(); VECTORS / 4 + 1];
        for i in 0..3 {
            ring.push(0, Op::Write { offset: 0, pieces: &pieces }, i).unwrap();
        }
        assert!(ring.push(0, Op::Write { offset: 0, pieces: &pieces }, 3).is_err(), "no room for vectors");
        for i in 3..u64::from(SUBMISSIONS) {
            ring.push(0, Op::SyncData, i).unwrap();
        }
        assert!(ring.push(0, Op::SyncData, 0).is_err(), "no room for entries");
        let mut seen: Vec<u64> = (0..SUBMISSIONS).map(|_| result(&mut ring)).map(|(tag, _)| tag).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..u64::from(SUBMISSIONS)).collect::<Vec<_>>());
        ring.push(0, Op::Write { offset: 0, pieces: &pieces }, 3).unwrap();
    }
}
