//! The smallest HTTP client that can drive the API: one connection, one request at a time, blocking.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connection to an API socket.
pub(super) struct Client {
    stream: BufReader<UnixStream>,
}

/// Status and body of an answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
}

impl Client {
    pub(super) fn connect(socket: &Path) -> io::Result<Self> {
        Ok(Self { stream: BufReader::new(UnixStream::connect(socket)?) })
    }

    /// Sends a request and reads the answer.
    pub(super) fn send(&mut self, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        self.stream.get_mut().write_all(format!("{head}{body}").as_bytes())?;

        let bad = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
        let status = self.line()?.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
        let mut len = 0;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                len = value.trim().parse().map_err(|_| bad())?;
            }
        }
        let mut body = String::new();
        (&mut self.stream).take(len).read_to_string(&mut body)?;
        Ok(Answer { status, body })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}
