use std::collections::BTreeMap;

use serde::Serialize;
use vmm::confine::{Report, ThreadFence};
use vmm::sys::process::Capabilities;

/// Reply of `GET /confinement`.
#[derive(Debug, Serialize)]
pub(crate) struct Confinement {
    threads: Vec<Thread>,
    landlock: Landlock,
    no_new_privs: bool,
    dumpable: bool,
    uid: u32,
    gid: u32,
    capabilities: Sets,
    limits: BTreeMap<&'static str, Limit>,
    namespaces: BTreeMap<String, String>,
    cgroups: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Thread {
    name: String,
    role: &'static str,
    seccomp: &'static str,
    rules: Option<usize>,
    instructions: usize,
    opens_files: bool,
}

#[derive(Debug, Serialize)]
struct Landlock {
    abi: Option<u32>,
    process: bool,
}

/// Each set as 16 hexadecimal digits, as in `/proc/PID/status`.
#[derive(Debug, Serialize)]
struct Sets {
    effective: String,
    permitted: String,
    inheritable: String,
    bounding: String,
}

#[derive(Debug, Serialize)]
struct Limit {
    soft: Option<u64>,
    hard: Option<u64>,
}

impl From<Report> for Confinement {
    fn from(report: Report) -> Self {
        let Report { threads, landlock, process } = report;
        Self {
            threads: threads.into_iter().map(Thread::from).collect(),
            landlock: Landlock { abi: landlock.abi, process: landlock.process },
            no_new_privs: process.no_new_privs,
            dumpable: process.dumpable,
            uid: process.ids.0,
            gid: process.ids.1,
            capabilities: process.capabilities.into(),
            limits: process.limits.into_iter().map(|(name, soft, hard)| (name, Limit { soft, hard })).collect(),
            namespaces: process.namespaces.into_iter().collect(),
            cgroups: process.cgroups,
        }
    }
}

impl From<ThreadFence> for Thread {
    fn from(fence: ThreadFence) -> Self {
        let ThreadFence { name, role, seccomp, rules, instructions, opens_files } = fence;
        Self { name, role, seccomp: if seccomp { "filter" } else { "off" }, rules, instructions, opens_files }
    }
}

impl From<Capabilities> for Sets {
    fn from(sets: Capabilities) -> Self {
        let hex = |set: u64| format!("{set:016x}");
        Self {
            effective: hex(sets.effective),
            permitted: hex(sets.permitted),
            inheritable: hex(sets.inheritable),
            bounding: hex(sets.bounding),
        }
    }
}
