//! The Debian packages the tests need, installed when missing.

use std::process::Command;

use anyhow::{Result, bail};

use crate::shell;

/// What for: the emulator; processes that serve devices; the guests' user space; the root disk (`mkfs.ext4`); the API's client; taps, mounts, loop devices and
/// namespaces on the host; the OpenAPI fuzzer's language; calls of the
/// kernel that fail.
const NEEDED: [&str; 12] = [
    "qemu-system-x86",
    "qemu-system-common",
    "busybox-static",
    "e2fsprogs",
    "curl",
    "iproute2",
    "mount",
    "util-linux",
    "python3-venv",
    "findutils",
    "bsdutils",
    "strace",
];

/// Installs what is missing of [`NEEDED`], and says so in one sentence when it cannot.
pub(crate) fn ensure() -> Result<()> {
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !installed(name)).collect();
    if missing.is_empty() {
        println!("all there: {}", NEEDED.join(" "));
        return Ok(());
    }
    if Command::new("apt-get").arg("--version").output().is_err() {
        bail!("this is not Debian: install by hand what these packages hold: {missing:?}");
    }
    let install = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0"])
            .args(&missing);
        shell::run(&mut apt)
    };
    // A fresh machine has no package lists, an old one has stale ones: try, refresh, try again.
    if install().is_err() {
        shell::run(Command::new("apt-get").arg("update"))?;
        install()?;
    }
    Ok(())
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}
