//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

/// Version of the v1 contract that is followed, as a Firecracker release.
const FIRECRACKER_VERSION: &str = "1.17.0";

/// Confine a VMM and start it: a file system of its own, control groups, namespaces, limits, no privileges.
#[derive(Debug, Parser)]
#[command(
    name = "mayfly-jailer",
    disable_version_flag = true,
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = EXAMPLES
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    jail: Option<Jail>,
    /// Print the version and exit
    #[arg(long)]
    version: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Remove what a machine that has ended left behind: its file system, control groups and pid file
    Clean(Clean),
}

/// How to jail.
#[derive(Debug, Clone, Args)]
pub(crate) struct Jail {
    /// Name of the microVM: 1 to 64 letters, digits or '-'
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    pub(crate) id: String,
    /// The program to confine; its file name is part of paths
    #[arg(long, value_name = "PATH")]
    pub(crate) exec_file: PathBuf,
    /// User to run it as
    #[arg(long, value_name = "UID")]
    pub(crate) uid: u32,
    /// Group to run it as
    #[arg(long, value_name = "GID")]
    pub(crate) gid: u32,
    /// Directory of all jails: this one is DIR/PROGRAM/ID/root
    #[arg(long, value_name = "DIR", default_value = "/srv/jailer")]
    pub(crate) chroot_base_dir: PathBuf,

    /// Make a file or directory of the host appear in the jail, read-only with `:ro`; may be repeated
    #[arg(long, value_name = "SRC:DST[:ro]", help_heading = "Files")]
    pub(crate) bind: Vec<String>,
    /// Use the program's file as it is, read-only, instead of a copy: less memory, but its pages are shared between machines
    #[arg(long, help_heading = "Files")]
    pub(crate) share_exec: bool,

    /// Network namespace to join, such as /var/run/netns/NAME
    #[arg(long, value_name = "PATH", help_heading = "Namespaces")]
    pub(crate) netns: Option<PathBuf>,
    /// Give the program a process namespace of its own; this process then ends at once
    #[arg(long, help_heading = "Namespaces")]
    pub(crate) new_pid_ns: bool,
    /// Work without root, in a user namespace: UID and GID are what the program sees, outside it has the caller's
    #[arg(long, help_heading = "Namespaces")]
    pub(crate) rootless: bool,

    /// Set a value of the machine's control group, such as cpu.shares=512; may be repeated
    #[arg(long, value_name = "FILE=VALUE", help_heading = "Limits")]
    pub(crate) cgroup: Vec<String>,
    /// Version of control groups [default: what the host runs]
    #[arg(long, value_name = "1|2", value_parser = clap::value_parser!(u8).range(1..=2), help_heading = "Limits")]
    pub(crate) cgroup_version: Option<u8>,
    /// Control group above the machine's [default: name of the program]
    #[arg(long, value_name = "NAME", help_heading = "Limits")]
    pub(crate) parent_cgroup: Option<String>,
    /// Limit of the process: fsize=BYTES or no-file=N (2048 by default); may be repeated
    #[arg(long, value_name = "NAME=VALUE", help_heading = "Limits")]
    pub(crate) resource_limit: Vec<String>,

    /// Leave the caller's session and terminal
    #[arg(long, help_heading = "Life")]
    pub(crate) daemonize: bool,
    /// Keep a small process that removes jail and control groups when the program ends
    #[arg(long, help_heading = "Life")]
    pub(crate) cleanup: bool,
    /// Show every step and change nothing
    #[arg(long, help_heading = "Life")]
    pub(crate) dry_run: bool,

    /// Arguments of the program
    #[arg(last = true, value_name = "ARGS")]
    pub(crate) rest: Vec<OsString>,
}

/// What to remove.
#[derive(Debug, Clone, Args)]
pub(crate) struct Clean {
    /// Name of the microVM
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    pub(crate) id: String,
    /// The program that was confined, or its file name
    #[arg(long, value_name = "PATH")]
    pub(crate) exec_file: PathBuf,
    /// Directory of all jails
    #[arg(long, value_name = "DIR", default_value = "/srv/jailer")]
    pub(crate) chroot_base_dir: PathBuf,
    /// Control group above the machine's [default: name of the program]
    #[arg(long, value_name = "NAME")]
    pub(crate) parent_cgroup: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  See what would be done:
    mayfly-jailer --id vm-1 --exec-file /usr/bin/mayfly --uid 1001 --gid 1001 --dry-run

  Start a confined machine whose kernel and disk are given into the jail, and which leaves nothing behind:
    mayfly-jailer --id vm-1 --exec-file /usr/bin/mayfly --uid 1001 --gid 1001 --cleanup \\
        --bind /images/vmlinux:/vmlinux:ro --bind /disks/vm-1.ext4:/disk -- --api-sock /run/api.sock
    curl --unix-socket /srv/jailer/mayfly/vm-1/root/run/api.sock http://localhost/

  Remove what is left of one that was killed:
    mayfly-jailer clean --id vm-1 --exec-file /usr/bin/mayfly

The program gets --id, --start-time-us, --start-time-cpu-us, --parent-cpu-time-us and what follows --. Any error is one line on standard
error and exit code 1; what was done until then is undone.";

/// What to do.
#[derive(Debug)]
pub(crate) enum Task {
    /// Print a text and exit with 0.
    Print(String),
    /// Print a text on standard error and exit with 1.
    Refuse(String),
    /// Confine and start a program.
    Jail(Box<Jail>),
    /// Remove what is left of a jail.
    Clean(Clean),
}

fn version(argv0: Option<&OsString>) -> String {
    let name = argv0.map(|path| std::path::Path::new(path).file_name().unwrap_or_default().to_owned());
    if name.is_some_and(|name| name == "jailer") {
        format!("Jailer v{FIRECRACKER_VERSION}\n")
    } else {
        format!("Mayfly-jailer v{}\n", env!("CARGO_PKG_VERSION"))
    }
}

/// Makes a task of the arguments, the program's own name included.
pub(crate) fn parse(arguments: Vec<OsString>) -> Task {
    let own = arguments.split(|argument| argument == "--").next().unwrap_or_default();
    let has = |flags: &[&str]| own.iter().skip(1).any(|argument| flags.iter().any(|flag| argument == flag));
    // Both answer beside anything else, however wrong.
    if has(&["--help", "-h"]) {
        let mut command = Arguments::command();
        let sub = has(&["clean"])
            .then(|| command.find_subcommand_mut("clean").map(|c| c.render_help().to_string()))
            .flatten();
        return Task::Print(sub.unwrap_or_else(|| command.render_help().to_string()));
    }
    if has(&["--version"]) {
        return Task::Print(version(arguments.first()));
    }
    let parsed = Arguments::command().try_get_matches_from(arguments).and_then(|m| Arguments::from_arg_matches(&m));
    match parsed {
        Ok(Arguments { command: Some(Command::Clean(clean)), .. }) => Task::Clean(clean),
        Ok(Arguments { jail: Some(jail), .. }) => Task::Jail(Box::new(jail)),
        Ok(_) => Task::Refuse(
            "error: --id, --exec-file, --uid and --gid are missing.\n\nFor more information try --help.\n".to_owned(),
        ),
        Err(error) => {
            let text = error.render().to_string().replace("try '--help'", "try --help");
            Task::Refuse(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(line: &str) -> Task {
        parse(std::iter::once("mayfly-jailer").chain(line.split_whitespace()).map(OsString::from).collect())
    }

    const NEEDED: &str = "--id vm --exec-file /bin/true --uid 1 --gid 2";

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_orchestrators_line_is_understood() {
        let line = format!(
            "{NEEDED} --chroot-base-dir /jails --netns /n --daemonize --new-pid-ns --cgroup cpu.shares=1 --cgroup cpuset.cpus=0 \
             --cgroup-version 2 --parent-cgroup all/of --resource-limit no-file=10 --resource-limit fsize=5 -- --api-sock /s --id x"
        );
        let Task::Jail(jail) = task(&line) else { panic!("{line}") };
        assert_eq!((jail.id.as_str(), jail.uid, jail.gid), ("vm", 1, 2));
        assert_eq!((jail.cgroup.len(), jail.cgroup_version, jail.resource_limit.len()), (2, Some(2), 2));
        assert!(jail.daemonize && jail.new_pid_ns && !jail.rootless && !jail.dry_run);
        assert_eq!(jail.rest, ["--api-sock", "/s", "--id", "x"]);
    }

    #[test]
    fn what_is_wrong_is_refused_with_a_hint() {
        for line in [
            "",
            "--id vm",
            &format!("{NEEDED} --uid 3"),
            &format!("{NEEDED} --bogus"),
            &format!("{NEEDED} --cgroup-version 3"),
            "--id vm --exec-file /bin/true --uid -1 --gid 2",
            "clean --id vm",
        ] {
            let Task::Refuse(text) = task(line) else { panic!("{line}") };
            assert!(text.contains("try --help"), "{line}: {text}");
        }
    }

    #[test]
    fn help_and_version_answer_beside_anything() {
        for line in ["--help", "--bogus -h", "--id a --id b --help"] {
            assert!(matches!(task(line), Task::Print(text) if text.contains("Examples:")), "{line}");
        }
        assert!(
            matches!(task("clean --help"), Task::Print(text) if text.contains("--parent-cgroup") && !text.contains("--netns"))
        );
        let version = |name: &str| match parse(vec![name.into(), "--version".into()]) {
            Task::Print(text) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(version("/usr/bin/jailer"), "Jailer v1.17.0\n");
        assert!(version("mayfly-jailer").starts_with("Mayfly-jailer v"));
        assert!(matches!(task(&format!("{NEEDED} -- --help")), Task::Jail(_)));
    }

    #[test]
    fn clean_has_its_own_arguments() {
        let Task::Clean(clean) = task("clean --id vm --exec-file mayfly --parent-cgroup p") else { panic!() };
        assert_eq!((clean.id.as_str(), clean.parent_cgroup.as_deref()), ("vm", Some("p")));
    }
}
