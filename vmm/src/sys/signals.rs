//! Signals other than fatal ones: SIGTERM and SIGINT as something an event loop can watch, SIGXFSZ as an error.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

/// The last of the two that arrived; 0 if it has been seen.
static ARRIVED: AtomicI32 = AtomicI32::new(0);
/// Rung by the handler.
static BELL: OnceLock<File> = OnceLock::new();

/// Receives SIGTERM and SIGINT instead of the default action, which would end the process on the spot.
///
/// By a handler and not by signalfd(2), which does not see what is sent to another thread than the one that reads it.
#[derive(Debug)]
pub struct TerminationSignals(File);

impl TerminationSignals {
    /// Handles both signals from now on, whichever thread they are sent to, even if the caller's parent had blocked them.
    ///
    /// # Errors
    /// No descriptor is left, or what `sigaction(2)` says.
    pub fn take_over() -> io::Result<Self> {
        if BELL.get().is_none() {
            // SAFETY: no pointers.
            let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: `fd` was just opened and belongs to nobody else. If another thread was quicker, this one is closed again.
            let _ = BELL.set(unsafe { File::from_raw_fd(fd) });
        }
        let bell = BELL.get().ok_or(io::ErrorKind::NotFound)?.try_clone()?;
        for signal in [libc::SIGTERM, libc::SIGINT] {
            handle(signal, on_signal as *const () as usize, libc::SA_RESTART, false)?;
        }
        Ok(Self(bell))
    }

    /// The next signal that arrived, if any.
    pub fn next(&self) -> Option<i32> {
        // Silenced before the number is taken: a signal that arrives in between rings again.
        let _ = (&self.0).read(&mut [0; 8]);
        Some(ARRIVED.swap(0, Ordering::SeqCst)).filter(|number| *number != 0)
    }
}

impl AsRawFd for TerminationSignals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

extern "C" fn on_signal(number: libc::c_int) {
    ARRIVED.store(number, Ordering::SeqCst);
    let Some(bell) = BELL.get() else { return };
    let one = 1u64.to_ne_bytes();
    // SAFETY: the descriptor is never closed, and the buffer has the eight bytes that eventfd(2) wants. errno is the thread's own.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(bell.as_raw_fd(), one.as_ptr().cast(), one.len());
        *libc::__errno_location() = errno;
    }
}

/// From now on the calling thread hears "File too large" (EFBIG) where a file would grow beyond RLIMIT_FSIZE, instead of SIGXFSZ, which ends
/// the process.
pub fn hear_of_too_large_files_by_errors() {
    // It fails with signals that do not exist only.
    let _ = mask(libc::SIG_BLOCK, libc::SIGXFSZ);
}

/// Blocks or unblocks `signal` for the calling thread, and so those it starts from now on.
fn mask(how: libc::c_int, signal: libc::c_int) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before it is used.
    let error = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        libc::pthread_sigmask(how, set.as_ptr(), null_mut())
    };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Installs `handler` for `signal` and lets the calling thread, and so those it starts from now on, receive it. `alone` keeps all other
/// signals from the handler.
pub(super) fn handle(signal: libc::c_int, handler: usize, flags: libc::c_int, alone: bool) -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeroes is a valid `sigaction`. Handlers are functions, which live as long as the process.
    unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        if alone {
            libc::sigfillset(&raw mut action.sa_mask);
        }
        if libc::sigaction(signal, action, null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    mask(libc::SIG_UNBLOCK, signal)
}
