//! Signals that end the process, caught so that something can be said about it first.
//!
//! Everything that runs in a handler is async-signal-safe (signal-safety(7)): it reads and writes atomics, tries locks without waiting for
//! them, and makes system calls. It allocates nothing, so it does not matter what the interrupted thread was doing.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use devices::metrics::{Counter, LogBrake, SUPPRESSED_LOG_LINES};
use devices::sys::terminal;
use libc::{SIGBUS, SIGHUP, SIGILL, SIGPIPE, SIGSEGV, SIGSYS, SIGXCPU, SIGXFSZ, c_int, siginfo_t};

use super::signals::handle;
use crate::telemetry::{SECCOMP, SIGNALS};

/// `si_code` of a SIGSYS that a seccomp filter raised (siginfo.h, not in the libc crate).
const SYS_SECCOMP: c_int = 1;
/// How long a second thread that is hit waits for the first one's last words before it ends the process itself.
const OTHERS_LAST_WORDS: Duration = Duration::from_secs(1);

/// A signal and what is done about it: the code to exit with, or `None` to go on.
const SIGNALS_CAUGHT: [(c_int, Option<c_int>, &Counter); 8] = [
    (SIGSYS, Some(148), &SECCOMP.num_faults),
    (SIGBUS, Some(149), &SIGNALS.sigbus),
    (SIGSEGV, Some(150), &SIGNALS.sigsegv),
    (SIGXFSZ, Some(151), &SIGNALS.sigxfsz),
    (SIGXCPU, Some(154), &SIGNALS.sigxcpu),
    (SIGPIPE, None, &SIGNALS.sigpipe),
    (SIGHUP, Some(156), &SIGNALS.sighup),
    (SIGILL, Some(157), &SIGNALS.sigill),
];

/// A signal that was caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caught {
    /// Its number.
    pub number: c_int,
    /// Where it came from (`si_code`).
    pub code: c_int,
    /// The system call that a filter refused.
    pub bad_syscall: Option<c_int>,
    /// Whether the process ends.
    pub ends: bool,
}

/// Says what is to be said about a signal. Runs in the handler, so it must be async-signal-safe.
pub type Words = fn(&Caught);

static WORDS: OnceLock<Words> = OnceLock::new();
static ENDING: AtomicBool = AtomicBool::new(false);
/// A guest may cause a SIGPIPE with every byte it writes to a console that nobody reads.
static PIPE_BRAKE: LogBrake = LogBrake::new();

/// Catches the signals in every thread from now on.
///
/// # Errors
/// What `sigaction(2)` says.
pub fn catch(words: Words) -> io::Result<()> {
    let _ = WORDS.set(words);
    // Starts the clock of all brakes, so that no handler has to.
    LogBrake::new().pass();
    for (number, ..) in SIGNALS_CAUGHT {
        // After a stack overflow a thread has no other stack to run on than its `SignalStack`.
        let stack = if matches!(number, SIGSEGV | SIGBUS) { libc::SA_ONSTACK } else { 0 };
        let flags = libc::SA_SIGINFO | libc::SA_RESTART | stack;
        // Nothing interrupts a handler. A fault inside it is then fatal at once (sigaction(2)), and not a hang.
        handle(number, on_signal as *const () as usize, flags, true)?;
    }
    Ok(())
}

extern "C" fn on_signal(number: c_int, info: *mut siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo.
    let (code, syscall) = unsafe { ((*info).si_code, syscall_of(info)) };
    let from_filter = number == SIGSYS && code == SYS_SECCOMP;
    let Some((_, exit_code, count)) = SIGNALS_CAUGHT.iter().find(|(n, ..)| *n == number) else { return };
    count.inc();
    let caught = Caught { number, code, bad_syscall: from_filter.then_some(syscall), ends: exit_code.is_some() };
    match exit_code {
        Some(exit_code) => end(&caught, *exit_code),
        None => {
            // SAFETY: errno is a thread's own and always there. The interrupted code may be about to read it.
            let errno = unsafe { *libc::__errno_location() };
            if PIPE_BRAKE.pass() {
                say(&caught);
            } else {
                SUPPRESSED_LOG_LINES.inc();
            }
            // SAFETY: as above.
            unsafe { *libc::__errno_location() = errno };
        }
    }
}

fn end(caught: &Caught, exit_code: c_int) -> ! {
    if ENDING.swap(true, Ordering::SeqCst) {
        // Another thread is at it and will end us all.
        std::thread::sleep(OTHERS_LAST_WORDS);
    } else {
        terminal::restore();
        say(caught);
    }
    // SAFETY: ends the process without running anything else of it.
    unsafe { libc::_exit(exit_code) }
}

fn say(caught: &Caught) {
    if let Some(words) = WORDS.get() {
        words(caught);
    }
}

/// The number of the system call in a SIGSYS's information.
///
/// # Safety
/// `info` points to a valid siginfo.
unsafe fn syscall_of(info: *const siginfo_t) -> c_int {
    /// `siginfo_t` as far as SIGSYS needs it (siginfo.h, 64-bit).
    #[repr(C)]
    struct SigSys {
        head: [c_int; 4],
        call_address: usize,
        syscall: c_int,
    }
    // SAFETY: a siginfo is 128 bytes, and every bit pattern is an integer.
    unsafe { (*info.cast::<SigSys>()).syscall }
}
