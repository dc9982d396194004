//! System calls of hot-pluggable memory. See [`crate::syscalls`].

use crate::syscalls::{GIVE_BACK, Needs};

/// That of the memory slots is the machine's, not the device's.
pub const NEEDS: Needs = Needs { event_loop: &[GIVE_BACK], vcpu: &[GIVE_BACK], end: &[] };
