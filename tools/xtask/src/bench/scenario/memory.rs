//! What a VM costs in memory beyond its guest's own, at rest with 1 vCPU and 128 MiB.

use std::time::Duration;

use anyhow::{Result, bail};

use super::super::pairs::{Metric, Rounds, Sample};
use super::super::subject::{GUEST_MIB, Rig, Subject};
use super::Scenario;

static RSS: Metric = Metric::lower("RSS over guest RAM", "MiB");
static PSS: Metric = Metric::lower("PSS over guest RAM", "MiB");
static PRIVATE_DIRTY: Metric = Metric::lower("private dirty over guest RAM", "MiB");
static GUEST_RSS: Metric = Metric::lower("RSS of guest RAM", "MiB");

pub(crate) const MEMORY: Scenario = Scenario {
    name: "memory",
    metrics: &[&RSS, &PSS, &PRIVATE_DIRTY, &GUEST_RSS],
    rounds: Rounds { wanted: 5, warm_up: 0 },
    sample: memory,
    needs_network: false,
};

fn memory(subject: &Subject, rig: &Rig) -> Result<Sample> {
    let disk = rig.disk("start.img", 1)?;
    let mut vm = subject.spawn_configured(rig, "mayfly.mode=spin")?;
    vm.drive("disk", &disk, "Sync")?;
    vm.start()?;
    // Nothing happens any more in a VM at rest; this only lets the start's last work end.
    std::thread::sleep(Duration::from_millis(if rig.quick { 50 } else { 500 }));
    let (vmm, guest) = of(vm.pid())?;
    let mib = |kib: u64| kib as f64 / 1024.0;
    Ok(vec![
        (&RSS, mib(vmm.rss)),
        (&PSS, mib(vmm.pss)),
        (&PRIVATE_DIRTY, mib(vmm.private_dirty)),
        (&GUEST_RSS, mib(guest.rss)),
    ])
}

/// What a VM's process has in memory: the monitor, and the guest's RAM.
pub(super) fn of(pid: u32) -> Result<(Sum, Sum)> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (vmm, guest) = split(&smaps, GUEST_MIB << 10);
    if guest.mappings != 1 {
        bail!("{} mappings of exactly {GUEST_MIB} MiB instead of one: which is the guest's?", guest.mappings);
    }
    Ok((vmm, guest))
}

/// Sums over mappings, in KiB.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    mappings: usize,
    pub(super) rss: u64,
    pss: u64,
    private_dirty: u64,
}

/// Everything else, and the mappings of exactly `guest_kib`.
fn split(smaps: &str, guest_kib: u64) -> (Sum, Sum) {
    let (mut vmm, mut guest) = (Sum::default(), Sum::default());
    let mut of_guest = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let key = words.next().unwrap_or_default();
        let kib: u64 = words.next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
        // "Size:" is the first line after a mapping's heading (proc(5)).
        if key == "Size:" {
            of_guest = kib == guest_kib;
        }
        let sum = if of_guest { &mut guest } else { &mut vmm };
        match key {
            "Size:" => sum.mappings += 1,
            "Rss:" => sum.rss += kib,
            "Pss:" => sum.pss += kib,
            "Private_Dirty:" => sum.private_dirty += kib,
            _ => {}
        }
    }
    (vmm, guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_told_by_its_size() {
        let smaps = "\
7f0000000000-7f0008000000 rw-p 00000000 00:00 0
Size:             131072 kB
Rss:                 900 kB
Pss:                 900 kB
Private_Dirty:       900 kB
7f0008000000-7f0008002000 r-xp 00000000 00:00 0 /bin/x
Size:                  8 kB
Rss:                   8 kB
Pss:                   4 kB
Private_Dirty:         0 kB
7f0008002000-7f0008003000 rw-p 00000000 00:00 0
Size:                  4 kB
Rss:                   4 kB
Pss:                   4 kB
Private_Dirty:         4 kB
";
        let (vmm, guest) = split(smaps, 128 << 10);
        let expected = Sum { mappings: 2, rss: 12, pss: 8, private_dirty: 4 };
        assert_eq!(vmm, expected);
        assert_eq!((guest.mappings, guest.rss), (1, 900));
    }
}
