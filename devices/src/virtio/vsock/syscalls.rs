//! System calls of the socket device. See [`crate::syscalls`].

use libc::{
    AF_UNIX, SYS_accept4, SYS_connect, SYS_epoll_ctl, SYS_epoll_wait, SYS_recvfrom, SYS_recvmsg, SYS_sendmsg,
    SYS_sendto, SYS_shutdown, SYS_socket,
};

use crate::syscalls::{Arg, Call, Needs, SET_TIMER};

/// Descriptors are closed by whatever thread drops them, as everywhere.
pub const NEEDS: Needs = Needs {
    event_loop: &[
        Call::any(SYS_recvmsg, "data of host programs"),
        Call::any(SYS_sendmsg, "data for host programs"),
        Call::any(SYS_recvfrom, "the line that says which port a host program wants"),
        Call::any(SYS_sendto, "the answer to it"),
        Call::any(SYS_accept4, "host programs that connect"),
        Call::with(SYS_socket, &[Arg::is(0, AF_UNIX as u32)], "guest programs that connect"),
        Call::any(SYS_connect, "guest programs that connect"),
        Call::any(SYS_shutdown, "one direction of a connection ends"),
        Call::any(SYS_epoll_wait, "which connections have news"),
        Call::any(SYS_epoll_ctl, "connections come and go"),
        SET_TIMER,
    ],
    vcpu: &[Call::any(SYS_epoll_ctl, "a reset ends all connections"), SET_TIMER],
    end: &[],
};
