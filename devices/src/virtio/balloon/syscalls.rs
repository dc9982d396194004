//! System calls of the balloon. See [`crate::syscalls`].

use crate::syscalls::{Call, GIVE_BACK, GIVE_BACK_SHARED, Needs, SET_TIMER};

/// Pages go, statistics are asked for by a timer.
pub const NEEDS: Needs = Needs {
    event_loop: &[
        GIVE_BACK,
        GIVE_BACK_SHARED,
        Call::any(libc::SYS_statx, "whether others can find the file that memory belongs to"),
        Call::any(libc::SYS_fstat, "the same on old kernels"),
        Call::any(libc::SYS_fstatfs, "how large its pages are"),
        SET_TIMER,
    ],
    vcpu: &[SET_TIMER],
    end: &[],
};
