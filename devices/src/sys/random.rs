//! Random bytes from the kernel.

use std::io;

use vm_memory::VolatileSlice;

use super::iovec::GuestIoVec;

/// `N` bytes that nobody can guess.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    fill(GuestIoVec::new(&VolatileSlice::from(&mut bytes[..])))?;
    Ok(bytes)
}

/// Has the kernel write random bytes to all of `piece`, straight to where it points. Waits for the kernel's generator after an early boot
/// of the host, and not otherwise.
pub fn fill(piece: GuestIoVec) -> io::Result<()> {
    let mut rest = piece;
    while !rest.is_empty() {
        // SAFETY: a `GuestIoVec` points at memory that the kernel may write (see the type's contract).
        let got = unsafe { libc::getrandom(rest.as_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            // Signals cut long requests short.
            Ok(got) => (_, rest) = rest.split_at(got),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_differ() {
        assert_ne!(bytes::<64>().unwrap(), bytes::<64>().unwrap());
        assert!(bytes::<0>().unwrap().is_empty());
    }

    #[test]
    fn all_of_it_is_filled_and_nothing_else() {
        for len in [0usize, 1, 16, 257, 70_000] {
            let mut bytes = vec![0u8; len + 16];
            let (piece, _) = GuestIoVec::new(&VolatileSlice::from(&mut bytes[..])).split_at(len);
            fill(piece).unwrap();
            // 16 bytes in a row are zero once in 2^128 times.
            assert!(bytes[..len].chunks_exact(16).all(|part| part.iter().any(|byte| *byte != 0)), "{len}");
            assert_eq!(bytes[len..], [0; 16], "{len}");
        }
    }
}
