//! System calls of the thread that serves the API, for its fence. Those of every thread are in [`vmm::confine::calls`].

use libc::{
    PR_SET_NO_NEW_PRIVS, SYS_accept4, SYS_dup3, SYS_landlock_create_ruleset, SYS_landlock_restrict_self, SYS_openat,
    SYS_prctl, SYS_recvfrom, SYS_seccomp, SYS_shutdown, SYS_writev,
};
use vmm::confine::{Arg, Call};

/// All its life.
pub(crate) const ALWAYS: &[Call] = &[
    Call::any(SYS_accept4, "clients"),
    Call::any(SYS_recvfrom, "requests"),
    Call::any(SYS_writev, "answers"),
    Call::any(SYS_shutdown, "the end of a connection"),
];

/// Before the guest runs: it opens what log lines and metrics go to, and can narrow its own fence.
pub(crate) const BEFORE_THE_START: &[Call] = &[
    Call::any(SYS_openat, "the file or FIFO of the log, of metrics"),
    Call::any(SYS_dup3, "the log's own descriptor"),
    Call::any(SYS_landlock_create_ruleset, "no files any more"),
    Call::any(SYS_landlock_restrict_self, "as above"),
    Call::with(SYS_prctl, &[Arg::is(0, PR_SET_NO_NEW_PRIVS.cast_unsigned())], "as above"),
    Call::any(SYS_seccomp, "another filter in front of this one"),
];
