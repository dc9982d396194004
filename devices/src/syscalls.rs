//! System calls as data: which ones a device makes, with which arguments, and why.
//!
//! Each device declares what it needs beside its code, in `syscalls.rs`. Filters are made of these lists, and of nothing else, for the
//! devices that a machine really has. This crate does not know how.

/// What an argument of a system call must be. Only its lower 32 bits are looked at, which is what the kernel does with the arguments that
/// are checked here: commands, families, flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arg {
    /// Which argument, from 0.
    pub index: u8,
    /// The bits that are looked at.
    pub mask: u32,
    /// What they must be.
    pub value: u32,
}

impl Arg {
    /// An argument that must have this value.
    pub const fn is(index: u8, value: u32) -> Self {
        Self { index, mask: u32::MAX, value }
    }

    /// An argument in which none of these bits may be set.
    pub const fn without(index: u8, bits: u32) -> Self {
        Self { index, mask: bits, value: 0 }
    }
}

/// A system call that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its number.
    pub number: libc::c_long,
    /// What must hold of its arguments, all at once. The same call may be listed again with other arguments.
    pub args: &'static [Arg],
    /// What it is made for.
    pub why: &'static str,
}

impl Call {
    /// A call with any arguments.
    pub const fn any(number: libc::c_long, why: &'static str) -> Self {
        Self { number, args: &[], why }
    }

    /// A call with these arguments.
    pub const fn with(number: libc::c_long, args: &'static [Arg], why: &'static str) -> Self {
        Self { number, args, why }
    }
}

/// What a device needs, by the thread that makes the call.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// The thread of its event loop.
    pub event_loop: &'static [Call],
    /// vCPU threads: in a register write, a configuration access or a reset.
    pub vcpu: &'static [Call],
    /// The VMM thread, when the machine ends.
    pub end: &'static [Call],
}

/// How long a block device is (include/uapi/linux/fs.h).
pub const BLKGETSIZE64: u32 = 0x8008_1272;

/// A rate limiter or another time limit is set.
pub(crate) const SET_TIMER: Call = Call::any(libc::SYS_timerfd_settime, "a rate limiter or time limit");
/// Pages of anonymous memory that a device takes out of the guest's go back to the host. Shared memory, which no machine has yet, will
/// want MADV_REMOVE.
pub(crate) const GIVE_BACK: Call = Call::with(
    libc::SYS_madvise,
    &[Arg::is(2, libc::MADV_DONTNEED.cast_unsigned())],
    "private pages go back to the host",
);

/// Gives pages that are shared back.
pub(crate) const GIVE_BACK_SHARED: Call = Call::with(
    libc::SYS_madvise,
    &[Arg::is(2, libc::MADV_REMOVE.cast_unsigned())],
    "pages that clones could share go back to the host",
);
