//! The line by which a host program says what port of the guest it wants.

use std::io;

use crate::sys::unix_stream::HostStream;

/// Most bytes of the line, its end included.
const MAX_LINE: usize = 32;

/// How far a host program came.
#[derive(Debug, PartialEq, Eq)]
pub enum Knock {
    /// The line is not complete yet.
    Unfinished,
    /// It asked for this port. What it sent after the line is still to be read.
    Port(u32),
    /// It asked for nothing that makes sense, or went away.
    Nonsense,
}

/// Reads the line, and only the line, from `stream`. `is_last` says that nothing more will come.
pub fn listen(stream: &HostStream, is_last: bool) -> Knock {
    let mut bytes = [0; MAX_LINE];
    let count = match stream.peek(&mut bytes) {
        Ok(count) => count,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Knock::Unfinished,
        Err(_) => return Knock::Nonsense,
    };
    let seen = bytes.get(..count).unwrap_or_default();
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        let hopeless = count == 0 || count == MAX_LINE || is_last;
        return if hopeless { Knock::Nonsense } else { Knock::Unfinished };
    };
    let mut line = [0; MAX_LINE];
    let line = line.get_mut(..=end).unwrap_or_default();
    match stream.receive_bytes(line) {
        Ok(count) if count == line.len() => parse(line).map_or(Knock::Nonsense, Knock::Port),
        _ => Knock::Nonsense,
    }
}

/// `CONNECT <port>`, in any case.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    if !words.next()?.eq_ignore_ascii_case("connect") {
        return None;
    }
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn lines() {
        for (line, port) in [
            ("CONNECT 52\n", 52),
            ("connect 0\n", 0),
            ("Connect 4294967295\r\n", u32::MAX),
            ("CONNECT    1024\n", 1024),
            ("CONNECT 00000000000000000000052\n", 52),
        ] {
            assert_eq!(parse(line.as_bytes()), Some(port), "{line}");
        }
        for line in
            ["\n", "52\n", "CONNECT\n", "CONNECT -1\n", "CONNECT 4294967296\n", "CONNECTION 5\n", "CONNECT 5x\n"]
        {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
        assert_eq!(parse(b"CONNECT \xff\n"), None);
    }

    #[test]
    fn only_the_line_is_read() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let stream = HostStream::new(ours).unwrap();
        assert_eq!(listen(&stream, false), Knock::Unfinished);
        theirs.write_all(b"CONNE").unwrap();
        assert_eq!(listen(&stream, false), Knock::Unfinished);
        theirs.write_all(b"CT 7\nhello").unwrap();
        assert_eq!(listen(&stream, false), Knock::Port(7));
        let mut rest = [0; 10];
        assert_eq!((stream.receive_bytes(&mut rest).unwrap(), &rest[..5]), (5, &b"hello"[..]));
        theirs.write_all(b"x").unwrap();
        assert_eq!(listen(&stream, true), Knock::Nonsense, "it stopped in the middle");
    }

    #[test]
    fn a_line_has_32_bytes() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let stream = HostStream::new(ours).unwrap();
        let line = format!("CONNECT {:023}\n", 9);
        assert_eq!(line.len(), MAX_LINE);
        theirs.write_all(line.as_bytes()).unwrap();
        assert_eq!(listen(&stream, false), Knock::Port(9));
        theirs.write_all(format!("CONNECT {:024}\n", 9).as_bytes()).unwrap();
        assert_eq!(listen(&stream, false), Knock::Nonsense);
        drop(stream);
        // Closing with the line unread is a reset, so that the program sees an end in any case.
        assert!(theirs.read(&mut [0]).map_or(true, |count| count == 0));
    }
}
