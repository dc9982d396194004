//! The outer guest: one QEMU on an emulated CPU, watched line by line with a deadline.
//!
//! Under QEMU's emulation of SVM with two CPUs the outer guest is sometimes lost: its console falls silent while one emulated CPU spins, or
//! its kernel dies. A scenario cannot notice that, since everything in the outer guest stands still. So silence is watched for from outside, told with the emulated CPUs'
//! registers, and the caller may boot anew for the scenarios that are left.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mayfly_tests::Lines;

use crate::debian::Kernel;
use crate::images::Images;

/// The whole run. It takes five to eight minutes on two idle cores, and there may be several.
const PATIENCE: Duration = Duration::from_secs(14 * 60);

/// No scenario is silent for so long: each wait has a deadline (scripts/scenario.sh), and all of it (scripts/outer-init.sh).
const SILENCE: Duration = Duration::from_secs(200);

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Every scenario had its turn.
    Done,
    /// The outer guest fell silent or died.
    Lost,
}

/// Boots an outer guest with so many CPUs for these scenarios, hands every line of its console to `line`, and waits for its end.
pub(crate) fn run(
    kernel: &Kernel,
    images: &Images,
    cpus: u32,
    scenarios: &[String],
    mut line: impl FnMut(&str),
) -> Result<End> {
    let dir = tempfile::tempdir()?;
    let monitor = dir.path().join("monitor");
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg,thread=multi", "-smp", &cpus.to_string(), "-cpu", "max,+svm", "-m", "3072"])
        .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .arg("-monitor")
        .arg(format!("unix:{},server=on,wait=off", monitor.display()))
        .arg("-kernel")
        .arg(kernel.bzimage())
        .arg("-initrd")
        .arg(&images.outer)
        .arg("-append")
        .arg(format!("console=ttyS0 panic=-1 quiet rig.run={}", scenarios.join(",")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let child = qemu.spawn().context("cannot run qemu-system-x86_64: install qemu-system-x86")?;
    let mut child = KilledOnDrop(child);
    let console = Lines::capture(child.0.stdout.take().context("stdout is piped")?);
    let deadline = Instant::now() + PATIENCE;
    let mut next = 0;
    let mut done = false;
    let mut since = Instant::now();
    // Every line contains the empty pattern.
    while let Some((after, text)) =
        console.find_from(next, "", SILENCE.min(deadline.saturating_duration_since(Instant::now())))
    {
        next = after;
        since = Instant::now();
        done |= text.starts_with("rig: done");
        // Firmware and boot loaders paint the first lines; what follows the last escape is ours.
        line(text.rsplit('\x1b').next().unwrap_or_default());
    }
    if done {
        return Ok(End::Done);
    }
    if Instant::now() >= deadline {
        bail!("the outer guest was not done after {} s", PATIENCE.as_secs());
    }
    if since.elapsed() < SILENCE {
        println!("the outer guest ended by itself, before it was done ({})", child.0.wait()?);
        return Ok(End::Lost);
    }
    println!("the outer guest has been silent for {} s; its emulated CPUs:", SILENCE.as_secs());
    println!("{}", registers(&monitor).unwrap_or_else(|error| format!("(not to be had: {error})")));
    Ok(End::Lost)
}

/// What the emulator says of its CPUs.
fn registers(monitor: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(monitor)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"info cpus\ninfo registers -a\n")?;
    let mut text = Vec::new();
    // It never ends by itself; the time-out does.
    let _ = stream.read_to_end(&mut text);
    Ok(String::from_utf8_lossy(&text)
        .lines()
        .filter(|l| l.contains("CPU") || l.contains("IP=") || l.contains("HLT"))
        .collect::<Vec<_>>()
        .join("\n"))
}

struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
