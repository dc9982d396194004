//! The command line: every flag of the v1 contract, those that have no meaning yet included, so that they can be refused by name.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use vmm::config::InstanceId;

use crate::identity::Identity;
use crate::wire::{Level, Logger, later};

/// Exit code for a bad command line.
pub(crate) const BAD_ARGUMENTS: u8 = 153;

const AFTER_HELP: &str = "\
Examples:
  mayfly demo                                  boot the embedded guest and show how it is done
  mayfly --api-sock /tmp/mayfly.sock           wait for requests on a socket
  mayfly --no-api --config-file vm.json        boot what a file describes

  curl --unix-socket /tmp/mayfly.sock -X PUT http://localhost/boot-source \\
    -d '{\"kernel_image_path\": \"vmlinux\", \"boot_args\": \"console=ttyS0 reboot=k panic=1\"}'
  curl --unix-socket /tmp/mayfly.sock -X PUT http://localhost/actions -d '{\"action_type\": \"InstanceStart\"}'

Exit codes:
  0    the guest rebooted or powered off      130  SIGINT
  1    the machine failed or was lost         143  SIGTERM
  153  bad command line";

/// Runs one microVM, controlled by a REST API on a Unix socket.
#[derive(Debug, Parser)]
#[command(name = "mayfly", after_help = AFTER_HELP, disable_version_flag = true, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    #[command(flatten)]
    pub(crate) run: Run,
}

/// What can be done besides running a microVM.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boots a small embedded guest through the API and shows each step
    Demo(Demo),
}

/// Options of `demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Leave the machine running after the guest's tour, to be played with through its socket; Ctrl-C ends it
    #[arg(long)]
    pub(crate) keep: bool,
}

/// Options of a microVM.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Unix socket of the API; must not exist yet [default: /run/mayfly.socket]
    #[arg(long, value_name = "PATH")]
    pub(crate) api_sock: Option<PathBuf>,

    /// Name of the microVM: 1 to 64 letters, digits or -
    #[arg(long, value_name = "ID", default_value = "anonymous-instance", value_parser = parse_id)]
    pub(crate) id: InstanceId,

    /// Configure the microVM from this JSON file and boot it at once
    #[arg(long, value_name = "FILE")]
    pub(crate) config_file: Option<PathBuf>,

    /// Have no API socket; needs --config-file
    #[arg(long, requires = "config_file")]
    pub(crate) no_api: bool,

    /// Give the guest a byte at 0xc0000000; writing 123 to it logs the boot time
    #[arg(long)]
    pub(crate) boot_timer: bool,

    /// Largest body of an API request in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 51_200)]
    pub(crate) http_api_max_payload_size: usize,

    /// Print the version and end
    #[arg(long)]
    pub(crate) version: bool,

    #[command(flatten, next_help_heading = "Log")]
    pub(crate) log: Log,

    #[command(flatten, next_help_heading = "Accepted without effect")]
    ignored: Ignored,

    #[command(flatten)]
    unsupported: Unsupported,
}

/// Options of the log.
#[derive(Debug, Args)]
pub(crate) struct Log {
    /// File or FIFO for the log [default: standard output]
    #[arg(long, value_name = "PATH")]
    log_path: Option<PathBuf>,

    /// Off, Error, Warn, Info, Debug or Trace [default: Info]
    #[arg(long, value_name = "LEVEL")]
    level: Option<Level>,

    /// Show the level of each line
    #[arg(long)]
    show_level: bool,

    /// Show file and line of the code that logged
    #[arg(long)]
    show_log_origin: bool,

    /// Log only modules whose path starts with this
    #[arg(long, value_name = "PREFIX")]
    module: Option<String>,
}

/// Flags that a jailer passes and that have nothing to act on yet.
#[derive(Debug, Args)]
struct Ignored {
    /// No effect: this version has no seccomp filters
    #[arg(long)]
    no_seccomp: bool,

    /// No effect: for start-up metrics
    #[arg(long, value_name = "US")]
    start_time_us: Option<u64>,

    /// No effect: for start-up metrics
    #[arg(long, value_name = "US")]
    start_time_cpu_us: Option<u64>,

    /// No effect: for start-up metrics
    #[arg(long, value_name = "US")]
    parent_cpu_time_us: Option<u64>,
}

/// Flags of the contract that this version refuses.
#[derive(Debug, Args)]
struct Unsupported {
    #[arg(long, hide = true)]
    metadata: Option<PathBuf>,
    #[arg(long, hide = true)]
    mmds_size_limit: Option<usize>,
    #[arg(long, hide = true)]
    metrics_path: Option<PathBuf>,
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    enable_pci: bool,
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    snapshot_version: bool,
    #[arg(long, hide = true)]
    describe_snapshot: Option<PathBuf>,
    #[arg(long, hide = true)]
    seccomp_filter: Option<PathBuf>,
}

fn parse_id(text: &str) -> Result<InstanceId, String> {
    InstanceId::try_from(text).map_err(|e| e.to_string())
}

impl Cli {
    /// Reads the command line. `Err` is an exit code; what there is to say has been printed.
    pub(crate) fn read(args: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Self, u8> {
        let cli = Self::try_parse_from(args).map_err(|error| {
            // Broken standard streams are no reason for another message.
            let _ = error.print();
            if error.use_stderr() { BAD_ARGUMENTS } else { 0 }
        })?;
        if let Some(flag) = cli.run.unsupported.first() {
            eprintln!("error: {}", later(flag));
            return Err(BAD_ARGUMENTS);
        }
        Ok(cli)
    }
}

impl Run {
    /// Where the API socket is to be.
    pub(crate) fn socket(&self, identity: Identity) -> PathBuf {
        self.api_sock.clone().unwrap_or_else(|| identity.default_socket().into())
    }
}

impl Log {
    /// The options as `PUT /logger` would give them.
    pub(crate) fn options(self) -> Logger {
        Logger {
            log_path: self.log_path,
            level: self.level,
            show_level: self.show_level.then_some(true),
            show_log_origin: self.show_log_origin.then_some(true),
            module: self.module,
        }
    }
}

impl Unsupported {
    fn first(&self) -> Option<&'static str> {
        [
            (self.metadata.is_some(), "--metadata"),
            (self.mmds_size_limit.is_some(), "--mmds-size-limit"),
            (self.metrics_path.is_some(), "--metrics-path"),
            (self.enable_pci, "--enable-pci"),
            (self.snapshot_version, "--snapshot-version"),
            (self.describe_snapshot.is_some(), "--describe-snapshot"),
            (self.seccomp_filter.is_some(), "--seccomp-filter"),
        ]
        .into_iter()
        .find_map(|(given, flag)| given.then_some(flag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Cli, u8> {
        Cli::read(std::iter::once("mayfly").chain(args.iter().copied()).map(Into::into))
    }

    #[test]
    fn what_tools_pass_all_at_once() {
        let cli = read(&[
            "--id",
            "vm-1",
            "--start-time-us",
            "1",
            "--start-time-cpu-us",
            "2",
            "--parent-cpu-time-us",
            "3",
            "--log-path",
            "/tmp/l",
            "--level",
            "debug",
            "--show-level",
            "--api-sock",
            "/tmp/s",
        ])
        .unwrap();
        assert_eq!(cli.run.id.as_str(), "vm-1");
        assert_eq!(cli.run.socket(Identity::Firecracker), PathBuf::from("/tmp/s"));
        let options = cli.run.log.options();
        assert_eq!(options.level.unwrap().0, log::LevelFilter::Debug);
        assert_eq!((options.show_level, options.show_log_origin), (Some(true), None));
    }

    #[test]
    fn bad_ones() {
        for args in [
            &["--no-api"][..],
            &["--id", "a/b"],
            &["--id", ""],
            &["--level", "loud"],
            &["--enable-pci"],
            &["--metrics-path", "x"],
            &["--unknown"],
            &["--http-api-max-payload-size", "-1"],
        ] {
            assert_eq!(read(args).unwrap_err(), BAD_ARGUMENTS, "{args:?}");
        }
        assert_eq!(read(&["--help"]).unwrap_err(), 0);
    }

    #[test]
    fn defaults() {
        let run = read(&[]).unwrap().run;
        assert_eq!(run.id, InstanceId::default());
        assert_eq!(run.socket(Identity::Mayfly), PathBuf::from("/run/mayfly.socket"));
        assert_eq!(run.http_api_max_payload_size, 51_200);
    }
}
