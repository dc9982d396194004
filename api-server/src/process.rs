//! The life of the process: arguments, logger, socket, machine, end, exit code.
//!
//! The main thread runs the VMM; the API has a thread of its own.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use log::{error, info};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use vmm::config::InstanceId;
use vmm::confine::{FilterError, Seccomp};
use vmm::requests::{PutMmds, Start};
use vmm::sys::clock::{monotonic_time, process_cpu_time};
use vmm::sys::process::look_around;
use vmm::sys::socket;
use vmm::telemetry::microseconds;
use vmm::threads;
use vmm::{ExitReason, Settings, Vmm};

use crate::app::App;
use crate::cli::{self, Began, Options, Task};
use crate::config_file::ConfigFile;
use crate::confinement::{self, ApiFences};
use crate::identity::Identity;
use crate::metrics::{self, API_SERVER};
use crate::server::{Limits, Listener};
use crate::{check_host, demo, last_words, logger, porch, server, wire};

/// Exit code when the machine could not be started.
pub(crate) const FAILED: u8 = 1;
/// Time from a request's first byte to its last; generous, as clients type by hand too.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Whoever hands over a machine says what it is: the same user, and its group, so that jails of several users can.
const CLONE_SOCK_MODE: u32 = 0o660;
/// Stack of the thread that serves the API; of it only what is touched costs memory.
const API_STACK_LEN: usize = 2 << 20;

/// Why a machine could not be started. The cause has been logged where it is known best.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct CannotStart(String);

/// The `mayfly` program.
pub fn main() -> ExitCode {
    vmm::sys::process::prepare();
    let arguments: Vec<_> = std::env::args_os().collect();
    let identity = arguments.first().map_or(Identity::Mayfly, |argv0| Identity::of(argv0));
    ExitCode::from(match cli::parse(identity, arguments) {
        // A reader that has gone away does not make the answer wrong.
        Task::Print(text) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            0
        }
        Task::Refuse(text, code) => {
            let _ = std::io::stderr().write_all(text.as_bytes());
            code
        }
        Task::Demo(options) => demo::run(&options),
        Task::CheckHost(options) => check_host::run(options.json),
        Task::Run(options) => run(identity, *options),
    })
}

fn run(identity: Identity, options: Options) -> u8 {
    threads::use_names(identity.thread_names());
    logger::start(options.id.as_str());
    if let Err(error) = last_words::prepare(identity) {
        // It can run without; only its end would be a silent one.
        error!("Fatal signals cannot be caught: {error}");
    }
    let name = identity.name();
    let code = match start_and_serve(identity, options) {
        Ok(reason) => {
            let code = reason.code();
            if code == 0 {
                info!("The microVM ended: {reason}.")
            } else {
                error!("The microVM ended: {reason}.")
            }
            code
        }
        Err(cannot) => {
            error!("{cannot}");
            let _ = writeln!(std::io::stderr(), "Error: {cannot}");
            FAILED
        }
    };
    if code == 0 {
        info!("{name} exiting successfully. exit_code=0");
    } else {
        error!("{name} exiting with error. exit_code={code}");
    }
    code
}

fn start_and_serve(identity: Identity, mut options: Options) -> Result<ExitReason, CannotStart> {
    confinement::begin();
    logger::configure(std::mem::take(&mut options.logger)).map_err(|e| CannotStart(e.to_string()))?;
    info!("Running {} v{}", identity.name(), identity.version());
    if let Some(metrics_path) = options.metrics_path.take() {
        let file = wire::Metrics { metrics_path, emit_id: false, properties: None };
        metrics::configure(file, options.id.as_str()).map_err(|e| CannotStart(format!("Metrics error: {e}")))?;
    }
    // Before the API's: whoever finds that finds this one, too.
    let clone_sock = options.clone_sock.as_deref().map(bind_clone_sock).transpose()?;
    let listener = match &options.api_sock {
        Some(path) => Some(Listener::bind(path, identity).map_err(|e| CannotStart(e.to_string()))?),
        None => None,
    };
    let seccomp = match options.filters {
        cli::Filters::Own => Seccomp::Own,
        cli::Filters::Off => Seccomp::Off,
        cli::Filters::Brought(path) => confinement::bring(&path).map_err(CannotStart)?,
    };
    let fences = ApiFences::new(&seccomp).map_err(unconfined)?;
    let settings = Settings {
        id: options.id,
        boot_timer: options.boot_timer,
        mmds_size_limit: options.mmds_size_limit,
        seccomp,
        clonable: options.clonable,
        pci: options.pci,
        on_rename: rename,
    };
    let (mut vmm, handle) =
        vmm::create(settings).map_err(|e| CannotStart(format!("The VMM could not be started: {e}")))?;
    if let Some(clone_sock) = clone_sock {
        vmm.wait_at(clone_sock).map_err(|e| CannotStart(format!("Nobody can hand over a machine: {e}")))?;
    }
    if let Some(path) = &options.metadata {
        fill_mmds(path, &mut vmm)?;
    }
    let fences = if options.config_file.is_some() { fences.running() } else { Ok(fences) };
    let fences = fences.map_err(unconfined)?;
    // Before a machine is booted: once it runs, this thread starts no others.
    let app = App::new(handle, identity, options.payload_limit, fences);
    let api = listener.map(|listener| ApiThread::start(listener, app)).transpose();
    let mut api = api.map_err(|e| CannotStart(format!("The API server could not be started: {e}")))?;
    if let Some(path) = &options.config_file {
        look_around();
        boot_from_file(path, &mut vmm)?;
    }
    note_start(options.began);
    if let Some(api) = &mut api {
        api.open();
    }
    // While the API answers already; not after a boot, by which this thread has lost its eyes.
    look_around();
    let reason = vmm.run();
    if let Some(api) = api {
        api.end(reason.clone());
    }
    Ok(reason)
}

fn bind_clone_sock(path: &Path) -> Result<socket::Listener, CannotStart> {
    let bind = || {
        let listener = socket::Listener::bind(path, CLONE_SOCK_MODE)?;
        // The umask, which is the jailer's, would keep the group away.
        std::fs::set_permissions(path, Permissions::from_mode(CLONE_SOCK_MODE))?;
        Ok(listener)
    };
    bind().map_err(|e: io::Error| {
        let hint = if e.kind() == io::ErrorKind::AddrInUse { ": nothing may be there yet" } else { "" };
        CannotStart(format!("Failed to open the socket of --clone-sock at: {}{hint} ({e})", path.display()))
    })
}

/// The machine has another name than the process was started with.
fn rename(id: &InstanceId) {
    logger::rename(id.as_str());
    metrics::rename(id.as_str());
}

fn unconfined(error: FilterError) -> CannotStart {
    CannotStart(format!("The API server cannot be confined: {error}"))
}

/// The time the start took, as far as the caller said when it began.
fn note_start(began: Began) {
    if let Some(at_us) = began.at_us {
        API_SERVER.process_startup_time_us.set(microseconds(monotonic_time()).saturating_sub(at_us));
    }
    if let Some(cpu_us) = began.cpu_us {
        let own_us = microseconds(process_cpu_time()).saturating_sub(cpu_us);
        API_SERVER.process_startup_time_cpu_us.set(own_us.saturating_add(began.parent_cpu_us.unwrap_or(0)));
    }
}

/// The thread that serves the API.
struct ApiThread {
    listener: Listener,
    /// Told when it may serve. If this goes without that, the process is about to end.
    closed: Option<Sender<()>>,
    tell: oneshot::Sender<ExitReason>,
    thread: JoinHandle<()>,
}

impl ApiThread {
    /// Makes it. It serves once it is told to.
    fn start(listener: Listener, app: App) -> io::Result<Self> {
        let (tell, exit) = oneshot::channel();
        let limits = Limits { payload: app.payload_limit(), deadline: REQUEST_DEADLINE };
        // Made here, so that the thread has nothing left that could fail.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let socket = {
            let _inside = runtime.enter();
            UnixListener::from_std(listener.socket()?)?
        };
        let (closed, opened) = channel();
        let gate = Arc::default();
        let fence = app.fences().before.clone();
        let thread = threads::spawn_fenced(fence, &gate, API_STACK_LEN, move || {
            if opened.recv().is_ok() {
                runtime.block_on(server::serve(socket, porch::router(app), limits, exit));
            }
        })?;
        gate.wait().map_err(io::Error::other)?;
        Ok(Self { listener, closed: Some(closed), tell, thread })
    }

    /// Lets it serve.
    fn open(&mut self) {
        if let Some(closed) = self.closed.take() {
            // The thread waits for it.
            let _ = closed.send(());
        }
    }

    /// Has answers that are on their way finished, and ends the thread. The socket's path is free when this returns.
    fn end(self, reason: ExitReason) {
        let Self { listener, tell, thread, .. } = self;
        // Not heard by a thread that has ended already, by a panic that its hook has reported.
        let _ = tell.send(reason);
        let _ = thread.join();
        drop(listener);
    }
}

/// Gives the metadata service what is in a file; the texts are waited for by tools.
fn fill_mmds(path: &Path, vmm: &mut Vmm) -> Result<(), CannotStart> {
    let unreadable = "Unable to open or read from the mmds content file";
    let text = std::fs::read(path).map_err(|e| CannotStart(format!("{unreadable} {}: {e}", path.display())))?;
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&text)
        .map_err(|e| CannotStart(format!("MMDS error: metadata provided not valid json: {}: {e}", path.display())))?;
    match vmm.call(PutMmds(object.into())) {
        Ok(()) => info!("Successfully added metadata to mmds from file"),
        Err(refused) => return Err(CannotStart(format!("Populating MMDS from file failed: {}", refused.what()))),
    }
    Ok(())
}

/// Configures and boots; the texts are waited for by tools.
fn boot_from_file(path: &Path, vmm: &mut Vmm) -> Result<(), CannotStart> {
    if let Err(bad) = ConfigFile::read(path).and_then(|file| file.apply(vmm)) {
        error!("Configuration for VMM from one single json failed: {bad}");
        return Err(CannotStart(format!(
            "Failed to build MicroVM from Json: Configuration for VMM from one single json failed: {bad}"
        )));
    }
    if let Err(refused) = vmm.call(Start) {
        error!("Could not Start MicroVM from one single json: {refused}");
        return Err(CannotStart(format!("Could not Start MicroVM from one single json: {refused}")));
    }
    info!("Successfully started microvm that was configured from one single json");
    Ok(())
}
