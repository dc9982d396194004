//! Files below a directory, never over a link and never out of it (openat2(2)): whoever planted something there gets a refusal.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, fchmod, fchown, fstat, ftruncate, mkdirat, mknodat,
    openat2, statat, unlinkat,
};
use rustix::io::Errno;

use crate::error::{Doing, Error};

/// A directory and its path, for messages.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    shown: String,
}

const SAFELY: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

impl Dir {
    /// Opens a directory that the caller trusts.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).doing(|| format!("Failed to open {}", path.display()))?;
        Ok(Self { fd, shown: path.display().to_string() })
    }

    /// Takes a descriptor of a directory.
    pub(crate) fn of(fd: OwnedFd, shown: &Path) -> Self {
        Self { fd, shown: shown.display().to_string() }
    }

    fn show(&self, path: &Path) -> String {
        let path = path.strip_prefix("/").unwrap_or(path);
        if path.as_os_str().is_empty() { self.shown.clone() } else { format!("{}/{}", self.shown, path.display()) }
    }

    /// Opens something below, as `flags` say.
    fn at(&self, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let path = path.strip_prefix("/").unwrap_or(path);
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        openat2(&self.fd, path, flags | OFlags::CLOEXEC, mode, SAFELY)
    }

    fn explain(&self, path: &Path, error: Errno) -> Error {
        let shown = self.show(path);
        match error {
            Errno::LOOP => {
                Error::new(format!("Failed to open {shown}: there is a symbolic link on the way. Remove it."))
            }
            Errno::XDEV => Error::new(format!("Failed to open {shown}: it leads out of {}.", self.shown)),
            Errno::NOTDIR => {
                Error::new(format!("Failed to open {shown}: something on the way is not a directory. Remove it."))
            }
            error => Error::new(format!("Failed to open {shown}: {}", io::Error::from(error))),
        }
    }

    /// A directory below.
    pub(crate) fn dir(&self, path: &Path) -> Result<Self, Error> {
        let fd = self.at(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).map_err(|e| self.explain(path, e))?;
        Ok(Self { fd, shown: self.show(path) })
    }

    /// The same, if it is there.
    pub(crate) fn dir_if_any(&self, path: &Path) -> Result<Option<Self>, Error> {
        match self.at(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, shown: self.show(path) })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.explain(path, error)),
        }
    }

    /// Makes a directory and those above it; says which were not there.
    pub(crate) fn make_dirs(&self, path: &Path, mode: u32) -> Result<Vec<std::path::PathBuf>, Error> {
        let mut made = Vec::new();
        let mut so_far = std::path::PathBuf::new();
        for component in path.components() {
            let Component::Normal(name) = component else { continue };
            let above = self.dir(&so_far)?;
            so_far.push(name);
            match mkdirat(&above.fd, name, Mode::from_raw_mode(mode)) {
                Ok(()) => made.push(so_far.clone()),
                Err(Errno::EXIST) => {}
                Err(error) => {
                    return Err(Error::new(format!(
                        "Cannot make the directory {}: {}",
                        self.show(&so_far),
                        io::Error::from(error)
                    )));
                }
            }
            // What is there already must be a directory, and no link to one.
            self.dir(&so_far)?;
        }
        Ok(made)
    }

    /// Opens a regular file for writing, new or emptied; whether it is new. Refuses what is anything else, or has other names.
    pub(crate) fn create(&self, path: &Path, mode: u32) -> Result<(File, bool), Error> {
        let mode = Mode::from_raw_mode(mode);
        match self.at(path, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, mode) {
            Ok(fd) => return Ok((fd.into(), true)),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(self.explain(path, error)),
        }
        // For reading and writing: a FIFO without anybody at its other end would keep us waiting else.
        let fd = match self.at(path, OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::TXTBSY) => {
                return Err(Error::new(format!(
                    "Failed to open {}: it is being run. End that machine first, or choose another --id.",
                    self.show(path)
                )));
            }
            Err(error) => return Err(self.explain(path, error)),
        };
        let about = fstat(&fd).doing(|| format!("Cannot look at {}", self.show(path)))?;
        self.check_plain(path, &about)?;
        ftruncate(&fd, 0).doing(|| format!("Cannot empty {}", self.show(path)))?;
        Ok((fd.into(), false))
    }

    fn check_plain(&self, path: &Path, about: &Stat) -> Result<(), Error> {
        let shown = self.show(path);
        if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
            return Err(Error::new(format!("{shown} is there and not a regular file. Remove it.")));
        }
        if about.st_nlink > 1 {
            return Err(Error::new(format!("Detected hard link at: {shown}")));
        }
        Ok(())
    }

    /// Makes a file that must not be there yet.
    pub(crate) fn create_new(&self, path: &Path, mode: u32, text: &str) -> Result<(), Error> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let fd = self.at(path, flags, Mode::from_raw_mode(mode)).map_err(|e| self.explain(path, e))?;
        File::from(fd).write_all(text.as_bytes()).doing(|| format!("Cannot write {}", self.show(path)))
    }

    /// What is in a small regular file, if there is one.
    pub(crate) fn read_if_any(&self, path: &Path) -> Result<Option<String>, Error> {
        let fd = match self.at(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(self.explain(path, error)),
        };
        let about = fstat(&fd).doing(|| format!("Cannot look at {}", self.show(path)))?;
        self.check_plain(path, &about)?;
        let mut text = String::new();
        File::from(fd).take(64).read_to_string(&mut text).doing(|| format!("Cannot read {}", self.show(path)))?;
        Ok(Some(text))
    }

    /// Changes owner and mode of what is open.
    pub(crate) fn own(
        &self,
        path: &Path,
        fd: BorrowedFd<'_>,
        owner: Option<(u32, u32)>,
        mode: u32,
    ) -> Result<(), Error> {
        if let Some((uid, gid)) = owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            fchown(fd, Some(uid), Some(gid)).doing(|| format!("Cannot change the owner of {}", self.show(path)))?;
        }
        fchmod(fd, Mode::from_raw_mode(mode)).doing(|| format!("Cannot change the mode of {}", self.show(path)))
    }

    /// Makes a directory, or takes the one that is there, and gives it away. Whether it is new.
    pub(crate) fn own_dir(&self, path: &Path, owner: Option<(u32, u32)>, mode: u32) -> Result<bool, Error> {
        let made = !self.make_dirs(path.strip_prefix("/").unwrap_or(path), mode)?.is_empty();
        let fd = self.at(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).map_err(|e| self.explain(path, e))?;
        self.own(path, fd.as_fd(), owner, mode)?;
        Ok(made)
    }

    /// Makes a character device and gives it away. One of the same number that is there already is replaced; anything else is refused.
    pub(crate) fn node(&self, path: &Path, (major, minor): (u32, u32), owner: (u32, u32)) -> Result<(), Error> {
        let (above, name) = self.split(path)?;
        let device = rustix::fs::makedev(major, minor);
        let make = || mknodat(&above.fd, &name, FileType::CharacterDevice, Mode::from_raw_mode(0o600), device);
        let shown = || self.show(path);
        match make() {
            Err(Errno::EXIST) => {
                let about = statat(&above.fd, &name, AtFlags::SYMLINK_NOFOLLOW)
                    .doing(|| format!("Cannot look at {}", shown()))?;
                if FileType::from_raw_mode(about.st_mode) != FileType::CharacterDevice
                    || about.st_rdev != device
                    || about.st_nlink > 1
                {
                    return Err(Error::new(format!(
                        "{} is there and not the device that it should be. Remove it.",
                        shown()
                    )));
                }
                unlinkat(&above.fd, &name, AtFlags::empty()).doing(|| format!("Cannot replace {}", shown()))?;
                make().doing(|| format!("Cannot make the device {}", shown()))?;
            }
            other => other.doing(|| format!("Cannot make the device {}", shown()))?,
        }
        // Nobody else can have put something in its place: the directories on the way are root's, or the owner's and not in use yet.
        let fd = self.at(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).map_err(|e| self.explain(path, e))?;
        let about = fstat(&fd).doing(|| format!("Cannot look at {}", shown()))?;
        if about.st_rdev != device || FileType::from_raw_mode(about.st_mode) != FileType::CharacterDevice {
            return Err(Error::new(format!("{} was replaced while it was made.", shown())));
        }
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        rustix::fs::chownat(&fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
            .doing(|| format!("Cannot change the owner of {}", shown()))
    }

    /// The directory of a path, and the last name.
    fn split(&self, path: &Path) -> Result<(Self, CString), Error> {
        let bad = || Error::new(format!("{} has no name.", self.show(path)));
        let name = path.file_name().ok_or_else(bad)?;
        let above = path.parent().unwrap_or(Path::new("/"));
        use std::os::unix::ffi::OsStrExt;
        Ok((self.dir(above)?, CString::new(name.as_bytes()).map_err(|_| bad())?))
    }

    /// Something to mount on: a directory or an empty file, made with those above it if it is not there. Its descriptor, and what is new.
    pub(crate) fn mount_point(
        &self,
        path: &Path,
        directory: bool,
    ) -> Result<(OwnedFd, Vec<std::path::PathBuf>), Error> {
        let inner = path.strip_prefix("/").unwrap_or(path);
        let above = inner.parent().unwrap_or(Path::new(""));
        let mut made = self.make_dirs(above, 0o755)?;
        if directory {
            made.extend(self.make_dirs(inner, 0o755)?);
        } else {
            match self.at(
                path,
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW,
                Mode::from_raw_mode(0o600),
            ) {
                Ok(_) => made.push(inner.to_owned()),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(self.explain(path, error)),
            }
        }
        let fd = self.at(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).map_err(|e| self.explain(path, e))?;
        let about = fstat(&fd).doing(|| format!("Cannot look at {}", self.show(path)))?;
        let kind = FileType::from_raw_mode(about.st_mode);
        let fits = if directory { kind == FileType::Directory } else { kind == FileType::RegularFile };
        if !fits {
            let wanted = if directory { "directory" } else { "regular file" };
            return Err(Error::new(format!("{} is there and not a {wanted} to mount on. Remove it.", self.show(path))));
        }
        Ok((fd, made))
    }

    /// Removes a file or an empty directory, if it is there.
    pub(crate) fn remove(&self, path: &Path) {
        if let Ok((above, name)) = self.split(path) {
            let gone = unlinkat(&above.fd, &name, AtFlags::empty());
            if gone == Err(Errno::ISDIR) || gone == Err(Errno::PERM) {
                let _ = unlinkat(&above.fd, &name, AtFlags::REMOVEDIR);
            }
        }
    }

    /// Removes a directory with everything below it, never over a link or into another file system.
    pub(crate) fn remove_all(&self, path: &Path) -> Result<(), Error> {
        let (above, name) = self.split(path)?;
        remove_tree(&above.fd, &name).doing(|| format!("Cannot remove {}", self.show(path)))
    }

    /// Whether it is this one, as the file system numbers them.
    pub(crate) fn has_number(&self, device: u64, inode: u64) -> bool {
        fstat(&self.fd).is_ok_and(|own| (own.st_dev, own.st_ino) == (device, inode))
    }

    /// Whether both are the same directory.
    pub(crate) fn is(&self, other: &Self) -> bool {
        fstat(&other.fd).is_ok_and(|other| self.has_number(other.st_dev, other.st_ino))
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn remove_tree(above: &OwnedFd, name: &CString) -> Result<(), Errno> {
    match unlinkat(above, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) => return Ok(()),
        other => return other,
    }
    let resolve = SAFELY | ResolveFlags::NO_XDEV;
    let fd = openat2(
        above,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )?;
    let names: Vec<CString> = rustix::fs::Dir::read_from(&fd)?
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_owned()))
        .filter(|name| name.as_bytes() != b"." && name.as_bytes() != b"..")
        .collect();
    names.iter().try_for_each(|name| remove_tree(&fd, name))?;
    match unlinkat(above, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
