//! What a page-fault handler does with a userfaultfd (include/uapi/linux/userfaultfd.h).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::{checked, wait_readable};

const UFFDIO_COPY: u64 = 0xc028_aa03;
const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMOVE: u8 = 0x15;

/// What a userfaultfd tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Nobody has brought the page with this address.
    Missing(u64),
    /// The pages between these addresses were given back to the host.
    Removed(u64, u64),
}

/// The next event, if there is one before `patience` is over.
///
/// # Errors
/// What the kernel says.
pub fn next(uffd: &File, patience: Duration) -> io::Result<Option<Event>> {
    if !wait_readable(uffd, patience)? {
        return Ok(None);
    }
    let mut message = [0; 32];
    match (&*uffd).read(&mut message) {
        Ok(32) => {}
        Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
        // Somebody else brought the page.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    }
    let word = |at: usize| u64::from_le_bytes(message[at..at + 8].try_into().expect("eight bytes"));
    Ok(match message[0] {
        EVENT_PAGEFAULT => Some(Event::Missing(word(16))),
        EVENT_REMOVE => Some(Event::Removed(word(8), word(16))),
        other => return Err(io::Error::other(format!("event {other:#x}"))),
    })
}

/// Puts `bytes`, whole pages, at `address` of whoever owns the memory. `false` if there is something already.
///
/// # Errors
/// What the kernel says.
pub fn copy(uffd: &File, address: u64, bytes: &[u8]) -> io::Result<bool> {
    let mut what = [address, bytes.as_ptr() as u64, bytes.len() as u64, 0, 0];
    // SAFETY: a `uffdio_copy`, whose source is `bytes`; the kernel writes its last field.
    settled(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_COPY as _, what.as_mut_ptr()) })
}

fn settled(result: libc::c_int) -> io::Result<bool> {
    match checked(result) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}
