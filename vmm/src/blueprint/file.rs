//! Opening files named by a caller without being held up or fooled by what they are.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::sys::open::{is_on_procfs, open_without_magic_links};

/// Why a path could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is something that cannot be read like a file.
    #[error("it is {0}, expected {1}")]
    WrongType(&'static str, &'static str),
}

fn what_is(kind: std::fs::FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        "not a regular file"
    }
}

/// `O_NONBLOCK` keeps a FIFO without a peer, or a device that waits for a carrier, from holding up the caller; it means nothing
/// for the regular files and block devices that are let through. Views of processes that look like regular files are not.
fn open(path: &Path, write: bool) -> Result<File, FileError> {
    let access = if write { libc::O_RDWR } else { libc::O_RDONLY };
    let file = open_without_magic_links(path, access | libc::O_NONBLOCK | libc::O_NOCTTY)?;
    if is_on_procfs(&file)? {
        return Err(FileError::WrongType("part of procfs", "a stored file"));
    }
    Ok(file)
}

/// Opens a kernel or initrd: a regular file, for reading.
pub fn open_image(path: &Path) -> Result<File, FileError> {
    let file = open(path, false)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() { Ok(file) } else { Err(FileError::WrongType(what_is(kind), "a regular file")) }
}

/// Opens the backing of a drive: a regular file or a block device.
pub fn open_disk(path: &Path, read_only: bool) -> Result<File, FileError> {
    let file = open(path, !read_only)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_block_device() {
        Ok(file)
    } else {
        Err(FileError::WrongType(what_is(kind), "a regular file or block device"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn only_regular_files_are_images() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let name = CString::new(fifo.as_os_str().as_bytes()).unwrap();
        // SAFETY: `name` is a valid C string for the length of the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        // Would block for ever without O_NONBLOCK.
        assert!(matches!(open_image(&fifo), Err(FileError::WrongType("a FIFO", _))));
        assert!(matches!(open_image(dir.path()), Err(FileError::WrongType("a directory", _))));
        assert!(matches!(open_image(Path::new("/dev/zero")), Err(FileError::WrongType("a character device", _))));
        assert!(matches!(open_disk(Path::new("/dev/zero"), true), Err(FileError::WrongType("a character device", _))));
        assert!(matches!(open_disk(&dir.path().join("none"), true), Err(FileError::Io(_))));
        assert!(matches!(open_image(Path::new("/proc/self/mem")), Err(FileError::WrongType("part of procfs", _))));
        assert!(matches!(open_disk(Path::new("/proc/self/exe"), true), Err(FileError::Io(_))));
        let regular = dir.path().join("regular");
        std::fs::write(&regular, b"x").unwrap();
        assert!(open_image(&regular).is_ok());
        assert!(open_disk(&regular, false).is_ok());
    }
}
