//! Request heads: read strictly, written anew.
//!
//! The v1 contract answers heads that do not parse with a body of its own, keeps HTTP/1.0 connections open and judges the declared
//! length before the body arrives. hyper does none of that, and a second reading of the same bytes could disagree with hyper's about
//! where a request ends. So every head is read here, and hyper gets a new one that says the same and nothing else: what follows can
//! only be framed in one way. Client headers that mean nothing to this API are dropped on the way, which also lets
//! [`REFUSED`] be an in-band signal that no client can forge.

use axum::http::uri::PathAndQuery;

/// Longest request line or header line, in bytes.
const MAX_LINE: usize = 8 << 10;
/// Longest head, in bytes.
const MAX_HEAD: usize = 32 << 10;

/// Header of a request that stands for one that could not be read; its value is the reason.
pub(crate) const REFUSED: &str = "mayfly-refused";

/// How the body of a request is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes follow.
    Length(u32),
    /// Chunks follow; hyper reads them, and the connection ends after the answer.
    Chunked,
}

/// A request head that was understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    method: &'static str,
    target: String,
    pub(super) framing: Framing,
    pub(super) expects_continue: bool,
    closes: bool,
}

/// Why a head was not understood, as the contract begins to say it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Bad {
    #[error("Invalid request. {0}")]
    Request(&'static str),
    #[error("Invalid HTTP Method: expected one of GET, PUT, PATCH, DELETE.")]
    Method,
    #[error("Invalid URI: {0}")]
    Uri(&'static str),
    #[error("Invalid HTTP Version: expected HTTP/1.0 or HTTP/1.1.")]
    Version,
    #[error("Invalid header. {0}")]
    Header(&'static str),
}

/// Length of the head at the start of `input`, or `None` if its end has not arrived. `scanned` remembers what was looked at in an
/// earlier call with the same, then shorter, input.
pub(super) fn find_end(input: &[u8], scanned: &mut usize) -> Result<Option<usize>, Bad> {
    let mut line_start =
        input.get(..*scanned).and_then(|seen| seen.iter().rposition(|&b| b == b'\n')).map_or(0, |at| at + 1);
    while let Some(length) = input.get(*scanned..).and_then(|rest| rest.iter().position(|&b| b == b'\n')) {
        let end = *scanned + length + 1;
        let line = input.get(line_start..end).unwrap_or_default();
        if !line.ends_with(b"\r\n") {
            return Err(Bad::Request("A line must end with CR LF."));
        }
        if end > MAX_HEAD || line.len() > MAX_LINE {
            return Err(TOO_LONG);
        }
        *scanned = end;
        line_start = end;
        if line == b"\r\n" {
            return Ok(Some(end));
        }
    }
    *scanned = input.len();
    if input.len() > MAX_HEAD || input.len() - line_start > MAX_LINE { Err(TOO_LONG) } else { Ok(None) }
}

const TOO_LONG: Bad = Bad::Request("The request line or the headers are too long.");

impl Head {
    /// Reads a whole head, up to and including its empty line.
    pub(super) fn parse(head: &[u8]) -> Result<Self, Bad> {
        let text = std::str::from_utf8(head).map_err(|_| Bad::Request("It is not UTF-8."))?;
        let mut lines = text.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let method = match words.next().unwrap_or_default() {
            "GET" => "GET",
            "PUT" => "PUT",
            "PATCH" => "PATCH",
            "DELETE" => "DELETE",
            "POST" => "POST",
            _ => return Err(Bad::Method),
        };
        let target = parse_target(words.next().unwrap_or_default())?;
        if method == "POST" && !may_be_posted_to(&target) {
            return Err(Bad::Method);
        }
        if !matches!(words.next(), Some("HTTP/1.0" | "HTTP/1.1")) || words.next().is_some() {
            return Err(Bad::Version);
        }
        let mut this = Self { method, target, framing: Framing::Length(0), expects_continue: false, closes: false };
        let mut length = None;
        let mut chunked = false;
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = parse_header(line)?;
            let value = value.trim_matches([' ', '\t']);
            if name.eq_ignore_ascii_case("content-length") {
                if length.replace(parse_length(value)?).is_some() {
                    return Err(Bad::Header("Content-Length is there twice."));
                }
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                if chunked || !value.eq_ignore_ascii_case("chunked") {
                    return Err(Bad::Header("The only Transfer-Encoding is chunked."));
                }
                chunked = true;
            } else if name.eq_ignore_ascii_case("expect") {
                this.expects_continue |= value.eq_ignore_ascii_case("100-continue");
            } else if name.eq_ignore_ascii_case("connection") {
                this.closes |= value.split(',').any(|option| option.trim().eq_ignore_ascii_case("close"));
            } else if name.eq_ignore_ascii_case("accept-encoding") && refuses_identity(value) {
                return Err(Bad::Header("Accept-Encoding forbids identity, and there is no other encoding."));
            }
        }
        this.framing = match (length, chunked) {
            (Some(_), true) => return Err(Bad::Header("Content-Length and Transfer-Encoding exclude each other.")),
            (Some(length), false) => Framing::Length(length),
            (None, true) => Framing::Chunked,
            (None, false) => Framing::Length(0),
        };
        Ok(this)
    }

    /// The head for hyper.
    pub(super) fn render(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        match self.framing {
            Framing::Length(0) => {}
            Framing::Length(length) => text.push_str(&format!("content-length: {length}\r\n")),
            // After chunks nobody here knows where the next head begins.
            Framing::Chunked => text.push_str("transfer-encoding: chunked\r\nconnection: close\r\n"),
        }
        if self.expects_continue {
            text.push_str("expect: 100-continue\r\n");
        }
        if self.closes && self.framing != Framing::Chunked {
            text.push_str("connection: close\r\n");
        }
        text.push_str("\r\n");
        text.into_bytes()
    }
}

/// Reads bytes as a client could send them, in one piece and byte by byte. What is understood must say the same when it is written anew.
#[cfg(feature = "fuzz")]
pub(crate) fn reads_head(input: &[u8]) -> bool {
    let whole = find_end(input, &mut 0);
    let mut scanned = 0;
    let pieces = (0..=input.len()).map(|n| find_end(input.get(..n).unwrap_or_default(), &mut scanned));
    let first = pieces.into_iter().find(|found| *found != Ok(None)).unwrap_or(Ok(None));
    assert_eq!(first.is_err(), whole.is_err(), "the pieces say something else");
    let Ok(Some(end)) = whole else { return false };
    assert_eq!(first, whole, "the pieces end elsewhere");
    let Ok(head) = Head::parse(input.get(..end).unwrap_or_default()) else { return false };
    let anew = head.render();
    let again = Head::parse(&anew);
    assert!(
        again.is_ok_and(|again| {
            (again.method, &again.target, again.framing) == (head.method, &head.target, head.framing)
                && again.expects_continue == head.expects_continue
        }),
        "{}",
        String::from_utf8_lossy(&anew)
    );
    true
}

/// A head for hyper that stands for a refused request. `reason` must be printable ASCII.
pub(super) fn render_refusal(reason: &str, closes: bool) -> Vec<u8> {
    let close = if closes { "connection: close\r\n" } else { "" };
    format!("GET / HTTP/1.1\r\n{REFUSED}: {reason}\r\n{close}\r\n").into_bytes()
}

/// v1 does not know the method, and its clients hear so wherever we do not use it either.
fn may_be_posted_to(target: &str) -> bool {
    target.split('?').next().is_some_and(|path| path.trim_matches('/') == "clones")
}

/// The path of a request target, which may come with scheme and host. A query stays part of the path, as in the contract.
fn parse_target(target: &str) -> Result<String, Bad> {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| rest.get(at..).unwrap_or("/")),
        None => target,
    };
    if path.is_empty() {
        return Err(Bad::Uri("Empty URI not allowed."));
    }
    // hyper would cut the URI at `#`; whatever else it cannot parse it must not be given.
    if !path.starts_with('/') || path.contains('#') || PathAndQuery::try_from(path).is_err() {
        return Err(Bad::Uri("expected an absolute path."));
    }
    Ok(path.to_owned())
}

/// Name and value of a header line (RFC 9110 §5.5, §5.6.2; no folding).
fn parse_header(line: &str) -> Result<(&str, &str), Bad> {
    let (name, value) = line.split_once(':').ok_or(Bad::Header("A header line needs a colon."))?;
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(Bad::Header("A header name has a character that is not allowed."));
    }
    if value.chars().any(|c| c.is_control() && c != '\t') {
        return Err(Bad::Header("A header value has a control character."));
    }
    Ok((name, value))
}

fn parse_length(value: &str) -> Result<u32, Bad> {
    // `parse` alone would take a leading `+`.
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Bad::Header("Content-Length is not a number."));
    }
    value.parse().map_err(|_| Bad::Header("Content-Length is too large."))
}

/// Whether a client takes anything but an unencoded answer (RFC 9110 §12.5.3).
fn refuses_identity(value: &str) -> bool {
    let weight_is_zero = |item: &str, name: &str| {
        let mut parts = item.split(';').map(str::trim);
        parts
            .next()
            .is_some_and(|coding| coding.eq_ignore_ascii_case(name))
            .then(|| parts.any(|p| p.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()).is_some_and(|q| q == 0.0)))
    };
    let find = |name| value.split(',').find_map(|item| weight_is_zero(item, name));
    find("identity").or_else(|| find("*")).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Head, Bad> {
        let mut scanned = 0;
        let end = find_end(text.as_bytes(), &mut scanned)?.unwrap_or_else(|| panic!("{text:?} has no end"));
        Head::parse(&text.as_bytes()[..end])
    }

    #[test]
    fn heads_are_written_anew() {
        let rendered = |text: &str| String::from_utf8(parse(text).unwrap().render()).unwrap();
        assert_eq!(
            rendered("PUT /vm/ HTTP/1.0\r\nHost: x\r\nX: mayfly-refused\r\ncontent-LENGTH: \t5 \r\n\r\n"),
            "PUT /vm/ HTTP/1.1\r\ncontent-length: 5\r\n\r\n"
        );
        assert_eq!(rendered("GET http://host/a HTTP/1.1\r\n\r\n"), "GET /a HTTP/1.1\r\n\r\n");
        assert_eq!(rendered("GET http://host HTTP/1.1\r\n\r\n"), "GET / HTTP/1.1\r\n\r\n");
        assert_eq!(
            rendered("GET /version?x=1 HTTP/1.1\r\nMayfly-Refused: me\r\nConnection: x, Close\r\n\r\n"),
            "GET /version?x=1 HTTP/1.1\r\nconnection: close\r\n\r\n"
        );
        assert_eq!(
            rendered("PUT /a HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nExpect: 100-continue\r\n\r\n"),
            "PUT /a HTTP/1.1\r\ntransfer-encoding: chunked\r\nconnection: close\r\nexpect: 100-continue\r\n\r\n"
        );
    }

    #[test]
    fn bad_heads_are_told_apart() {
        let begin = |text: &str| parse(text).unwrap_err().to_string();
        for (text, expected) in [
            ("POST / HTTP/1.1\r\n\r\n", "Invalid HTTP Method:"),
            ("POST /clones/1 HTTP/1.1\r\n\r\n", "Invalid HTTP Method:"),
            ("POST clones HTTP/1.1\r\n\r\n", "Invalid"),
            ("get / HTTP/1.1\r\n\r\n", "Invalid HTTP Method:"),
            ("GET  HTTP/1.1\r\n\r\n", "Invalid URI:"),
            ("GET a HTTP/1.1\r\n\r\n", "Invalid URI:"),
            ("GET https://a/ HTTP/1.1\r\n\r\n", "Invalid URI:"),
            ("GET /a\tb HTTP/1.1\r\n\r\n", "Invalid URI:"),
            ("GET /a\0 HTTP/1.1\r\n\r\n", "Invalid URI:"),
            ("GET /a#b HTTP/1.1\r\n\r\n", "Invalid URI:"),
            ("GET / HTTP/2.0\r\n\r\n", "Invalid HTTP Version:"),
            ("GET /\r\n\r\n", "Invalid HTTP Version:"),
            ("GET / HTTP/1.1 \r\n\r\n", "Invalid HTTP Version:"),
            ("GET / HTTP/1.1\r\nno colon\r\n\r\n", "Invalid header."),
            ("GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", "Invalid header."),
            ("GET / HTTP/1.1\r\nContent-Length : 1\r\n\r\n", "Invalid header."),
            ("GET / HTTP/1.1\r\nA: \0\r\n\r\n", "Invalid header."),
            ("GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", "Invalid header."),
            ("GET / HTTP/1.1\r\nContent-Length: \r\n\r\n", "Invalid header."),
            ("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "Invalid header."),
            ("GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", "Invalid header."),
            ("GET / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n", "Invalid header."),
            ("GET / HTTP/1.1\r\nContent-Length: 4294967296\r\n\r\n", "Invalid header."),
            ("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", "Invalid header."),
            ("GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "Invalid header."),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "Invalid header."),
            ("GET / HTTP/1.1\r\nAccept-Encoding: identity;q=0\r\n\r\n", "Invalid header."),
            ("GET / HTTP/1.1\r\nAccept-Encoding: gzip, *; q=0\r\n\r\n", "Invalid header."),
        ] {
            assert!(begin(text).starts_with(expected), "{text:?}: {}", begin(text));
        }
        assert!(parse("GET / HTTP/1.1\r\nAccept-Encoding: identity, *;q=0\r\n\r\n").is_ok());
        assert_eq!(find_end(b"GET / HTTP/1.1\n\n", &mut 0), Err(Bad::Request("A line must end with CR LF.")));
    }

    #[test]
    fn lengths_have_limits() {
        let line = format!("GET /{} HTTP/1.1\r\n", "a".repeat(MAX_LINE));
        assert_eq!(find_end(line.as_bytes(), &mut 0), Err(TOO_LONG));
        assert_eq!(find_end(&vec![b'a'; MAX_LINE + 1], &mut 0), Err(TOO_LONG));
        assert_eq!(find_end(&vec![b'a'; MAX_LINE], &mut 0), Ok(None));
        let many = "GET / HTTP/1.1\r\n".to_owned() + &"a: b\r\n".repeat(MAX_HEAD / 6);
        assert_eq!(find_end(many.as_bytes(), &mut 0), Err(TOO_LONG));
    }

    #[test]
    fn the_end_is_found_however_the_head_arrives() {
        let text = b"PUT / HTTP/1.1\r\nA: b\r\n\r\nbody\r\n\r\n";
        let mut scanned = 0;
        for arrived in 0..text.len() {
            let found = find_end(&text[..arrived], &mut scanned).unwrap();
            assert_eq!(found, (arrived >= 24).then_some(24), "after {arrived}");
            if found.is_some() {
                break;
            }
        }
    }
}
