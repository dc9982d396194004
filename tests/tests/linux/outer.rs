//! The outer guest: one QEMU on an emulated CPU, watched line by line with a deadline.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mayfly_tests::Lines;

use crate::debian::Kernel;
use crate::images::Images;

/// The whole run. It takes two to four minutes on two idle cores.
const PATIENCE: Duration = Duration::from_secs(8 * 60);

/// Boots the outer guest, hands every line of its console to `line`, and waits for its end.
pub(crate) fn run(kernel: &Kernel, images: &Images, filter: &str, mut line: impl FnMut(&str)) -> Result<()> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg,thread=multi", "-smp", "2", "-cpu", "max,+svm", "-m", "3072"])
        .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel.bzimage())
        .arg("-initrd")
        .arg(&images.outer)
        .arg("-append")
        .arg(format!("console=ttyS0 panic=-1 quiet rig.only={filter}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let child = qemu.spawn().context("cannot run qemu-system-x86_64: install qemu-system-x86")?;
    let mut child = KilledOnDrop(child);
    let console = Lines::capture(child.0.stdout.take().context("stdout is piped")?);
    let deadline = Instant::now() + PATIENCE;
    let mut next = 0;
    let mut done = false;
    // Every line contains the empty pattern.
    while let Some((after, text)) = console.find_from(next, "", deadline.saturating_duration_since(Instant::now())) {
        next = after;
        done |= text.starts_with("rig: done");
        // Firmware and boot loaders paint the first lines; what follows the last escape is ours.
        line(text.rsplit('\x1b').next().unwrap_or_default());
    }
    if done {
        return Ok(());
    }
    if Instant::now() >= deadline {
        bail!("the outer guest was not done after {} s", PATIENCE.as_secs());
    }
    bail!("the outer guest ended before it was done ({})", child.0.wait()?)
}

struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
