//! System calls of the balloon. See [`crate::syscalls`].

use crate::syscalls::{GIVE_BACK, GIVE_BACK_SHARED, Needs, SET_TIMER};

/// Pages go, statistics are asked for by a timer.
pub const NEEDS: Needs = Needs { event_loop: &[GIVE_BACK, GIVE_BACK_SHARED, SET_TIMER], vcpu: &[SET_TIMER], end: &[] };
