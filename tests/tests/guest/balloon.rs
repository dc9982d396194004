//! The balloon: the host gets what the guest hands over, and the guest gets zeroes back.

use std::path::Path;
use std::time::{Duration, Instant};

use guest::{Job, Mode, Report};
use mayfly_tests::{PATIENCE, Vmm, VmmBuilder, metrics};
use serde_json::{Value, json};

use super::clones::{clonable, cloned};
use super::pass_bar::rss_mib;
use super::{configured, configured_with, finish, measured, number};

const PAGES_PER_MIB: u64 = 256;
/// The guest's pool.
const POOL_MIB: u64 = 32;
/// Room for whatever else changes in a process.
const SLACK_MIB: u64 = 3;
const DEFLATE_ON_OOM: u64 = 1 << 2;

/// A machine whose guest follows a balloon of this shape.
#[track_caller]
fn inflatable(job: &Job, shape: &Value) -> Vmm {
    let vmm = configured(job);
    vmm.put("/balloon", shape).expect_204();
    vmm
}

/// Starts it and returns the features the driver accepted.
#[track_caller]
fn start(vmm: &Vmm) -> u64 {
    vmm.instance_start();
    let line = vmm.wait_for_line("balloon=started", PATIENCE);
    assert!(line.ends_with(&format!("pages={}", POOL_MIB * PAGES_PER_MIB)), "{line}");
    number(&parsed(&line), "features")
}

fn parsed(line: &str) -> Report {
    Report::parse(&format!("{}\n{line}\n{}\n", guest::READY, guest::DONE))
}

#[track_caller]
fn want(vmm: &Vmm, mib: u64) {
    vmm.patch("/balloon", &json!({"amount_mib": mib})).expect_204();
}

/// The guest's line about a step; nothing that was not in the balloon may have changed.
#[track_caller]
fn step(vmm: &Vmm, step: u64, mib: u64) -> Report {
    let report = parsed(&vmm.wait_for_line(&format!("step={step} "), PATIENCE));
    let facts = ["actual", "answered", "old", "odd", "lost"].map(|key| number(&report, key));
    assert_eq!(facts, [mib * PAGES_PER_MIB, 1, 0, 0, 0], "{report:?}");
    report
}

/// Waits until `GET` of statistics satisfies `done`.
#[track_caller]
fn statistics(vmm: &Vmm, done: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = vmm.get("/balloon/statistics").expect_200();
        if done(&now) {
            return now;
        }
        assert!(Instant::now() < deadline, "{now:#}\n{}", vmm.said());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn counted(file: &Path, field: &str) -> u64 {
    metrics::total(file, "balloon", field)
}

#[test]
fn what_is_inflated_goes_back_to_the_host_and_comes_back_empty() {
    goes_back_and_comes_back_empty(VmmBuilder::new());
}

/// Its memory is a file that is in memory, out of which pages have to be taken.
#[test]
fn what_is_inflated_goes_back_also_where_clones_could_share_it() {
    goes_back_and_comes_back_empty(clonable());
}

#[track_caller]
fn goes_back_and_comes_back_empty(builder: VmmBuilder) {
    let vmm = configured_with(builder, guest::ELF, &Job::new(Mode::Balloon { steps: 5 }));
    vmm.put("/balloon", &json!({"amount_mib": 0, "deflate_on_oom": false})).expect_204();
    let file = measured(&vmm);
    assert_eq!(start(&vmm) & DEFLATE_ON_OOM, 0, "not asked for");
    let full = rss_mib(&vmm);
    let mut had: u64 = 0;
    for (n, mib) in (1..).zip([16, 30, 4, 20]) {
        want(&vmm, mib);
        let report = step(&vmm, n, mib);
        assert_eq!(number(&report, "zero"), had.saturating_sub(mib) * PAGES_PER_MIB, "{report:?}");
        // The guest has stored something again in each page that came back.
        let gone = full.saturating_sub(rss_mib(&vmm));
        assert!(gone.abs_diff(mib) <= SLACK_MIB, "{gone} MiB gone for {mib}");
        assert_eq!(vmm.get("/balloon").expect_200()["amount_mib"], mib);
        had = mib;
    }
    want(&vmm, 0);
    step(&vmm, 5, 0);
    finish(&vmm);
    // 256 pages in a request: up by 16, 14 and 16 MiB, down by 26 and 20.
    assert_eq!((counted(&file, "inflate_count"), counted(&file, "deflate_count")), (46, 46));
    assert_eq!((counted(&file, "activate_fails"), counted(&file, "event_fails")), (0, 0));
}

/// A target that is there before the driver is followed as soon as it comes up.
/// What memory is and to whom it belongs is looked at when the driver comes up, by a thread that may ask little by then.
#[test]
fn memory_of_a_file_is_no_obstacle() {
    let vmm = inflatable(&Job::new(Mode::Balloon { steps: 1 }), &json!({"amount_mib": 0, "deflate_on_oom": false}));
    let path = vmm.file("pmem", &[0; 2 << 20]);
    vmm.put("/pmem/p", &json!({"id": "p", "path_on_host": path})).expect_204();
    start(&vmm);
    vmm.patch("/balloon", &json!({"amount_mib": 8})).expect_204();
    let report = finish(&vmm);
    assert_eq!(number(&report, "actual"), 2048, "{report:?}");
}

#[test]
fn a_balloon_can_be_there_from_the_start() {
    let shape = json!({"amount_mib": 8, "deflate_on_oom": true});
    let vmm = inflatable(&Job::new(Mode::Balloon { steps: 1 }), &shape);
    assert_eq!(start(&vmm) & DEFLATE_ON_OOM, DEFLATE_ON_OOM, "asked for");
    step(&vmm, 1, 8);
    finish(&vmm);
}

#[test]
fn statistics_are_asked_for_and_told() {
    let shape = json!({"amount_mib": 0, "deflate_on_oom": false, "stats_polling_interval_s": 1});
    let vmm = inflatable(&Job::new(Mode::Balloon { steps: 2 }), &shape);
    let file = measured(&vmm);
    start(&vmm);
    // Each number is its tag and the round it was told in.
    let told = |now: &Value| now["free_memory"].as_u64().map(|value| value & 0xffff_ffff);
    let now = statistics(&vmm, |now| told(now) >= Some(2));
    let round = told(&now).unwrap();
    let names = [
        "swap_in",
        "swap_out",
        "major_faults",
        "minor_faults",
        "free_memory",
        "total_memory",
        "available_memory",
        "disk_caches",
        "hugetlb_allocations",
        "hugetlb_failures",
        "oom_kill",
        "alloc_stall",
        "async_scan",
        "direct_scan",
        "async_reclaim",
        "direct_reclaim",
    ];
    for (tag, name) in (0u64..).zip(names) {
        assert_eq!(now[name], tag << 32 | round, "{name}: {now:#}");
    }
    want(&vmm, 4);
    step(&vmm, 1, 4);
    let now = vmm.get("/balloon/statistics").expect_200();
    let sizes = ["target_pages", "actual_pages", "target_mib", "actual_mib"].map(|key| now[key].as_u64());
    assert_eq!(sizes, [Some(1024), Some(1024), Some(4), Some(4)]);

    let interval = |seconds: u64| vmm.patch("/balloon/statistics", &json!({"stats_polling_interval_s": seconds}));
    interval(0).expect_fault("Balloon update error: Statistics cannot be enabled/disabled after activation.");
    // A new interval asks at once, and then not again for an hour.
    let before = told(&statistics(&vmm, |_| true));
    interval(3600).expect_204();
    let asked = told(&statistics(&vmm, |now| told(now) > before));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(told(&statistics(&vmm, |_| true)), asked, "asked before the hour is over");
    assert_eq!(vmm.get("/balloon").expect_200()["stats_polling_interval_s"], 3600);
    want(&vmm, 0);
    let report = finish(&vmm);
    // A guest that is late on a busy machine is asked again, which is counted elsewhere: `stats_update_fails`.
    assert_eq!(counted(&file, "stats_updates_count"), number(&report, "told") + 1);
}

#[test]
fn statistics_that_are_off_stay_off() {
    let vmm = inflatable(&Job::new(Mode::Balloon { steps: 1 }), &json!({"amount_mib": 0, "deflate_on_oom": false}));
    start(&vmm);
    let interval = vmm.patch("/balloon/statistics", &json!({"stats_polling_interval_s": 1}));
    interval.expect_fault("Balloon update error: Statistics cannot be enabled/disabled after activation.");
    vmm.get("/balloon/statistics").expect_fault("Balloon update error: ");
    for path in ["/balloon/hinting/start", "/balloon/hinting/stop"] {
        vmm.patch(path, &json!({})).expect_fault("Balloon update error: ");
    }
    vmm.get("/balloon/hinting/status").expect_fault("Balloon update error: ");
    // More than there is is refused, and changes nothing.
    let more = vmm.patch("/balloon", &json!({"amount_mib": super::pass_bar::RAM_MIB + 1}));
    more.expect_fault("Balloon update error: Amount of pages requested is too large.");
    assert_eq!(vmm.get("/balloon").expect_200()["amount_mib"], 0);
}

#[test]
fn reported_pages_go_back_to_the_host() {
    let shape = json!({"amount_mib": 0, "deflate_on_oom": false, "free_page_reporting": true});
    let vmm = inflatable(&Job::new(Mode::Balloon { steps: 1 }).with("report", 1), &shape);
    let file = measured(&vmm);
    start(&vmm);
    let report = parsed(&vmm.wait_for_line("report=", PATIENCE));
    let facts = ["report", "zero", "old", "odd"].map(|key| number(&report, key));
    assert_eq!(facts, [1, POOL_MIB * PAGES_PER_MIB, 0, 0], "{report:?}");
    want(&vmm, 1);
    step(&vmm, 1, 1);
    finish(&vmm);
    assert_eq!(counted(&file, "free_page_report_count"), POOL_MIB * 4, "a buffer is 256 KiB");
    assert_eq!(counted(&file, "free_page_report_freed"), POOL_MIB << 20);
    assert_eq!(counted(&file, "free_page_report_fails"), 0);
}

#[test]
fn hinted_pages_go_back_while_a_run_lasts() {
    let shape = json!({"amount_mib": 0, "deflate_on_oom": false, "free_page_hinting": true});
    let vmm = inflatable(&Job::new(Mode::Balloon { steps: 3 }), &shape);
    let file = measured(&vmm);
    start(&vmm);
    let status = || vmm.get("/balloon/hinting/status").expect_200();
    assert_eq!(status(), json!({"host_cmd": 0, "guest_cmd": null}));
    let full = rss_mib(&vmm);

    // By default a run is over when the guest has named all of its pages.
    vmm.request("PATCH", "/balloon/hinting/start", None).expect_204();
    let over = |n: u64| {
        let report = parsed(&vmm.wait_for_line(&format!("hint=over step={n} "), PATIENCE));
        let facts = ["zero", "old", "odd"].map(|key| number(&report, key));
        assert_eq!(facts, [POOL_MIB * PAGES_PER_MIB, 0, 0], "{report:?}");
    };
    over(1);
    assert_eq!(status(), json!({"host_cmd": 1, "guest_cmd": 0}));

    // Held until the host ends it: meanwhile the memory is the host's.
    vmm.patch("/balloon/hinting/start", &json!({"acknowledge_on_stop": false})).expect_204();
    vmm.wait_for_line("hint=3 answered=1", PATIENCE);
    assert_eq!(status(), json!({"host_cmd": 3, "guest_cmd": 0}));
    let gone = full.saturating_sub(rss_mib(&vmm));
    assert!(gone.abs_diff(POOL_MIB) <= SLACK_MIB, "{gone} MiB gone");
    vmm.request("PATCH", "/balloon/hinting/stop", None).expect_204();
    over(2);
    assert_eq!(status(), json!({"host_cmd": 1, "guest_cmd": 0}));
    want(&vmm, 1);
    step(&vmm, 3, 1);
    finish(&vmm);
    assert_eq!(counted(&file, "free_page_hint_count"), 2 * POOL_MIB * 4);
    assert_eq!(counted(&file, "free_page_hint_freed"), 2 * (POOL_MIB << 20));
    assert_eq!(counted(&file, "free_page_hint_fails"), 0);
}

/// Hinting needs a driver that can do it.
#[test]
fn hinting_waits_for_a_driver() {
    let shape = json!({"amount_mib": 0, "deflate_on_oom": false, "free_page_hinting": true});
    let vmm = inflatable(&Job::new(Mode::Spin), &shape);
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    for path in ["/balloon/hinting/start", "/balloon/hinting/stop"] {
        let fault = vmm.request("PATCH", path, None).expect_fault("Balloon update error: ");
        assert!(fault.contains("Device not activated yet"), "{fault}");
    }
    // A target needs none: it is there when the driver comes.
    want(&vmm, 16);
    assert_eq!(vmm.get("/balloon").expect_200()["amount_mib"], 16);
}

/// What was asked for while the machine was paused is heard of when it runs again.
#[test]
fn a_paused_guest_hears_of_it_later() {
    let shape = json!({
        "amount_mib": 0, "deflate_on_oom": false, "stats_polling_interval_s": 1, "free_page_hinting": true,
    });
    let vmm = inflatable(&Job::new(Mode::Balloon { steps: 2 }), &shape);
    start(&vmm);
    let full = rss_mib(&vmm);
    let told = |now: &Value| now["free_memory"].as_u64();
    statistics(&vmm, |now| told(now).is_some());
    vmm.patch("/vm", &json!({"state": "Paused"})).expect_204();
    let last = told(&statistics(&vmm, |_| true));
    want(&vmm, 16);
    vmm.patch("/balloon/statistics", &json!({"stats_polling_interval_s": 2})).expect_204();
    vmm.request("PATCH", "/balloon/hinting/start", None).expect_204();
    std::thread::sleep(Duration::from_millis(200));
    let now = statistics(&vmm, |_| true);
    assert_eq!((now["target_mib"].as_u64(), now["actual_mib"].as_u64(), told(&now)), (Some(16), Some(0), last));
    assert!(rss_mib(&vmm) + SLACK_MIB > full, "nothing moves while paused");
    vmm.patch("/vm", &json!({"state": "Resumed"})).expect_204();
    step(&vmm, 1, 16);
    vmm.wait_for_line("hint=over step=2 zero=4096 ", PATIENCE);
    finish(&vmm);
}

#[test]
fn without_it_there_is_nothing_to_ask() {
    let vmm = configured(&Job::new(Mode::Balloon { steps: 1 }));
    vmm.instance_start();
    vmm.wait_for_line("error=no-balloon", PATIENCE);
}

#[test]
fn a_balloon_survives_a_snapshot() {
    a_balloon_moves(VmmBuilder::new(), super::snapshots::moved);
}

#[test]
fn a_balloon_goes_along_with_clones() {
    a_balloon_moves(clonable(), cloned);
}

#[track_caller]
fn a_balloon_moves(builder: VmmBuilder, moved: impl Fn(Vmm) -> Vmm) {
    let shape = json!({"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1});
    let mut vmm = configured_with(builder, guest::ELF, &Job::new(Mode::Balloon { steps: 4 }));
    vmm.put("/balloon", &shape).expect_204();
    start(&vmm);
    for (number, mib) in (1u64..).zip([8, 24, 4, 12]) {
        want(&vmm, mib);
        let report = parsed(&vmm.wait_for_line(&format!("step={number} "), PATIENCE));
        // A page that comes back may hold again what it held when the machine was saved: it is the guest's own.
        let facts = ["actual", "answered", "odd", "lost"].map(|key| super::number(&report, key));
        assert_eq!(facts, [mib * PAGES_PER_MIB, 1, 0, 0], "{report:?}");
        if number < 4 {
            vmm = moved(vmm);
            let now = vmm.get("/balloon").expect_200();
            assert_eq!(now["amount_mib"], mib);
            let now = statistics(&vmm, |now| now["actual_mib"] == mib && now.get("free_memory").is_some());
            assert_eq!(now["target_mib"], mib);
        }
    }
    super::snapshots::finish(&vmm);
}
