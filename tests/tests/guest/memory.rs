//! Hot-pluggable memory: the guest gets what it is given, the host gets back what is taken, and between the two nothing is left to see.

use guest::hostile::{CASES, Needs};
use guest::{End, Job, Mode, Report};
use mayfly_tests::{Disk, PATIENCE, Vmm, VmmBuilder};
use serde_json::{Value, json};

use super::clones::{clonable, cloned};
use super::hostile::acceptable;
use super::pass_bar::{LINES_MAX, PassBar, rss_mib};
use super::snapshots::{LOAD, Saved, create, create_diff, same_contents, set_state};
use super::{configured, configured_with, finish, number, text};

const MIB: u64 = 1 << 20;
/// Where the region is.
const START: u64 = 512 << 30;
/// Room for whatever else changes in a process.
const SLACK_MIB: u64 = 8;

fn put(vmm: &Vmm, body: &Value) {
    vmm.put("/hotplug/memory", body).expect_204();
}

fn want(vmm: &Vmm, mib: u64) {
    vmm.patch("/hotplug/memory", &json!({"requested_size_mib": mib})).expect_204();
}

fn status(vmm: &Vmm) -> Value {
    vmm.get("/hotplug/memory").expect_200()
}

/// The guest's line about a step.
#[track_caller]
fn step(vmm: &Vmm, number: u64) -> Report {
    let line = vmm.wait_for_line(&format!("step={number} "), PATIENCE);
    Report::parse(&format!("{}\n{line}\n{}\n", guest::READY, guest::DONE))
}

#[track_caller]
fn good(step: &Report, plugged_mib: u64) {
    assert_eq!(number(step, "plugged"), plugged_mib * MIB, "{step:?}");
    for key in ["refused", "stale", "lost", "old"] {
        assert_eq!(number(step, key), 0, "{key}: {step:?}");
    }
}

#[test]
fn plugged_memory_can_be_used_and_goes_back_to_the_host() {
    let vmm = configured(&Job::new(Mode::Mem { steps: 6 }));
    put(&vmm, &json!({"total_size_mib": 512}));
    vmm.instance_start();
    let line = vmm.wait_for_line("mem=started", PATIENCE);
    let region = format!("start={START:#x} len={} usable={} block={}", 512 * MIB, 512 * MIB, 2 * MIB);
    assert!(line.ends_with(&region), "{line}");
    let shape = json!({
        "total_size_mib": 512, "block_size_mib": 2, "slot_size_mib": 128, "plugged_size_mib": 0, "requested_size_mib": 0,
    });
    assert_eq!(status(&vmm), shape);
    let before = rss_mib(&vmm);

    // Nothing, one slot and a half, three blocks, all, nothing.
    for (number, mib) in (1..).zip([192, 6, 512, 130, 0]) {
        want(&vmm, mib);
        let report = step(&vmm, number);
        good(&report, mib);
        let now = status(&vmm);
        assert_eq!((&now["plugged_size_mib"], &now["requested_size_mib"]), (&json!(mib), &json!(mib)));
        if mib != 0 {
            // The guest has stored something in each of its pages, and looked in vain at a few of the others.
            let held = rss_mib(&vmm).saturating_sub(before);
            assert!((mib..=mib + SLACK_MIB).contains(&held), "{held} MiB held for {mib}");
        }
        // The guest looks after each request of 16 MiB at most, and finds memory gone only when its slot has nothing plugged any more:
        // after the last 16 MiB of the second slot; at the end after the only block of the second and the last of the first.
        let seen = (super::number(&report, "ones"), super::number(&report, "zero"));
        match number {
            2 => assert_eq!(seen, (64, 680), "{report:?}"),
            5 => assert_eq!(seen, (16, 504), "{report:?}"),
            _ => {}
        }
    }
    // A last one, because the machine ends with it.
    want(&vmm, 2);
    good(&step(&vmm, 6), 2);
    assert_eq!(text(&finish(&vmm), "mem"), "started");
}

/// A gigabyte that nobody touches costs nothing, at the start and when it is plugged.
#[test]
fn memory_that_is_not_used_is_not_paid_for() {
    let vmm = configured(&Job::new(Mode::Mem { steps: 1 }));
    put(&vmm, &json!({"total_size_mib": 1 << 20, "block_size_mib": 1024, "slot_size_mib": 1024}));
    vmm.instance_start();
    vmm.wait_for_line("mem=started", PATIENCE);
    assert!(rss_mib(&vmm) < 128, "{} MiB", rss_mib(&vmm));
    assert_eq!(status(&vmm)["total_size_mib"], 1 << 20);
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    let vmm = configured(&Job::new(Mode::Mem { steps: 1 }));
    let refused = |body: Value| vmm.put("/hotplug/memory", &body).expect_fault("Memory hotplug config error: ");
    refused(json!({"total_size_mib": 0}));
    refused(json!({"total_size_mib": 100}));
    refused(json!({"total_size_mib": 512, "block_size_mib": 3}));
    refused(json!({"total_size_mib": 512, "block_size_mib": 1}));
    refused(json!({"total_size_mib": 512, "slot_size_mib": 64}));
    vmm.patch("/hotplug/memory", &json!({"requested_size_mib": 2})).expect_fault("before starting the microVM");
    // More than any processor can address, or more slots than KVM has.
    put(&vmm, &json!({"total_size_mib": u32::MAX - 127}));
    vmm.put("/actions", &json!({"action_type": "InstanceStart"})).expect_fault("Start microvm error: ");
    put(&vmm, &json!({"total_size_mib": 16 << 20}));
    let why = vmm.put("/actions", &json!({"action_type": "InstanceStart"})).expect_fault("Start microvm error: ");
    assert!(why.contains("use a larger slot_size_mib"), "{why}");
    put(&vmm, &json!({"total_size_mib": 256, "block_size_mib": 4}));
    vmm.instance_start();
    vmm.wait_for_line("mem=started", PATIENCE);
    for mib in [2, 258, 260, u32::MAX - 3] {
        let fault = vmm.patch("/hotplug/memory", &json!({"requested_size_mib": mib}));
        fault.expect_fault("Memory hotplug update error: ");
        assert_eq!(status(&vmm)["requested_size_mib"], 0, "a refused request changes nothing");
    }
    want(&vmm, 8);
    good(&step(&vmm, 1), 8);
    finish(&vmm);
}

/// What was asked for while the machine was paused is heard of when it runs again.
#[test]
fn a_paused_guest_hears_of_it_later() {
    let vmm = configured(&Job::new(Mode::Mem { steps: 1 }));
    put(&vmm, &json!({"total_size_mib": 128}));
    vmm.instance_start();
    vmm.wait_for_line("mem=started", PATIENCE);
    vmm.patch("/vm", &json!({"state": "Paused"})).expect_204();
    want(&vmm, 16);
    assert_eq!(status(&vmm)["requested_size_mib"], 16);
    assert_eq!(status(&vmm)["plugged_size_mib"], 0);
    vmm.patch("/vm", &json!({"state": "Resumed"})).expect_204();
    good(&step(&vmm, 1), 16);
    finish(&vmm);
}

#[test]
fn without_it_there_is_nothing_to_ask() {
    let vmm = configured(&Job::new(Mode::Spin));
    vmm.instance_start();
    vmm.get("/hotplug/memory").expect_fault("Memory hotplug update error: ");
    vmm.patch("/hotplug/memory", &json!({"requested_size_mib": 0})).expect_fault("Memory hotplug update error: ");
}

#[test]
fn g22_plugging_against_the_rules() {
    let dir = tempfile::tempdir().unwrap();
    let drive = Disk::sparse(dir.path(), "drive", MIB).unwrap();
    let vmm = configured(&Job::new(Mode::Hostile("g22-".to_owned())).end(End::Spin));
    vmm.drive("d", drive.path(), "Sync");
    put(&vmm, &json!({"total_size_mib": 256}));
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    let bar = PassBar::before(&vmm);
    want(&vmm, 64);
    vmm.wait_for_line(guest::DONE, std::time::Duration::from_secs(120));
    bar.check(&vmm, LINES_MAX);
    let report = Report::parse(&vmm.console().text());
    let cases = CASES.iter().filter(|case| case.needs == Needs::Mem);
    assert!(cases.clone().count() > 15);
    cases.for_each(|case| acceptable(&report, case));
    assert_eq!(status(&vmm)["plugged_size_mib"], 0);
}

#[test]
fn plugged_memory_survives_a_snapshot() {
    plugged_memory_moves(VmmBuilder::new(), super::snapshots::moved);
}

#[test]
fn plugged_memory_goes_along_with_clones() {
    plugged_memory_moves(clonable(), cloned);
}

#[track_caller]
fn plugged_memory_moves(builder: VmmBuilder, moved: impl Fn(Vmm) -> Vmm) {
    let mut vmm = configured_with(builder, guest::ELF, &Job::new(Mode::Mem { steps: 5 }));
    put(&vmm, &json!({"total_size_mib": 512}));
    vmm.instance_start();
    vmm.wait_for_line("mem=started", PATIENCE);
    for (number, mib) in (1..).zip([192, 6, 320, 0, 130]) {
        want(&vmm, mib);
        let report = step(&vmm, number);
        good(&report, mib);
        if number < 5 {
            vmm = moved(vmm);
            let now = status(&vmm);
            assert_eq!((&now["plugged_size_mib"], &now["requested_size_mib"]), (&json!(mib), &json!(mib)));
        }
    }
    super::snapshots::finish(&vmm);
}

/// R7 with memory in several slots of KVM's, plugged and unplugged: each difference, laid over those before, is the whole.
#[test]
fn differences_of_plugged_memory_add_up() {
    const STEPS: u64 = 20;
    let vmm = configured(&Job::new(Mode::Mem { steps: STEPS + 1 }));
    vmm.patch("/machine-config", &json!({"track_dirty_pages": true})).expect_204();
    put(&vmm, &json!({"total_size_mib": 256}));
    vmm.instance_start();
    let line = vmm.wait_for_line("mem=started", PATIENCE);
    let (chain, whole) = (Saved::nothing(), Saved::nothing());
    for (number, mib) in (1..=STEPS).zip([8, 2, 140, 0, 16, 130, 4].into_iter().cycle()) {
        want(&vmm, mib);
        good(&step(&vmm, number), mib);
        set_state(&vmm, "Paused");
        create_diff(&vmm, &chain, &chain.memory());
        create(&vmm, &whole).expect_204();
        assert!(same_contents(&chain.memory(), &whole.memory()), "step {number} ({line})");
        set_state(&vmm, "Resumed");
    }
    drop(vmm);
    let vmm = VmmBuilder::new().start();
    vmm.put(LOAD, &chain.load()).expect_204();
    want(&vmm, 6);
    good(&step(&vmm, STEPS + 1), 6);
    super::snapshots::finish(&vmm);
}
