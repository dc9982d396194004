//! vCPUs that come and go: the guest gets those that it is given and no others, and what it gives back cannot run.

use guest::hostile::case;
use guest::{End, Job, Mode, Report};
use mayfly_tests::{PATIENCE, Vmm, VmmBuilder};
use serde_json::json;

use super::clones::{clonable, cloned};
use super::hostile::{acceptable, suffer};
use super::pass_bar::{LINES_MAX, PassBar, RAM_MIB, thread_ticks};
use super::snapshots::{moved, set_state};
use super::{configured, configured_with, finish, number};

const MAX: u8 = 4;

fn machine(vmm: &Vmm, vcpus: u8, max: u8) {
    let body = json!({"vcpu_count": vcpus, "mem_size_mib": RAM_MIB, "max_vcpus": max});
    vmm.put("/machine-config", &body).expect_204();
}

fn want(vmm: &Vmm, vcpus: u8) {
    vmm.patch("/hotplug/vcpus", &json!({"vcpu_count": vcpus})).expect_204();
}

/// How many vCPUs there should be, and are.
fn levels(vmm: &Vmm) -> (u64, u64) {
    let status = vmm.get("/hotplug/vcpus").expect_200();
    assert_eq!(status["max_vcpus"], MAX);
    (status["vcpu_count"].as_u64().unwrap(), status["plugged_vcpu_count"].as_u64().unwrap())
}

/// The guest's line about a step.
#[track_caller]
fn step(vmm: &Vmm, number: u64) -> Report {
    parsed(&vmm.wait_for_line(&format!("step={number} "), PATIENCE))
}

fn parsed(line: &str) -> Report {
    Report::parse(&format!("{}\n{line}\n{}\n", guest::READY, guest::DONE))
}

/// It came: it waited to be started, and could be.
#[track_caller]
fn came(step: &Report) {
    assert_eq!((number(step, "came"), number(step, "stale"), number(step, "status")), (1, 0, 1), "{step:?}");
}

/// It is gone: it stopped, and nothing starts it.
#[track_caller]
fn gone(step: &Report) {
    assert_eq!((number(step, "gone"), number(step, "moved"), number(step, "status")), (1, 0, 0), "{step:?}");
}

fn threads(vmm: &Vmm) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap().count()
}

#[test]
fn a_vcpu_comes_is_started_and_goes_and_nothing_else_starts_it() {
    let vmm = configured(&Job::new(Mode::Cpus { steps: 4 }));
    machine(&vmm, 1, MAX);
    vmm.instance_start();
    let first = parsed(&vmm.wait_for_line("cpus=started", PATIENCE));
    let statuses = ["s0", "s1", "s2", "s3"].map(|key| number(&first, key));
    assert_eq!((statuses, number(&first, "early")), ([1, 0, 0, 0], 0), "one that is not there was started");
    assert_eq!(levels(&vmm), (1, 1));
    // Its thread is there, and has not been in the guest. What it takes to start a thread is less than a tick.
    assert!(thread_ticks(&vmm, "vcpu 1").is_some_and(|ticks| ticks <= 1));

    want(&vmm, 2);
    came(&step(&vmm, 1));
    assert_eq!(levels(&vmm), (2, 2));
    want(&vmm, 1);
    gone(&step(&vmm, 2));
    assert_eq!(levels(&vmm), (1, 1));
    // Two of these the guest does not look at: they are taken back without it.
    want(&vmm, 4);
    came(&step(&vmm, 3));
    assert_eq!(levels(&vmm), (4, 4));
    want(&vmm, 1);
    gone(&step(&vmm, 4));
    finish(&vmm);
}

#[test]
fn what_the_guest_has_not_looked_at_is_taken_back_at_once() {
    let vmm = configured(&Job::new(Mode::Spin));
    machine(&vmm, 1, MAX);
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    want(&vmm, 4);
    assert_eq!(levels(&vmm), (4, 4));
    want(&vmm, 2);
    assert_eq!(levels(&vmm), (2, 2));
    // It boots with two of these, so it knows of them, and does not answer.
    let vmm = configured(&Job::new(Mode::Spin));
    machine(&vmm, 2, MAX);
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    want(&vmm, 1);
    assert_eq!(levels(&vmm), (1, 2));
    want(&vmm, 2);
    assert_eq!(levels(&vmm), (2, 2));
}

#[test]
fn requests_that_make_no_sense_name_the_field_and_the_remedy() {
    let vmm = configured(&Job::new(Mode::Spin));
    for (count, max) in [(2, 1), (1, 33), (1, 0)] {
        let body = json!({"vcpu_count": count, "mem_size_mib": RAM_MIB, "max_vcpus": max});
        let why = format!("Machine config error: max_vcpus is {max}, and vcpu_count {count}: it must be at least");
        vmm.put("/machine-config", &body).expect_fault(&why);
    }
    let smt = json!({"vcpu_count": 2, "mem_size_mib": RAM_MIB, "max_vcpus": 3, "smt": true});
    vmm.put("/machine-config", &smt).expect_fault("1 or an even number if SMT is enabled");
    assert_eq!(vmm.get("/machine-config").expect_200().get("max_vcpus"), None);
    vmm.get("/hotplug/vcpus").expect_fault("before starting the microVM");
    vmm.patch("/hotplug/vcpus", &json!({"vcpu_count": 1})).expect_fault("before starting the microVM");
    let smt = json!({"vcpu_count": 2, "mem_size_mib": RAM_MIB, "max_vcpus": MAX, "smt": true});
    vmm.put("/machine-config", &smt).expect_204();
    vmm.patch("/machine-config", &json!({"vcpu_count": 4})).expect_204();
    assert_eq!(vmm.get("/machine-config").expect_200()["max_vcpus"], MAX);
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    for (count, why) in [(0, "at least 1 and at most 4"), (5, "at least 1 and at most 4"), (3, "an even number")] {
        let text = format!("vCPU hotplug update error: vcpu_count is {count}: it must be ");
        let fault = vmm.patch("/hotplug/vcpus", &json!({"vcpu_count": count}));
        fault.expect_fault(&text);
        fault.expect_fault(why);
    }
    assert_eq!(levels(&vmm), (4, 4));

    let vmm = configured(&Job::new(Mode::Spin));
    vmm.instance_start();
    let why = "vCPU hotplug update error: No vCPU can be plugged: the machine was started without max_vcpus.";
    vmm.get("/hotplug/vcpus").expect_fault(why);
    vmm.patch("/hotplug/vcpus", &json!({"vcpu_count": 1})).expect_fault(why);
}

/// A thousand times there and back, with a guest that starts it each time and gives it back, and with one that does not care.
#[test]
fn coming_and_going_leaves_nothing_behind() {
    const CYCLES: u64 = 1000;
    let cycle = |vmm: &Vmm, first: u64, cycles: u64, answers: bool| {
        for cycle in 0..cycles {
            want(vmm, 2);
            if answers {
                assert_eq!(number(&step(vmm, first + 2 * cycle), "came"), 1);
            }
            want(vmm, 1);
            if answers {
                assert_eq!(number(&step(vmm, first + 2 * cycle + 1), "gone"), 1);
            }
        }
        assert_eq!(levels(vmm), (1, 1));
    };
    for (mode, answers) in [(Mode::Cpus { steps: 2 * CYCLES + 3 }, true), (Mode::Spin, false)] {
        let vmm = configured(&Job::new(mode).with("fast", 1));
        machine(&vmm, 1, MAX);
        vmm.instance_start();
        // What is made once is there, also what KVM makes when the guest first runs.
        vmm.wait_for_line(guest::READY, PATIENCE);
        cycle(&vmm, 1, 1, answers);
        let before = (threads(&vmm), vmm.descriptors());
        let bar = PassBar::before(&vmm);
        cycle(&vmm, 3, CYCLES, answers);
        assert_eq!((threads(&vmm), vmm.descriptors()), before);
        bar.check_busy(&vmm, LINES_MAX);
    }
}

#[test]
fn parked_vcpus_do_not_delay_a_pause_and_a_paused_machine_can_grow() {
    let vmm = configured(&Job::new(Mode::Cpus { steps: 2 }));
    machine(&vmm, 1, MAX);
    vmm.instance_start();
    vmm.wait_for_line("cpus=started", PATIENCE);
    for _ in 0..20 {
        set_state(&vmm, "Paused");
        set_state(&vmm, "Resumed");
    }
    set_state(&vmm, "Paused");
    want(&vmm, 2);
    assert_eq!(levels(&vmm), (2, 2));
    set_state(&vmm, "Resumed");
    came(&step(&vmm, 1));
    set_state(&vmm, "Paused");
    want(&vmm, 1);
    assert_eq!(levels(&vmm), (1, 2));
    set_state(&vmm, "Resumed");
    gone(&step(&vmm, 2));
    finish(&vmm);
}

#[test]
fn plugged_vcpus_survive_a_snapshot() {
    plugged_vcpus_move(VmmBuilder::new(), moved);
}

#[test]
fn plugged_vcpus_go_along_with_clones() {
    plugged_vcpus_move(clonable(), cloned);
}

#[track_caller]
fn plugged_vcpus_move(builder: VmmBuilder, moved: impl Fn(Vmm) -> Vmm) {
    let vmm = configured_with(builder, guest::ELF, &Job::new(Mode::Cpus { steps: 4 }));
    machine(&vmm, 1, MAX);
    vmm.instance_start();
    vmm.wait_for_line("cpus=started", PATIENCE);
    // Nobody is plugged, and somebody was: what was parked there is here.
    let vmm = moved(vmm);
    assert_eq!(levels(&vmm), (1, 1));
    want(&vmm, 2);
    came(&step(&vmm, 1));
    let vmm = moved(vmm);
    assert_eq!(levels(&vmm), (2, 2));
    assert_eq!(vmm.get("/machine-config").expect_200()["max_vcpus"], MAX);
    want(&vmm, 1);
    gone(&step(&vmm, 2));
    // It goes on with a wish that the guest has not seen, in either direction.
    set_state(&vmm, "Paused");
    want(&vmm, 2);
    let vmm = moved(vmm);
    came(&step(&vmm, 3));
    assert_eq!(levels(&vmm), (2, 2));
    set_state(&vmm, "Paused");
    want(&vmm, 1);
    let vmm = moved(vmm);
    gone(&step(&vmm, 4));
    super::snapshots::finish(&vmm);
}

/// Selectors, values, widths and ports that make no sense, starts of vCPUs that are not there; and one is given back that nobody asked for.
#[test]
fn g27_registers_of_vcpus_full_of_nonsense() {
    for (vcpus, left) in [(1, 1), (3, 1)] {
        let vmm = configured(&Job::new(Mode::Hostile("g27-vcpu-garbage".to_owned())).end(End::Spin));
        machine(&vmm, vcpus, MAX);
        let report = suffer(&vmm, LINES_MAX);
        let case = case("g27-vcpu-garbage").unwrap();
        acceptable(&report, case);
        let line = report.case(case.name).unwrap();
        assert_eq!((line.number::<u64>("first"), line.number::<u64>("started")), (Some(1), Some(0)), "{}", line.text());
        assert_eq!(levels(&vmm), (vcpus.into(), left), "what it ejected is gone, the first cannot be");
        assert!(vmm.log().contains("vCPU hotplug: the guest"), "{}", vmm.log());
    }
}
