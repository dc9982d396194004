//! Pieces of guest memory in the shape that `preadv`, `writev` and io_uring take.

use std::fmt;

use libc::iovec;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// A piece of guest memory by host address. The bytes behind it may change at any time: only the kernel, or volatile accesses,
/// may touch them.
///
/// It does not borrow the memory it points at, so that a request can be in flight while its device does other things. What keeps the
/// mapping alive is the [`crate::ram::GuestRam`] of the device that owns the request; a device drains its requests before it lets go.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct GuestIoVec(iovec);

// SAFETY: the pointer is only ever handed to the kernel or used for volatile accesses; guest memory is shared by design.
unsafe impl Send for GuestIoVec {}
// SAFETY: as above.
unsafe impl Sync for GuestIoVec {}

impl GuestIoVec {
    /// The host address and length of a slice of guest memory.
    pub fn new<B: BitmapSlice>(slice: &VolatileSlice<'_, B>) -> Self {
        Self(iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
    }

    /// An empty piece.
    pub const fn empty() -> Self {
        Self(iovec { iov_base: std::ptr::NonNull::<u8>::dangling().as_ptr().cast(), iov_len: 0 })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }

    /// Host address.
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// This piece cut at `at` (at most its length): what is before and what is after.
    pub fn split_at(&self, at: usize) -> (Self, Self) {
        let at = at.min(self.0.iov_len);
        let head = Self(iovec { iov_base: self.0.iov_base, iov_len: at });
        // SAFETY: `at` is at most the length of the piece, so the result is inside it or one past its end.
        let rest = unsafe { self.0.iov_base.cast::<u8>().add(at) };
        (head, Self(iovec { iov_base: rest.cast(), iov_len: self.0.iov_len.saturating_sub(at) }))
    }

    /// Copies as much of `bytes` as fits into the piece and returns how much that was.
    pub fn copy_from(&self, bytes: &[u8]) -> usize {
        let len = bytes.len().min(self.0.iov_len);
        // SAFETY: the piece lies in mapped guest memory (see the type's contract) and is at least `len` long; a Rust slice and guest
        // memory do not overlap. The guest may write at the same time: it then sees its own race, bytes have no invalid values.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.as_ptr(), len) };
        len
    }

    /// Copies as much of the piece as fits into `bytes` and returns how much that was.
    pub fn copy_to(&self, bytes: &mut [u8]) -> usize {
        let len = bytes.len().min(self.0.iov_len);
        // SAFETY: as in `copy_from`, in the other direction.
        unsafe { std::ptr::copy_nonoverlapping(self.as_ptr(), bytes.as_mut_ptr(), len) };
        len
    }

    /// Pieces as the kernel's type.
    pub fn as_iovecs(pieces: &[GuestIoVec]) -> &[iovec] {
        // SAFETY: `GuestIoVec` is a transparent wrapper of `iovec`.
        unsafe { std::slice::from_raw_parts(pieces.as_ptr().cast(), pieces.len()) }
    }

    /// Total length of several pieces in bytes.
    pub fn total(pieces: &[GuestIoVec]) -> usize {
        pieces.iter().fold(0, |sum, piece| sum.saturating_add(piece.len()))
    }
}

impl fmt::Debug for GuestIoVec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GuestIoVec({:p}, {})", self.0.iov_base, self.0.iov_len)
    }
}
