//! From bytes to a request (HTTP/1.0 and 1.1, RFC 9112), as much of it as the service needs.

use httparse::{EMPTY_HEADER, Error, Header, Status};

/// Largest head of a request, in bytes.
pub(super) const MAX_REQUEST: usize = 2500;
/// Headers a request may have. Browsers send about twenty.
const MAX_HEADERS: usize = 64;

/// What the client speaks; the answer speaks the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// What the client wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// Read a value.
    Get,
    /// Get a token.
    Put,
    /// Methods that exist but not here.
    Other,
}

/// A header and its value, as sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) name: &'a str,
    /// Empty if it is not UTF-8.
    pub(super) value: &'a str,
}

/// A request without a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request<'a> {
    pub(super) version: Version,
    pub(super) method: Method,
    /// The absolute path, with whatever follows it.
    pub(super) path: &'a str,
    /// A session token.
    pub(super) token: Option<Field<'a>>,
    /// How long a new token is to live.
    pub(super) ttl: Option<Field<'a>>,
    /// Says that the request was passed on by a proxy.
    pub(super) forwarded_for: Option<Field<'a>>,
    /// The client wants JSON, and says nothing else.
    pub(super) wants_json: bool,
    /// The client wants no further request on this connection.
    pub(super) closes: bool,
}

/// A request that cannot be served, after which it is not known where the next one would begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    /// Not HTTP, or a request with a body.
    Request,
    /// The target is no path.
    Uri,
    /// A method nobody knows.
    Method,
    /// Another version of HTTP.
    Version,
    /// A head longer than [`MAX_REQUEST`].
    TooLarge,
}

/// What the bytes received so far are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading<'a> {
    /// The beginning of a request.
    Incomplete,
    /// A request, and how many bytes it takes.
    Whole(Request<'a>, usize),
    /// No request.
    Bad(Bad),
}

const TOKEN: [&str; 2] = ["x-metadata-token", "x-aws-ec2-metadata-token"];
const TTL: [&str; 2] = ["x-metadata-token-ttl-seconds", "x-aws-ec2-metadata-token-ttl-seconds"];
const FORWARDED_FOR: [&str; 1] = ["x-forwarded-for"];

/// Reads the request at the start of `bytes`, of which there will be no more than [`MAX_REQUEST`].
pub(super) fn read(bytes: &[u8]) -> Reading<'_> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let len = match request.parse(bytes) {
        Ok(Status::Complete(len)) if len <= MAX_REQUEST => len,
        Ok(Status::Partial) if bytes.len() < MAX_REQUEST => return Reading::Incomplete,
        Ok(_) => return Reading::Bad(Bad::TooLarge),
        Err(Error::Version) => return Reading::Bad(Bad::Version),
        Err(_) => return Reading::Bad(Bad::Request),
    };
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Reading::Bad(Bad::Request);
    };
    match whole(method, target, minor, request.headers) {
        Ok(request) => Reading::Whole(request, len),
        Err(bad) => Reading::Bad(bad),
    }
}

fn whole<'a>(method: &str, target: &'a str, minor: u8, headers: &[Header<'a>]) -> Result<Request<'a>, Bad> {
    let method = match method {
        "GET" => Method::Get,
        "PUT" => Method::Put,
        "PATCH" | "DELETE" => Method::Other,
        _ => return Err(Bad::Method),
    };
    let value = |header: &Header<'a>| std::str::from_utf8(header.value).unwrap_or_default();
    let all = |names: &'static [&'static str]| {
        headers.iter().filter(move |header| names.iter().any(|name| header.name.eq_ignore_ascii_case(name)))
    };
    let field = |names| all(names).next().map(|header| Field { name: header.name, value: value(header) });
    // A body would be taken for the next request, so there must be none (RFC 9112 §6.3).
    if all(&["transfer-encoding"]).next().is_some() || all(&["content-length"]).any(|length| length.value != b"0") {
        return Err(Bad::Request);
    }
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let says = |word: &str| {
        all(&["connection"]).flat_map(|header| value(header).split(',')).any(|w| w.trim().eq_ignore_ascii_case(word))
    };
    Ok(Request {
        version,
        method,
        path: path(target).ok_or(Bad::Uri)?,
        token: field(&TOKEN),
        ttl: field(&TTL),
        forwarded_for: field(&FORWARDED_FOR),
        // Nothing else counts, not even a list that has it: v1 clients that send one expect text.
        wants_json: field(&["accept"]).is_some_and(|accept| accept.value.eq_ignore_ascii_case("application/json")),
        closes: match version {
            Version::Http10 => !says("keep-alive"),
            Version::Http11 => says("close"),
        },
    })
}

/// The path of a target in origin form or absolute form (RFC 9112 §3.2).
fn path(target: &str) -> Option<&str> {
    match target.strip_prefix("http://") {
        Some(rest) => rest.get(rest.find('/')?..),
        None => target.starts_with('/').then_some(target),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn request(text: &str) -> Request<'_> {
        match read(text.as_bytes()) {
            Reading::Whole(request, len) if len == text.len() => request,
            other => panic!("{text:?} is {other:?}"),
        }
    }

    #[test]
    fn a_request_is_read_whatever_the_case_of_its_headers() {
        let field = |name, value| Some(Field { name, value });
        let got = request(
            "GET /a/b HTTP/1.1\r\nHost: x\r\nx-MetaData-token: t\r\naccept:  application/JSON \r\nX-FORWARDED-for: 1.2.3.4\r\n\
             X-aws-EC2-metadata-token-ttl-seconds:60\r\n\r\n",
        );
        let expected = Request {
            version: Version::Http11,
            method: Method::Get,
            path: "/a/b",
            token: field("x-MetaData-token", "t"),
            ttl: field("X-aws-EC2-metadata-token-ttl-seconds", "60"),
            forwarded_for: field("X-FORWARDED-for", "1.2.3.4"),
            wants_json: true,
            closes: false,
        };
        assert_eq!(got, expected);
        assert_eq!(request("PUT / HTTP/1.1\r\nX-aws-ec2-metadata-token: u\r\n\r\n").token.unwrap().value, "u");
        assert_eq!(request("PUT / HTTP/1.1\r\nX-metadata-token: \u{e9}\r\n\r\n").token.unwrap().value, "\u{e9}");
    }

    #[test]
    fn paths_come_in_two_forms() {
        for (target, path) in [
            ("/", "/"),
            ("//a//b?c", "//a//b?c"),
            ("http://169.254.169.254/", "/"),
            ("http://169.254.169.254:80/latest", "/latest"),
        ] {
            assert_eq!(request(&format!("GET {target} HTTP/1.0\r\n\r\n")).path, path);
        }
        for target in ["a", "*", "http://", "http://h", "https://h/", "\u{e9}"] {
            let text = format!("GET {target} HTTP/1.1\r\n\r\n");
            assert_eq!(read(text.as_bytes()), Reading::Bad(Bad::Uri), "{target}");
        }
    }

    #[test]
    fn the_connection_outlives_a_request_unless_told_otherwise() {
        for (text, closes) in [
            ("GET / HTTP/1.1\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nConnection: TE, Close\r\n\r\n", true),
            ("GET / HTTP/1.0\r\n\r\n", true),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", false),
            ("\r\n\r\nGET / HTTP/1.1\n\n", false),
        ] {
            assert_eq!(request(text).closes, closes, "{text:?}");
        }
    }

    #[test]
    fn only_an_accept_header_that_says_json_and_nothing_else_counts() {
        for (accept, json) in [
            ("application/json", true),
            ("*/*", false),
            ("", false),
            ("text/plain", false),
            ("application/json, text/plain, */*", false),
            ("application/json;q=0.5", false),
        ] {
            let text = format!("GET / HTTP/1.1\r\nAccept: {accept}\r\n\r\n");
            assert_eq!(request(&text).wants_json, json, "{accept}");
        }
    }

    #[test]
    fn what_is_no_request_is_told_apart() {
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MAX_REQUEST));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a:b\r\n".repeat(MAX_HEADERS + 1));
        for (text, bad) in [
            ("POST / HTTP/1.1\r\n\r\n", Bad::Method),
            ("get / HTTP/1.1\r\n\r\n", Bad::Method),
            ("GET / HTTP/2.0\r\n\r\n", Bad::Version),
            ("GET / http/1.1\r\n\r\n", Bad::Version),
            ("GET / HTTP/1.1\r\nContent-Length: 1\r\n\r\na", Bad::Request),
            ("GET / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n", Bad::Request),
            ("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", Bad::Request),
            ("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", Bad::Request),
            ("GET / HTTP/1.1\r\nno colon\r\n\r\n", Bad::Request),
            ("GET / HTTP/1.1\r\na: \0\r\n\r\n", Bad::Request),
            ("GET  HTTP/1.1\r\n\r\n", Bad::Request),
            ("\u{7f}\r\n\r\n", Bad::Request),
            (&many, Bad::Request),
            (&long, Bad::TooLarge),
            (&long[..MAX_REQUEST], Bad::TooLarge),
        ] {
            assert_eq!(read(text.as_bytes()), Reading::Bad(bad), "{text:?}");
        }
    }

    #[test]
    fn a_request_is_incomplete_until_its_last_byte_and_ends_there() {
        let text = "GET /a HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n\r\n";
        for len in 0..text.len() {
            assert_eq!(read(&text.as_bytes()[..len]), Reading::Incomplete, "{len}");
        }
        let two = text.repeat(2);
        assert!(matches!(read(two.as_bytes()), Reading::Whole(_, len) if len == text.len()));
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..MAX_REQUEST)) {
            if let Reading::Whole(_, len) = read(&bytes) {
                prop_assert!(len <= bytes.len());
            }
        }

        #[test]
        fn almost_requests_do_not_either(
            start in "(GET|PUT|PATCH|POST|G) (/|http://)?[a-c/]{0,5} HTTP/1\\.[0-2]\r?\n",
            headers in "((Accept|X-metadata-token|Content-Length|Connection)[:;] ?[a-z0-9,\u{e9}]{0,4}\r?\n){0,4}\r?\n",
        ) {
            let text = start + &headers;
            if let Reading::Whole(request, len) = read(text.as_bytes()) {
                prop_assert!(len <= text.len() && request.path.starts_with('/'));
            }
        }
    }
}
