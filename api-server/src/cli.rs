//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use vmm::config::InstanceId;

use crate::identity::Identity;
use crate::process::FAILED;
use crate::snapshot_file;
use crate::wire;

/// Exit code for wrong arguments (v1 contract).
const BAD_ARGUMENTS: u8 = 153;
/// Exit code for a wrong configuration; in practice only a wrong log level (v1 contract).
const BAD_CONFIGURATION: u8 = 152;

/// Run one microVM, controlled by a REST API on a Unix socket.
#[derive(Debug, Parser)]
#[command(
    name = "mayfly",
    disable_version_flag = true,
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = true,
    after_help = EXAMPLES
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,

    /// Where to create the API socket; nothing may be there yet [default: /run/mayfly.socket]
    #[arg(long, value_name = "PATH", help_heading = "API")]
    api_sock: Option<PathBuf>,
    /// Largest request body in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 51_200, help_heading = "API")]
    http_api_max_payload_size: usize,
    /// Open no socket at all, whatever --api-sock says; needs --config-file
    #[arg(long, requires = "config_file", help_heading = "API")]
    no_api: bool,

    /// Name of the microVM: 1 to 64 letters, digits or '-'
    #[arg(long, value_name = "ID", default_value = "anonymous-instance", help_heading = "Machine")]
    id: String,
    /// Configure and boot at once from a JSON file in the shape of GET /vm/config
    #[arg(long, value_name = "PATH", help_heading = "Machine")]
    config_file: Option<PathBuf>,
    /// Fill the metadata service from a JSON file
    #[arg(long, value_name = "PATH", help_heading = "Machine")]
    metadata: Option<PathBuf>,
    /// Most JSON text the metadata service keeps [default: the largest request body]
    #[arg(long, value_name = "BYTES", help_heading = "Machine")]
    mmds_size_limit: Option<usize>,
    /// Log how long the guest took to boot, when it writes 123 to address 0xC0000000
    #[arg(long, help_heading = "Machine")]
    boot_timer: bool,
    /// Put devices on a PCI bus instead of in virtio-mmio windows; drives, pmem and network interfaces can then come and go while the machine runs
    #[arg(long, help_heading = "Machine")]
    enable_pci: bool,

    /// Let clones be made of this machine (POST /clones): its memory is kept in a file in memory, which they share
    #[arg(long, help_heading = "Clones")]
    clonable: bool,
    /// Wait at this socket, which nothing may be at yet, to become a clone of another process's machine
    #[arg(long, value_name = "PATH", conflicts_with = "config_file", help_heading = "Clones")]
    clone_sock: Option<PathBuf>,

    /// Write log lines to this file or FIFO instead of standard output
    #[arg(long, value_name = "PATH", help_heading = "Logging")]
    log_path: Option<PathBuf>,
    /// Off, Error, Warn, Info, Debug or Trace [default: Info]
    #[arg(long, value_name = "LEVEL", help_heading = "Logging")]
    level: Option<String>,
    /// Log only what comes from modules whose path begins with this
    #[arg(long, value_name = "PREFIX", help_heading = "Logging")]
    module: Option<String>,
    /// Show the level in each line
    #[arg(long, help_heading = "Logging")]
    show_level: bool,
    /// Show file and line of the source in each line
    #[arg(long, help_heading = "Logging")]
    show_log_origin: bool,

    /// Install no seccomp filters: the guest's way out is then wider than it need be
    #[arg(long, conflicts_with = "seccomp_filter", help_heading = "Confinement")]
    no_seccomp: bool,
    /// Install the filters of this file, compiled for threads `vmm`, `api` and `vcpu`, instead of those made for the machine
    #[arg(long, value_name = "PATH", help_heading = "Confinement")]
    seccomp_filter: Option<PathBuf>,
    /// Print the version and exit
    #[arg(long)]
    version: bool,

    /// Write metrics to this file or FIFO, one line of JSON at the start, every minute and at the end
    #[arg(long, value_name = "PATH", help_heading = "Metrics")]
    metrics_path: Option<PathBuf>,
    /// Monotonic clock when the caller began to start this process; see api_server in the metrics
    #[arg(long, value_name = "US", help_heading = "Metrics")]
    start_time_us: Option<u64>,
    /// CPU time this process had used when its program began
    #[arg(long, value_name = "US", help_heading = "Metrics")]
    start_time_cpu_us: Option<u64>,
    /// CPU time that the caller used for the start
    #[arg(long, value_name = "US", help_heading = "Metrics")]
    parent_cpu_time_us: Option<u64>,

    /// Print the version of the snapshots that this program writes, and exit
    #[arg(long, help_heading = "Snapshots")]
    snapshot_version: bool,
    /// Print the version of a snapshot's state file, and exit
    #[arg(long, value_name = "FILE", help_heading = "Snapshots")]
    describe_snapshot: Option<PathBuf>,

    // What comes after `--` was meant for others.
    #[arg(last = true, hide = true)]
    rest: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a small built-in guest through the API, show its console, a timeline, and how to do the same by hand
    Demo(DemoOptions),
    /// Say what of this host should be set otherwise before strangers' machines run on it
    CheckHost(CheckHostOptions),
    /// Look at a snapshot without loading it
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
}

/// Arguments of `mayfly snapshot`.
#[derive(Debug, Clone, Subcommand)]
enum SnapshotCommand {
    /// Print what a state file says, as JSON: where it was taken, and the machine
    Describe {
        /// The state file
        file: PathBuf,
    },
    /// Judge a snapshot as a load does, and say what is wrong with it
    Verify {
        /// The state file
        file: PathBuf,
        /// The memory file
        #[arg(long, value_name = "FILE")]
        memory: Option<PathBuf>,
    },
}

/// Arguments of `mayfly check-host`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CheckHostOptions {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `mayfly demo`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DemoOptions {
    /// Leave the machine running to play with; Ctrl-C ends it
    #[arg(long)]
    pub(crate) keep: bool,
    /// Boot this kernel (ELF or bzImage) instead of the built-in guest
    #[arg(long, value_name = "PATH")]
    pub(crate) kernel: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "ARGS")]
    pub(crate) boot_args: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  See a guest boot, and the commands that do it:
    mayfly demo

  Start, then configure and boot with curl:
    mayfly --api-sock /tmp/api.sock &
    curl --unix-socket /tmp/api.sock -X PUT http://localhost/boot-source \\
         -d '{\"kernel_image_path\": \"vmlinuz\", \"boot_args\": \"console=ttyS0 reboot=k panic=1\"}'
    curl --unix-socket /tmp/api.sock -X PUT http://localhost/drives/root \\
         -d '{\"drive_id\": \"root\", \"path_on_host\": \"root.ext4\", \"is_root_device\": true}'
    curl --unix-socket /tmp/api.sock -X PUT http://localhost/actions \\
         -d '{\"action_type\": \"InstanceStart\"}'

  Boot from a file, without an API:
    mayfly --no-api --config-file vm.json

Exit codes:
  0        the guest rebooted or switched itself off
  1        the machine could not be started, or was lost
  128 + n  signal n ended it in good order (130: SIGINT, 143: SIGTERM)
  134      a bug: the process aborted itself
  148      a system call that a seccomp filter does not allow, or SIGSYS
  149      SIGBUS (a file that a mapping belongs to became shorter)
  150      SIGSEGV
  151      SIGXFSZ (a file would grow beyond RLIMIT_FSIZE)
  152      wrong configuration (log level)
  153      wrong arguments
  154      SIGXCPU
  156      SIGHUP
  157      SIGILL";

/// What to do.
#[derive(Debug)]
pub(crate) enum Task {
    /// Print a text and exit with 0.
    Print(String),
    /// Print a text on standard error and exit with a code.
    Refuse(String, u8),
    /// Run the demo.
    Demo(DemoOptions),
    /// Look at the host.
    CheckHost(CheckHostOptions),
    /// Run a machine.
    Run(Box<Options>),
}

/// Which seccomp filters threads get.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Filters {
    /// Those made for the machine.
    Own,
    /// Those of a file.
    Brought(PathBuf),
    /// None.
    Off,
}

/// How to run a machine.
#[derive(Debug)]
pub(crate) struct Options {
    /// Which seccomp filters threads get.
    pub(crate) filters: Filters,
    /// Where the API is; `None` for no API.
    pub(crate) api_sock: Option<PathBuf>,
    /// Largest body, in bytes.
    pub(crate) payload_limit: usize,
    /// Name of the machine.
    pub(crate) id: InstanceId,
    /// Configuration to boot at once.
    pub(crate) config_file: Option<PathBuf>,
    /// JSON the metadata service starts with.
    pub(crate) metadata: Option<PathBuf>,
    /// Most JSON text it keeps, in bytes.
    pub(crate) mmds_size_limit: usize,
    /// Whether the guest has the boot timer.
    pub(crate) boot_timer: bool,
    /// Whether clones can be made of it.
    pub(crate) clonable: bool,
    /// Machines have a PCI bus.
    pub(crate) pci: bool,
    /// Where to wait to become one.
    pub(crate) clone_sock: Option<PathBuf>,
    /// Logger options.
    pub(crate) logger: wire::Logger,
    /// Where metrics go.
    pub(crate) metrics_path: Option<PathBuf>,
    /// What the caller knows about the start.
    pub(crate) began: Began,
}

/// When the start of the process began, in microseconds, as far as the caller says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Began {
    /// On the monotonic clock.
    pub(crate) at_us: Option<u64>,
    /// On the clock of this process's CPU time.
    pub(crate) cpu_us: Option<u64>,
    /// CPU time the caller used for it.
    pub(crate) parent_cpu_us: Option<u64>,
}

/// Reads the arguments, the first of which is the program's name.
pub(crate) fn parse(identity: Identity, arguments: Vec<OsString>) -> Task {
    // Before anything else, so that they also answer beside arguments that are wrong.
    let asks_for = |flags: &[&str]| {
        arguments.iter().skip(1).take_while(|a| *a != "--").any(|a| flags.iter().any(|flag| a == flag))
    };
    if asks_for(&["--version"]) {
        return Task::Print(format!("{} v{}\n", identity.name(), identity.version()));
    }
    let is_command = arguments.get(1).is_some_and(|a| !a.as_encoded_bytes().starts_with(b"-"));
    if asks_for(&["--help", "-h"]) && !is_command {
        return Task::Print(Arguments::command().render_long_help().to_string());
    }
    let parsed = Arguments::command().try_get_matches_from(arguments).and_then(|m| Arguments::from_arg_matches(&m));
    match parsed {
        Ok(arguments) => check(identity, arguments),
        Err(error) if error.use_stderr() => {
            let text = error.render().to_string();
            // The contract's sentence has neither comma nor quotes.
            Task::Refuse(text.replace("information, try '--help'.", "information try --help."), BAD_ARGUMENTS)
        }
        Err(help) => Task::Print(help.render().to_string()),
    }
}

fn check(identity: Identity, arguments: Arguments) -> Task {
    if arguments.snapshot_version {
        return Task::Print(format!("{}\n", vmm::snapshot::VERSION));
    }
    if let Some(path) = &arguments.describe_snapshot {
        return tell(snapshot_file::version(path));
    }
    match arguments.command {
        Some(Command::Demo(options)) => return Task::Demo(options),
        Some(Command::CheckHost(options)) => return Task::CheckHost(options),
        Some(Command::Snapshot(command)) => {
            return tell(match command {
                SnapshotCommand::Describe { file } => snapshot_file::describe(&file),
                SnapshotCommand::Verify { file, memory } => snapshot_file::verify(&file, memory.as_deref()),
            });
        }
        None => {}
    }
    let id = match InstanceId::try_from(arguments.id.as_str()) {
        Ok(id) => id,
        Err(bad) => return Task::Refuse(format!("error: {bad}\n"), BAD_ARGUMENTS),
    };
    let level = match arguments.level.as_deref().map(str::parse).transpose() {
        Ok(level) => level,
        Err(bad) => return Task::Refuse(format!("error: {bad}\n"), BAD_CONFIGURATION),
    };
    let api_sock = arguments.api_sock.unwrap_or_else(|| PathBuf::from(identity.default_socket()));
    Task::Run(Box::new(Options {
        api_sock: (!arguments.no_api).then_some(api_sock),
        payload_limit: arguments.http_api_max_payload_size,
        id,
        config_file: arguments.config_file,
        metadata: arguments.metadata,
        mmds_size_limit: arguments.mmds_size_limit.unwrap_or(arguments.http_api_max_payload_size),
        boot_timer: arguments.boot_timer,
        clonable: arguments.clonable,
        pci: arguments.enable_pci,
        clone_sock: arguments.clone_sock,
        logger: wire::Logger {
            log_path: arguments.log_path,
            level,
            show_level: arguments.show_level.then_some(true),
            show_log_origin: arguments.show_log_origin.then_some(true),
            module: arguments.module,
        },
        metrics_path: arguments.metrics_path,
        filters: match arguments.seccomp_filter {
            Some(path) => Filters::Brought(path),
            None if arguments.no_seccomp => Filters::Off,
            None => Filters::Own,
        },
        began: Began {
            at_us: arguments.start_time_us,
            cpu_us: arguments.start_time_cpu_us,
            parent_cpu_us: arguments.parent_cpu_time_us,
        },
    }))
}

/// Prints what was found out about a snapshot, or why nothing was.
fn tell(said: Result<String, String>) -> Task {
    said.map_or_else(|why| Task::Refuse(format!("error: {why}\n"), FAILED), Task::Print)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Task {
        let arguments = std::iter::once("mayfly").chain(line.split_whitespace()).map(OsString::from).collect();
        super::parse(Identity::Mayfly, arguments)
    }

    #[track_caller]
    fn refused(line: &str) -> (String, u8) {
        match parse(line) {
            Task::Refuse(text, code) => (text, code),
            other => panic!("{line:?} became {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_orchestrators_line_is_understood() {
        let line = "--id vm-1 --start-time-us 1 --start-time-cpu-us 2 --parent-cpu-time-us 3 --no-seccomp --boot-timer \
                    --log-path /log --level dEBUG --show-level --api-sock /s --http-api-max-payload-size 99 -- more --words";
        let Task::Run(options) = parse(line) else { panic!("{line}") };
        assert_eq!(options.id.as_str(), "vm-1");
        assert_eq!(options.api_sock, Some(PathBuf::from("/s")));
        assert_eq!((options.payload_limit, options.mmds_size_limit), (99, 99));
        assert_eq!(options.filters, Filters::Off);
        assert!(options.boot_timer && options.logger.show_level == Some(true));
        assert_eq!(options.logger.level.map(|l| l.0), Some(log::LevelFilter::Debug));
        assert_eq!(options.began, Began { at_us: Some(1), cpu_us: Some(2), parent_cpu_us: Some(3) });
        let Task::Run(options) = parse("--no-api --config-file f --api-sock s --metrics-path m") else { panic!() };
        assert_eq!((options.api_sock, options.metrics_path), (None, Some(PathBuf::from("m"))));
    }

    #[test]
    fn wrong_arguments_end_with_153() {
        for line in [
            "--bogus",
            "--id",
            "--id a --id b",
            "--id a/b",
            "--id=",
            "--no-api",
            "--http-api-max-payload-size -1",
            "--mmds-size-limit -1",
            "--start-time-us x",
            "stray",
            "--no-seccomp --seccomp-filter f",
        ] {
            assert_eq!(refused(line).1, 153, "{line}");
        }
    }

    #[test]
    fn a_wrong_level_ends_with_152() {
        assert_eq!(refused("--level loud").1, 152);
    }

    #[test]
    fn versions_of_snapshots_are_told() {
        assert!(matches!(parse("--snapshot-version"), Task::Print(text) if text == "v1.0.0\n"));
        let (text, code) = refused("--describe-snapshot /nowhere/s");
        assert!(text.contains("/nowhere/s") && text.contains("No such file") && code == 1, "{text}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        std::fs::write(&path, vmm::snapshot::Writer::default().finish()).unwrap();
        let line = format!("--describe-snapshot {}", path.display());
        assert!(matches!(parse(&line), Task::Print(text) if text == "v1.0.0\n"));
    }

    #[test]
    fn the_version_answers_beside_anything() {
        let Task::Print(text) = parse("--bogus --version") else { panic!() };
        assert_eq!(text, format!("Mayfly v{}\n", env!("CARGO_PKG_VERSION")));
        let firecracker = super::parse(Identity::Firecracker, vec!["firecracker".into(), "--version".into()]);
        assert!(matches!(firecracker, Task::Print(text) if text == "Firecracker v1.17.0\n"));
    }

    #[test]
    fn help_teaches() {
        let Task::Print(text) = parse("--help") else { panic!() };
        for word in ["Examples:", "curl --unix-socket", "Exit codes:", "153", "demo", "--api-sock"] {
            assert!(text.contains(word), "{word} is missing in {text}");
        }
        assert!(matches!(parse("demo --help"), Task::Print(text) if text.contains("--keep")));
        for line in ["--bogus --help", "--id a --id b -h", "-h"] {
            assert!(matches!(parse(line), Task::Print(again) if again == text), "{line}");
        }
        assert!(matches!(parse("-- --help"), Task::Run(_)));
        assert!(refused("--bogus").0.contains("For more information try --help."));
    }

    #[test]
    fn the_default_socket_follows_the_name() {
        let run = |identity, name: &str| match super::parse(identity, vec![name.into()]) {
            Task::Run(options) => options.api_sock,
            other => panic!("{other:?}"),
        };
        assert_eq!(run(Identity::Mayfly, "mayfly"), Some("/run/mayfly.socket".into()));
        assert_eq!(run(Identity::Firecracker, "firecracker"), Some("/run/firecracker.socket".into()));
    }
}
