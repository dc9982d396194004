//! System calls of the entropy device. See [`crate::syscalls`].

use crate::syscalls::{Call, Needs, SET_TIMER};

/// Its own source is the kernel's.
pub const NEEDS: Needs =
    Needs { event_loop: &[Call::any(libc::SYS_getrandom, "random bytes"), SET_TIMER], vcpu: &[], end: &[] };
