//! virtio-net, driven by the polling bare-metal guest over a tap of its own.
//!
//! To the guest, frames come from a packet socket that never has more of them under way than
//! the tap's queue holds, so the tap drops none; from the guest, the tap's own statistics count.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mayfly_tests::{Tap, tap};
use serde_json::json;

use super::super::pairs::{Better, Metric, Rounds, Sample};
use super::super::subject::{PATIENCE, Rig, Subject, Vm};
use super::super::sys::{self, BURST, FrameSender};
use super::Scenario;
use super::block::{number, results};

/// Why these scenarios do not run for everybody.
pub(crate) const REFUSAL_WITHOUT_ROOT: &str = "needs root, to make a tap in a network namespace of its own";
pub(crate) const TAP: &str = "mayflybench0";
const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
/// What the guest counts: IEEE 802 local experimental ethertype 1.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Frames under way to the guest; a tap's queue holds 1000 (`TUN_READQ_SIZE` in the kernel).
const UNDER_WAY: u64 = 512;
/// How long the sender waits when that many are.
const BREATH: Duration = Duration::from_micros(20);

/// A network namespace of the calling thread's own, with the tap in it.
///
/// The tap outlives the VMs: making one costs milliseconds that are not the VMM's.
#[derive(Debug)]
pub(crate) struct Network {
    _tap: Tap,
}

impl Network {
    /// Moves the calling thread into the namespace; as root only.
    pub(crate) fn new() -> Result<Self> {
        tap::private_network();
        let tap = Tap::create(TAP).context("cannot make a tap")?;
        tap.up().context("cannot set the tap up")?;
        Ok(Self { _tap: tap })
    }
}

/// The tap's counters, as the host names them: received from the guest, transmitted to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    received: u64,
    transmitted: u64,
}

struct Statistics(File);

impl Statistics {
    /// The calling thread's namespace is meant, whichever the process began in.
    fn open() -> io::Result<Self> {
        File::open("/proc/thread-self/net/dev").map(Self)
    }

    fn read(&self) -> Result<Counters> {
        let mut text = [0; 2048];
        let n = self.0.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(text.get(..n).unwrap_or_default());
        counters(&text, TAP).context("the tap has gone")
    }
}

/// `/proc/net/dev`: eight columns of reception, eight of transmission, bytes and packets first.
fn counters(text: &str, interface: &str) -> Option<Counters> {
    let columns = text.lines().find_map(|line| {
        let (name, columns) = line.split_once(':')?;
        (name.trim() == interface).then_some(columns)
    })?;
    let numbers: Vec<u64> = columns.split_whitespace().map_while(|word| word.parse().ok()).collect();
    Some(Counters { received: *numbers.get(1)?, transmitted: *numbers.get(9)? })
}

fn vm(subject: &Subject, rig: &Rig, words: &str, arguments: &[&OsStr]) -> Result<Vm> {
    let mut vm = subject.spawn_configured_with(rig, &format!("mayfly.mode=bench-net {words}"), arguments)?;
    let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let body = json!({"iface_id": "eth0", "host_dev_name": TAP, "guest_mac": mac});
    vm.put("/network-interfaces/eth0", &body)?;
    Ok(vm)
}

fn frames(rig: &Rig, full: u64) -> u64 {
    if rig.quick { full / 20 } else { full }
}

fn transmit(metric: &'static Metric, size: u64, subject: &Subject, rig: &Rig) -> Result<Sample> {
    Ok(vec![(metric, transmit_rate(size, subject, rig, &[])?)])
}

/// Frames per second out of a guest whose VMM has these arguments.
pub(super) fn transmit_rate(size: u64, subject: &Subject, rig: &Rig, arguments: &[&OsStr]) -> Result<f64> {
    let wanted = frames(rig, if size < 1000 { 200_000 } else { 150_000 });
    let words = format!("mayfly.dir=tx mayfly.size={size} mayfly.packets={wanted}");
    let statistics = Statistics::open()?;
    let mut vm = vm(subject, rig, &words, arguments)?;
    let before = statistics.read()?;
    vm.start()?;
    vm.split_threads(rig)?;
    let results = results(&mut vm)?;
    let arrived = statistics.read()?.received - before.received;
    if arrived < wanted {
        bail!("only {arrived} of {wanted} frames came out of the tap: {results:?}");
    }
    let seconds = number(&results, "elapsed_ns")? / 1e9;
    Ok(arrived as f64 / seconds)
}

fn receive(metric: &'static Metric, size: u64, subject: &Subject, rig: &Rig) -> Result<Sample> {
    let wanted = frames(rig, if size < 1000 { 200_000 } else { 150_000 });
    let words = format!("mayfly.dir=rx mayfly.size={size} mayfly.packets={wanted}");
    let mut vm = vm(subject, rig, &words, &[])?;
    vm.start()?;
    vm.split_threads(rig)?;
    vm.console.wait_for("net=listening", PATIENCE)?;
    // Beside the vCPU: the thread whose speed is measured has a CPU for itself.
    sys::pin(0, rig.cpus.nth(2).unwrap_or(rig.first_cpu()))?;
    let fed = feed(&mut vm, size);
    sys::pin(0, rig.cpus)?;
    let sent = fed?;
    let results = results(&mut vm)?;
    let received = number(&results, "packets")?;
    if received < wanted as f64 {
        bail!("the guest saw {received} of {wanted} frames ({sent} sent): {results:?}");
    }
    let seconds = number(&results, "elapsed_ns")? / 1e9;
    Ok(vec![(metric, received / seconds)])
}

/// Sends frames until the guest says that it is done; how many.
fn feed(vm: &mut Vm, size: u64) -> Result<u64> {
    let mut frame = vec![0; usize::try_from(size)?];
    for (to, from) in frame.iter_mut().zip(GUEST_MAC.into_iter().chain([0x02, 0, 0, 0, 0, 0x03]).chain(ETHERTYPE)) {
        *to = from;
    }
    let mut sender = FrameSender::new(TAP, frame)?;
    let statistics = Statistics::open()?;
    let before = statistics.read()?.transmitted;
    let (mut sent, mut taken, mut moved) = (0, 0, Instant::now());
    loop {
        if sent + BURST as u64 > taken + UNDER_WAY {
            let now_taken = statistics.read()?.transmitted - before;
            if now_taken > taken {
                (taken, moved) = (now_taken, Instant::now());
            } else {
                if sys::readable([vm.console.descriptor(), None], Duration::ZERO)?[0] {
                    vm.console.take()?;
                }
                if vm.console.seen("elapsed_ns").is_some() {
                    return Ok(sent);
                }
                if moved.elapsed() > PATIENCE {
                    bail!("the VMM takes no more frames after {taken}{}", vm.said());
                }
                std::thread::sleep(BREATH);
            }
            continue;
        }
        sent += sender.burst()? as u64;
    }
}

macro_rules! direction {
    ($name:literal, $long:literal, $size:literal, $run:path) => {{
        static RATE: Metric =
            Metric { name: concat!("net ", $long, " ", $size, " B"), unit: "packet/s", better: Better::Higher };
        Scenario {
            name: concat!("net-", $name, "-", $size),
            metrics: &[&RATE],
            rounds: Rounds { wanted: 6, warm_up: 1 },
            sample: |subject, rig| $run(&RATE, $size, subject, rig),
            needs_network: true,
        }
    }};
}

pub(crate) const SCENARIOS: [Scenario; 4] = [
    direction!("tx", "guest → host", 64, transmit),
    direction!("tx", "guest → host", 1514, transmit),
    direction!("rx", "host → guest", 64, receive),
    direction!("rx", "host → guest", 1514, receive),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    \
                    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n\
                    mayflybench0: 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36\n";
        let expected = Counters { received: 22, transmitted: 30 };
        assert_eq!(counters(text, TAP), Some(expected));
        assert_eq!(counters(text, "bench0"), None);
    }
}
