//! Mounts by descriptors (open_tree(2), move_mount(2)): no path is walked a second time.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree, unmount,
};

use crate::error::{Doing, Error};

/// How something appears.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner {
    pub(crate) read_only: bool,
    pub(crate) no_exec: bool,
    pub(crate) no_dev: bool,
}

/// Something of the host that will be mounted elsewhere.
#[derive(Debug)]
pub(crate) struct Tree(OwnedFd);

/// Takes a copy of a mount, or of a part of one, that nobody else sees yet.
fn copy(of: BorrowedFd<'_>, recursive: bool) -> Result<Tree, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(of, "", flags).map(Tree)
}

/// From here on, what is mounted here is not seen outside.
pub(crate) fn keep_to_ourselves() -> Result<(), Error> {
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", flags).doing(|| "Cannot leave the host's mounts".to_owned())
}

/// A path of the host, opened while it can still be reached.
#[derive(Debug)]
pub(crate) struct Source {
    fd: OwnedFd,
    pub(crate) is_dir: bool,
    is_device: bool,
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty()).doing(|| format!("Failed to open {}", path.display()))?;
        let kind = FileType::from_raw_mode(fstat(&fd).doing(|| format!("Cannot look at {}", path.display()))?.st_mode);
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        Ok(Self { fd, is_dir: kind == FileType::Directory, is_device })
    }

    /// Makes it appear at `to`.
    pub(crate) fn mount_at(&self, to: BorrowedFd<'_>, manner: Manner) -> Result<(), Errno> {
        let tree = copy(self.fd.as_fd(), false)?;
        tree.restrict(Manner { no_dev: manner.no_dev && !self.is_device, ..manner })?;
        tree.attach(to)
    }
}

impl Tree {
    /// Changes how the copy may be used.
    fn restrict(&self, manner: Manner) -> Result<(), Errno> {
        /// `struct mount_attr` (include/uapi/linux/mount.h).
        #[repr(C)]
        struct Attributes {
            set: u64,
            clear: u64,
            propagation: u64,
            user_namespace: u64,
        }
        let mut set = libc::MOUNT_ATTR_NOSUID;
        for (wanted, flag) in [
            (manner.read_only, libc::MOUNT_ATTR_RDONLY),
            (manner.no_exec, libc::MOUNT_ATTR_NOEXEC),
            (manner.no_dev, libc::MOUNT_ATTR_NODEV),
        ] {
            if wanted {
                set |= flag;
            }
        }
        let attributes = Attributes { set, clear: 0, propagation: 0, user_namespace: 0 };
        let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
        // SAFETY: an empty path, a structure that is valid for the call, and its size.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                flags,
                &raw const attributes,
                size_of::<Attributes>(),
            )
        };
        if done == 0 { Ok(()) } else { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)) }
    }

    fn attach(&self, to: BorrowedFd<'_>) -> Result<(), Errno> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&self.0, "", to, "", flags)
    }
}

/// Makes a directory a mount of its own, with everything that is mounted below it; the descriptor of its top.
pub(crate) fn mount_on_itself(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let tree = copy(directory, true)?;
    tree.attach(directory)?;
    Ok(tree.0)
}

/// Makes a mount the root of all paths, and lets go of the old one with everything that was mounted there.
pub(crate) fn enter(root: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    // pivot_root(2): the old root is stacked upon the new one, and is what "." is.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}
