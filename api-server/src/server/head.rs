//! The head of an HTTP request: judged before hyper sees it, and normalised.
//!
//! The v1 contract answers a bad head with a body of its own and knows limits that hyper does not, so a head is read here first. What
//! passes is handed on with the version rewritten to 1.1: HTTP/1.0 clients reuse their connections without asking, and hyper would close
//! them.

/// Longest request line or header line in bytes.
pub(super) const LINE_LIMIT: usize = 1024;
/// Longest head in bytes.
pub(super) const HEAD_LIMIT: usize = 16 << 10;
/// Most header lines.
const HEADER_LIMIT: usize = 64;

/// Carries the reason why a head was refused through hyper to the handler. A client that sends it is refused itself, so the handler can
/// believe it.
pub(super) const REFUSED: &str = "x-mayfly-refused";

/// What a complete head amounts to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// Forward these bytes, then this many bytes of body.
    Pass {
        /// The head, normalised.
        bytes: Vec<u8>,
        /// Length of the body.
        body_len: u64,
    },
    /// Answer with this text and hang up.
    Refuse(String),
}

/// Where the head at the start of `input` ends (its length with the empty line), if it is complete. `Err` if it never can be.
///
/// `line_start` is how far an earlier call came: 0 at first. Without it a client that sends byte by byte would have us read everything
/// again for each byte.
pub(super) fn end(input: &[u8], line_start: &mut usize) -> Result<Option<usize>, String> {
    while let Some(len) = find_line_end(input.get(*line_start..).unwrap_or_default()) {
        if len > LINE_LIMIT {
            return Err(too_long());
        }
        let next = *line_start + len + 2;
        if len == 0 && *line_start > 0 {
            return Ok(Some(next));
        }
        if next > HEAD_LIMIT {
            return Err(format!("Invalid header. Reason: The head is longer than {HEAD_LIMIT} bytes."));
        }
        *line_start = next;
    }
    // One more than the limit may be the first half of a line end.
    if input.len().saturating_sub(*line_start) > LINE_LIMIT + 1 { Err(too_long()) } else { Ok(None) }
}

fn too_long() -> String {
    format!("Invalid request. Reason: A line of the head is longer than {LINE_LIMIT} bytes.")
}

fn find_line_end(input: &[u8]) -> Option<usize> {
    input.windows(2).position(|pair| pair == b"\r\n")
}

/// Judges a complete head. `payload_limit` is the largest body in bytes.
pub(super) fn judge(head: &[u8], payload_limit: usize) -> Head {
    match pass(head, payload_limit) {
        Ok(head) => head,
        Err(why) => Head::Refuse(why),
    }
}

fn pass(head: &[u8], payload_limit: usize) -> Result<Head, String> {
    let text = std::str::from_utf8(head).map_err(|_| "Invalid request. Reason: The head is not UTF-8.")?;
    if text.bytes().any(|b| b == 0) || text.replace("\r\n", "").contains(['\r', '\n']) {
        return Err("Invalid request. Reason: Stray control characters in the head.".to_owned());
    }
    let mut lines = text.split("\r\n").take_while(|line| !line.is_empty());
    let request_line = lines.next().ok_or("Invalid request.")?;
    let (method, target) = judge_request_line(request_line)?;

    let mut body_len = None;
    let mut bytes = format!("{method} {target} HTTP/1.1\r\n").into_bytes();
    for (count, line) in lines.enumerate() {
        if count >= HEADER_LIMIT {
            return Err(format!("Invalid header. Reason: More than {HEADER_LIMIT} headers."));
        }
        let (name, value) =
            line.split_once(':').ok_or_else(|| format!("Invalid header. Reason: No colon in {line:?}."))?;
        let name = name.to_ascii_lowercase();
        let value = value.trim();
        if name.is_empty() || !name.bytes().all(is_token) || name == REFUSED {
            return Err(format!("Invalid header. Reason: Unsupported name {name:?}."));
        }
        if !value.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b) || b >= 0x80) {
            return Err(format!("Invalid header. Reason: Control characters in the value of {name}."));
        }
        match name.as_str() {
            "content-length" => {
                // Two lengths, even equal ones, are how requests are smuggled.
                let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
                let len = value.parse::<u32>().ok().filter(|_| digits && body_len.is_none());
                body_len = Some(len.ok_or_else(|| {
                    format!("Invalid header. Reason: Invalid value. Key:Content-Length; Value: {value}")
                })?);
            }
            "transfer-encoding" => {
                return Err(
                    "Invalid header. Reason: Transfer-Encoding is not supported: send Content-Length.".to_owned()
                );
            }
            _ => {}
        }
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    let body_len = u64::from(body_len.unwrap_or(0));
    if body_len > payload_limit as u64 {
        return Err(over_limit(body_len, payload_limit));
    }
    Ok(Head::Pass { bytes, body_len })
}

fn judge_request_line(line: &str) -> Result<(&str, &str), String> {
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("Invalid request. Reason: The request line is not METHOD PATH VERSION.".to_owned());
    };
    if !matches!(method, "GET" | "PUT" | "PATCH" | "DELETE") {
        return Err("Invalid HTTP Method: Unsupported HTTP method.".to_owned());
    }
    let target_is_path = target.starts_with('/') || target.starts_with("http://");
    if !target_is_path || !target.bytes().all(|b| (b'!'..=b'~').contains(&b)) {
        return Err("Invalid URI: Not an absolute path in printable ASCII.".to_owned());
    }
    if !matches!(version, "HTTP/1.0" | "HTTP/1.1") {
        return Err("Invalid HTTP Version: Unsupported HTTP version.".to_owned());
    }
    Ok((method, target))
}

/// The text for a body that is larger than allowed; clients compare it.
fn over_limit(len: u64, limit: usize) -> String {
    format!("Request payload with size {len} is larger than the limit of {limit} allowed by server.")
}

/// `tchar` of RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A head that makes hyper call the handler with the reason of a refusal.
pub(super) fn refusal(why: &str) -> Vec<u8> {
    // The reason goes into a header value, so only what may stand there.
    let why: String = why.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).take(400).collect();
    format!("GET / HTTP/1.1\r\nconnection: close\r\n{REFUSED}: {why}\r\n\r\n").into_bytes()
}

/// The body of the answer to a refused head. Not quite JSON (a raw newline), but that is what clients know.
pub(super) fn refusal_body(why: &str) -> String {
    format!("{{ \"error\": \"{}\nAll previous unanswered requests will be dropped.\" }}", why.replace(['"', '\\'], "'"))
}

#[cfg(test)]
mod tests;
