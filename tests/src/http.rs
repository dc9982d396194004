//! A plain HTTP/1.1 client over a Unix socket that shows exactly what was sent and received.
//!
//! Written on std so that a mistake of our server's HTTP library cannot hide in the client's.
//! One [`Client`] is one connection; it keeps alive and may pipeline.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::uninterrupted;

/// How long a read may block before the exchange counts as failed.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// Replies larger than this are a bug of the server.
const MAX_REPLY_BYTES: usize = 16 << 20;

/// One connection to the API socket.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// Bytes received that belong to the next reply.
    pending: Vec<u8>,
}

/// One reply, byte for byte.
#[derive(Clone, Debug)]
pub struct Response {
    /// The numeric status.
    pub status: u16,
    /// The status line without its line end.
    pub status_line: String,
    /// Header names as sent, and values without surrounding blanks.
    pub headers: Vec<(String, String)>,
    /// The body; empty when there was none.
    pub body: Vec<u8>,
}

impl Client {
    /// Opens a connection to the socket at `path`.
    ///
    /// # Errors
    /// What `connect(2)` says.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        stream.set_write_timeout(Some(READ_TIMEOUT))?;
        Ok(Self { stream, pending: Vec::new() })
    }

    /// The socket itself, for tests that half-close, time out or send by the byte.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// What the socket says.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends one HTTP/1.1 request without waiting for its reply.
    ///
    /// # Errors
    /// What the socket says.
    pub fn send(&mut self, method: &str, path: &str, body: Option<&str>) -> io::Result<()> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n");
        if let Some(body) = body {
            request.push_str("Content-Type: application/json\r\n");
            request.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        } else {
            request.push_str("\r\n");
        }
        self.send_raw(request.as_bytes())
    }

    /// Sends one request and reads its reply.
    ///
    /// # Errors
    /// What the socket says, or `InvalidData` for a reply that is not HTTP.
    pub fn request(&mut self, method: &str, path: &str, body: Option<&str>) -> io::Result<Response> {
        self.send(method, path, body)?;
        self.read_response()
    }

    /// Reads the next reply.
    ///
    /// # Errors
    /// `UnexpectedEof` when the server closed first, `WouldBlock` when it stayed silent,
    /// `InvalidData` for a reply that is not HTTP.
    pub fn read_response(&mut self) -> io::Result<Response> {
        let head_end = loop {
            if let Some(at) = find(&self.pending, b"\r\n\r\n") {
                break at;
            }
            self.fill()?;
        };
        let head = String::from_utf8_lossy(&self.pending[..head_end]).into_owned();
        let (status, status_line, headers) = parse_head(&head)?;
        let length = match header_of(&headers, "content-length") {
            Some(text) if status >= 200 && status != 204 => {
                text.parse().map_err(|_| invalid(&format!("Content-Length {text:?}")))?
            }
            _ => 0usize,
        };
        let body_start = head_end + 4;
        while self.pending.len() < body_start + length {
            self.fill()?;
        }
        let body = self.pending[body_start..body_start + length].to_vec();
        self.pending.drain(..body_start + length);
        Ok(Response { status, status_line, headers, body })
    }

    /// Whether the server has closed the connection; waits for it up to the read timeout.
    pub fn closed(&mut self) -> bool {
        let mut byte = [0];
        matches!(uninterrupted(|| self.stream.read(&mut byte)), Ok(0))
            || matches!(self.stream.write_all(b"\r\n"), Err(e) if e.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Bytes received after the last reply that was read.
    pub fn pending(&self) -> &[u8] {
        &self.pending
    }

    fn fill(&mut self) -> io::Result<()> {
        if self.pending.len() > MAX_REPLY_BYTES {
            return Err(invalid("the reply is too large"));
        }
        let mut chunk = [0; 16 << 10];
        let n = uninterrupted(|| self.stream.read(&mut chunk))?;
        if n == 0 {
            let seen = String::from_utf8_lossy(&self.pending).into_owned();
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the server closed the connection after {seen:?}"),
            ));
        }
        self.pending.extend_from_slice(&chunk[..n]);
        Ok(())
    }
}

type Head = (u16, String, Vec<(String, String)>);

fn parse_head(head: &str) -> io::Result<Head> {
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default().to_owned();
    let status = status_line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| invalid(&format!("status line {status_line:?}")))?;
    let headers = lines
        .map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(|| invalid(&format!("header {line:?}")))?;
            Ok((name.to_owned(), value.trim().to_owned()))
        })
        .collect::<io::Result<_>>()?;
    Ok((status, status_line, headers))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn header_of<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP reply: {what}"))
}

impl Response {
    /// The value of the first header of that name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header_of(&self.headers, name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("{} with a body that is not JSON ({error}): {}", self.status, self.text()),
        }
    }

    /// The text under `fault_message`, if the body has one.
    pub fn fault(&self) -> Option<String> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        body.get("fault_message")?.as_str().map(str::to_owned)
    }

    /// Asserts 204 with a truly empty body.
    ///
    /// # Panics
    /// On any other status, a body, or headers that announce one.
    #[track_caller]
    pub fn expect_204(&self) {
        assert_eq!(self.status, 204, "body: {}", self.text());
        assert!(self.body.is_empty(), "204 with a body");
        assert_eq!(self.header("content-length"), None, "204 with a Content-Length");
        assert_eq!(self.header("content-type"), None, "204 with a Content-Type");
    }

    /// Asserts 200 and returns the JSON body.
    ///
    /// # Panics
    /// On any other status or a body that is not JSON.
    #[track_caller]
    pub fn expect_200(&self) -> Value {
        assert_eq!(self.status, 200, "body: {}", self.text());
        self.json()
    }

    /// Asserts 400 with a `fault_message` that contains `text`; returns the whole message.
    ///
    /// # Panics
    /// On any other status or message.
    #[track_caller]
    pub fn expect_fault(&self, text: &str) -> String {
        self.expect_fault_status(400, text)
    }

    /// Like [`expect_fault`](Self::expect_fault) with another status (413 for a full data store).
    ///
    /// # Panics
    /// On any other status or message.
    #[track_caller]
    pub fn expect_fault_status(&self, status: u16, text: &str) -> String {
        assert_eq!(self.status, status, "body: {}", self.text());
        let fault = self.fault();
        let Some(message) = fault else { panic!("no fault_message in {}", self.text()) };
        assert!(message.contains(text), "expected {text:?} in the fault {message:?}");
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Client, UnixStream) {
        let (stream, server) = UnixStream::pair().unwrap();
        (Client { stream, pending: Vec::new() }, server)
    }

    #[test]
    fn reads_pipelined_replies_one_by_one() {
        let (mut client, mut server) = pair();
        server
            .write_all(
                b"HTTP/1.1 204 \r\nServer: x\r\n\r\n\
                  HTTP/1.1 400 \r\nContent-Length: 21\r\n\r\n{\"fault_message\":\"no\"}",
            )
            .unwrap();
        client.read_response().unwrap().expect_204();
        // Content-Length is one byte short of that body on purpose.
        assert!(client.read_response().unwrap().fault().is_none());
        assert_eq!(client.pending(), b"}");
    }

    #[test]
    fn a_fault_is_found_by_its_text() {
        let (mut client, mut server) = pair();
        server.write_all(b"HTTP/1.1 400 \r\ncontent-length: 29\r\n\r\n{\"fault_message\":\"bad input\"}").unwrap();
        let reply = client.read_response().unwrap();
        assert_eq!(reply.expect_fault("bad"), "bad input");
        assert_eq!(reply.header("Content-Length"), Some("29"));
    }

    #[test]
    fn a_closed_connection_and_a_reply_that_is_not_http_are_errors() {
        let (mut client, server) = pair();
        drop(server);
        assert_eq!(client.read_response().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (mut client, mut server) = pair();
        server.write_all(b"SMTP hello\r\n\r\n").unwrap();
        assert_eq!(client.read_response().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_signal_does_not_end_the_wait_for_a_reply() {
        extern "C" fn nothing(_: libc::c_int) {}
        let handler = nothing as extern "C" fn(libc::c_int);
        // SAFETY: `action` is zeroed (valid for this plain structure) and its handler does nothing; no other test uses the signal.
        let installed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as libc::sighandler_t;
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut())
        };
        assert_eq!(installed, 0);

        let (mut client, mut server) = pair();
        // SAFETY: asks for this thread's own handle.
        let reader = unsafe { libc::pthread_self() };
        let interrupter = std::thread::spawn(move || {
            for _ in 0..20 {
                std::thread::sleep(Duration::from_millis(5));
                // SAFETY: the thread joins this one before it ends, so its handle is good.
                assert_eq!(unsafe { libc::pthread_kill(reader, libc::SIGUSR1) }, 0);
            }
            server.write_all(b"HTTP/1.1 204 \r\n\r\n").unwrap();
        });
        let reply = client.read_response();
        interrupter.join().unwrap();
        reply.unwrap().expect_204();
    }
}
