//! What is said when the process ends by a signal or a panic: a line in the log and a last line of metrics.

use std::io;

use log::Level;
use vmm::sys::calls::name_of;
use vmm::sys::fatal::{self, Caught};
use vmm::sys::terminal;
use vmm::telemetry::VMM;

use crate::identity::Identity;
use crate::{logger, metrics};

/// From now on fatal signals and panics have last words, and a panic in any thread ends the process.
pub(crate) fn prepare(identity: Identity) -> io::Result<()> {
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        VMM.panic_count.inc();
        terminal::restore();
        let what = panic.payload_as_str().unwrap_or("no message");
        match panic.location() {
            Some(at) => logger::last_words(Level::Error, format_args!("{} panicked at {at}: {what}", identity.name())),
            None => logger::last_words(Level::Error, format_args!("{} panicked: {what}", identity.name())),
        }
        metrics::last_line();
        show(panic);
        // Half a monitor is worse than none.
        std::process::abort();
    }));
    fatal::catch(on_signal)
}

/// Runs in a signal handler: no locks, no allocation.
fn on_signal(caught: &Caught) {
    let Caught { number, code, bad_syscall, ends } = caught;
    match bad_syscall {
        Some(number) => {
            logger::last_words(
                Level::Error,
                format_args!("Shutting down VM after intercepting a bad syscall ({number})."),
            );
            // The line above is one that tools wait for, so the name has its own.
            let name = name_of((*number).into()).unwrap_or("of no known name");
            logger::last_words(Level::Error, format_args!("Its seccomp filter does not let this thread call {name}."));
        }
        None if *ends => logger::last_words(
            Level::Error,
            format_args!("Shutting down VM after intercepting signal {number}, code {code}."),
        ),
        None => logger::last_words(Level::Error, format_args!("Received signal {number}")),
    }
    if *ends {
        metrics::last_line();
    }
}
