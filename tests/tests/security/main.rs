//! What a process may do that its guest has taken over, and where it is kept: filters, Landlock, the jailer. As root, with real guests.

mod fences;
mod jail;

use mayfly_tests::Vmm;

/// A field of `/proc/PID/status`, or of a task's.
#[track_caller]
fn status(path: &str, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{path}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {text}")).trim().to_owned()
}

/// Names and numbers of a process's threads, without those of the kernel (KVM adds one of its own).
fn threads(pid: u32) -> Vec<(String, u32)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let tasks = tasks.map(|task| task.unwrap().file_name().into_string().unwrap().parse::<u32>().unwrap());
    let named = |tid: u32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm")).ok()?.trim().to_owned();
        (!name.starts_with("kvm-")).then_some((name, tid))
    };
    tasks.filter_map(named).collect()
}

/// J8: no task of a machine that runs is without a filter, or could gain privileges.
#[track_caller]
fn assert_confined(pid: u32) {
    for (name, tid) in threads(pid) {
        let of = |field: &str| status(&format!("{pid}/task/{tid}"), field);
        assert_eq!((of("Seccomp").as_str(), of("NoNewPrivs").as_str()), ("2", "1"), "thread {name}");
    }
}

fn said(vmm: &Vmm) -> String {
    vmm.said()
}
