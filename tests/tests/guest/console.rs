//! G23: nobody takes what the guest writes on its console. The guest goes on, memory stays bounded, the API answers.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use guest::{End, Job, Mode};
use mayfly_tests::{PATIENCE, Vmm, VmmBuilder};
use serde_json::json;

use super::pass_bar::{LINES_MAX, PassBar, thread_ticks};
use super::{configured, configured_with};

/// A guest that writes on its console for ever.
fn flood() -> Job {
    Job::new(Mode::Hostile("g23-serial-flood".to_owned())).with("bytes", u64::MAX)
}

/// Waits until the vCPU has run for `ticks` more: the guest is at work, whatever its console does.
#[track_caller]
fn runs_for(vmm: &Vmm, ticks: u64) {
    let now = || thread_ticks(vmm, "vcpu 0").unwrap_or(0);
    let (start, deadline) = (now(), Instant::now() + PATIENCE);
    while now() < start + ticks {
        assert!(Instant::now() < deadline, "the vCPU is stuck\n{}", vmm.said());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// The guest floods the console for a while; then the monitor must be in good order and end in good order.
#[track_caller]
fn survives(vmm: &Vmm) {
    vmm.instance_start();
    runs_for(vmm, 20);
    let bar = PassBar::before(vmm);
    runs_for(vmm, 50);
    bar.check(vmm, LINES_MAX);
    vmm.signal(libc::SIGTERM);
    assert_eq!(vmm.wait_exit(PATIENCE), 143, "{}", vmm.said());
    assert!(!vmm.socket().exists(), "the socket is removed");
}

fn fifo(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("console");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

#[test]
fn a_pipe_that_nobody_reads() {
    let (_reader, writer) = std::io::pipe().unwrap();
    survives(&configured_with(VmmBuilder::new().stdout(writer), guest::ELF, &flood()));
}

#[test]
fn a_pipe_whose_reader_is_gone() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    survives(&configured_with(VmmBuilder::new().stdout(writer), guest::ELF, &flood()));
}

#[test]
fn a_full_disk() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    survives(&configured_with(VmmBuilder::new().stdout(full), guest::ELF, &flood()));
}

#[test]
fn no_standard_output_at_all() {
    survives(&configured_with(VmmBuilder::new().stdout(Stdio::null()), guest::ELF, &flood()));
}

/// A named pipe as the console: its reader sleeps, and then leaves in the middle of the flood.
#[test]
fn a_named_pipe_whose_reader_leaves() {
    let vmm = configured(&flood());
    let path = fifo(vmm.dir());
    // For both directions, so that opening waits for nobody.
    let reader = File::options().read(true).write(true).open(&path).unwrap();
    vmm.put("/serial", &json!({"serial_out_path": path})).expect_204();
    vmm.instance_start();
    runs_for(&vmm, 20);
    let bar = PassBar::before(&vmm);
    drop(reader);
    runs_for(&vmm, 30);
    bar.check(&vmm, LINES_MAX);
    vmm.signal(libc::SIGTERM);
    assert_eq!(vmm.wait_exit(PATIENCE), 143, "{}", vmm.said());
}

/// A monitor that waited for the reader would never come to the end of this.
#[test]
fn the_guest_comes_to_its_end_though_nobody_reads() {
    let (_reader, writer) = std::io::pipe().unwrap();
    // More than the pipe and our buffer hold together.
    let job = Job::new(Mode::Hostile("g23-".to_owned())).with("bytes", 160_000).end(End::S5);
    let vmm = configured_with(VmmBuilder::new().stdout(writer), guest::ELF, &job);
    vmm.instance_start();
    assert_eq!(vmm.wait_exit(3 * PATIENCE), 0, "{}", vmm.said());
}

/// A reader that comes late gets the beginning whole: what is dropped is dropped at the end.
#[test]
fn a_late_reader_gets_the_beginning_whole() {
    let (reader, writer) = std::io::pipe().unwrap();
    let vmm = configured_with(VmmBuilder::new().stdout(writer), guest::ELF, &flood());
    vmm.instance_start();
    runs_for(&vmm, 50);
    let lines = mayfly_tests::Lines::capture(reader);
    let (next, _) = lines.find_from(0, guest::READY, PATIENCE).expect("the first line");
    let dots = ".".repeat(63);
    // More than the 64 KiB of a pipe's own buffer.
    for n in 0..1200 {
        let (_, line) = lines.find_from(next + n, "", PATIENCE).expect("a line of the flood");
        assert_eq!(line, dots, "line {n} of the flood");
    }
}
