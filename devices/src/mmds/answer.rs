//! From a request to the answer: who may read what, and the literal texts of the v1 contract.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use super::http::{Bad, Field, MAX_REQUEST, Method, Request, Version};
use super::store::{Format, Unshown};
use super::token::TTL_SECONDS;
use super::{Manner, Mmds, Protocol};

/// Where tokens are given out.
const TOKEN_PATH: &str = "/latest/api/token";

const NO_TOKEN: &str =
    "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to specify the session token.";
const NO_TTL: &str = "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or \
                      `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.";
const NOT_TEXT: &str = "Cannot retrieve value. The value has an unsupported type.";

/// An answer on its way to the client.
#[derive(Debug)]
pub(super) struct Answer {
    /// Status line and headers.
    pub(super) head: Vec<u8>,
    /// What follows.
    pub(super) body: Arc<[u8]>,
    /// The connection ends after it.
    pub(super) closes: bool,
}

/// An answer before it is written down.
struct Draft<'a> {
    status: u16,
    json: bool,
    /// Says which methods exist here.
    allow: bool,
    /// Repeats the header with the life of a new token.
    ttl: Option<Field<'a>>,
    body: Arc<[u8]>,
}

impl Draft<'_> {
    fn text(status: u16, body: impl AsRef<str>) -> Self {
        Self { status, json: false, allow: false, ttl: None, body: body.as_ref().as_bytes().into() }
    }

    fn finish(self, version: Version, closes: bool) -> Answer {
        let version = match version {
            Version::Http10 => "1.0",
            Version::Http11 => "1.1",
        };
        let connection = if closes { "close" } else { "keep-alive" };
        let mut head =
            format!("HTTP/{version} {} \r\nServer: Firecracker API\r\nConnection: {connection}\r\n", self.status);
        // Writing to a string cannot fail.
        if self.allow {
            head.push_str("Allow: GET, PUT\r\n");
        }
        if let Some(Field { name, value }) = self.ttl {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let kind = if self.json { "application/json" } else { "text/plain" };
        let _ = write!(head, "Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n", self.body.len());
        Answer { head: head.into_bytes(), body: self.body, closes }
    }
}

/// The answer to a request that could not be read. The connection ends with it.
pub(super) fn refuse(bad: Bad) -> Answer {
    let draft = match bad {
        Bad::Request => Draft::text(400, "Invalid request."),
        Bad::Uri => Draft::text(400, "Invalid URI."),
        Bad::Method => Draft::text(501, "Unsupported HTTP method."),
        Bad::Version => Draft::text(501, "Unsupported HTTP version."),
        Bad::TooLarge => Draft::text(413, format!("The request is larger than {MAX_REQUEST} bytes.")),
    };
    draft.finish(Version::Http11, true)
}

/// The answer to a request.
pub(super) fn answer(mmds: &Mmds, manner: Manner, request: &Request<'_>, now: Instant) -> Answer {
    let draft = match request.method {
        Method::Get => get(mmds, manner, request, now),
        Method::Put => put(mmds, request, now),
        Method::Other => Draft { allow: true, ..Draft::text(405, "Not allowed HTTP method.") },
    };
    draft.finish(request.version, request.closes)
}

fn get<'a>(mmds: &Mmds, manner: Manner, request: &Request<'a>, now: Instant) -> Draft<'a> {
    // Version 1 counts too, so that an operator sees who is not ready for version 2.
    let refusal = match request.token {
        None => {
            mmds.metrics.rx_no_token.inc();
            Some(NO_TOKEN)
        }
        Some(token) if !mmds.tokens().admits(token.value, now) => {
            mmds.metrics.rx_invalid_token.inc();
            Some("MMDS token not valid.")
        }
        Some(_) => None,
    };
    if let (Protocol::V2, Some(refusal)) = (manner.protocol, refusal) {
        return Draft::text(401, refusal);
    }
    let json = request.wants_json && !manner.imds_compat;
    match mmds.store().get(request.path, if json { Format::Json } else { Format::Text }) {
        Ok(body) => Draft { status: 200, json, allow: false, ttl: None, body },
        Err(Unshown::NotFound) => not_found(request.path),
        Err(Unshown::NotText) => Draft::text(501, NOT_TEXT),
    }
}

fn put<'a>(mmds: &Mmds, request: &Request<'a>, now: Instant) -> Draft<'a> {
    // Whoever asks through a proxy may be outside of the guest.
    if let Some(Field { name, .. }) = request.forwarded_for {
        return Draft::text(400, format!("Invalid header. Reason: Unsupported header name. Key: {name}"));
    }
    let without_repeats = request.path.split('/').filter(|piece| !piece.is_empty());
    if request.path.ends_with('/') || !without_repeats.eq(TOKEN_PATH.split('/').skip(1)) {
        return not_found(request.path);
    }
    let Some(ttl) = request.ttl else { return Draft::text(400, NO_TTL) };
    let Ok(seconds) = ttl.value.parse() else {
        let Field { name, value } = ttl;
        return Draft::text(400, format!("Invalid header. Reason: Invalid value. Key:{name}; Value:{value}"));
    };
    match mmds.tokens().issue(seconds, now) {
        Some(token) => Draft { ttl: Some(ttl), ..Draft::text(200, token) },
        None => {
            let (min, max) = (TTL_SECONDS.start(), TTL_SECONDS.end());
            let text = format!(
                "Invalid time to live value provided for token: {seconds}. Please provide a value between {min} and {max}."
            );
            Draft::text(400, text)
        }
    }
}

fn not_found(path: &str) -> Draft<'static> {
    Draft::text(404, format!("Resource not found: {path}."))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::super::http::{Reading, read};
    use super::*;

    fn mmds() -> Mmds {
        let mmds = Mmds::new([3; 32], 51_200, Instant::now());
        let serde_json::Value::Object(object) = json!({"name": {"first": "Ada"}, "age": 36}) else { panic!() };
        mmds.store().put(object.into()).unwrap();
        mmds
    }

    fn ask_at(mmds: &Mmds, manner: Manner, request: &str, now: Instant) -> String {
        let answer = match read(request.as_bytes()) {
            Reading::Whole(request, _) => answer(mmds, manner, &request, now),
            Reading::Bad(bad) => refuse(bad),
            Reading::Incomplete => panic!("{request:?} is incomplete"),
        };
        String::from_utf8([&answer.head[..], &answer.body].concat()).unwrap()
    }

    fn ask(mmds: &Mmds, manner: Manner, request: &str) -> String {
        ask_at(mmds, manner, request, Instant::now())
    }

    /// Status and body.
    #[track_caller]
    fn short(answer: &str) -> (u16, &str) {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{answer}");
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
    }

    const V1: Manner = Manner { protocol: Protocol::V1, imds_compat: false };
    const V2: Manner = Manner { protocol: Protocol::V2, imds_compat: false };

    #[test]
    fn answers_look_as_in_the_contract() {
        let mmds = mmds();
        assert_eq!(
            ask(&mmds, V1, "GET http://169.254.169.254/name HTTP/1.1\r\nAccept: application/json\r\n\r\n"),
            "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n\
             Content-Length: 15\r\n\r\n{\"first\":\"Ada\"}"
        );
        assert_eq!(
            ask(&mmds, V1, "PATCH / HTTP/1.0\r\n\r\n"),
            "HTTP/1.0 405 \r\nServer: Firecracker API\r\nConnection: close\r\nAllow: GET, PUT\r\nContent-Type: text/plain\r\n\
             Content-Length: 24\r\n\r\nNot allowed HTTP method."
        );
        let token =
            ask(&mmds, V1, "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n");
        let start = "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
                     X-aws-ec2-metadata-token-ttl-seconds: 60\r\nContent-Type: text/plain\r\nContent-Length: 64\r\n\r\n";
        assert_eq!(token.strip_prefix(start).map(str::len), Some(64), "{token}");
    }

    #[test]
    fn values_are_shown_as_text_unless_json_is_asked_for() {
        let mmds = mmds();
        let get =
            |manner, path: &str, accept: &str| ask(&mmds, manner, &format!("GET {path} HTTP/1.1\r\n{accept}\r\n"));
        let json = "Accept: application/json\r\n";
        assert_eq!(short(&get(V1, "/", "")), (200, "age\nname/"));
        assert_eq!(short(&get(V1, "/", json)), (200, r#"{"age":36,"name":{"first":"Ada"}}"#));
        assert_eq!(short(&get(V1, "/name/first", json)), (200, "\"Ada\""));
        assert_eq!(short(&get(V1, "/age", json)), (200, "36"));
        assert_eq!(short(&get(V1, "/age", "")), (501, NOT_TEXT));
        assert_eq!(short(&get(V1, "//no/such", json)), (404, "Resource not found: //no/such."));
        let compat = Manner { imds_compat: true, ..V1 };
        let shown = get(compat, "/name/first", json);
        assert_eq!(short(&shown), (200, "Ada"));
        assert!(shown.contains("Content-Type: text/plain"));
    }

    #[test]
    fn version_2_wants_a_token_and_version_1_counts_who_has_none() {
        let mmds = mmds();
        let now = Instant::now();
        let put = |ttl| format!("PUT /latest//api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: {ttl}\r\n\r\n");
        let token = ask_at(&mmds, V2, &put(1), now);
        let token = short(&token).1.to_owned();
        let get = |header| format!("GET /name/first HTTP/1.1\r\n{header}\r\n");
        let with = |token: &str| get(format!("X-aws-ec2-metadata-token: {token}\r\n"));
        let (no_token, invalid) = ((401, NO_TOKEN), (401, "MMDS token not valid."));
        let later = now + Duration::from_secs(1);
        for (request, at, v2) in [
            (get(String::new()), now, no_token),
            (with("foo"), now, invalid),
            (with(&token), now, (200, "Ada")),
            (with(&token), later, invalid),
        ] {
            assert_eq!(short(&ask_at(&mmds, V2, &request, at)), v2, "{request}");
            assert_eq!(short(&ask_at(&mmds, V1, &request, at)), (200, "Ada"), "{request}");
        }
        assert_eq!((mmds.metrics.rx_no_token.get(), mmds.metrics.rx_invalid_token.get()), (2, 4));
        // A clone has another secret.
        mmds.forget_tokens([4; 32], now);
        assert_eq!(short(&ask_at(&mmds, V2, &with(&token), now)), invalid);
    }

    #[test]
    fn tokens_are_not_given_to_everyone() {
        let mmds = mmds();
        let put = |path: &str, header: &str| ask(&mmds, V2, &format!("PUT {path} HTTP/1.1\r\n{header}\r\n"));
        let ttl = "X-metadata-token-ttl-seconds: 60\r\n";
        for name in ["X-Forwarded-For", "x-forwarded-for", "X-fOrWaRdEd-FoR"] {
            let expected = format!("Invalid header. Reason: Unsupported header name. Key: {name}");
            assert_eq!(short(&put(TOKEN_PATH, &format!("{name}: 1.2.3.4\r\n{ttl}"))), (400, &expected[..]));
        }
        for path in ["/", "/latest/api/toke", "/latest/api/token/x", "/latest/api/token/"] {
            assert_eq!(short(&put(path, ttl)), (404, &format!("Resource not found: {path}.")[..]));
        }
        assert_eq!(short(&put(TOKEN_PATH, "")), (400, NO_TTL));
        for (value, text) in [
            ("0", "Invalid time to live value provided for token: 0. Please provide a value between 1 and 21600."),
            (
                "21601",
                "Invalid time to live value provided for token: 21601. Please provide a value between 1 and 21600.",
            ),
            ("x", "Invalid header. Reason: Invalid value. Key:X-metadata-token-ttl-seconds; Value:x"),
            ("-1", "Invalid header. Reason: Invalid value. Key:X-metadata-token-ttl-seconds; Value:-1"),
        ] {
            let header = format!("X-metadata-token-ttl-seconds: {value}\r\n");
            assert_eq!(short(&put(TOKEN_PATH, &header)), (400, text));
        }
    }

    #[test]
    fn what_cannot_be_read_is_answered_and_the_connection_closed() {
        let mmds = mmds();
        for (request, status, text) in [
            ("GET / HTTP/1.1\r\nContent-Length: 100\r\n\r\n", 400, "Invalid request."),
            ("GET x HTTP/1.1\r\n\r\n", 400, "Invalid URI."),
            ("POST / HTTP/1.1\r\n\r\n", 501, "Unsupported HTTP method."),
            ("GET / HTTP/3.0\r\n\r\n", 501, "Unsupported HTTP version."),
            (&"a".repeat(MAX_REQUEST), 413, "The request is larger than 2500 bytes."),
        ] {
            let answer = ask(&mmds, V1, request);
            assert_eq!(short(&answer), (status, text));
            assert!(answer.contains("Connection: close"), "{answer}");
        }
    }
}
