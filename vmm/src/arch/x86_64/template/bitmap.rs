//! Bits to set, to clear and to leave alone, and how they are written: `0b10x`, highest bit first.

use std::fmt;
use std::str::FromStr;

/// What a register holds.
pub trait Word: Copy + Into<u64> {
    /// Its width in bits.
    const BITS: u32;

    /// The lowest bits of `wide`.
    fn low(wide: u64) -> Self;
}

impl Word for u32 {
    const BITS: u32 = u32::BITS;

    fn low(wide: u64) -> Self {
        wide as u32
    }
}

impl Word for u64 {
    const BITS: u32 = u64::BITS;

    fn low(wide: u64) -> Self {
        wide
    }
}

/// What to do with each bit of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bitmap<T> {
    /// Bits that are set or cleared.
    mask: T,
    /// What they become; nothing outside of `mask`.
    value: T,
}

/// Why a text is no bitmap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBitmap {
    /// More bits than the register has.
    #[error("Failed to parse string [{text}] as a bitmap - string is too long: at most {bits} bits")]
    TooLong {
        /// The text.
        text: String,
        /// Width of the register.
        bits: u32,
    },
    /// Something else than `0`, `1`, `x` and `_`.
    #[error(
        "Failed to parse string [{text}] as a bitmap - unknown character: {found:?}. A bitmap is 0b and then 0, 1 or x for each bit."
    )]
    Character {
        /// The text.
        text: String,
        /// What is wrong in it.
        found: char,
    },
}

impl<T: Word> Bitmap<T> {
    /// Clears the bits of `mask`, then sets those of `mask` that are in `value`.
    pub fn new(mask: T, value: T) -> Self {
        Self { mask, value: T::low(mask.into() & value.into()) }
    }

    /// `register` with these bits changed.
    pub fn apply(self, register: T) -> T {
        let (mask, value, old): (u64, u64, u64) = (self.mask.into(), self.value.into(), register.into());
        T::low(old & !mask | value)
    }
}

impl<T: Word> FromStr for Bitmap<T> {
    type Err = BadBitmap;

    /// The prefix `0b` may be missing, `_` may stand anywhere, and bits that are not written are left alone.
    fn from_str(text: &str) -> Result<Self, BadBitmap> {
        let (mut mask, mut value) = (0u64, 0u64);
        let digits = text.strip_prefix("0b").unwrap_or(text);
        for (bit, digit) in (0..).zip(digits.chars().rev().filter(|c| *c != '_')) {
            if bit == T::BITS {
                return Err(BadBitmap::TooLong { text: text.to_owned(), bits: T::BITS });
            }
            match digit {
                'x' => {}
                '0' => mask |= 1 << bit,
                '1' => {
                    mask |= 1 << bit;
                    value |= 1 << bit;
                }
                found => return Err(BadBitmap::Character { text: text.to_owned(), found }),
            }
        }
        Ok(Self { mask: T::low(mask), value: T::low(value) })
    }
}

impl<T: Word> fmt::Display for Bitmap<T> {
    /// Every bit, after `0b`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mask, value): (u64, u64) = (self.mask.into(), self.value.into());
        f.write_str("0b")?;
        (0..T::BITS).rev().try_for_each(|bit| {
            f.write_str(match (mask >> bit & 1, value >> bit & 1) {
                (0, _) => "x",
                (_, 0) => "0",
                _ => "1",
            })
        })
    }
}
