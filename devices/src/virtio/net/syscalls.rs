//! System calls of network cards. See [`crate::syscalls`].

use libc::{
    AF_NETLINK, NETLINK_ROUTE, SYS_ioctl, SYS_read, SYS_readv, SYS_recvfrom, SYS_sendto, SYS_socket, SYS_writev,
    TUNSETIFF, TUNSETOFFLOAD, TUNSETQUEUE, TUNSETSNDBUF, TUNSETVNETHDRSZ,
};

use crate::syscalls::{Arg, Call, Needs, SET_TIMER};

const OFFLOADS: Call =
    Call::with(SYS_ioctl, &[Arg::is(1, TUNSETOFFLOAD as u32)], "a driver says which offloads it knows, or is reset");

/// For a card with several pairs of queues, besides [`NEEDS`]: on whatever thread.
pub const QUEUE_PAIRS: &[Call] = &[Call::with(
    SYS_ioctl,
    &[Arg::is(1, TUNSETQUEUE as u32)],
    "a driver says how many pairs of queues it uses, or is reset",
)];

/// For whoever opens taps; the file itself apart.
pub const OPENING: &[Call] = &[
    Call::with(
        SYS_socket,
        &[Arg::is(0, AF_NETLINK as u32), Arg::is(2, NETLINK_ROUTE as u32)],
        "who else has queues of a tap, which only rtnetlink tells",
    ),
    Call::any(SYS_sendto, "that question"),
    Call::any(SYS_recvfrom, "and the answer"),
    Call::with(SYS_ioctl, &[Arg::is(1, TUNSETIFF as u32)], "which tap"),
    Call::with(SYS_ioctl, &[Arg::is(1, TUNSETVNETHDRSZ as u32)], "what is in front of each frame"),
    Call::with(SYS_ioctl, &[Arg::is(1, TUNSETSNDBUF as u32)], "nobody waits for it"),
    OFFLOADS,
];

/// On a tap.
pub const NEEDS: Needs = Needs {
    event_loop: &[
        Call::any(SYS_readv, "frames from the tap"),
        Call::any(SYS_writev, "frames to the tap"),
        Call::any(SYS_read, "frames that nobody wants"),
        OFFLOADS,
        SET_TIMER,
    ],
    vcpu: &[OFFLOADS],
    end: &[],
};
