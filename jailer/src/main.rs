//! `mayfly-jailer`: confines a VMM process before it starts.
//!
//! Options become a [`plan`], a list of steps that can be shown (`--dry-run`); [`deed`] carries it out and takes it back if a step fails;
//! the last step is the VMM itself. It knows no other crate of ours: whatever it is told to run, it confines.
//!
//! One thread, few allocations, and nothing is trusted that is reached by a path: what is made or changed in the jail is reached from its
//! directory, by descriptors, and not over links ([`sys::beneath`]).

mod clean;
mod cli;
mod deed;
mod error;
mod host;
mod layout;
mod plan;
mod sys;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use cli::Task;
use error::Error;

fn main() -> ExitCode {
    let began = sys::clock::Began::now();
    sys::process::close_inherited_files();
    let arguments: Vec<_> = std::env::args_os().collect();
    let outcome = match cli::parse(arguments) {
        Task::Print(text) => {
            // A reader that has gone away does not make the answer wrong.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(())
        }
        Task::Refuse(text) => {
            let _ = std::io::stderr().write_all(text.as_bytes());
            return ExitCode::FAILURE;
        }
        Task::Jail(options) => jail(&options, began),
        Task::Clean(options) => clean::clean(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "Error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Comes back only from a dry run, or with an error.
fn jail(options: &cli::Jail, began: sys::clock::Began) -> Result<(), Error> {
    let host = host::Host::look(options)?;
    let plan = plan::plan(options, &host)?;
    if options.dry_run {
        let _ = std::io::stdout().write_all(plan.to_string().as_bytes());
        return Ok(());
    }
    deed::carry_out(&plan, began)
}
