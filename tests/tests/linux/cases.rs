//! Every case of the tier by name, and the account of what became of it.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

/// The scenarios and what each must report. A script that forgets a case fails here.
pub(crate) const CASES: [(&str, &[&str]); 26] = [
    (
        "05-readme",
        &[
            "readme-no-refusal",
            "readme-boot",
            "readme-vcpus",
            "readme-disk",
            "readme-network",
            "readme-ping",
            "readme-pause",
            "readme-resume",
            "readme-swap",
            "readme-end",
        ],
    ),
    ("06-readme-jail", &["jail-no-refusal", "jail-boot", "jail-in-its-group", "jail-confined", "jail-nothing-left"]),
    ("07-fences", &["v2-fences"]),
    ("08-jails", &["v2-jail-layout", "v2-jail-attacks", "v2-jail-life", "v2-jail-readme", "v2-jail-clones"]),
    ("09-jails-rootless", &["v2-jail-rootless"]),
    (
        "10-bzimage",
        &[
            "api-answers",
            "api-not-started",
            "boot-bzimage-initrd",
            "vcpus-1",
            "console-input",
            "end-reboot",
            "socket-unlinked",
        ],
    ),
    (
        "20-pvh-disks",
        &[
            "boot-vmlinux-pvh",
            "boot-pvh-logged",
            "vcpus-2",
            "vcpus-2-work",
            "disk-sync-read",
            "disk-sync-write",
            "disk-sync-reread",
            "disk-sync-flush",
            "disk-sync-discard",
            "disk-async-read",
            "disk-async-write",
            "disk-async-reread",
            "disk-async-flush",
            "disk-async-discard",
            "disk-serial",
            "disk-read-only",
            "disk-read-only-refused",
            "disk-sync-capacity-after-patch",
            "disk-async-capacity-after-patch",
            "end-poweroff",
        ],
    ),
    (
        "30-elf64-pause",
        &[
            "boot-vmlinux-64bit",
            "boot-64bit-entry-used",
            "vcpus-4",
            "vcpus-4-work",
            "pause",
            "pause-shown",
            "pause-stops",
            "resume",
            "resume-continues",
            "resume-clock",
            "resume-quiet",
            "end-sigterm",
            "sigterm-unlinks-socket",
        ],
    ),
    (
        "40-root-network",
        &[
            "root-boot",
            "root-ext4",
            "root-ext4-written",
            "net-mac",
            "net-ping-from-guest",
            "net-ping-from-host",
            "net-tcp-to-guest",
            "net-tcp-from-guest",
            "net-offload-to-guest",
            "net-offload-from-guest",
            "ctrl-alt-del",
            "end-ctrl-alt-del",
        ],
    ),
    (
        "42-multi-queue",
        &[
            "queues-boot",
            "queues-drives",
            "queues-pairs",
            "queues-data",
            "queues-rx0",
            "queues-rx1",
            "queues-tx0",
            "queues-tx1",
            "queues-threads",
            "queues-one-pair-data",
            "queues-one-pair-used",
            "queues-other-pair-not",
            "queues-snapshot",
            "queues-config",
            "queues-restored-data",
            "queues-restored-rx0",
            "queues-restored-rx1",
            "queues-nothing-wrong",
            "queues-end",
        ],
    ),
    (
        "45-vhost-user",
        &[
            "vhost-boot",
            "vhost-root",
            "vhost-ext4",
            "vhost-write",
            "vhost-fs-read",
            "vhost-fs-write",
            "vhost-fs-written",
            "vhost-config",
            "vhost-restart",
            "vhost-capacity",
            "vhost-reread",
            "vhost-told",
            "vhost-end",
            "vhost-before",
            "vhost-after",
        ],
    ),
    ("50-panic", &["panic-boot", "no-template-hides-nothing", "panic-shown", "end-panic"]),
    ("60-triple-fault", &["config-file-boot", "no-api-no-socket", "end-triple-fault"]),
    (
        "65-races",
        &[
            "races-up",
            "g4-registers-while-starting",
            "g26-descriptors",
            "g26-block-header",
            "g26-available-ring",
            "g26-net-header",
            "races-api-answers",
            "races-log-bounded",
            "races-disk-untouched",
            "races-end",
        ],
    ),
    (
        "70-cpu-identity",
        &[
            "template-accepted",
            "template-boot",
            "template-hides-a-flag",
            "template-leaves-the-others",
            "template-names-the-cpu",
            "acpi-VMGENCTR",
            "acpi-AMZNC10C",
            "acpi-ACPI0013",
            "acpi-QEMU0001",
            "ged-interrupts",
            "generation-id",
            "vm-clock",
            "pvpanic-driver",
            "pvpanic-panic",
            "end-after-panic",
            "pvpanic-logged",
            "pvpanic-told-at-the-end",
        ],
    ),
    (
        "72-vcpu-hotplug",
        &[
            "vcpus-boot",
            "vcpus-possible",
            "vcpus-present-at-boot",
            "vcpus-status",
            "vcpus-too-many",
            "vcpus-request",
            "vcpus-grow",
            "vcpus-present",
            "vcpus-request-less",
            "vcpus-ejected",
            "vcpus-shrink",
            "vcpus-request-again",
            "vcpus-grow-again",
            "vcpus-save",
            "vcpus-restore",
            "vcpus-restored-work",
            "vcpus-restored-status",
            "vcpus-restored-grow",
            "vcpus-restored-shrink",
            "vcpus-restored-ejected",
            "vcpus-nothing-wrong",
            "vcpus-end",
        ],
    ),
    (
        "73-device-hotplug",
        &[
            "plug-boot",
            "plug-drive-request",
            "plug-drive-seen",
            "plug-pmem-request",
            "plug-pmem-seen",
            "plug-net-request",
            "plug-net-seen",
            "plug-net-works",
            "unplug-drive",
            "unplug-drive-gone",
            "plug-drive-again",
            "plug-drive-again-seen",
            "plug-snapshot",
            "plug-snapshot-net",
            "plug-snapshot-drive",
            "unplug-after-snapshot",
            "unplug-after-snapshot-gone",
            "unplug-net",
            "unplug-net-gone",
            "unplug-pmem",
            "unplug-pmem-gone",
            "plug-nothing-wrong",
            "plug-end",
        ],
    ),
    (
        "80-rng-balloon",
        &[
            "rng-boot",
            "rng-driver",
            "rng-bytes",
            "rng-random",
            "balloon-inflates",
            "balloon-returns-memory",
            "balloon-statistics",
            "balloon-deflates",
            "balloon-end",
        ],
    ),
    (
        "81-balloon-free-pages",
        &[
            "reporting-boot",
            "reporting-returns-memory",
            "reporting-end",
            "hinting-boot",
            "hinting-starts",
            "hinting-returns-memory",
            "hinting-status",
            "hinting-stops",
            "hinting-end",
        ],
    ),
    (
        "82-pmem",
        &[
            "pmem-boot",
            "pmem-size",
            "pmem-dax",
            "pmem-reads",
            "pmem-syncs",
            "pmem-ro-reads",
            "pmem-end",
            "pmem-written",
            "pmem-ro-untouched",
        ],
    ),
    (
        "83-memory-hotplug",
        &[
            "mem-boot",
            "mem-request",
            "mem-plugs",
            "mem-grows",
            "mem-request-less",
            "mem-unplugs",
            "mem-shrinks",
            "mem-returns-memory",
            "mem-end",
        ],
    ),
    (
        "84-vsock",
        &[
            "vsock-boot",
            "vsock-connect-ok",
            "vsock-to-guest",
            "vsock-sends",
            "vsock-from-guest",
            "vsock-refused",
            "vsock-end",
            "vsock-unlinked",
        ],
    ),
    (
        "85-mmds",
        &[
            "mmds-boot",
            "mmds-config",
            "mmds-put",
            "mmds-token-needed",
            "mmds-value",
            "mmds-json",
            "mmds-mac",
            "mmds-other-traffic",
            "mmds-end",
        ],
    ),
    (
        "90-snapshot",
        &[
            "snapshot-boot",
            "snapshot-ping-before",
            "snapshot-1",
            "snapshot-2",
            "snapshot-3",
            "snapshot-4",
            "snapshot-ping",
            "snapshot-identities",
            "snapshot-context-ids",
            "snapshot-config",
            "snapshot-nothing-wrong",
            "snapshot-end",
        ],
    ),
    (
        "91-clones",
        &[
            "clones-boot",
            "clones-made",
            "clones-1-goes-on",
            "clones-2-goes-on",
            "clones-parent-goes-on",
            "clones-1-listens",
            "clones-2-listens",
            "clones-parent-listens",
            "clones-identities",
            "clones-context-ids",
            "clones-nothing-wrong",
            "clones-end",
        ],
    ),
    (
        "92-reseed",
        &[
            "reseed-boot",
            "reseed-made",
            "reseed-1-heard",
            "reseed-2-heard",
            "reseed-parent-did-not",
            "reseed-random-differs",
            "reseed-end",
        ],
    ),
];

/// What a scenario is called that runs its VMM in a jail, and so are its cases.
const JAILED: &str = "jailed-";
/// The same where devices are on a PCI bus, and where both is so.
const ON_PCI: &str = "pci-";
const BOTH: &str = "jailed-pci-";

/// Scenarios that say by themselves how their VMMs are started: the README's, and the tests of filters and jails.
const THEIR_OWN_WAY: [&str; 5] = ["05-readme", "06-readme-jail", "07-fences", "08-jails", "09-jails-rootless"];

/// Scenarios that run on virtio-mmio without a jail, to show what a VMM without one does. The bare-metal guest's tests have all devices without a jail.
const WITHOUT_A_JAIL: [&str; 7] =
    ["10-bzimage", "20-pvh-disks", "30-elf64-pause", "40-root-network", "45-vhost-user", "91-clones", "92-reseed"];

/// Those of them that do not run in one: they start several VMMs. The tests of jails have such.
const ONLY_WITHOUT_A_JAIL: [&str; 2] = ["91-clones", "92-reseed"];

/// What there is only on a PCI bus.
const ONLY_ON_PCI: [&str; 1] = ["73-device-hotplug"];

/// The scenarios whose name contains `filter`, in order; first those without a jail, last those on a PCI bus, which run in a jail where they can.
/// So each runs on both transports, and each that can be in a jail is in one.
pub(crate) fn scenarios(filter: &str) -> Vec<String> {
    let names = || CASES.iter().map(|(scenario, _)| *scenario);
    let plain = names().filter(|name| THEIR_OWN_WAY.contains(name) || WITHOUT_A_JAIL.contains(name)).map(str::to_owned);
    let others = [&THEIR_OWN_WAY[..], &WITHOUT_A_JAIL, &ONLY_ON_PCI].concat();
    let in_jails = |name: &&str| !others.contains(name);
    let jailed = names().filter(in_jails).map(|scenario| format!("{JAILED}{scenario}"));
    let way = |name: &str| if ONLY_WITHOUT_A_JAIL.contains(&name) { ON_PCI } else { BOTH };
    let on_pci = names().filter(|name| !THEIR_OWN_WAY.contains(name)).map(|name| format!("{}{name}", way(name)));
    plain.chain(jailed).chain(on_pci).filter(|scenario| scenario.contains(filter)).collect()
}

/// How a scenario runs, as its name says first, and the scenario itself.
pub(crate) fn parts(scenario: &str) -> (&'static str, &str) {
    let way = [BOTH, JAILED, ON_PCI].into_iter().find_map(|way| Some((way, scenario.strip_prefix(way)?)));
    way.unwrap_or(("", scenario))
}

/// The cases of a scenario.
fn cases_of(scenario: &str) -> Vec<String> {
    let (prefix, inner) = parts(scenario);
    let cases = CASES.iter().filter(|(known, _)| *known == inner).flat_map(|(_, cases)| cases.iter());
    cases.map(|case| format!("{prefix}{case}")).collect()
}

/// The cases of the scenarios whose name contains `filter`, in order.
pub(crate) fn of_scenarios(filter: &str) -> Vec<String> {
    scenarios(filter).iter().flat_map(|scenario| cases_of(scenario)).collect()
}

/// What became of the expected cases so far.
#[derive(Debug)]
pub(crate) struct Report {
    expected: Vec<String>,
    /// `None` for passed, else the reason.
    results: BTreeMap<String, Option<String>>,
    /// Scenarios that have begun, once for each time.
    begun: Vec<String>,
}

impl Report {
    pub(crate) fn new(expected: Vec<String>) -> Self {
        Self { expected, results: BTreeMap::new(), begun: Vec::new() }
    }

    /// Takes one line of the console of an outer guest: reports a case, shows anything else as it is.
    pub(crate) fn outer_line(&mut self, outer: &str, line: &str) {
        let Some((name, result)) = line.strip_prefix("case ").and_then(|rest| rest.split_once(' ')) else {
            println!("{outer}: {line}");
            if let Some(name) = line.strip_prefix("scenario ").and_then(|rest| rest.split(' ').next()) {
                self.begin(name);
            }
            return;
        };
        if let Some(reason) = result.strip_prefix("FAIL") {
            println!("test {name} ... FAILED:{reason}");
            self.results.insert(name.to_owned(), Some(reason.trim().to_owned()));
        } else {
            // A case reported twice has passed only if it passed twice.
            self.results.entry(name.to_owned()).or_insert(None);
            println!("test {name} ... ok {}", result.trim_start_matches("ok").trim());
        }
    }

    /// A scenario begins, perhaps for the second time: then its second try is what counts, and it is told at the end.
    fn begin(&mut self, name: &str) {
        self.begun.push(name.to_owned());
        let cases = cases_of(name);
        self.results.retain(|case, _| !cases.contains(case));
    }

    /// Names what is missing or unknown and prints the totals.
    pub(crate) fn finish(mut self, took: Duration) -> ExitCode {
        for name in &self.expected {
            if !self.results.contains_key(name) {
                println!("test {name} ... FAILED: never reported");
                self.results.insert(name.clone(), Some("never reported".into()));
            }
        }
        for (name, result) in &mut self.results {
            if !self.expected.contains(name) {
                println!("test {name} ... FAILED: not in the list of cases");
                *result = Some("not in the list of cases".into());
            }
        }
        for name in scenarios("") {
            let tries = self.begun.iter().filter(|begun| **begun == name).count();
            if tries > 1 {
                println!("scenario {name} was tried {tries} times; the first failures are shown above");
            }
        }
        let failed = self.results.values().flatten().count();
        let passed = self.results.len() - failed;
        let word = if failed == 0 { "ok" } else { "FAILED" };
        println!(
            "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; \
             0 filtered out; finished in {:.1}s\n",
            took.as_secs_f64()
        );
        ExitCode::from(u8::from(failed > 0))
    }
}
