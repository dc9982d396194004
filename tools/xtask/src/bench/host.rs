//! The machine the figures belong to, and whether something else was running on it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// What a reader must know to judge the figures.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) kernel: String,
    pub(crate) kvm: &'static str,
    /// Load average of the last minute when the bench began.
    pub(crate) load: f64,
}

impl Host {
    /// Looks around.
    pub(crate) fn look() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown CPU", |(_, name)| name);
        Self {
            cpu: cpu.to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: word_of("/proc/sys/kernel/osrelease"),
            kvm: kvm_flavour(Path::new("/sys/module")),
            load: load(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "cpu": self.cpu, "cpus": self.cpus, "kernel": self.kernel, "kvm": self.kvm,
            "load_at_start": self.load, "load_at_end": load(),
        })
    }
}

/// Load average of the last minute.
pub(crate) fn load() -> f64 {
    let load = word_of("/proc/loadavg");
    load.parse().unwrap_or(f64::NAN)
}

fn word_of(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().next().unwrap_or("?").to_owned()
}

/// PVM first: its host may have the module of the hardware underneath as well.
fn kvm_flavour(modules: &Path) -> &'static str {
    let kinds = [
        ("kvm_pvm", "KVM-PVM (page-table virtual machines)"),
        ("kvm_amd", "KVM on AMD SVM"),
        ("kvm_intel", "KVM on Intel VMX"),
        ("kvm", "KVM of an unknown kind"),
    ];
    let found = kinds.iter().find(|(module, _)| modules.join(module).is_dir());
    found.map_or("no KVM module seen", |(_, name)| name)
}

/// How often a machine that seems busy is looked at again.
const LOOKS: usize = 5;

/// Other people's work, as /proc/stat sees it at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Activity {
    /// Threads running or wanting to, this one included.
    running: u64,
    /// Ticks (10 ms) a hypervisor below us gave to someone else, all CPUs together.
    steal_ticks: u64,
}

impl Activity {
    /// Now. A kernel thread that clears up after the last VMM is gone a moment later; a compiler
    /// is not. So the quietest of a few looks counts.
    pub(crate) fn look() -> Self {
        let now = || Self::parse(&fs::read_to_string("/proc/stat").unwrap_or_default());
        let mut activity = now();
        for _ in 1..LOOKS {
            if activity.running <= 1 {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
            activity = now();
        }
        activity
    }

    fn parse(stat: &str) -> Self {
        let mut activity = Self::default();
        for line in stat.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                // user nice system idle iowait irq softirq steal (proc(5))
                Some("cpu") => activity.steal_ticks = number(words.nth(7)),
                Some("procs_running") => activity.running = number(words.next()),
                _ => {}
            }
        }
        activity
    }

    /// Whether a sample taken between `self` and `after` had company. Both looks are taken
    /// while no VMM of the bench is alive, so the bench is the only one that may run.
    pub(crate) fn disturbed(self, after: Self, seconds: f64, cpus: usize) -> bool {
        let stolen = after.steal_ticks.saturating_sub(self.steal_ticks);
        // One tick is the resolution: it says nothing by itself.
        let allowed = (seconds * 100.0 * cpus as f64 * 0.01).max(1.0);
        self.running > 1 || after.running > 1 || stolen as f64 > allowed
    }
}

fn number(word: Option<&str>) -> u64 {
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  1 2 3 4 5 6 7 80 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\nprocs_running 1\n";

    #[test]
    fn company_is_noticed() {
        let quiet = Activity::parse(STAT);
        assert_eq!((quiet.running, quiet.steal_ticks), (1, 80));
        assert!(!quiet.disturbed(quiet, 0.1, 2));
        let busy = Activity::parse(&STAT.replace("running 1", "running 3"));
        assert!(quiet.disturbed(busy, 0.1, 2));
        let stolen = Activity::parse(&STAT.replace("80", "85"));
        assert!(quiet.disturbed(stolen, 1.0, 2), "5 of 200 ticks");
        assert!(!quiet.disturbed(stolen, 10.0, 2), "5 of 2000 ticks");
    }

    #[test]
    fn pvm_is_named_even_beside_other_modules() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(kvm_flavour(dir.path()), "no KVM module seen");
        for module in ["kvm", "kvm_amd", "kvm_pvm"] {
            fs::create_dir(dir.path().join(module)).unwrap();
        }
        assert!(kvm_flavour(dir.path()).starts_with("KVM-PVM"));
    }
}
