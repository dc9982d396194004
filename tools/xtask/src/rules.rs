//! `cargo xtask rules`: which rules of the seccomp filters does nobody use?
//!
//! The tests run with a stand-in for the binary, which runs the real one under strace(1) and without filters. What its threads ask of the
//! kernel is held against what filters would let through. A rule that no thread used is one to remove, or one whose reason must be another
//! kernel, another C library or a way to fail that no test takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use vmm::confine::Call;

use crate::{release, shell};

/// Which tests.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Integration tests to run.
    #[arg(default_values = ["guest", "api"])]
    tests: Vec<String>,
}

/// What makes signals and a few options numbers again, for rules that want them.
const NAMES: [(&str, u32); 2] = [("SIGABRT", 6), ("SIGRT_2", 34)];

pub(crate) fn run(options: &Options) -> Result<()> {
    let strace = Command::new("strace").arg("-V").output();
    if !strace.is_ok_and(|output| output.status.success()) {
        bail!("this needs strace: install it (apt-get install strace)");
    }
    let binaries = release::build()?;
    let (mayfly, jailer) = (binaries.first().context("a binary")?, binaries.get(1).context("a jailer")?);
    let dir = tempfile::tempdir()?;
    let stand_in = stand_in(dir.path(), mayfly, jailer)?;
    for test in &options.tests {
        let mut cargo = shell::cargo();
        cargo.args(["test", "-p", "mayfly-tests", "--test", test, "--no-fail-fast"]).env("MAYFLY_BIN", &stand_in);
        // Everything is slower, and what looks at the process itself sees another: tests may fail, but must have run.
        if let Err(error) = shell::run(&mut cargo) {
            println!("{error:#}");
        }
    }
    let mut made = Made::default();
    let mut traces = 0;
    for entry in fs::read_dir(dir.path().join("traces"))? {
        let text = fs::read(entry?.path())?;
        made.trace(&String::from_utf8_lossy(&text));
        traces += 1;
    }
    let rules = api_server::rules();
    let unused: Vec<_> = rules.iter().filter(|(who, call)| !made.has(who, call)).collect();
    shell::heading(&format!("{traces} processes, {} rules, {} of them unused", rules.len(), unused.len()));
    for (who, call) in unused {
        let args: Vec<_> = call
            .args
            .iter()
            .map(|arg| format!("argument {} & {:#x} = {:#x}", arg.index, arg.mask, arg.value))
            .collect();
        println!("{:8} call {:4} {} ({})", who.join(","), call.number, args.join(", "), call.why);
    }
    if traces == 0 {
        bail!("nothing was traced");
    }
    Ok(())
}

/// A program in the place of the binary, beside its jailer.
fn stand_in(dir: &Path, mayfly: &Path, jailer: &Path) -> Result<std::path::PathBuf> {
    fs::create_dir(dir.join("traces"))?;
    symlink(jailer, dir.join("mayfly-jailer"))?;
    let program = dir.join("mayfly");
    // -D: the process is the one that the test started. Versions and the like take no option of ours.
    let script = format!(
        "#!/bin/sh\ncase \"$1\" in --api-sock|--id|--no-api|--config-file|--log-path|--level) off=--no-seccomp;; esac\n\
         exec strace -D -f -qq -n -X raw -o {}/traces/$$ {} $off \"$@\"\n",
        dir.display(),
        mayfly.display()
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

/// Calls that were made, with their first arguments, by the kind of thread.
#[derive(Debug, Default)]
struct Made(BTreeMap<&'static str, BTreeSet<Deed>>);

/// A call's number, and its arguments as far as they are numbers.
type Deed = (i64, Vec<Option<u64>>);

impl Made {
    /// Takes what strace wrote of a process.
    fn trace(&mut self, text: &str) {
        let mut roles = BTreeMap::new();
        for line in text.lines() {
            let Some((tid, number, args)) = parse(line) else { continue };
            if number == libc::SYS_prctl && number_of(&args, 0) == Some(libc::PR_SET_NAME as u64) {
                let name = args.get(1).map_or("", |name| name.trim_matches('"'));
                roles.insert(tid, role(name));
            }
            let role = roles.get(&tid).copied().unwrap_or("vmm");
            let arguments = (0..args.len().min(6)).map(|index| number_of(&args, index)).collect();
            self.0.entry(role).or_default().insert((number, arguments));
        }
    }

    /// Whether one of these threads made a call that the rule is for.
    fn has(&self, who: &[&str], call: &Call) -> bool {
        let fits = |arguments: &[Option<u64>]| {
            call.args.iter().all(|arg| {
                let given = arguments.get(usize::from(arg.index)).copied().flatten();
                given.is_some_and(|given| given as u32 & arg.mask == arg.value)
            })
        };
        let threads = self.0.iter().filter(|(role, _)| who.contains(&"*") || who.contains(role));
        threads.flat_map(|(_, calls)| calls).any(|(number, arguments)| *number == call.number && fits(arguments))
    }
}

/// The kind of thread, by its name.
fn role(name: &str) -> &'static str {
    match name.split(' ').next() {
        Some("api" | "fc_api") => "api",
        Some("vcpu" | "fc_vcpu") => "vcpu",
        Some("io") => "io",
        Some("files") => "files",
        _ => "vmm",
    }
}

/// Thread, call and arguments: `TID [ NUMBER] name(argument, argument) = result`.
fn parse(line: &str) -> Option<(u32, i64, Vec<&str>)> {
    let (tid, rest) = line.split_once(' ')?;
    let (number, rest) = rest.trim_start().strip_prefix('[')?.split_once(']')?;
    let (_, rest) = rest.split_once('(')?;
    let end = rest.rfind(") ").unwrap_or(rest.len());
    let rest = rest.get(..end)?;
    let rest = rest.split(" <unfinished").next()?;
    Some((tid.parse().ok()?, number.trim().parse().ok()?, rest.split(", ").collect()))
}

fn number_of(args: &[&str], index: usize) -> Option<u64> {
    let text = *args.get(index)?;
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let known = NAMES.iter().find(|(name, _)| *name == text).map(|(_, value)| u64::from(*value));
    known.or_else(|| text.parse::<i64>().ok().map(i64::cast_unsigned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::confine::Arg;

    #[test]
    fn traces_are_held_against_rules() {
        let mut made = Made::default();
        made.trace(
            "7 [  16] ioctl(0xe, 0xae80, 0) = 0\n\
             8 [ 157] prctl(0xf, \"vcpu 0\") = 0\n\
             8 [  16] ioctl(0x10, 0xaead <unfinished ...>\n\
             8 [  16] <... ioctl resumed>) = 0\n\
             7 [ 234] tgkill(7, 8, SIGRT_2) = 0\n",
        );
        let ioctl = |value: u32| Call::with(libc::SYS_ioctl, Box::leak(Box::new([Arg::is(1, value)])), "");
        assert!(made.has(&["vmm"], &ioctl(0xae80)) && !made.has(&["vcpu"], &ioctl(0xae80)));
        assert!(made.has(&["vcpu"], &ioctl(0xaead)) && made.has(&["*"], &ioctl(0xaead)));
        assert!(!made.has(&["*"], &ioctl(1)));
        const KICK: Call = Call::with(libc::SYS_tgkill, &[Arg::is(2, 34)], "");
        assert!(made.has(&["vmm", "io"], &KICK));
        assert!(!made.has(&["*"], &Call::any(libc::SYS_openat, "")));
    }
}
