//! Copies standard input to a vsock connection and the connection to standard output, in a guest or on its host. `guest-cid` prints who it is.
//!
//! The Linux tier puts it into its guests, whose busybox knows nothing of vsock. The end of the input ends the sending half only; the program
//! ends when the other side has ended its half too.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;

use mayfly_tests::sys::vsock;

const USAGE: &str =
    "usage: vsock-cat guest-cid | guest-connect CID PORT | guest-listen PORT | host-connect UDS PORT | host-listen UDS";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["guest-cid"] => vsock::local_cid().map(|cid| println!("{cid}")),
        _ => connection(&words).and_then(|(socket, first)| copy(&socket, &first)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vsock-cat: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(word: &str) -> io::Result<u32> {
    word.parse().map_err(|e| io::Error::other(format!("{word}: {e}")))
}

/// The connection, and what was already received on it.
fn connection(words: &[&str]) -> io::Result<(File, Vec<u8>)> {
    let plain = |socket| Ok((socket, Vec::new()));
    match words {
        ["guest-connect", cid, port] => plain(vsock::connect(number(cid)?, number(port)?)?),
        ["guest-listen", port] => plain(vsock::accept(number(port)?, || eprintln!("listening"))?),
        ["host-connect", path, port] => {
            let mut stream = UnixStream::connect(path)?;
            writeln!(stream, "CONNECT {port}")?;
            let mut reader = BufReader::new(stream);
            let mut reply = String::new();
            reader.read_line(&mut reply)?;
            if !reply.starts_with("OK ") {
                return Err(io::Error::other(format!("no OK but {reply:?}")));
            }
            let first = reader.buffer().to_vec();
            Ok((File::from(OwnedFd::from(reader.into_inner())), first))
        }
        ["host-listen", path] => {
            let listener = UnixListener::bind(path)?;
            eprintln!("listening");
            plain(File::from(OwnedFd::from(listener.accept()?.0)))
        }
        _ => Err(io::Error::other(USAGE)),
    }
}

fn copy(socket: &File, first: &[u8]) -> io::Result<()> {
    let mut sender = socket.try_clone()?;
    let sending = std::thread::spawn(move || -> io::Result<()> {
        io::copy(&mut io::stdin().lock(), &mut sender)?;
        vsock::finish_sending(&sender)
    });
    let mut out = io::stdout().lock();
    out.write_all(first)?;
    let mut buffer = vec![0; 64 << 10];
    let mut receiver = socket;
    loop {
        let len = receiver.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..len).filter(|bytes| !bytes.is_empty()) else { break };
        out.write_all(bytes)?;
    }
    out.flush()?;
    sending.join().map_err(|_| io::Error::other("the sender panicked"))?
}
