//! System calls of drives. See [`crate::syscalls`].

use libc::{
    SYS_fallocate, SYS_fdatasync, SYS_io_uring_enter, SYS_io_uring_register, SYS_io_uring_setup, SYS_preadv,
    SYS_pwritev,
};

use crate::syscalls::{Arg, Call, Needs, SET_TIMER};

/// `IORING_REGISTER_FILES_UPDATE` (include/uapi/linux/io_uring.h); the ring itself takes no other.
const FILES_UPDATE: u32 = 6;

const SYNC_DATA: Call = Call::any(SYS_fdatasync, "what the guest flushed becomes durable");
const FILES: Call = Call::with(SYS_io_uring_register, &[Arg::is(1, FILES_UPDATE)], "another file for a drive, or none");
const ENTER: Call = Call::any(SYS_io_uring_enter, "requests of Async drives, and waiting for them");

/// For whoever makes rings.
pub const MAKING_RINGS: &[Call] = &[
    Call::any(SYS_io_uring_setup, "the ring of a drive"),
    Call::any(SYS_io_uring_register, "what it may do, before it does anything"),
];

/// With the Sync engine.
pub const SYNC: Needs = Needs {
    event_loop: &[
        Call::any(SYS_preadv, "reads"),
        Call::any(SYS_pwritev, "writes"),
        Call::any(SYS_fallocate, "discard and write zeroes"),
        SYNC_DATA,
        SET_TIMER,
    ],
    vcpu: &[],
    end: &[SYNC_DATA],
};

/// With the Async engine. What is asked of the ring is not seen by filters; the ring has restrictions of its own.
pub const ASYNC: Needs =
    Needs { event_loop: &[ENTER, FILES, SYNC_DATA, SET_TIMER], vcpu: &[ENTER], end: &[ENTER, FILES, SYNC_DATA] };
