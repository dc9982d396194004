//! HTTP as clients really speak it, and as nobody should (threats A1 to A4).

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mayfly_tests::{Client, PATIENCE, Vmm, VmmBuilder};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Descriptors of a process that is up (it accepts connections before it is).
fn fds_at_rest(vmm: &Vmm) -> usize {
    assert_answers(vmm);
    vmm.descriptors()
}

/// Waits until the process has no more than `count` descriptors again. (When they were counted, the last connection may not have
/// been closed yet.)
#[track_caller]
fn wait_for_fds(vmm: &Vmm, count: usize) {
    let started = Instant::now();
    while vmm.descriptors() > count {
        assert!(started.elapsed() < PATIENCE, "{} descriptors instead of {count}", vmm.descriptors());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[track_caller]
fn assert_answers(vmm: &Vmm) {
    assert_eq!(vmm.client().request("GET", "/", None).unwrap().status, 200);
}

/// Connects until there is room. Until then the refusals are what they should be.
#[track_caller]
fn wait_until_served(vmm: &Vmm) {
    let started = Instant::now();
    loop {
        let mut client = vmm.client();
        match client.request("GET", "/", None) {
            Ok(reply) if reply.status == 200 => break,
            Ok(reply) => {
                assert_eq!(reply.status, 503);
                assert_eq!(reply.text(), r#"{ "error": "Too many open connections" }"#);
            }
            // The refusal was sent and the socket closed before the request was written.
            Err(error) => assert!(
                matches!(error.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset),
                "{error}"
            ),
        }
        assert!(started.elapsed() < PATIENCE, "nobody was served");
    }
}

fn everything(client: &mut Client) -> String {
    let mut all = client.pending().to_vec();
    std::io::Read::read_to_end(&mut client.stream(), &mut all).unwrap();
    String::from_utf8(all).unwrap()
}

#[test]
fn http_1_0_without_a_connection_header_is_answered_as_1_1_and_kept_open() {
    let vmm = Vmm::start();
    let mut client = vmm.client();
    for _ in 0..3 {
        client.send_raw(b"GET /version HTTP/1.0\r\n\r\n").unwrap();
        let reply = client.read_response().unwrap();
        assert_eq!(reply.status_line, "HTTP/1.1 200 ");
        assert_eq!(reply.header("Connection"), Some("keep-alive"));
    }
}

#[test]
fn whole_answers_are_the_contracts() {
    let vmm = Vmm::start();
    let mut client = vmm.client();
    let body = r#"{"vcpu_count": 1, "mem_size_mib": 128, "cpu_template": "None"}"#;
    let put =
        format!("PUT /machine-config HTTP/1.1\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    client.send_raw(put.as_bytes()).unwrap();
    let done = "HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: close\r\nDeprecation: true\r\n\r\n";
    assert_eq!(everything(&mut client), done);
}

/// A2: v1 keeps the connection, and so does this.
#[test]
fn a_body_over_the_limit_gets_the_exact_answer_and_the_connection_goes_on() {
    for (limit, size, answer_bytes) in [(51_200, 51_201, 149), (250, 260, 145)] {
        let vmm = VmmBuilder::new().args(["--http-api-max-payload-size", &limit.to_string()]).start();
        let mut client = vmm.client();
        // Only the head: the refusal does not wait for the body.
        client.send_raw(format!("PUT /x HTTP/1.1\r\nContent-Length: {size}\r\n\r\n").as_bytes()).unwrap();
        let reply = client.read_response().unwrap();
        assert_eq!(reply.status_line, "HTTP/1.1 400 ");
        let headers: Vec<_> = reply.headers.iter().map(|(n, v)| format!("{n}: {v}")).collect();
        assert_eq!(
            headers,
            [
                "Server: Firecracker API",
                "Connection: keep-alive",
                "Content-Type: application/json",
                &format!("Content-Length: {answer_bytes}"),
            ]
        );
        assert_eq!(
            reply.text(),
            format!(
                "{{ \"error\": \"Request payload with size {size} is larger than the limit of {limit} allowed by server.\n\
                 All previous unanswered requests will be dropped.\" }}"
            )
        );
        client.send_raw(&vec![b' '; size]).unwrap();
        assert_eq!(client.request("GET", "/", None).unwrap().status, 200);
        // At the limit it is taken, and is merely not JSON.
        client.send("PATCH", "/vm", Some(&" ".repeat(limit))).unwrap();
        client.read_response().unwrap().expect_fault("EOF while parsing");
    }
}

#[test]
fn slashes_and_extra_pieces_do_not_matter() {
    let vmm = Vmm::start();
    for path in ["/version", "/version/", "//version", "/version/xyz", "http://host/version", "///version///"] {
        vmm.get(path).expect_200();
    }
    vmm.get("/version?x=1").expect_fault("Invalid request method and/or path: GET version?x=1.");
}

/// A2.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let vmm = Vmm::start();
    let mut client = vmm.client();
    let mut sent = Vec::new();
    for turn in 0..200 {
        let mib = turn + 1;
        let body = format!(r#"{{"vcpu_count": 1, "mem_size_mib": {mib}}}"#);
        let version = if turn % 2 == 0 { "1.0" } else { "1.1" };
        sent.extend_from_slice(
            format!("PUT /machine-config HTTP/{version}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes(),
        );
        sent.extend_from_slice(format!("GET /machine-config HTTP/{version}\r\n\r\n").as_bytes());
    }
    // Sent from another thread, so that neither side's buffer can stop both.
    let mut sender = Client::connect(vmm.socket()).unwrap();
    std::mem::swap(&mut sender, &mut client);
    let stream = sender.stream().try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut &stream, &sent).unwrap());
        for turn in 0..200 {
            sender.read_response().unwrap().expect_204();
            assert_eq!(sender.read_response().unwrap().expect_200()["mem_size_mib"], turn + 1);
        }
    });
}

/// A1.
#[test]
fn a_request_may_come_byte_by_byte_while_others_are_served() {
    let vmm = Vmm::start();
    let mut slow = vmm.client();
    let body = r#"{"mem_size_mib": 77}"#;
    let request = format!("PATCH /machine-config HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for byte in request.bytes() {
        slow.send_raw(&[byte]).unwrap();
        assert_eq!(vmm.get("/").status, 200);
    }
    slow.read_response().unwrap().expect_204();
    assert_eq!(vmm.get("/machine-config").expect_200()["mem_size_mib"], 77);
}

/// A1: one byte at a time, for ever.
#[test]
fn clients_that_trickle_are_cut_off_and_disturb_nobody() {
    let vmm = Vmm::start();
    let before = fds_at_rest(&vmm);
    let mut slow: Vec<Client> = (0..20).map(|_| vmm.client()).collect();
    let head: Vec<u8> = b"GET / HTTP/1.1\r\nX: ".iter().copied().chain(std::iter::repeat(b'x')).take(2000).collect();
    let started = Instant::now();
    for byte in head {
        slow.retain_mut(|client| client.send_raw(&[byte]).is_ok());
        if slow.is_empty() {
            break;
        }
        let asked = Instant::now();
        assert_answers(&vmm);
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        assert!(started.elapsed() < PATIENCE, "{} are still there", slow.len());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(slow.is_empty(), "a request may take as long as it likes");
    wait_for_fds(&vmm, before);
}

/// A1.
#[test]
fn a_hundred_clients_that_never_finish_do_not_keep_others_out() {
    let vmm = Vmm::start();
    let before = fds_at_rest(&vmm);
    let mut stuck: Vec<Client> = Vec::new();
    for _ in 0..100 {
        // Those for whom there is no room are told so and may find the connection closed already.
        let mut client = vmm.client();
        let _ = client.send_raw(b"PUT /vm HT");
        stuck.push(client);
    }
    wait_until_served(&vmm);
    assert!(vmm.descriptors() <= before + 70, "connections are not bounded");
    drop(stuck);
    wait_for_fds(&vmm, before);
}

/// A1. The call that tells them is one that the filter lets through; the process died of it once.
#[test]
fn who_finds_no_room_is_told() {
    let vmm = Vmm::start();
    let started = Instant::now();
    loop {
        let crowd: Vec<Client> = (0..64)
            .map(|_| {
                let mut client = vmm.client();
                client.send_raw(b"PUT /vm HT").unwrap();
                client
            })
            .collect();
        // It takes a moment to read all of that. After a quarter of a second, room would be made instead.
        std::thread::sleep(Duration::from_millis(20));
        let mut newcomer = vmm.client();
        newcomer.stream().set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        if let Ok(reply) = newcomer.read_response() {
            assert_eq!(reply.status, 503);
            break;
        }
        assert!(started.elapsed() < PATIENCE, "nobody was refused");
        drop(crowd);
    }
    wait_until_served(&vmm);
}

/// A1.
#[test]
fn thousands_of_short_connections_leave_nothing_behind() {
    let vmm = Vmm::start();
    let before = fds_at_rest(&vmm);
    for turn in 0..10_000 {
        let mut client = vmm.client();
        if turn % 3 == 0 {
            // The server may have evicted it already.
            let _ = client.send_raw(b"GET / HTTP/1.1\r\nHo");
        }
    }
    assert_answers(&vmm);
    wait_for_fds(&vmm, before);
}

/// A2: what came before it is answered, and nothing that comes after it is done.
#[test]
fn a_bad_request_ends_a_pipeline() {
    let vmm = Vmm::start();
    let put = |mib: u32, more: &str| {
        let body = format!(r#"{{"vcpu_count": 1, "mem_size_mib": {mib}}}"#);
        format!("PUT /machine-config HTTP/1.1\r\nContent-Length: {}\r\n{more}\r\n{body}", body.len())
    };
    for bad in [
        "BAD\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\n\n".to_owned(),
        // Two readings of where its body ends.
        put(5, "Content-Length: 0\r\n"),
        put(6, "Transfer-Encoding: chunked\r\n"),
        put(7, "Transfer-Encoding: identity, chunked\r\n"),
    ] {
        let mut client = vmm.client();
        client.send_raw(format!("{}{bad}{}", put(77, ""), put(88, "")).as_bytes()).unwrap();
        client.read_response().unwrap().expect_204();
        let text = everything(&mut client);
        assert!(text.starts_with("HTTP/1.1 400 \r\n") && text.matches("HTTP/1.1").count() == 1, "{bad:?}: {text}");
        assert_eq!(vmm.get("/machine-config").expect_200()["mem_size_mib"], 77, "{bad:?}");
    }
}

/// A2.
#[test]
fn what_is_not_a_request_gets_the_other_error_shape_and_is_closed() {
    let vmm = Vmm::start();
    let long = |what: &str, times| what.repeat(times);
    let cases: Vec<(&str, String)> = vec![
        ("Invalid HTTP Method:", "POST /vm HTTP/1.1\r\n\r\n".into()),
        ("Invalid HTTP Method:", "HEAD / HTTP/1.1\r\n\r\n".into()),
        ("Invalid URI:", "GET  HTTP/1.1\r\n\r\n".into()),
        ("Invalid URI:", "GET relative HTTP/1.1\r\n\r\n".into()),
        ("Invalid HTTP Version:", "GET / HTTP/3.0\r\n\r\n".into()),
        ("Invalid request.", "GET / HTTP/1.1\nHost: a\n\n".into()),
        ("Invalid header.", "GET / HTTP/1.1\r\nno colon\r\n\r\n".into()),
        ("Invalid header.", "PUT /vm HTTP/1.1\r\nContent-Length: -1\r\n\r\n".into()),
        ("Invalid header.", "PUT /vm HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n".into()),
        ("Invalid header.", "PUT /vm HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".into()),
        ("Invalid header.", "PUT /vm HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n".into()),
        ("Invalid header.", "GET / HTTP/1.1\r\nA: \0\r\n\r\n".into()),
        ("Invalid request.", format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", long("a", 1 << 20))),
        ("Invalid request.", format!("GET /{} HTTP/1.1\r\n\r\n", long("a", 64 << 10))),
        ("Invalid request.", format!("GET / HTTP/1.1\r\n{}\r\n", long("a: b\r\n", 10_000))),
        ("Request payload with size 4294967295", "PUT /vm HTTP/1.1\r\nContent-Length: 4294967295\r\n\r\n".into()),
    ];
    for (said, request) in cases {
        let mut client = vmm.client();
        client.send_raw(request.as_bytes()).unwrap();
        let text = everything(&mut client);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer to {said}"));
        assert!(head.starts_with("HTTP/1.1 400 \r\n"), "{head}");
        assert!(body.starts_with(&format!("{{ \"error\": \"{said}")), "{body}");
        assert!(body.ends_with("\nAll previous unanswered requests will be dropped.\" }"), "{body}");
    }
    assert_answers(&vmm);
}

/// A2.
#[test]
fn chunked_bodies_are_understood() {
    let vmm = Vmm::start();
    let mut client = vmm.client();
    let chunks = "7\r\n{\"mem_s\r\n10\r\nize_mib\": 99}   \r\n0\r\n\r\n";
    let head = "PATCH /machine-config HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send_raw(format!("{head}{chunks}").as_bytes()).unwrap();
    client.read_response().unwrap().expect_204();
    assert_eq!(vmm.get("/machine-config").expect_200()["mem_size_mib"], 99);
    let mut client = vmm.client();
    client.send_raw(format!("{head}10000\r\n{}\r\n0\r\n\r\n", " ".repeat(0x10000)).as_bytes()).unwrap();
    assert!(everything(&mut client).contains("Invalid request. Its body is too large"));
}

#[test]
fn expect_100_continue_is_answered() {
    let vmm = Vmm::start();
    let mut client = vmm.client();
    let body = r#"{"mem_size_mib": 98}"#;
    let head =
        format!("PATCH /machine-config HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n", body.len());
    client.send_raw(head.as_bytes()).unwrap();
    assert_eq!(client.read_response().unwrap().status, 100);
    client.send_raw(body.as_bytes()).unwrap();
    client.read_response().unwrap().expect_204();
}

/// A3.
#[test]
fn json_of_every_bad_kind_is_refused() {
    let vmm = Vmm::start();
    let fresh = vmm.get("/vm/config").expect_200();
    let deep = |unit: &str| unit.repeat(10_000);
    let bodies: Vec<Vec<u8>> = vec![
        b"{".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        b"\"text\"".to_vec(),
        deep("[").into_bytes(),
        deep("{\"vcpu_count\":").into_bytes()[..51_000].to_vec(),
        format!("{{\"cpu_template\":{}", deep("[")).into_bytes(),
        br#"{"vcpu_count": NaN, "mem_size_mib": 1}"#.to_vec(),
        br#"{"vcpu_count": 1e400, "mem_size_mib": 1}"#.to_vec(),
        br#"{"vcpu_count": 1.5, "mem_size_mib": 1}"#.to_vec(),
        br#"{"vcpu_count": 1, "mem_size_mib": 18446744073709551616}"#.to_vec(),
        br#"{"vcpu_count": 1, "mem_size_mib": -1}"#.to_vec(),
        br#"{"vcpu_count": "1", "mem_size_mib": 1}"#.to_vec(),
        br#"{"vcpu_count": 1, "vcpu_count": 1, "mem_size_mib": 1}"#.to_vec(),
        br#"{"vcpu_count": 1, "mem_size_mib": 1, "other": 1}"#.to_vec(),
        br#"{"vcpu_count": 1, "mem_size_mib": 1} x"#.to_vec(),
        b"{\"vcpu_count\": 1, \"mem_size_mib\": 1, \"cpu_template\": \"\xff\xfe\"}".to_vec(),
        b"\xef\xbb\xbf{\"vcpu_count\": 1, \"mem_size_mib\": 1}".to_vec(),
        b"\0".to_vec(),
    ];
    for body in bodies {
        let mut client = vmm.client();
        client
            .send_raw(format!("PUT /machine-config HTTP/1.1\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes())
            .unwrap();
        client.send_raw(&body).unwrap();
        client
            .read_response()
            .unwrap()
            .expect_fault("An error occurred when deserializing the json body of a request: ");
    }
    assert_eq!(vmm.get("/vm/config").expect_200(), fresh);
    let missing = vmm.request("PUT", "/machine-config", Some(r#"{"mem_size_mib": 128}"#));
    missing.expect_fault("missing field `vcpu_count` at line 1 column 21.");
}

/// A4.
#[test]
fn descriptors_sent_along_do_not_stay() {
    let vmm = Vmm::start();
    let mut client = vmm.client();
    assert_eq!(client.request("GET", "/", None).unwrap().status, 200);
    let before = fds_at_rest(&vmm);
    let file = std::fs::File::open("/dev/null").unwrap();
    let many = [file.as_raw_fd(); 253];
    for _ in 0..10 {
        client.stream().send_with_fds(&[&b"GET / HTTP/1.1\r\n\r\n"[..]], &many).unwrap();
        assert_eq!(client.read_response().unwrap().status, 200);
        assert!(vmm.descriptors() <= before);
    }
    // Not even while the request is unfinished; the answer to another client shows that its bytes have been read.
    client.stream().send_with_fds(&[&b"GET / HTTP"[..]], &many).unwrap();
    assert_answers(&vmm);
    wait_for_fds(&vmm, before);
}
