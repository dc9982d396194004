//! The life of the process: arguments, logger, socket, VMM thread, serving, exit code.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use log::{error, info};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use vmm::requests::{PutMmds, Start};
use vmm::{ExitReason, Handle, Settings};

use crate::app::App;
use crate::cli::{self, Options, Task};
use crate::config_file::ConfigFile;
use crate::identity::Identity;
use crate::server::{Limits, Listener};
use crate::{demo, logger, porch, server};

/// Exit code when the machine could not be started.
const FAILED: u8 = 1;
/// Time from a request's first byte to its last; generous, as clients type by hand too.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

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
        Task::Run(options) => run(identity, *options),
    })
}

fn run(identity: Identity, options: Options) -> u8 {
    logger::start(options.id.as_str(), identity);
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
    logger::configure(std::mem::take(&mut options.logger)).map_err(|e| CannotStart(e.to_string()))?;
    info!("Running {} v{}", identity.name(), identity.version());
    let listener = match &options.api_sock {
        Some(path) => Some(Listener::bind(path, identity).map_err(|e| CannotStart(e.to_string()))?),
        None => None,
    };
    let (ended, exit) = oneshot::channel();
    let settings =
        Settings { id: options.id, boot_timer: options.boot_timer, mmds_size_limit: options.mmds_size_limit };
    let on_exit = move |reason| {
        // Nobody listens any more only if this process is ending anyway.
        let _ = ended.send(reason);
    };
    let handle =
        vmm::launch(settings, on_exit).map_err(|e| CannotStart(format!("The VMM thread could not be started: {e}")))?;
    if let Some(path) = &options.metadata {
        fill_mmds(path, &handle)?;
    }
    if let Some(path) = &options.config_file {
        boot_from_file(path, &handle)?;
    }
    match listener {
        Some(listener) => {
            let reason = serve(&listener, App::new(handle, identity, options.payload_limit), exit)
                .map_err(|e| CannotStart(format!("The API server could not be started: {e}")))?;
            // Before the last log line, so that whoever waits for that line finds the path free.
            drop(listener);
            Ok(reason)
        }
        None => Ok(exit.blocking_recv().unwrap_or_else(|_| ExitReason::Lost("the VMM thread is gone".to_owned()))),
    }
}

fn serve(listener: &Listener, app: App, exit: oneshot::Receiver<ExitReason>) -> std::io::Result<ExitReason> {
    logger::main_thread_serves();
    let limits = Limits { payload: app.payload_limit(), deadline: REQUEST_DEADLINE };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let socket = UnixListener::from_std(listener.socket()?)?;
        Ok(server::serve(socket, porch::router(app), limits, exit).await)
    })
}

/// Gives the metadata service what is in a file; the texts are waited for by tools.
fn fill_mmds(path: &std::path::Path, handle: &Handle) -> Result<(), CannotStart> {
    let unreadable = "Unable to open or read from the mmds content file";
    let text = std::fs::read(path).map_err(|e| CannotStart(format!("{unreadable} {}: {e}", path.display())))?;
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&text)
        .map_err(|e| CannotStart(format!("MMDS error: metadata provided not valid json: {}: {e}", path.display())))?;
    match handle.call(PutMmds(object.into())) {
        Ok(()) => info!("Successfully added metadata to mmds from file"),
        Err(refused) => return Err(CannotStart(format!("Populating MMDS from file failed: {}", refused.what()))),
    }
    Ok(())
}

/// Configures and boots; the texts are waited for by tools.
fn boot_from_file(path: &std::path::Path, handle: &Handle) -> Result<(), CannotStart> {
    if let Err(bad) = ConfigFile::read(path).and_then(|file| file.apply(handle)) {
        error!("Configuration for VMM from one single json failed: {bad}");
        return Err(CannotStart(format!(
            "Failed to build MicroVM from Json: Configuration for VMM from one single json failed: {bad}"
        )));
    }
    if let Err(refused) = handle.call(Start) {
        error!("Could not Start MicroVM from one single json: {refused}");
        return Err(CannotStart(format!("Could not Start MicroVM from one single json: {refused}")));
    }
    info!("Successfully started microvm that was configured from one single json");
    Ok(())
}
