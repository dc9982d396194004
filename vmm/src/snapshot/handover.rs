//! Handing a machine over to a process that waits for one, by a Unix socket: its memory as descriptors, its state as bytes in the form of a
//! state file. Both ends are this program, of the same version.
//!
//! The giver sends a head with the descriptor of the memory file beside it, one byte more with that of the second file if there is one, and
//! the state. The taker judges everything as if it came from a stranger, because a guest may have taken the giver over, becomes the machine,
//! and answers how long that took or why it is none.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::container;
use super::image::Image;
use crate::sys::socket;

const MAGIC: [u8; 8] = *b"MAYFLYHO";
const VERSION: u16 = 1;
const HEAD_LEN: usize = 16;
/// How long the taker waits for the rest of what has begun to arrive.
const TAKE_TIME: Duration = Duration::from_secs(2);
/// How long an answer is waited for when all the time is over.
const SHORT_TIME: Duration = Duration::from_millis(1);
/// Bytes of state for which room is made before they are there.
const USUAL_LEN: usize = 64 << 10;
/// Longest answer in bytes.
const MAX_ANSWER: u32 = 16 << 10;

/// What the taker answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Taken {
    /// It is the machine.
    In(Became),
    /// It is not, and why.
    Refused(String),
}

/// How a process became a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Became {
    /// In so many microseconds.
    pub load_us: u64,
    /// With so many bytes of guest memory that no other clone shares, to begin with.
    pub private_bytes: u64,
}

/// What was handed over.
#[derive(Debug)]
pub struct Gift {
    /// The state.
    pub bytes: Vec<u8>,
    /// The memory file.
    pub base: File,
    /// The second one.
    pub over: Option<File>,
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// What a socket says when its time is over.
fn plain(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            io::Error::new(io::ErrorKind::TimedOut, "it did not go on in time")
        }
        io::ErrorKind::UnexpectedEof => io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up"),
        _ => error,
    }
}

/// Gives a machine to the process that waits at `path`, which answers on the stream.
pub fn give(path: &Path, image: &Image, state: &[u8], until: Instant) -> io::Result<UnixStream> {
    let mut stream = socket::connect_within(path, left(until)?)?;
    let len = u32::try_from(state.len()).map_err(|_| wrong("its state is too long"))?;
    let mut head = [0; HEAD_LEN];
    let files = 1 + u16::from(image.over.is_some());
    let parts = [&MAGIC[..], &VERSION.to_le_bytes(), &files.to_le_bytes(), &len.to_le_bytes()].concat();
    head.copy_from_slice(&parts);
    send(&stream, &head, &image.base)?;
    if let Some((over, _)) = &image.over {
        send(&stream, &[0], over)?;
    }
    stream.write_all(state).map_err(plain)?;
    Ok(stream)
}

fn send(stream: &UnixStream, bytes: &[u8], file: &File) -> io::Result<()> {
    match stream.send_with_fd(bytes, file.as_raw_fd()) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(wrong("a part of it was sent only")),
        Err(error) => Err(plain(io::Error::from_raw_os_error(error.errno()))),
    }
}

/// Waits for the answer.
pub fn hear(mut stream: UnixStream, until: Instant) -> io::Result<Taken> {
    // One that has answered while others were waited for is heard, however late it is.
    stream.set_read_timeout(Some(left(until).unwrap_or(SHORT_TIME)))?;
    let mut len = [0; 4];
    stream.read_exact(&mut len).map_err(plain)?;
    let len = u32::from_le_bytes(len);
    if len > MAX_ANSWER {
        return Err(wrong("its answer is too long"));
    }
    let mut bytes = vec![0; len as usize];
    stream.read_exact(&mut bytes).map_err(plain)?;
    postcard::from_bytes(&bytes).map_err(|_| wrong("its answer makes no sense"))
}

/// Takes what arrives on `stream`.
pub fn take(stream: &UnixStream) -> io::Result<Gift> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TAKE_TIME))?;
    let mut head = [0; HEAD_LEN];
    let base = receive(stream, &mut head)?;
    let (magic, rest) = head.split_at(MAGIC.len());
    let [version_low, version_high, files_low, files_high, len @ ..] = rest else { return Err(wrong("no head")) };
    if magic != MAGIC || u16::from_le_bytes([*version_low, *version_high]) != VERSION {
        return Err(wrong("it is not a machine that this version of the program hands over"));
    }
    let over = match u16::from_le_bytes([*files_low, *files_high]) {
        1 => None,
        2 => Some(receive(stream, &mut [0])?),
        _ => return Err(wrong("it has neither one memory file nor two")),
    };
    let len = <[u8; 4]>::try_from(len).map_or(u32::MAX, u32::from_le_bytes);
    if u64::from(len) > container::MAX_LEN {
        return Err(wrong("its state is too long"));
    }
    // A usual one at once; what claims to be longer gets room as it arrives.
    let mut bytes = Vec::with_capacity(USUAL_LEN.min(len as usize) + 1);
    let mut limited = stream.take(len.into());
    limited.read_to_end(&mut bytes).map_err(plain)?;
    if bytes.len() as u64 != u64::from(len) {
        return Err(wrong("its state is incomplete"));
    }
    if socket::has_hung_up(stream) {
        // Whoever gave it up believes that there is no such machine.
        return Err(wrong("it was offered too long ago: whoever did has hung up"));
    }
    Ok(Gift { bytes, base, over })
}

/// Reads all of `bytes`, and the descriptor of a file beside the first one.
fn receive(mut stream: &UnixStream, bytes: &mut [u8]) -> io::Result<File> {
    let (count, file) =
        stream.recv_with_fd(bytes).map_err(|error| plain(io::Error::from_raw_os_error(error.errno())))?;
    if count == 0 {
        return Err(wrong("it hung up"));
    }
    stream.read_exact(bytes.get_mut(count..).unwrap_or_default()).map_err(plain)?;
    let file = file.ok_or_else(|| wrong("a memory file is missing"))?;
    // Mapping a device could do anything.
    if !file.metadata()?.is_file() {
        return Err(wrong("what should be a memory file is none"));
    }
    Ok(file)
}

/// Answers. By write(2), which is all that a thread with a machine may still use; a giver that is gone hears nothing.
pub fn answer(stream: UnixStream, taken: &Taken) {
    let text = postcard::to_allocvec(taken).unwrap_or_default();
    let len = u32::try_from(text.len()).unwrap_or(0);
    let _ = File::from(OwnedFd::from(stream)).write_all(&[&len.to_le_bytes()[..], &text].concat());
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;

    use super::*;
    use crate::memory::Layout;

    fn image(over: bool) -> Image {
        let file = |text: &str| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(text.as_bytes(), 0).unwrap();
            Arc::new(file)
        };
        let over = over.then(|| (file("over"), Vec::new()));
        Image { base: file("base"), over, layout: Layout::default() }
    }

    fn read(file: &File) -> String {
        let mut text = vec![0; 4];
        file.read_exact_at(&mut text, 0).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn what_is_given_is_taken_and_answered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("waiting");
        let listener = UnixListener::bind(&path).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        for (over, taken) in
            [(false, Taken::In(Became { load_us: 7, private_bytes: 8 })), (true, Taken::Refused("because".to_owned()))]
        {
            let state = vec![7; 100_000];
            let (given, gift) = std::thread::scope(|scope| {
                let giver = scope.spawn(|| hear(give(&path, &image(over), &state, until).unwrap(), until));
                let (stream, _) = listener.accept().unwrap();
                let gift = take(&stream).unwrap();
                answer(stream, &taken);
                (giver.join().unwrap().unwrap(), gift)
            });
            assert_eq!((given, &gift.bytes), (taken, &state));
            assert_eq!((read(&gift.base), gift.over.as_ref().map(read)), ("base".into(), over.then(|| "over".into())));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let take_of = |send: &dyn Fn(&mut UnixStream)| {
            let (mut giver, taker) = UnixStream::pair().unwrap();
            send(&mut giver);
            drop(giver);
            take(&taker).unwrap_err().to_string()
        };
        let file = tempfile::tempfile().unwrap();
        let head = |version: u16, files: u16, len: u32| {
            [&MAGIC[..], &version.to_le_bytes(), &files.to_le_bytes(), &len.to_le_bytes()].concat()
        };
        let with_file = |bytes: Vec<u8>| {
            let file = &file;
            move |stream: &mut UnixStream| send(stream, &bytes, file).unwrap()
        };
        assert_eq!(take_of(&|_| ()), "it hung up");
        assert!(take_of(&|stream| stream.write_all(&head(1, 1, 0)).unwrap()).contains("a memory file is missing"));
        assert!(take_of(&with_file(head(2, 1, 0))).contains("this version"));
        assert!(take_of(&with_file(vec![0; HEAD_LEN])).contains("this version"));
        assert!(take_of(&with_file(head(1, 3, 0))).contains("neither one memory file nor two"));
        assert_eq!(take_of(&with_file(head(1, 2, 0))), "it hung up");
        assert!(take_of(&with_file(head(1, 1, u32::MAX))).contains("too long"));
        assert!(take_of(&with_file(head(1, 1, 5))).contains("incomplete"));
        assert!(take_of(&with_file(head(1, 1, 0))).contains("too long ago"));
        let device = File::open("/dev/zero").unwrap();
        let sends_device = |stream: &mut UnixStream| send(stream, &head(1, 1, 0), &device).unwrap();
        assert!(take_of(&sends_device).contains("what should be a memory file is none"));
    }
}
