//! The life of the process: from a command line to an exit code.

use std::ffi::OsString;
use std::io;

use log::{error, info};
use tokio::sync::oneshot;
use vmm::sys::process::with_umask;
use vmm::{ExitReason, Settings};

use crate::app::App;
use crate::cli::{Cli, Command, Run};
use crate::identity::Identity;
use crate::server::{self, Socket};
use crate::{config_file, demo, logger};

/// Exit code for what goes wrong before there is a machine.
const FAILED: u8 = 1;

/// Does what the command line says and returns the exit code.
pub(crate) fn run(args: Vec<OsString>) -> u8 {
    let identity = Identity::of(args.first().map(OsString::as_os_str).unwrap_or_default());
    let cli = match Cli::read(args) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match cli.command {
        Some(Command::Demo(options)) => demo::run(&options),
        None if cli.run.version => {
            println!("{} v{}", identity.name(), identity.version());
            0
        }
        None => supervise(identity, cli.run),
    }
}

/// Runs a microVM and logs how it ended.
fn supervise(identity: Identity, options: Run) -> u8 {
    if let Err(error) = logger::start(identity, options.id.as_str()) {
        eprintln!("Error: {error}");
        return FAILED;
    }
    let code = match serve(identity, options) {
        Ok(reason) => {
            match reason.code() {
                0 => info!("The machine has ended: {reason}."),
                _ => error!("The machine has ended: {reason}."),
            }
            reason.code()
        }
        Err(message) => {
            error!("{message}");
            eprintln!("Error: {message}");
            FAILED
        }
    };
    match code {
        0 => info!("{} exiting successfully. exit_code=0", identity.name()),
        _ => error!("{} exiting with error. exit_code={code}", identity.name()),
    }
    code
}

fn serve(identity: Identity, options: Run) -> Result<ExitReason, String> {
    let socket_path = options.socket(identity);
    let Run { id, config_file, no_api, boot_timer, http_api_max_payload_size, log, .. } = options;
    logger::configure(log.options()).map_err(|e| format!("Could not initialize the logger: {e}"))?;
    info!("Running {} v{}", identity.name(), identity.version());

    // Before the VMM thread exists, so that the umask is nobody else's.
    let socket = match no_api {
        true => None,
        false => Some(bind(identity, &socket_path)?),
    };
    let (ended, end) = oneshot::channel();
    let handle = vmm::launch(Settings { id, boot_timer }, move |reason| {
        // Nobody listens if we are ending for another reason.
        let _ = ended.send(reason);
    })
    .map_err(|e| format!("Cannot start the VMM thread: {e}"))?;

    if let Some(path) = config_file {
        config_file::boot(&handle, &path)
            .map_err(|e| format!("Configuration for VMM from one single json failed: {e}"))?;
        info!("Successfully started microvm that was configured from one single json");
    }
    let lost = |_| ExitReason::Lost("the VMM thread died".to_owned());
    let Some(socket) = socket else { return Ok(end.blocking_recv().unwrap_or_else(lost)) };

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|e| format!("Cannot start the API server: {e}"))?;
    let app = App::new(handle, identity, http_api_max_payload_size);
    let mut reason = None;
    runtime
        .block_on(async {
            info!("API server started.");
            server::serve(&socket, app, async { reason = Some(end.await.unwrap_or_else(lost)) }).await
        })
        .map_err(|e| format!("The API server failed: {e}"))?;
    Ok(reason.unwrap_or_else(|| ExitReason::Lost("the API server ended by itself".to_owned())))
}

fn bind(identity: Identity, path: &std::path::Path) -> Result<Socket, String> {
    let bound = match identity.socket_mode() {
        Some(mode) => with_umask(!mode & 0o777, || Socket::bind(path)),
        None => Socket::bind(path),
    };
    bound.map_err(|error: io::Error| {
        format!("Failed to open the API socket at: {}. Check that it is not already used. ({error})", path.display())
    })
}
