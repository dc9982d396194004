//! What every mischief may cost at most: the common pass bar of the threat catalogue, and the measurements it is made of.

use std::time::{Duration, Instant};

use mayfly_tests::Vmm;

/// The longest a `GET /` may take, whatever the guest does.
const ANSWER_MAX: Duration = Duration::from_millis(100);
/// By then the VMM thread must be quiet again. A second in the catalogue; here the cores are shared with other tests.
const SETTLE: Duration = Duration::from_secs(3);
const RSS_GROWTH_MAX_KIB: u64 = 1024;
/// Log lines for one stimulus.
pub(crate) const LINES_MAX: usize = 50;
/// The thread that runs the VMM, the process's main one.
pub(crate) const VMM_THREAD: &str = "mayfly";
/// Guest memory of every machine that is measured, in MiB.
pub(crate) const RAM_MIB: u64 = 64;

/// The state of a monitor before a stimulus.
#[derive(Debug)]
pub(crate) struct PassBar {
    rss_kib: u64,
    log_lines: usize,
}

impl PassBar {
    /// Measures a monitor whose machine runs.
    pub(crate) fn before(vmm: &Vmm) -> Self {
        Self { rss_kib: rss_kib(vmm), log_lines: log_lines(vmm) }
    }

    /// Alive, answering, small, and with fewer than `lines_max` new log lines; whether or not there is still work to do.
    #[track_caller]
    pub(crate) fn check_busy(&self, vmm: &Vmm, lines_max: usize) {
        assert!(vmm.is_running(), "{}", vmm.said());
        answers_quickly(vmm);
        let grown = rss_kib(vmm).saturating_sub(self.rss_kib);
        assert!(grown < RSS_GROWTH_MAX_KIB, "{grown} KiB more than before");
        let lines = log_lines(vmm) - self.log_lines;
        assert!(lines < lines_max, "{lines} lines\n{}", vmm.log());
    }

    /// The whole bar, for when nothing is left to do: also not spinning.
    #[track_caller]
    pub(crate) fn check(&self, vmm: &Vmm, lines_max: usize) {
        self.check_busy(vmm, lines_max);
        settles(vmm);
    }
}

/// The quickest of a few `GET /`: one of them may have met another test's burst of work.
#[track_caller]
pub(crate) fn answers_quickly(vmm: &Vmm) {
    let quickest = (0..5)
        .map(|_| {
            let asked = Instant::now();
            vmm.get("/").expect_200();
            asked.elapsed()
        })
        .min();
    assert!(quickest < Some(ANSWER_MAX), "GET / takes {quickest:?}");
}

/// A fifth of a second in which the threads that serve devices run for no more than a tick. A thread that spins gets half a core at least.
#[track_caller]
fn settles(vmm: &Vmm) {
    let deadline = Instant::now() + SETTLE;
    let ticks = || -> u64 {
        assert!(thread_ticks(vmm, VMM_THREAD).is_some(), "the main thread has its name");
        let own = (0..).map_while(|n| thread_ticks(vmm, &format!("io {n}")));
        own.chain(thread_ticks(vmm, VMM_THREAD)).sum()
    };
    loop {
        let before = ticks();
        std::thread::sleep(Duration::from_millis(200));
        let ran = ticks() - before;
        if ran <= 1 {
            return;
        }
        assert!(Instant::now() < deadline, "the device threads keep running: {ran} ticks in 200 ms\n{}", vmm.said());
    }
}

/// CPU time of the thread with that name, in clock ticks (10 ms). `None` before it has taken its name.
pub(crate) fn thread_ticks(vmm: &Vmm, name: &str) -> Option<u64> {
    for task in std::fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap() {
        let path = task.unwrap().path();
        if std::fs::read_to_string(path.join("comm")).unwrap_or_default().trim() == name {
            let stat = std::fs::read_to_string(path.join("stat")).unwrap();
            let after_name = stat.rsplit_once(')').unwrap().1;
            let fields: Vec<&str> = after_name.split_whitespace().collect();
            return Some(fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap());
        }
    }
    None
}

/// Times a thread gave up its processor of its own accord: at least once for each wake-up.
pub(crate) fn wake_ups(vmm: &Vmm, name: &str) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap();
    let task = tasks
        .map(|task| task.unwrap().path())
        .find(|path| std::fs::read_to_string(path.join("comm")).unwrap_or_default().trim() == name)
        .unwrap_or_else(|| panic!("no thread called {name}"));
    let status = std::fs::read_to_string(task.join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

/// Resident memory of the process, guest RAM included, in MiB.
pub(crate) fn rss_mib(vmm: &Vmm) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", vmm.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}

/// Resident memory that is not guest RAM, in KiB.
pub(crate) fn rss_kib(vmm: &Vmm) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", vmm.pid())).unwrap();
    let (mut size, mut sum) = (0, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (key, value) = (words.next(), words.next().and_then(|v| v.parse::<u64>().ok()));
        match (key, value) {
            (Some("Size:"), Some(kib)) => size = kib,
            (Some("Rss:"), Some(kib)) if size != RAM_MIB << 10 => sum += kib,
            _ => {}
        }
    }
    sum
}

/// Lines in the log, without those that the API writes about our own requests.
fn log_lines(vmm: &Vmm) -> usize {
    vmm.log().lines().filter(|line| !line.contains(":api]")).count()
}
