//! Guest data that the host's socket did not take yet. Empty, it owns no memory.

use std::io;

use crate::sys::iovec::GuestIoVec;
use crate::sys::unix_stream::HostStream;

/// A queue of bytes.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    /// How many of `bytes` are gone.
    start: usize,
}

impl Outbox {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.bytes.len().saturating_sub(self.start)
    }

    /// Adds copies of `pieces`.
    pub fn push(&mut self, pieces: &[GuestIoVec]) {
        // Moving what is left costs at most as much as writing what is gone did.
        if self.start > self.len() {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        for piece in pieces {
            let at = self.bytes.len();
            self.bytes.resize(at.saturating_add(piece.len()), 0);
            piece.copy_to(self.bytes.get_mut(at..).unwrap_or_default());
        }
    }

    /// Writes as much as `stream` takes. How many bytes that was, and whether it is broken.
    pub fn flush(&mut self, stream: &HostStream) -> (usize, io::Result<()>) {
        let mut written = 0usize;
        loop {
            let rest = self.bytes.get(self.start..).unwrap_or_default();
            if rest.is_empty() {
                self.clear();
                return (written, Ok(()));
            }
            match stream.send_bytes(rest) {
                Ok(count) => {
                    self.start = self.start.saturating_add(count);
                    written = written.saturating_add(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (written, Ok(())),
                Err(error) => return (written, Err(error)),
            }
        }
    }

    /// Throws everything away.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use vm_memory::VolatileSlice;

    use super::*;

    #[test]
    fn bytes_come_out_in_order_and_memory_is_given_back() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let stream = HostStream::new(ours).unwrap();
        let mut outbox = Outbox::default();
        let mut expected: Vec<u8> = Vec::new();
        let mut seen = Vec::new();
        for round in 0..200u32 {
            let mut data: Vec<u8> = (0..7000u32).map(|n| (n.wrapping_mul(31) ^ round) as u8).collect();
            expected.extend(&data);
            let (a, b) = data.split_at_mut(1234);
            outbox.push(&[GuestIoVec::new(&VolatileSlice::from(a)), GuestIoVec::new(&VolatileSlice::from(b))]);
            let (_, outcome) = outbox.flush(&stream);
            outcome.unwrap();
            if outbox.len() > 100_000 {
                let mut some = vec![0; 50_000];
                theirs.read_exact(&mut some).unwrap();
                seen.extend(some);
            }
        }
        while !outbox.is_empty() {
            let mut some = vec![0; 20_000];
            let count = theirs.read(&mut some).unwrap();
            seen.extend(&some[..count]);
            outbox.flush(&stream).1.unwrap();
        }
        assert_eq!(outbox.bytes.capacity(), 0);
        drop(stream);
        theirs.read_to_end(&mut seen).unwrap();
        assert!(seen == expected);
    }

    #[test]
    fn a_reader_that_is_gone_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = HostStream::new(ours).unwrap();
        drop(theirs);
        let mut outbox = Outbox::default();
        outbox.push(&[GuestIoVec::new(&VolatileSlice::from(&mut [1u8, 2][..]))]);
        let (written, outcome) = outbox.flush(&stream);
        assert_eq!((written, outcome.unwrap_err().kind()), (0, io::ErrorKind::BrokenPipe));
    }
}
