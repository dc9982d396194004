//! The metadata service as a guest sees it.

use std::time::Duration;

use guest::{Job, Mode, Report};
use mayfly_tests::{PATIENCE, Tap, Vmm, metrics, tap};
use serde_json::{Value, json};

use super::snapshots::{LOAD, RESTORE, moved_with};
use super::{configured, finish, measured, number, run, text};

const MAC: &str = "06:00:00:00:00:01";

fn job(requests: u64, path: &str) -> Job {
    Job::new(Mode::Mmds { requests, path: path.to_owned() })
}

fn document() -> Value {
    json!({"latest": {"meta-data": {"ami-id": "ami-12345", "tags": {"a": "b"}}, "number": 7}, "long": "x".repeat(40_000)})
}

fn network() -> Tap {
    tap::private_network();
    let tap = Tap::create("mfmmds").unwrap();
    tap.up().unwrap();
    tap
}

/// A machine whose guest does `job`, with the service in this version behind its card.
fn machine(tap: &Tap, job: &Job, version: &str, imds_compat: bool) -> Vmm {
    let vmm = configured(job);
    vmm.network("eth0", tap.name(), MAC);
    let config = json!({"network_interfaces": ["eth0"], "version": version, "imds_compat": imds_compat});
    vmm.put("/mmds/config", &config).expect_204();
    vmm.put("/mmds", &document()).expect_204();
    vmm
}

fn ask(tap: &Tap, job: &Job, version: &str) -> Report {
    run(&machine(tap, job, version, false))
}

/// Status and body of the only answer.
#[track_caller]
fn answer(report: &Report) -> (u64, String) {
    (number(report, "status"), text(report, "body").to_owned())
}

#[test]
fn version_1_serves_everybody() {
    let tap = network();
    for (path, status, body) in [
        ("/latest/meta-data/ami-id", 200, "ami-12345"),
        ("/latest", 200, "meta-data/_number"),
        ("/latest/meta-data/", 200, "ami-id_tags/"),
        ("/latest/number", 501, "Cannot_retrieve_value._The_value_has_an_unsupported_type."),
        ("/nothing", 404, "Resource_not_found:_/nothing."),
    ] {
        let report = ask(&tap, &job(1, path), "V1");
        assert_eq!(text(&report, "service"), "06:01:23:45:67:01");
        assert_eq!(answer(&report), (status, body.to_owned()), "{path}");
    }
    let report = ask(&tap, &job(1, "/latest/meta-data").with("header", "Accept:application/json"), "V1");
    assert_eq!(answer(&report), (200, r#"{"ami-id":"ami-12345","tags":{"a":"b"}}"#.to_owned()));
    let report = ask(&tap, &job(1, "/latest").with("method", "PATCH"), "V1");
    assert_eq!(number(&report, "status"), 405);
    // More than a segment, and more than the guest's window.
    let report = ask(&tap, &job(3, "/long"), "V1");
    assert_eq!((number(&report, "len"), number(&report, "good")), (40_000, 3));
}

#[test]
fn version_2_wants_a_token_of_this_machine() {
    let tap = network();
    let path = "/latest/meta-data/ami-id";
    let report = ask(&tap, &job(1, path), "V2");
    assert_eq!(number(&report, "status"), 401);
    let report = ask(&tap, &job(2, path).with("ttl", 60), "V2");
    assert_eq!((number(&report, "token_status"), number(&report, "good")), (200, 2));
    // What another machine gave out.
    let foreign = text(&report, "token").to_owned();
    assert!(foreign.len() > 40, "{foreign}");
    for token in ["0000", foreign.as_str()] {
        let report = ask(&tap, &job(1, path).with("token", token), "V2");
        assert_eq!(answer(&report), (401, "MMDS_token_not_valid.".to_owned()));
    }
    for ttl in ["0", "21601", "x"] {
        let report = ask(&tap, &job(1, path).with("ttl", ttl), "V2");
        assert_eq!((number(&report, "token_status"), number(&report, "status")), (400, 401), "{ttl}");
    }
    for header in ["X-Forwarded-For:1.2.3.4", "x-forwarded-for:1.2.3.4", "X-FORWARDED-FOR:::1"] {
        let report = ask(&tap, &job(1, path).with("ttl", 60).with("header", header), "V2");
        assert_eq!(number(&report, "token_status"), 400, "{header}");
    }
}

#[test]
fn a_token_ends() {
    let tap = network();
    let job = job(4, "/latest/meta-data/ami-id").with("ttl", 1).with("idle_ms", 500);
    let report = ask(&tap, &job, "V2");
    let good = number(&report, "good");
    assert!((1..4).contains(&good), "{good} of four requests in two seconds with a token for one");
    let answers: Vec<u64> = report.with_key("status").filter_map(|line| line.number("status")).collect();
    assert!(
        answers.len() == 4 && answers.is_sorted() && answers.iter().all(|status| matches!(status, 200 | 401)),
        "{answers:?}"
    );
}

#[test]
fn version_2_has_both_forms() {
    let tap = network();
    for (imds_compat, body) in [(false, r#"{"ami-id":"ami-12345","tags":{"a":"b"}}"#), (true, "ami-id_tags/")] {
        let job = job(1, "/latest/meta-data").with("ttl", 60).with("header", "Accept:application/json");
        let report = run(&machine(&tap, &job, "V2", imds_compat));
        assert_eq!(answer(&report), (200, body.to_owned()), "imds_compat: {imds_compat}");
    }
}

#[test]
fn requests_without_a_good_token_are_counted() {
    let tap = network();
    for (token, field) in [(None, "rx_no_token"), (Some("0000"), "rx_invalid_token")] {
        let mut job = job(3, "/latest");
        if let Some(token) = token {
            job = job.with("token", token);
        }
        let vmm = machine(&tap, &job, "V2", false);
        let file = measured(&vmm);
        assert_eq!(number(&run(&vmm), "status"), 401);
        assert_eq!(metrics::total(&file, "mmds", field), 3, "{field}");
    }
}

#[test]
fn as_on_ec2() {
    let tap = network();
    let job = job(1, "/latest/meta-data").with("header", "Accept:application/json");
    let report = run(&machine(&tap, &job, "V1", true));
    assert_eq!(answer(&report), (200, "ami-id_tags/".to_owned()));
}

#[test]
fn what_is_put_is_seen_by_the_next_request() {
    let tap = network();
    let vmm = machine(&tap, &job(300, "/latest/meta-data/ami-id").with("idle_ms", 10), "V1", false);
    vmm.instance_start();
    vmm.wait_for_line("body=ami-12345", PATIENCE);
    vmm.patch("/mmds", &json!({"latest": {"meta-data": {"ami-id": "ami-2"}}})).expect_204();
    vmm.wait_for_line("body=ami-2", PATIENCE);
    vmm.put("/mmds", &json!({})).expect_204();
    vmm.wait_for_line("status=404", PATIENCE);
    assert_eq!(number(&finish(&vmm), "failed"), 0);
}

#[test]
fn its_frames_stay_inside_and_are_counted() {
    let tap = network();
    let socket = tap.packets().unwrap();
    let vmm = machine(&tap, &job(20, "/latest/meta-data/ami-id").with("ttl", 60).with("fresh", 1), "V2", false);
    let file = measured(&vmm);
    let report = run(&vmm);
    assert_eq!((number(&report, "good"), number(&report, "failed")), (20, 0));
    while let Some(frame) = socket.receive(Duration::ZERO).unwrap() {
        // Sender or receiver, of IPv4 or ARP.
        let about = |at: usize| frame.get(at..at + 4) == Some(&[169, 254, 169, 254]);
        assert!(![26, 28, 30, 38].into_iter().any(about), "a frame of the service is on the tap: {frame:?}");
    }
    let total = |field: &str| metrics::total(&file, "mmds", field);
    // The first connection serves the token and the first request.
    assert_eq!(total("connections_created"), 20);
    assert_eq!((total("rx_no_token"), total("rx_invalid_token"), total("tx_errors")), (0, 0, 0));
    assert!(total("rx_count") >= 80 && total("tx_frames") >= 60 && total("rx_accepted") >= total("rx_count"));
}

/// Frames for others go out while the service is there.
#[test]
fn other_frames_go_to_the_tap() {
    let tap = network();
    let socket = tap.packets().unwrap();
    let mode = Mode::BenchNet { direction: guest::Direction::Tx, size: 64, packets: 200 };
    let report = run(&machine(&tap, &Job::new(mode), "V2", false));
    assert_eq!(number(&report, "packets"), 200);
    let mut seen = 0;
    while let Some(frame) = socket.receive(Duration::from_millis(100)).unwrap() {
        seen += u64::from(frame.get(12..14) == Some(&[0x88, 0xb5]));
    }
    assert_eq!(seen, 200);
}

/// What the service says is not saved, and its connections end; a guest that asks again is answered by what it was told since.
#[test]
fn the_service_is_there_after_a_snapshot() {
    let tap = network();
    let job = job(60, "/latest/meta-data/ami-id").with("fresh", 1).with("idle_ms", 20);
    let vmm = machine(&tap, &job, "V1", false);
    vmm.instance_start();
    vmm.wait_for_line("ami-12345", PATIENCE);
    let contents = |id: &str| json!({"latest": {"meta-data": {"ami-id": id}}});
    let vmm = moved_with(vmm, |vmm, _| {
        vmm.put("/mmds", &contents("ami-67890")).expect_204();
        LOAD
    });
    vmm.wait_for_line("ami-67890", PATIENCE);
    let vmm = moved_with(vmm, |_, load| {
        load["mmds"] = contents("ami-13579");
        RESTORE
    });
    vmm.wait_for_line("ami-13579", PATIENCE);
    super::snapshots::finish(&vmm);
}
