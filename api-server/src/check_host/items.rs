//! The items: where each is read, how it is judged, and why it matters. Sources are named in `docs/production-host.md`.

use std::fs::{self, OpenOptions};

use super::{Host, Item, Verdict};
use Verdict::{Advice, Ok, Problem, Unknown};

fn file(host: &Host, path: &str) -> Option<String> {
    host.text(path)
}

/// Whether a device can be used, in words.
fn device(host: &Host, path: &str) -> Option<String> {
    match OpenOptions::new().read(true).write(true).open(host.path(path)) {
        Result::Ok(_) => Some("can be read and written".to_owned()),
        Err(error) => Some(error.to_string()),
    }
}

fn usable(text: &str, otherwise: Verdict) -> Verdict {
    if text.starts_with("can be") { Ok } else { otherwise }
}

/// Flaws of the processor that nothing is done about.
fn flaws(host: &Host, path: &str) -> Option<String> {
    let mut open: Vec<String> = fs::read_dir(host.path(path))
        .ok()?
        .flatten()
        .filter(|entry| fs::read_to_string(entry.path()).is_ok_and(|text| text.starts_with("Vulnerable")))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    open.sort();
    Some(if open.is_empty() { "all mitigated".to_owned() } else { open.join(", ") })
}

/// `nx_huge_pages`, unless the processor does not need it.
fn split_pages(host: &Host, path: &str) -> Option<String> {
    let affected = host.text("/sys/devices/system/cpu/vulnerabilities/itlb_multihit");
    match affected.as_deref() {
        Some("Not affected") => Some("not needed by this processor".to_owned()),
        _ => host.text(path),
    }
}

/// The first mount of control groups, shortened to kind and options. One of version 1 counts more: its controllers are not in version 2.
fn groups(host: &Host, path: &str) -> Option<String> {
    let text = host.text(path)?;
    let line = |line: &str| {
        let mut words = line.split(' ').skip(2);
        let (kind, options) = (words.next()?, words.next()?);
        kind.starts_with("cgroup").then(|| format!("{kind} {options}"))
    };
    let mut lines: Vec<String> = text.lines().filter_map(line).collect();
    lines.sort_by_key(|line| line.starts_with("cgroup2"));
    lines.into_iter().next()
}

fn swap(host: &Host, path: &str) -> Option<String> {
    let text = host.text(path)?;
    let areas: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    Some(if areas.is_empty() { "none".to_owned() } else { areas.join(", ") })
}

fn landlock(host: &Host, _path: &str) -> Option<String> {
    host.landlock().map(|abi| format!("version {abi} of its interface"))
}

fn open_files(host: &Host, path: &str) -> Option<String> {
    let text = host.text(path)?;
    let line = text.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_whitespace().nth(3).map(str::to_owned)
}

fn unknowable(_host: &Host, _path: &str) -> Option<String> {
    None
}

/// Major and minor number of a kernel.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn zero(text: &str, otherwise: Verdict) -> Verdict {
    match text.parse::<u64>() {
        Result::Ok(0) => Ok,
        Result::Ok(_) => otherwise,
        Err(_) => Unknown,
    }
}

/// Everything, in the order in which it is shown.
pub(super) const ITEMS: &[Item] = &[
    Item {
        name: "kvm",
        source: "/dev/kvm",
        read: device,
        judge: |text| usable(text, Problem),
        missing: Problem,
        why: "Machines cannot start without it. Load kvm_intel or kvm_amd, and let the user who starts machines read and write it.",
    },
    Item {
        name: "tun",
        source: "/dev/net/tun",
        read: device,
        judge: |text| usable(text, Advice),
        missing: Advice,
        why: "Network interfaces need it: modprobe tun, and let the user who starts machines read and write it.",
    },
    Item {
        name: "kernel",
        source: "/proc/sys/kernel/osrelease",
        read: file,
        judge: |text| match release(text) {
            Some(release) if release < (5, 10) => Problem,
            Some(release) if release < (6, 1) => Advice,
            Some(_) => Ok,
            None => Unknown,
        },
        missing: Unknown,
        why: "Older kernels lack fences (Landlock since 5.13, more of it with each version) and fixes. Use 6.1 or newer.",
    },
    Item {
        name: "cpu-flaws",
        source: "/sys/devices/system/cpu/vulnerabilities",
        read: flaws,
        judge: |text| if text == "all mitigated" { Ok } else { Problem },
        missing: Unknown,
        why: "A guest could read what others computed on the same core. Update microcode and kernel, and boot without mitigations=off.",
    },
    Item {
        name: "smt",
        source: "/sys/devices/system/cpu/smt/active",
        read: file,
        judge: |text| zero(text, Advice),
        missing: Unknown,
        why: "Two machines on the threads of one core share its caches and buffers. Boot with nosmt, or give whole cores to each tenant.",
    },
    Item {
        name: "ksm",
        source: "/sys/kernel/mm/ksm/run",
        read: file,
        // 2 is "stopped, and everything taken apart again" (Documentation/admin-guide/mm/ksm.rst).
        judge: |text| if matches!(text, "0" | "2") { Ok } else { Problem },
        missing: Ok,
        why: "Merged pages tell one machine what is in another's memory, by the time a write takes. echo 2 > /sys/kernel/mm/ksm/run",
    },
    Item {
        name: "swap",
        source: "/proc/swaps",
        read: swap,
        judge: |text| if text == "none" { Ok } else { Advice },
        missing: Ok,
        why: "Guest memory would be written to a disk, and stay there. swapoff -a, or encrypt it.",
    },
    Item {
        name: "nx-huge-pages",
        source: "/sys/module/kvm/parameters/nx_huge_pages",
        read: split_pages,
        judge: |text| if matches!(text, "Y" | "not needed by this processor") { Ok } else { Problem },
        missing: Unknown,
        why: "On this processor a guest can halt the host by changing huge pages that it runs. Load kvm with nx_huge_pages=auto.",
    },
    Item {
        name: "cgroup",
        source: "/proc/mounts",
        read: groups,
        judge: |text| if text.starts_with("cgroup2") { Ok } else { Advice },
        missing: Advice,
        why: "Version 2 limits memory, I/O and processors in one tree. Boot with systemd.unified_cgroup_hierarchy=1.",
    },
    Item {
        name: "favordynmods",
        source: "/proc/mounts",
        read: groups,
        judge: |text| if text.contains("favordynmods") { Ok } else { Advice },
        missing: Advice,
        why: "To move a process into a group waits for all processors else, at every start. mount -o remount,favordynmods /sys/fs/cgroup",
    },
    Item {
        name: "seccomp",
        source: "/proc/sys/kernel/seccomp/actions_avail",
        read: file,
        judge: |text| if text.split(' ').any(|action| action == "trap") { Ok } else { Problem },
        missing: Problem,
        why: "Every thread has a filter that needs it. Use a kernel with CONFIG_SECCOMP_FILTER.",
    },
    Item {
        name: "landlock",
        source: "landlock_create_ruleset(2)",
        read: landlock,
        judge: |_| Ok,
        missing: Advice,
        why: "The second fence is missing. Use a kernel with CONFIG_SECURITY_LANDLOCK, and name landlock in lsm= if that is given.",
    },
    Item {
        name: "io-uring",
        source: "/proc/sys/kernel/io_uring_disabled",
        read: file,
        judge: |text| zero(text, Advice),
        missing: Ok,
        why: "Drives with io_engine Async use the Sync engine instead. sysctl kernel.io_uring_disabled=0, if that is not wanted.",
    },
    Item {
        name: "user-namespaces",
        source: "/proc/sys/user/max_user_namespaces",
        read: file,
        judge: |text| if zero(text, Advice) == Advice { Ok } else { Advice },
        missing: Advice,
        why: "mayfly-jailer --rootless needs them. sysctl user.max_user_namespaces=10000",
    },
    Item {
        name: "user-namespaces-apparmor",
        source: "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        read: file,
        judge: |text| zero(text, Advice),
        missing: Ok,
        why: "mayfly-jailer --rootless needs an AppArmor profile with userns, or sysctl kernel.apparmor_restrict_unprivileged_userns=0.",
    },
    Item {
        name: "ptrace",
        source: "/proc/sys/kernel/yama/ptrace_scope",
        read: file,
        judge: |text| if text == "0" { Advice } else { Ok },
        missing: Advice,
        why: "Any process of the same user can read a machine that runs without the jailer. sysctl kernel.yama.ptrace_scope=1",
    },
    Item {
        name: "huge-pages",
        source: "/sys/kernel/mm/transparent_hugepage/enabled",
        read: file,
        judge: |text| if text.contains("[never]") { Advice } else { Ok },
        missing: Advice,
        why: "Guest memory has only small pages, which costs address translations. echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
    },
    Item {
        name: "open-files",
        source: "/proc/self/limits",
        read: open_files,
        judge: |text| match text.parse::<u64>() {
            Result::Ok(0..2048) => Advice,
            Result::Ok(_) => Ok,
            Err(_) if text == "unlimited" => Ok,
            Err(_) => Unknown,
        },
        missing: Unknown,
        why: "A machine with many vsock connections needs 2048 (the jailer sets that). ulimit -n 2048",
    },
    Item {
        name: "metadata-egress",
        source: "not looked at",
        read: unknowable,
        judge: |_| Unknown,
        missing: Unknown,
        why: "A guest that reaches the host's own metadata service has the host's rights. Drop 169.254.169.254 from taps, see docs/production-host.md.",
    },
];
