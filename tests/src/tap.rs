//! A network that one test owns alone: a private network namespace, a tap in it, raw frames.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::Duration;

use crate::{binary, sys, uninterrupted};

/// Moves the calling thread, and every process it starts from now on, into a fresh network
/// namespace. Taps made there cannot clash with anyone's and vanish with the last user.
///
/// # Panics
/// Without root, or when the kernel refuses.
#[track_caller]
pub fn private_network() {
    binary::require_root();
    sys::unshare_network().expect("a private network namespace");
}

/// A persistent tap, removed when dropped.
#[derive(Debug)]
pub struct Tap {
    name: String,
    multi_queue: bool,
}

impl Tap {
    /// Makes a persistent tap called `name` (at most 15 bytes) in this thread's namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create(name: &str) -> io::Result<Self> {
        Self::make(name, false)
    }

    /// The same with room for several queues.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create_with_queues(name: &str) -> io::Result<Self> {
        Self::make(name, true)
    }

    fn make(name: &str, multi_queue: bool) -> io::Result<Self> {
        sys::set_tap_persistence(name, multi_queue, true)?;
        Ok(Self { name: name.to_owned(), multi_queue })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets the interface up. IPv6 is silenced first, so that the kernel sends no frames of
    /// its own into a test that counts them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn up(&self) -> io::Result<()> {
        let silence = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", self.name);
        if std::path::Path::new(&silence).exists() {
            std::fs::write(&silence, "1")?;
        }
        sys::set_interface_up(&self.name)
    }

    /// A raw socket on the host's side: what it sends the guest receives, and the reverse.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn packets(&self) -> io::Result<PacketSocket> {
        sys::packet_socket(&self.name).map(|file| PacketSocket { file })
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Fails while a killed VMM still holds it; the namespace's end removes it then.
        let _ = sys::set_tap_persistence(&self.name, self.multi_queue, false);
    }
}

/// Whole Ethernet frames to and from a tap.
#[derive(Debug)]
pub struct PacketSocket {
    file: File,
}

impl PacketSocket {
    /// Sends one frame to the guest.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.file).write_all(frame)
    }

    /// The next frame in either direction; `None` when none comes within `patience`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn receive(&self, patience: Duration) -> io::Result<Option<Vec<u8>>> {
        if !sys::wait_readable(&self.file, patience)? {
            return Ok(None);
        }
        let mut frame = vec![0; 1 << 16];
        let n = uninterrupted(|| (&self.file).read(&mut frame))?;
        frame.truncate(n);
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_in_a_private_network_exists_until_dropped() {
        private_network();
        let tap = Tap::create("mfunit0").unwrap();
        tap.up().unwrap();
        let socket = tap.packets().unwrap();
        assert_eq!(socket.receive(Duration::from_millis(1)).unwrap(), None);
        drop(tap);
        let error = sys::set_interface_up("mfunit0").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
