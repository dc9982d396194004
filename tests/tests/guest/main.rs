//! Tier 2: the bare-metal guest on this machine's own KVM, through the real binary, API, files and taps.

mod bad_input;
mod balloon;
mod block;
mod boot;
mod clones;
mod console;
mod cpu_template;
mod entropy;
mod faults;
mod hostile;
mod hotplug;
mod identity;
mod idle;
mod lifecycle;
mod limits;
mod memory;
mod mmds;
mod network;
mod pass_bar;
mod pmem;
mod queues;
mod slow_drive;
mod snapshots;
mod vcpus;
mod vhost_user;
mod vsock;
mod working_set;

use std::path::PathBuf;

use guest::{Job, Report};
use mayfly_tests::{PATIENCE, Vmm, VmmBuilder, binary};
use serde_json::json;

/// A monitor with the guest's image as its kernel, not started.
#[track_caller]
fn configured(job: &Job) -> Vmm {
    configured_with(VmmBuilder::new(), guest::ELF, job)
}

#[track_caller]
fn configured_with(builder: VmmBuilder, image: &[u8], job: &Job) -> Vmm {
    binary::require_kvm();
    let vmm = builder.start();
    let kernel = kernel(&vmm, image);
    vmm.boot_source(&kernel, &job.command_line());
    vmm.machine(1, pass_bar::RAM_MIB);
    vmm
}

fn kernel(vmm: &Vmm, image: &[u8]) -> PathBuf {
    vmm.file("guest.elf", image)
}

/// Has the machine write metrics, and where.
#[track_caller]
fn measured(vmm: &Vmm) -> PathBuf {
    let path = vmm.file("metrics", b"");
    vmm.put("/metrics", &json!({"metrics_path": path})).expect_204();
    path
}

/// Brings the file up to date.
#[track_caller]
fn flush_metrics(vmm: &Vmm) {
    vmm.put("/actions", &json!({"action_type": "FlushMetrics"})).expect_204();
}

/// Starts the machine, waits for its end and returns what the guest reported.
#[track_caller]
fn run(vmm: &Vmm) -> Report {
    vmm.instance_start();
    finish(vmm)
}

/// Waits for the end of a started machine.
#[track_caller]
fn finish(vmm: &Vmm) -> Report {
    assert_eq!(vmm.wait_exit(PATIENCE), 0, "{}", vmm.said());
    let report = Report::parse(&vmm.console().text());
    assert!(report.is_complete() && report.failure().is_none(), "{}", vmm.said());
    report
}

/// The text under `key`, which must be there.
#[track_caller]
fn text<'a>(report: &'a Report, key: &str) -> &'a str {
    report.get(key).unwrap_or_else(|| panic!("no {key} in {report:?}"))
}

/// The number under `key`, which must be there.
#[track_caller]
fn number(report: &Report, key: &str) -> u64 {
    report.number(key).unwrap_or_else(|| panic!("no number {key} in {report:?}"))
}
