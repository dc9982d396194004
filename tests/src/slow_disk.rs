//! A file whose reads wait until the test lets them go: a FUSE file system with one file in it.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner,
    MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, Request,
};

use crate::disk::pattern;

const FILE: INodeNo = INodeNo(2);
const NAME: &str = "slow";
const TTL: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    waiting: usize,
}

/// The file. Dropping it lets all reads go and unmounts the file system.
#[derive(Debug)]
pub struct SlowDisk {
    gate: Arc<Gate>,
    path: PathBuf,
    _session: BackgroundSession,
}

impl SlowDisk {
    /// Mounts the file system on `dir`, which must exist. The file has `len_bytes` bytes of the sequence of seed 1.
    ///
    /// # Errors
    /// What `mount(2)` says; it needs root and `/dev/fuse`.
    pub fn mount(dir: &Path, len_bytes: u64) -> io::Result<Self> {
        let gate = Arc::new(Gate::default());
        let mut config = Config::default();
        config.mount_options = vec![MountOption::RO, MountOption::FSName("slow".to_owned())];
        let session = fuser::spawn_mount(OneFile { gate: gate.clone(), len_bytes }, dir, &config)?;
        Ok(Self { gate, path: dir.join(NAME), _session: session })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until a read is waiting. `false` if none came within `patience`.
    pub fn wait_for_read(&self, patience: Duration) -> bool {
        let state = self.gate.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, _) = self
            .gate
            .changed
            .wait_timeout_while(state, patience, |state| state.waiting == 0)
            .unwrap_or_else(PoisonError::into_inner);
        state.waiting > 0
    }

    /// Lets waiting and later reads go.
    pub fn release(&self) {
        self.gate.state.lock().unwrap_or_else(PoisonError::into_inner).open = true;
        self.gate.changed.notify_all();
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.release();
    }
}

struct OneFile {
    gate: Arc<Gate>,
    len_bytes: u64,
}

impl OneFile {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let directory = inode == INodeNo::ROOT;
        FileAttr {
            ino: inode,
            size: if directory { 0 } else { self.len_bytes },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if directory { FileType::Directory } else { FileType::RegularFile },
            perm: if directory { 0o755 } else { 0o644 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for OneFile {
    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&TTL, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let gate = self.gate.clone();
        let len = self.len_bytes.saturating_sub(offset).min(size.into());
        // On a thread of its own, so that the session goes on answering.
        std::thread::spawn(move || {
            let mut state = gate.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.waiting += 1;
            gate.changed.notify_all();
            state = gate.changed.wait_while(state, |state| !state.open).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
            drop(state);
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            pattern(1, offset, &mut bytes);
            reply.data(&bytes);
        });
    }
}
