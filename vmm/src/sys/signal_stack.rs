//! A stack for the handlers of signals that say that a thread's own stack cannot be used any more.
//!
//! std puts one aside, too, of the size the kernel asks for at least. On a processor with wide registers saving them takes most of it
//! (AT_MINSIGSTKSZ, getauxval(3)), and last words need a few KiB more.

use std::io;
use std::ptr::{NonNull, null_mut};

/// What a handler may use, beside what the kernel saves. Costs memory only if it is used.
const HANDLER_LEN: usize = 32 << 10;

/// The signal stack of the thread that made it.
#[derive(Debug)]
pub struct SignalStack {
    base: NonNull<libc::c_void>,
    len: usize,
}

impl SignalStack {
    /// Gives the calling thread a signal stack. To be dropped by the same thread.
    ///
    /// # Errors
    /// What `mmap(2)` or `sigaltstack(2)` says; the thread then keeps the one it has.
    pub fn of_this_thread() -> io::Result<Self> {
        // SAFETY: no pointers; 0 where the kernel does not say.
        let saved = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) };
        let len = HANDLER_LEN + usize::try_from(saved).unwrap_or(0).max(libc::MINSIGSTKSZ);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, which touches no other memory.
        let base = unsafe { libc::mmap(null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        if let Err(error) = set(base.as_ptr(), 0, len) {
            // SAFETY: just mapped, and nobody knows of it.
            unsafe { libc::munmap(base.as_ptr(), len) };
            return Err(error);
        }
        Ok(Self { base, len })
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        // Without it none is left; std does the same at the end of its threads. It fails only in a handler, which drops nothing.
        if set(null_mut(), libc::SS_DISABLE, 0).is_ok() {
            // SAFETY: our own mapping, which the kernel does not use any more.
            unsafe { libc::munmap(self.base.as_ptr(), self.len) };
        }
    }
}

fn set(base: *mut libc::c_void, flags: libc::c_int, len: usize) -> io::Result<()> {
    let stack = libc::stack_t { ss_sp: base, ss_flags: flags, ss_size: len };
    // SAFETY: `stack` is valid for the call, and the memory it names belongs to the caller until it is replaced.
    match unsafe { libc::sigaltstack(&stack, null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
