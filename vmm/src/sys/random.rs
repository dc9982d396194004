//! Random bytes from the kernel.

use std::io;

/// `N` bytes that nobody can guess. Waits for the kernel's generator after an early boot of the host, and not otherwise.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        // SAFETY: the pointer and the length are those of a slice that is ours.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => filled += got,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_differ_and_all_are_filled() {
        let (one, other) = (bytes::<64>().unwrap(), bytes::<64>().unwrap());
        assert_ne!(one, other);
        // 16 bytes in a row are zero once in 2^128 times.
        assert!(one.chunks(16).chain(other.chunks(16)).all(|part| part.iter().any(|byte| *byte != 0)));
        assert!(bytes::<0>().unwrap().is_empty());
    }
}
