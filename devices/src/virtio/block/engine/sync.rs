//! The engine that does the work at once on the device's thread: one system call per request.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::{Disk, Finished, Submitted, Work};
use crate::sys::disk;
use crate::sys::iovec::GuestIoVec;
use crate::virtio::chain;

/// `preadv` and `pwritev` straight into guest memory.
pub(in crate::virtio::block) struct Sync {
    file: Arc<File>,
}

impl Sync {
    pub(in crate::virtio::block) fn new(file: Arc<File>) -> Self {
        Self { file }
    }
}

impl Disk for Sync {
    fn submit(&mut self, _tag: u16, work: Work<'_>) -> Submitted {
        Submitted::Done(perform(&self.file, work))
    }

    fn reap(&mut self, _finished: &mut Vec<Finished>) {}

    fn drain(&mut self, _finished: &mut Vec<Finished>) {}

    fn replace(&mut self, file: Arc<File>) -> io::Result<()> {
        self.file = file;
        Ok(())
    }

    fn file(&self) -> &Arc<File> {
        &self.file
    }

    fn sync_now(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Does `work` and returns when it is done.
pub(super) fn perform(file: &File, work: Work<'_>) -> io::Result<()> {
    match work {
        Work::Read { offset, pieces } => transfer(pieces, offset, |rest, at| disk::read(file, rest, at)),
        Work::Write { offset, pieces } => transfer(pieces, offset, |rest, at| disk::write(file, rest, at)),
        Work::Flush => file.sync_data(),
        Work::Discard { offset, len } => discard(file, offset, len),
        Work::Zero { offset, len, unmap } => zero(file, offset, len, unmap),
    }
}

/// Calls until everything is transferred. The first call nearly always does it; the file is where a second one is needed.
fn transfer(
    pieces: &[GuestIoVec],
    offset: u64,
    call: impl Fn(&[GuestIoVec], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let total = GuestIoVec::total(pieces);
    let mut done = 0usize;
    let mut rest = Vec::new();
    loop {
        let left = if done == 0 { pieces } else { rest.as_slice() };
        match call(left, offset.saturating_add(done as u64)) {
            // The file ends before the capacity: somebody cut it.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done = done.saturating_add(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if done >= total {
            return Ok(());
        }
        rest.clear();
        // Cannot fail: `done` and the rest are within the pieces.
        let _ = chain::cut(pieces, done, total.saturating_sub(done), &mut rest);
    }
}

/// Deallocates the range. A discard is advice: where the host cannot follow it, nothing happens, and that is a success
/// (virtio 1.3 §5.2.6.2).
fn discard(file: &File, offset: u64, len: u64) -> io::Result<()> {
    match retry(|| disk::allocate(file, PUNCH, offset, len)) {
        Err(error) if is_unsupported(&error) => Ok(()),
        other => other,
    }
}

/// Deallocates and leaves the length alone.
pub(super) const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// Zeroes without giving space back.
pub(super) const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

fn zero(file: &File, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
    let modes: &[i32] = if unmap { &[PUNCH, ZERO] } else { &[ZERO] };
    for mode in modes {
        match retry(|| disk::allocate(file, *mode, offset, len)) {
            Err(error) if is_unsupported(&error) => {}
            other => return other,
        }
    }
    write_zeroes(file, offset, len)
}

fn write_zeroes(file: &File, offset: u64, len: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
    let mut done = 0u64;
    while done < len {
        let part = usize::try_from(len.saturating_sub(done)).unwrap_or(usize::MAX).min(ZEROES.len());
        file.write_all_at(ZEROES.get(..part).unwrap_or_default(), offset.saturating_add(done))?;
        done = done.saturating_add(part as u64);
    }
    Ok(())
}

fn retry(call: impl Fn() -> io::Result<()>) -> io::Result<()> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// The file system or device cannot do it this way. EINVAL is what block devices answer to ranges finer than their own blocks.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::ram::{self, GuestRam};

    #[test]
    fn short_transfers_are_continued() {
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let piece = |addr, len| ram::piece(&memory, GuestAddress(addr), len).unwrap();
        let pieces = [piece(0x1000, 100), piece(0x2000, 400), piece(0x3000, 12)];
        let data: Vec<u8> = (0..512u32).map(|i| i as u8 ^ (i >> 3) as u8).collect();
        // At most 150 bytes a call, and every other call is interrupted.
        let calls = RefCell::new(0);
        transfer(&pieces, 0, |rest, at| {
            *calls.borrow_mut() += 1;
            if *calls.borrow() % 2 == 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let mut left = &data[at as usize..data.len().min(at as usize + 150)];
            let mut count = 0;
            for piece in rest {
                let copied = piece.copy_from(left);
                left = &left[copied..];
                count += copied;
            }
            Ok(count)
        })
        .unwrap();
        assert_eq!(calls.into_inner(), 7);
        let mut read = vec![0; 512];
        memory.read_slice(&mut read[..100], GuestAddress(0x1000)).unwrap();
        memory.read_slice(&mut read[100..500], GuestAddress(0x2000)).unwrap();
        memory.read_slice(&mut read[500..], GuestAddress(0x3000)).unwrap();
        assert_eq!(read, data);
    }

    #[test]
    fn the_end_of_the_file_is_an_error() {
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let pieces = [ram::piece(&memory, GuestAddress(0), 512).unwrap()];
        let error = transfer(&pieces, 0, |_, at| Ok(if at == 0 { 200 } else { 0 })).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
