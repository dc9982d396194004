//! System calls of a device with a backend. See [`crate::syscalls`].

use libc::{
    AF_UNIX, SYS_connect, SYS_epoll_ctl, SYS_epoll_wait, SYS_recvmsg, SYS_sendmsg, SYS_shutdown, SYS_socket,
    SYS_socketpair,
};

use crate::syscalls::{Arg, Call, Needs, SET_TIMER};

const ASK: Call = Call::any(SYS_sendmsg, "what a vhost-user backend is asked");
const HEAR: Call = Call::any(SYS_recvmsg, "what it answers");
const END: Call = Call::any(SYS_shutdown, "a connection to a backend ends");
const FORGET: Call = Call::any(SYS_epoll_ctl, "it is not watched any more");

/// A reset waits on the vCPU until the backend has stopped.
pub const NEEDS: Needs = Needs {
    event_loop: &[
        ASK,
        HEAR,
        END,
        FORGET,
        Call::any(SYS_epoll_wait, "what the backend sent"),
        Call::with(SYS_socket, &[Arg::is(0, AF_UNIX as u32)], "a backend that is back"),
        Call::any(SYS_connect, "a backend that is back"),
        Call::with(SYS_socketpair, &[Arg::is(0, AF_UNIX as u32)], "it says things on its own, too"),
        Call::with(
            libc::SYS_fcntl,
            &[Arg::is(1, libc::F_DUPFD_CLOEXEC as u32)],
            "the file in which it notes requests in flight is kept",
        ),
        SET_TIMER,
    ],
    vcpu: &[ASK, HEAR, END, FORGET, SET_TIMER],
    end: &[END, FORGET],
};
