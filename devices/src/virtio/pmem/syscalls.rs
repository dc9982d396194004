//! System calls of persistent memory. See [`crate::syscalls`].

use crate::syscalls::{Arg, BLKGETSIZE64, Call, Needs, SET_TIMER};

const SYNC_DATA: Call = Call::any(libc::SYS_fdatasync, "what the guest flushed becomes durable");

/// The guest reads and writes the file by itself.
pub const NEEDS: Needs = Needs {
    event_loop: &[SYNC_DATA, SET_TIMER],
    vcpu: &[],
    end: &[
        SYNC_DATA,
        Call::any(libc::SYS_statx, "whether the file became shorter"),
        Call::any(libc::SYS_fstat, "the same on old kernels"),
        Call::with(libc::SYS_ioctl, &[Arg::is(1, BLKGETSIZE64)], "the same of a block device"),
    ],
};
