//! From nothing to an API in a jail. The same without a jail is in `start`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use mayfly_tests::Client;

use super::super::pairs::{Metric, Rounds, Sample};
use super::super::subject::{PATIENCE, Rig, Subject};
use super::{Scenario, ms};

static COPIED: Metric = Metric::lower("jailer exec → API answers", "ms");
static SHARED: Metric = Metric::lower("jailer exec → API answers, --share-exec", "ms");

pub(crate) const JAIL: Scenario = Scenario {
    name: "jail",
    metrics: &[&COPIED, &SHARED],
    rounds: Rounds { wanted: 60, warm_up: 3 },
    sample: jail,
    needs_network: false,
};

fn jail(subject: &Subject, _rig: &Rig) -> Result<Sample> {
    let jailer = subject.binary.with_file_name("mayfly-jailer");
    ensure!(jailer.is_file(), "there is no {}", jailer.display());
    Ok(vec![
        (&COPIED, start(&jailer, &subject.binary, &[])?),
        (&SHARED, start(&jailer, &subject.binary, &["--share-exec"])?),
    ])
}

/// Milliseconds until the API of a jailed process answers.
fn start(jailer: &Path, binary: &Path, options: &[&str]) -> Result<f64> {
    // Not where disks are: that may be mounted so that no device node works there.
    let base = tempfile::tempdir()?;
    std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o755))?;
    let name = binary.canonicalize()?.file_name().context("a file name")?.to_owned();
    let socket = base.path().join(name).join("b/root/a");
    let mut command = Command::new(jailer);
    command
        .args(["--id", "b", "--uid", "1001", "--gid", "1001", "--exec-file"])
        .arg(binary)
        .arg("--chroot-base-dir")
        .arg(base.path());
    command
        .args(options)
        .args(["--", "--api-sock", "/a"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let begun = Instant::now();
    let mut child = command.spawn()?;
    let took = loop {
        if let Ok(mut client) = Client::connect(&socket) {
            ensure!(client.request("GET", "/", None)?.status == 200, "GET / is refused");
            break begun.elapsed();
        }
        if child.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
            bail!("the jailed process does not answer (the jailer needs root)");
        }
    };
    child.kill()?;
    child.wait()?;
    Ok(ms(took))
}
