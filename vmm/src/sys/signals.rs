//! SIGTERM and SIGINT as a file descriptor.

use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr::null_mut;

/// Receives SIGTERM and SIGINT instead of the default action, which would end the process on the spot.
#[derive(Debug)]
pub struct TerminationSignals(File);

impl TerminationSignals {
    /// Blocks both signals in the calling thread, and so in every thread it starts from now on, and opens a descriptor for them.
    pub fn take_over() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set that the calls after it use; all pointers are valid or null where that is allowed.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
            libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            libc::signalfd(-1, set.as_ptr(), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and belongs to nobody else.
        Ok(Self(unsafe { File::from_raw_fd(fd) }))
    }

    /// The next signal that arrived, if any.
    pub fn next(&self) -> Option<i32> {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        match (&self.0).read(&mut info) {
            Ok(len) if len == info.len() => {
                // `ssi_signo` is the structure's first field.
                info.first_chunk().and_then(|first| i32::try_from(u32::from_ne_bytes(*first)).ok())
            }
            _ => None,
        }
    }
}

impl AsRawFd for TerminationSignals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
