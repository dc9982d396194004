//! A file that has its name only when it is whole.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Lets a file share the blocks of another (include/uapi/linux/fs.h).
const FICLONE: u32 = 0x4004_9409;
/// Links that are followed to where the file is to be.
const MAX_LINKS: usize = 8;

/// A file on its way. Dropped before [`Self::publish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Draft {
    file: File,
    path: PathBuf,
    target: PathBuf,
    published: bool,
    kept: bool,
}

/// What the file is called on its way, the name of which is `target`, and no link.
fn partial(target: &Path) -> io::Result<PathBuf> {
    let name = target.file_name().ok_or_else(|| io::Error::other("it is not the name of a file"))?;
    let mut partial = std::ffi::OsString::from(".");
    partial.push(name);
    partial.push(".partial");
    Ok(target.with_file_name(partial))
}

/// What the file at `target` was called on its way, if it is still called so, and whole: it belongs to `other`, by its [`Draft::mark`].
pub fn left_behind(target: &Path, other: &Path) -> Option<PathBuf> {
    let path = partial(&follow(target).ok()?).ok()?;
    let left = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?;
    let time = fs::metadata(other).and_then(|about| about.modified()).ok()?;
    (left.modified().ok()? == time).then_some(path)
}

/// Gives what was [`left_behind`] its name, which should have been done before.
pub fn bring_home(path: &Path, target: &Path) -> io::Result<()> {
    fs::rename(path, follow(target)?)
}

impl Draft {
    /// Begins what is to be the file at `target`, beside it. What a process that was killed left there is used again; what another one is
    /// writing is an error.
    pub fn create(target: &Path) -> io::Result<Self> {
        let target = follow(target)?;
        let path = partial(&target)?;
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(flags).open(&path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other(format!("{} is in the way and no file", path.display())));
        }
        // SAFETY: a call without pointers on a descriptor of ours.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(io::Error::other(format!("another process is writing {}", path.display())));
        }
        let draft = Self { file, path, target, published: false, kept: false };
        draft.file.set_len(0)?;
        Ok(draft)
    }

    /// Begins what is to become the file at `target`, on top of what that holds if it is a file of so many bytes. Where the file system
    /// can share blocks, the old contents stay under their name until the new ones are whole; elsewhere they change in place, as in v1.
    pub fn onto(target: &Path, len: u64) -> io::Result<Self> {
        let target = follow(target)?;
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let old = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(&target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::create(&target),
            other => other?,
        };
        if old.metadata()?.len() != len {
            return Self::create(&target);
        }
        let draft = Self::create(&target)?;
        // SAFETY: a call without pointers on two descriptors of ours.
        if unsafe { libc::ioctl(draft.file.as_raw_fd(), FICLONE as _, old.as_raw_fd()) } == 0 {
            return Ok(draft);
        }
        drop(draft);
        Ok(Self { file: old, path: target.clone(), target, published: true, kept: false })
    }

    /// To write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes all there is.
    pub fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.file).write_all(bytes)
    }

    /// It is whole, and belongs to others with the same mark: the time of its last change.
    pub fn mark(&self, time: SystemTime) -> io::Result<()> {
        self.file.set_times(FileTimes::new().set_modified(time))
    }

    /// It stays where it is even if it does not get its name: something else that has one needs it.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Brings it to the disk. After an error nobody knows what is there: there is no second try.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Gives it its name. What had the name before is kept until [`Named::settle`]: freeing a large file takes milliseconds, in which a
    /// kill would leave a pair of which only one file is new.
    pub fn publish(mut self) -> io::Result<Named> {
        if self.published {
            return Ok(Named { dir: None, _replaced: None });
        }
        let replaced =
            OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(&self.target).ok();
        fs::rename(&self.path, &self.target)?;
        self.published = true;
        let dir = self.target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Named { dir: Some(dir.to_owned()), _replaced: replaced })
    }
}

/// A file that has its name.
#[derive(Debug)]
#[must_use]
pub struct Named {
    dir: Option<PathBuf>,
    _replaced: Option<File>,
}

impl Named {
    /// Brings the name to the disk.
    pub fn settle(self) -> io::Result<()> {
        self.dir.map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published && !self.kept {
            // What cannot be removed is used again by the next one.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Where a file of this name really is. Only files, and nothing at all, can be replaced.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
            Ok(metadata) if metadata.is_file() => return Ok(path),
            Ok(metadata) if metadata.is_symlink() => {
                let to = fs::read_link(&path)?;
                path = path.parent().unwrap_or(Path::new("")).join(to);
            }
            Ok(_) => return Err(io::Error::other("it exists and is no file")),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn it_has_its_name_only_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        fs::write(&target, "old").unwrap();
        let names = || fs::read_dir(dir.path()).unwrap().count();
        let draft = Draft::create(&target).unwrap();
        draft.write_all(b"half").unwrap();
        assert_eq!((fs::read(&target).unwrap().as_slice(), names()), (&b"old"[..], 2));
        assert!(Draft::create(&target).unwrap_err().to_string().contains("another process is writing"));
        drop(draft);
        assert_eq!((fs::read(&target).unwrap().as_slice(), names()), (&b"old"[..], 1));
        let draft = Draft::create(&target).unwrap();
        draft.write_all(b"new").unwrap();
        draft.sync().unwrap();
        draft.publish().unwrap().settle().unwrap();
        assert_eq!((fs::read(&target).unwrap().as_slice(), names()), (&b"new"[..], 1));
    }

    #[test]
    fn what_a_killed_process_left_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".file.partial"), "much more than there will be").unwrap();
        let draft = Draft::create(&dir.path().join("file")).unwrap();
        draft.write_all(b"new").unwrap();
        draft.publish().unwrap().settle().unwrap();
        assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"new");
    }

    #[test]
    fn what_is_there_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        let write = |bytes: &[u8]| {
            let draft = Draft::onto(&target, 4).unwrap();
            std::os::unix::fs::FileExt::write_all_at(draft.file(), bytes, 1).unwrap();
            draft.sync().unwrap();
            draft.publish().unwrap().settle().unwrap();
            fs::read(&target).unwrap()
        };
        assert_eq!(write(b"abc"), b"\0abc");
        assert_eq!(write(b"d"), b"\0dbc");
        fs::write(&target, "longer").unwrap();
        assert_eq!(write(b"e"), b"\0e", "of another length: not what it should be");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_are_followed_and_other_things_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        symlink("sub/real", dir.path().join("link")).unwrap();
        let draft = Draft::create(&dir.path().join("link")).unwrap();
        draft.write_all(b"new").unwrap();
        draft.publish().unwrap().settle().unwrap();
        assert_eq!(fs::read(dir.path().join("sub/real")).unwrap(), b"new");
        assert!(dir.path().join("link").is_symlink());
        symlink("loop", dir.path().join("loop")).unwrap();
        assert!(Draft::create(&dir.path().join("loop")).is_err());
        assert!(Draft::create(&dir.path().join("sub")).unwrap_err().to_string().contains("no file"));
        assert!(Draft::create(Path::new("/nowhere/at/all")).is_err());
        assert!(Draft::create(Path::new("/")).is_err());
        // A link where the draft would be is not followed.
        symlink("sub/real", dir.path().join(".x.partial")).unwrap();
        assert!(Draft::create(&dir.path().join("x")).is_err());
    }
}
