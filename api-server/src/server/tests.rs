//! The server over real Unix sockets, with a service that echoes what it was given.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream as Client;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Instant;

use axum::extract::Request;
use axum::response::Response;
use proptest::prelude::*;

use super::*;

/// Longer than anything here takes; a test that runs into it fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// For tests that are not about deadlines.
const RELAXED: Limits = Limits { payload: 1000, deadline: PATIENCE };

struct Server {
    _dir: tempfile::TempDir,
    socket: PathBuf,
    exit: Option<oneshot::Sender<ExitReason>>,
    thread: Option<JoinHandle<ExitReason>>,
}

impl Server {
    fn start(router: Router, limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (exit, exited) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { serve(UnixListener::from_std(listener).unwrap(), router, limits, exited).await })
        });
        Self { _dir: dir, socket, exit: Some(exit), thread: Some(thread) }
    }

    fn echoing(limits: Limits) -> Self {
        Self::start(Router::new().fallback(echo), limits)
    }

    fn connect(&self) -> Client {
        let client = Client::connect(&self.socket).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    fn stop(&mut self) -> ExitReason {
        let _ = self.exit.take().unwrap().send(ExitReason::GuestReboot);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.exit.is_some() {
            self.stop();
        }
    }
}

/// Says what arrived, with a header that hyper's own answers do not have.
async fn echo(request: Request) -> Response {
    let (head, body) = request.into_parts();
    let text = match head.headers.get(REFUSED) {
        Some(reason) => format!("refused {}", reason.to_str().unwrap()),
        None => match axum::body::to_bytes(body, 1 << 20).await {
            Ok(body) => format!("{} {} {}", head.method, head.uri, String::from_utf8_lossy(&body)),
            Err(_) => "incomplete".to_owned(),
        },
    };
    Response::builder().header("echo", "yes").body(text.into()).unwrap()
}

/// Reads one answer of the echo service: its body. `None` at the end of the stream.
fn answer(client: &mut Client) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        match client.read(&mut byte).unwrap() {
            0 if head.is_empty() => return None,
            0 => panic!("cut short: {}", String::from_utf8_lossy(&head)),
            _ => head.push(byte[0]),
        }
    }
    let head = String::from_utf8(head).unwrap();
    if head.starts_with("HTTP/1.1 100 ") {
        return answer(client);
    }
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Echo: yes"), "not our answer: {head}");
    let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    client.read_exact(&mut body).unwrap();
    Some(String::from_utf8_lossy(&body).into_owned())
}

fn ask(client: &mut Client, bytes: &[u8]) -> Option<String> {
    client.write_all(bytes).unwrap();
    answer(client)
}

#[test]
fn http_1_0_is_answered_as_1_1_and_kept_open() {
    let server = Server::echoing(RELAXED);
    let mut client = server.connect();
    for _ in 0..3 {
        assert_eq!(ask(&mut client, b"GET /a HTTP/1.0\r\n\r\n").unwrap(), "GET /a ");
    }
    assert_eq!(ask(&mut client, b"GET /a HTTP/1.0\r\nConnection: close\r\n\r\n").unwrap(), "GET /a ");
    assert_eq!(answer(&mut client), None);
}

#[test]
fn a_body_over_the_limit_is_answered_before_it_arrives_and_then_skipped() {
    let server = Server::echoing(RELAXED);
    let mut client = server.connect();
    let text = ask(&mut client, b"PUT /a HTTP/1.1\r\nContent-Length: 1001\r\n\r\n").unwrap();
    assert_eq!(text, "refused Request payload with size 1001 is larger than the limit of 1000 allowed by server.");
    client.write_all(&[b'x'; 1001]).unwrap();
    assert_eq!(ask(&mut client, b"GET /b HTTP/1.1\r\n\r\n").unwrap(), "GET /b ");
    // A client that waits for permission to send will not send it now.
    let asking = b"PUT /a HTTP/1.1\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n";
    assert!(ask(&mut client, asking).unwrap().starts_with("refused"));
    assert_eq!(answer(&mut client), None);
}

#[test]
fn answers_before_a_bad_head_still_come_and_nothing_after_it() {
    let server = Server::echoing(RELAXED);
    let mut client = server.connect();
    client.write_all(b"GET /a HTTP/1.1\r\n\r\nPOST /b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(answer(&mut client).unwrap(), "GET /a ");
    assert!(answer(&mut client).unwrap().starts_with("refused Invalid HTTP Method:"));
    assert_eq!(answer(&mut client), None);
}

#[test]
fn a_refused_flood_is_answered_and_does_not_reset_the_reader() {
    let server = Server::echoing(RELAXED);
    let mut client = server.connect();
    let mut flood = b"GET / HTTP/1.1\r\nA: ".to_vec();
    flood.resize(1 << 20, b'a');
    client.write_all(&flood).unwrap();
    assert!(answer(&mut client).unwrap().starts_with("refused Invalid request."));
    assert_eq!(answer(&mut client), None);
}

#[test]
fn chunked_bodies_are_read_and_end_the_connection() {
    let server = Server::echoing(RELAXED);
    let mut client = server.connect();
    let text = ask(&mut client, b"PUT /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n");
    assert_eq!(text.unwrap(), "PUT /a abc");
    assert_eq!(answer(&mut client), None);
}

#[test]
fn a_client_may_close_its_sending_half_and_still_be_answered() {
    let server = Server::echoing(RELAXED);
    let mut client = server.connect();
    client.write_all(b"PUT /a HTTP/1.1\r\nContent-Length: 2\r\n\r\nok").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(answer(&mut client).unwrap(), "PUT /a ok");
    assert_eq!(answer(&mut client), None);
}

/// A1.
#[test]
fn requests_have_a_deadline_and_pauses_between_them_have_none() {
    let limits = Limits { payload: 1000, deadline: Duration::from_millis(200) };
    let server = Server::echoing(limits);
    let mut idle = server.connect();
    assert_eq!(ask(&mut idle, b"GET /a HTTP/1.1\r\n\r\n").unwrap(), "GET /a ");
    let started = Instant::now();
    let mut half_head = server.connect();
    half_head.write_all(b"GET / HT").unwrap();
    let mut half_body = server.connect();
    half_body.write_all(b"PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\nx").unwrap();
    assert_eq!(answer(&mut half_head).unwrap(), "refused Invalid request. It did not arrive in time.");
    assert!(started.elapsed() >= limits.deadline);
    assert_eq!(answer(&mut half_head), None);
    assert_eq!(answer(&mut half_body).unwrap(), "incomplete");
    // By now `idle` has been idle for longer than a request may take.
    assert_eq!(ask(&mut idle, b"GET /b HTTP/1.1\r\n\r\n").unwrap(), "GET /b ");
}

/// A1.
#[test]
fn idle_clients_make_room_and_half_requests_do_not_keep_others_out() {
    let server = Server::echoing(RELAXED);
    let mut first = server.connect();
    assert!(ask(&mut first, b"GET /a HTTP/1.1\r\n\r\n").is_some());
    let mut crowd: Vec<Client> = (0..MAX_CONNECTIONS).map(|_| server.connect()).collect();
    for client in &mut crowd {
        assert!(ask(client, b"GET /a HTTP/1.1\r\n\r\n").is_some());
    }
    assert_eq!(answer(&mut first), None, "the longest idle had to go");
    for client in &mut crowd {
        client.write_all(b"GET /a").unwrap();
    }
    // The server sees a newcomer either while all are still fresh, and says so, or later, and makes room.
    let started = Instant::now();
    loop {
        let mut newcomer = server.connect();
        let _ = newcomer.write_all(b"GET /new HTTP/1.1\r\nConnection: close\r\n\r\n");
        let mut text = String::new();
        newcomer.read_to_string(&mut text).unwrap();
        if text.ends_with("GET /new ") {
            break;
        }
        assert!(text.as_bytes() == NO_ROOM, "{text}");
        assert!(started.elapsed() < PATIENCE);
    }
}

#[test]
fn who_finds_no_room_is_always_told() {
    let (tell, told) = std::sync::mpsc::channel();
    let router = Router::new().fallback(move || {
        tell.send(()).unwrap();
        std::future::pending::<Response>()
    });
    let server = Server::start(router, RELAXED);
    let _served: Vec<Client> = (0..MAX_CONNECTIONS)
        .map(|_| {
            let mut client = server.connect();
            client.write_all(b"GET /a HTTP/1.1\r\n\r\n").unwrap();
            told.recv_timeout(PATIENCE).unwrap();
            client
        })
        .collect();
    for _ in 0..50 {
        let mut text = String::new();
        server.connect().read_to_string(&mut text).unwrap();
        assert!(text.as_bytes() == NO_ROOM, "{text}");
    }
}

#[test]
fn an_answer_on_its_way_is_delivered_before_the_end() {
    let go_on = Arc::new(tokio::sync::Notify::new());
    let (tell, told) = std::sync::mpsc::channel();
    let gate = go_on.clone();
    let router = Router::new().fallback(move |request: Request| {
        let (gate, tell) = (gate.clone(), tell.clone());
        async move {
            tell.send(()).unwrap();
            gate.notified().await;
            echo(request).await
        }
    });
    let mut server = Server::start(router, RELAXED);
    let mut client = server.connect();
    client.write_all(b"GET /last HTTP/1.1\r\n\r\n").unwrap();
    told.recv_timeout(PATIENCE).unwrap();
    go_on.notify_one();
    assert_eq!(server.stop(), ExitReason::GuestReboot);
    assert_eq!(answer(&mut client).unwrap(), "GET /last ");
    assert_eq!(answer(&mut client), None);
}

#[test]
fn a_request_that_is_never_answered_does_not_hold_up_the_end() {
    let (tell, told) = std::sync::mpsc::channel();
    let router = Router::new().fallback(move || {
        tell.send(()).unwrap();
        std::future::pending::<Response>()
    });
    let mut server = Server::start(router, RELAXED);
    let mut client = server.connect();
    client.write_all(b"GET /last HTTP/1.1\r\n\r\n").unwrap();
    told.recv_timeout(PATIENCE).unwrap();
    let started = Instant::now();
    server.stop();
    assert!(started.elapsed() < PATIENCE);
    assert_eq!(answer(&mut client), None);
}

#[derive(Debug, Clone)]
struct Sent {
    method: &'static str,
    path: String,
    version: &'static str,
    body: String,
}

fn request() -> impl Strategy<Value = Sent> {
    let method = prop::sample::select(vec!["GET", "PUT", "PATCH", "DELETE"]);
    let version = prop::sample::select(vec!["HTTP/1.0", "HTTP/1.1"]);
    // Bodies that look like heads must not be taken for any.
    let body =
        prop_oneof![Just(String::new()), "[ -~]{0,40}", Just("GET /x HTTP/1.0\r\n\r\n".to_owned()), "(\r\n){1,4}"];
    (method, "/[a-z0-9_/?=%.-]{0,20}", version, body).prop_map(|(method, path, version, body)| Sent {
        method,
        path,
        version,
        body,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// However requests are strung together and cut into pieces, each is answered, in order, with its own body.
    #[test]
    fn framing_does_not_depend_on_how_bytes_arrive(
        requests in prop::collection::vec(request(), 1..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let server = Server::echoing(RELAXED);
        let mut stream = Vec::new();
        for r in &requests {
            stream.extend_from_slice(format!("{} {} {}\r\n", r.method, r.path, r.version).as_bytes());
            if !r.body.is_empty() {
                stream.extend_from_slice(format!("content-length: {}\r\n", r.body.len()).as_bytes());
            }
            stream.extend_from_slice(format!("\r\n{}", r.body).as_bytes());
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(stream.len())).collect();
        cuts.sort_unstable();
        let mut client = server.connect();
        let mut sent = 0;
        for cut in cuts.into_iter().chain([stream.len()]) {
            client.write_all(&stream[sent..cut]).unwrap();
            sent = cut;
        }
        for r in &requests {
            let expected = format!("{} {} {}", r.method, r.path, r.body);
            prop_assert_eq!(answer(&mut client), Some(expected));
        }
    }

    /// Whatever is sent, every answer is ours and not hyper's: the two never disagree about what a request is.
    #[test]
    fn damaged_requests_get_our_answers_or_none(
        requests in prop::collection::vec(request(), 1..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), prop::sample::select(b"\r\n :\0,;GH/019".to_vec())], any::<bool>()), 0..6),
    ) {
        let server = Server::echoing(RELAXED);
        let mut stream = Vec::new();
        for r in &requests {
            stream.extend_from_slice(format!("{} {} {}\r\nHost: a\r\nContent-Length: {}\r\n\r\n{}", r.method, r.path, r.version, r.body.len(), r.body).as_bytes());
        }
        for (at, byte, insert) in damage {
            let at = at.index(stream.len());
            if insert { stream.insert(at, byte) } else { stream[at] = byte }
        }
        let mut client = server.connect();
        client.write_all(&stream).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        while let Some(text) = answer(&mut client) {
            prop_assert!(["GET ", "PUT ", "PATCH ", "DELETE ", "refused ", "incomplete"].iter().any(|p| text.starts_with(p)), "{text}");
        }
        prop_assert_eq!(ask(&mut server.connect(), b"GET /alive HTTP/1.1\r\n\r\n"), Some("GET /alive ".to_owned()));
    }
}
