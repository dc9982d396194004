//! The cellar: system calls, each with what makes it safe to use where an attacker may have prepared the place.

pub(crate) mod beneath;
pub(crate) mod clock;
pub(crate) mod mounts;
pub(crate) mod process;
