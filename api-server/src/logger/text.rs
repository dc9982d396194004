//! A text of bounded length that needs no allocator.

use std::fmt::{self, Write};

/// Up to `N` bytes; what does not fit is left out.
pub(super) struct FixedText<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> FixedText<N> {
    pub(super) const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// What was written. If it did not fit, it ends in a line end all the same.
    pub(super) fn as_line(&mut self) -> &[u8] {
        if let Some(last) = self.bytes.last_mut()
            && self.len == N
        {
            *last = b'\n';
        }
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl<const N: usize> Write for FixedText<N> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        let count = part.len().min(room.len());
        for (to, from) in room.iter_mut().zip(part.bytes()) {
            *to = from;
        }
        self.len += count;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_left_out_and_the_line_still_ends() {
        let mut text = FixedText::<8>::new();
        writeln!(text, "{}-ab", 12).unwrap();
        assert_eq!(text.as_line(), b"12-ab\n");
        writeln!(text, "more").unwrap();
        assert_eq!(text.as_line(), b"12-ab\nm\n");
    }
}
