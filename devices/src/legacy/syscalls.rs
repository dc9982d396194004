//! System calls of the console. See [`crate::syscalls`].

use libc::{SYS_poll, SYS_read, SYS_recvfrom, SYS_sendto, SYS_write};

use crate::syscalls::{Arg, Call, Needs, SET_TIMER};

const WRITE: Call = Call::any(SYS_write, "output to a file, pipe or terminal, and bells");
/// Without an address: it goes where the socket is connected to.
const SEND: Call = Call::with(SYS_sendto, &[Arg::is(4, 0)], "output to a socket");
const ROOM: Call = Call::any(SYS_poll, "whether there is input, or whoever reads the output has room");

/// COM1 writes on the vCPU that writes to it, without waiting for whoever reads, and what did not fit on the event loop, by which input comes.
pub const CONSOLE: Needs = Needs {
    event_loop: &[
        WRITE,
        SEND,
        ROOM,
        Call::any(SYS_read, "input"),
        Call::with(SYS_recvfrom, &[Arg::is(4, 0)], "input from a socket"),
        SET_TIMER,
    ],
    vcpu: &[WRITE, SEND, ROOM, SET_TIMER],
    end: &[],
};
