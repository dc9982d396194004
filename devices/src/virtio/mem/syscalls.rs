//! System calls of hot-pluggable memory. See [`crate::syscalls`].

use crate::syscalls::{GIVE_BACK, GIVE_BACK_SHARED, Needs};

/// That of the memory slots is the machine's, not the device's.
pub const NEEDS: Needs =
    Needs { event_loop: &[GIVE_BACK, GIVE_BACK_SHARED], vcpu: &[GIVE_BACK, GIVE_BACK_SHARED], end: &[] };
