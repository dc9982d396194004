use std::io;

use vm_memory::VolatileSlice;

use crate::sys::iovec::GuestIoVec;

/// Bytes drawn from the kernel at once. Guests ask for as little as 16 at a time, and a system call costs as much as a few hundred.
pub(super) const STOCK_LEN: usize = 1024;
/// Pieces from this length on are filled by the kernel directly.
const LONG: usize = STOCK_LEN / 4;

/// Random bytes in store.
pub(super) struct Stock {
    bytes: Box<[u8; STOCK_LEN]>,
    /// How many of them are gone. Their places hold zeroes, so that nobody can learn later what a guest's key was made of.
    gone: usize,
    /// Fills a piece with random bytes.
    source: fn(GuestIoVec) -> io::Result<()>,
}

impl Stock {
    /// Nothing in store yet.
    pub(super) fn new(source: fn(GuestIoVec) -> io::Result<()>) -> Self {
        Self { bytes: Box::new([0; STOCK_LEN]), gone: STOCK_LEN, source }
    }

    /// Fills all of `piece`, with bytes that nobody else gets.
    pub(super) fn fill(&mut self, piece: GuestIoVec) -> io::Result<()> {
        if piece.len() >= LONG {
            return (self.source)(piece);
        }
        let mut rest = piece;
        while !rest.is_empty() {
            if self.gone >= STOCK_LEN {
                (self.source)(GuestIoVec::new(&VolatileSlice::from(&mut self.bytes[..])))?;
                self.gone = 0;
            }
            let Some(left) = self.bytes.get_mut(self.gone..) else { return Ok(()) };
            let copied = rest.copy_from(left);
            if let Some(used) = left.get_mut(..copied) {
                used.fill(0);
            }
            self.gone = self.gone.saturating_add(copied);
            (_, rest) = rest.split_at(copied);
        }
        Ok(())
    }

    /// What is in store.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> (&[u8], usize) {
        (&self.bytes[..], self.gone)
    }
}
