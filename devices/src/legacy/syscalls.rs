//! System calls of the console. See [`crate::syscalls`].

use libc::{SYS_ioctl, SYS_poll, SYS_write, TCSETS};

use crate::syscalls::{Arg, Call, Needs, SET_TIMER};

/// COM1 writes on the vCPU that writes to it, without waiting for whoever reads; input comes through the event loop.
pub const CONSOLE: Needs = Needs {
    event_loop: &[Call::any(SYS_poll, "whether there is input"), SET_TIMER],
    vcpu: &[
        Call::any(SYS_write, "console output, and bells"),
        Call::any(SYS_poll, "whether whoever reads the console has room"),
        SET_TIMER,
    ],
    end: &[Call::with(SYS_ioctl, &[Arg::is(1, TCSETS as u32)], "the terminal is as it was before")],
};
