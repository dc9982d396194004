//! The binary over its real socket.
//!
//! | module | question it answers |
//! |---|---|
//! | [`contract`] | is `openapi.yaml` what the binary does |
//! | [`phases`] | which request is allowed before the start, while running, while paused |
//! | [`table`] | the answers to that, as data |
//! | [`clients`] | do the habits of existing clients work |
//! | [`http`] | does it speak HTTP as v1 clients do, whatever they send |
//! | [`input`] | are wrong values and hostile paths refused without a trace |
//! | [`devices`] | what each device can be configured to, and the texts when it cannot |
//! | [`hotplug`] | which devices can come and go while the machine runs, and the texts when they cannot |
//! | [`limits`] | what rate limiters mean and how they are shown |
//! | [`metrics`] | is the metrics file the one strict readers take, and what is in it |
//! | [`mmds`] | what the metadata service can be told and how large it may grow |
//! | [`whole`] | the configuration as one document: shown exactly, read back, applied in order |
//! | [`process`] | command line, socket, log, exit codes |
//!
//! [`phases`] and parts of the others start the bare-metal guest and need `/dev/kvm`; taps need root.

mod check_host;
mod clients;
mod contract;
mod devices;
mod hotplug;
mod http;
mod input;
mod limits;
mod metrics;
mod mmds;
mod phases;
mod process;
mod table;
mod whole;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use mayfly_tests::{Vmm, VmmBuilder};
use serde_json::Value;

/// Kernel command line of a guest that runs until it is stopped.
const SPIN: &str = "mayfly.mode=spin";

/// The bare-metal guest as a file in the directory of a VMM that has not been started yet.
fn guest_kernel(builder: &VmmBuilder) -> PathBuf {
    builder.file("guest.elf", guest::ELF)
}

/// A machine that can be started, with a guest that runs until it is stopped.
#[track_caller]
fn configured(builder: VmmBuilder) -> Vmm {
    let kernel = guest_kernel(&builder);
    let vmm = builder.start();
    vmm.boot_source(&kernel, SPIN);
    vmm.machine(1, 64);
    vmm
}

/// A new FIFO.
fn fifo(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

/// A refusal must not wait for anything outside; this leaves room for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Sends a request that must be refused at once and change nothing.
#[track_caller]
fn refused(vmm: &Vmm, method: &str, path: &str, body: &Value) -> String {
    let before = vmm.get("/vm/config").expect_200();
    let started = Instant::now();
    let reply = vmm.request(method, path, Some(&body.to_string()));
    assert!(started.elapsed() < AT_ONCE, "{method} {path} {body} took {:?}", started.elapsed());
    let message = reply.expect_fault("");
    assert_eq!(vmm.get("/vm/config").expect_200(), before, "{method} {path} {body} left a trace");
    message
}
