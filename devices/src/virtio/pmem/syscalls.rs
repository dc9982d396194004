//! System calls of persistent memory. See [`crate::syscalls`].

use crate::syscalls::{Call, Needs, SET_TIMER};

const SYNC_DATA: Call = Call::any(libc::SYS_fdatasync, "what the guest flushed becomes durable");

/// The guest reads and writes the file by itself.
pub const NEEDS: Needs = Needs {
    event_loop: &[SYNC_DATA, Call::any(libc::SYS_fstat, "whether the file became shorter"), SET_TIMER],
    vcpu: &[],
    end: &[SYNC_DATA],
};
