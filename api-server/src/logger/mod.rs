//! Log lines of the v1 contract, behind the `log` facade.
//!
//! One line per event, written with one system call, to standard output or to the file or FIFO of `--log-path` and `PUT /logger`.
//! Logging never blocks: a sink that takes no more loses lines, which are counted and reported with the next line that gets
//! through. Knows nothing of HTTP; `process` sets it up, everyone logs through `log`'s macros, and signal handlers, which may not lock,
//! through [`last_words`].

mod line;
mod sink;
mod text;

use std::fmt::Arguments;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};
use std::time::SystemTime;

use log::{Level, LevelFilter, Log, Metadata, Record};
use vmm::sys::clock::{local_time, local_time_lock_free};
use vmm::sys::lifeline::Lifeline;
use vmm::sys::process::ThreadName;
use vmm::telemetry;

use crate::wire;
use line::Line;
use sink::Sink;
use text::FixedText;

/// Longest line of last words in bytes; a pipe takes it whole or not at all.
const LAST_WORDS_LEN: usize = 1024;

static LOGGER: Logger = Logger {
    id: OnceLock::new(),
    later_id: OnceLock::new(),
    show_level: AtomicBool::new(false),
    show_origin: AtomicBool::new(false),
    module: RwLock::new(None),
    sink: Mutex::new(Sink::new()),
    lifeline: Lifeline::new(),
};

/// Why the logger could not be configured.
#[derive(Debug, thiserror::Error)]
#[error("Cannot open the log file {path}: {source}")]
pub(crate) struct BadLogPath {
    path: String,
    source: std::io::Error,
}

struct Logger {
    id: OnceLock<String>,
    /// Another one, which a machine brought that was loaded.
    later_id: OnceLock<String>,
    show_level: AtomicBool,
    show_origin: AtomicBool,
    /// Only lines of modules whose path begins with this are written.
    module: RwLock<Option<String>>,
    sink: Mutex<Sink>,
    /// Leads where the sink does.
    lifeline: Lifeline,
}

/// Starts logging for the machine called `id`, at level Info to standard output.
pub(crate) fn start(id: &str) {
    // Both fail only if called twice, and then the first call stands.
    let _ = LOGGER.id.set(id.to_owned());
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Info);
}

/// The machine is called `id` from now on. It gets another name once, if at all.
pub(crate) fn rename(id: &str) {
    let _ = LOGGER.later_id.set(id.to_owned());
}

/// Applies what is given; the rest stays as it is. If the file cannot be opened nothing is changed.
pub(crate) fn configure(options: wire::Logger) -> Result<(), BadLogPath> {
    if let Some(path) = options.log_path {
        let bad = |source| BadLogPath { path: path.display().to_string(), source };
        let file = sink::open(&path).map_err(bad)?;
        let mut sink = LOGGER.sink.lock().unwrap_or_else(PoisonError::into_inner);
        LOGGER.lifeline.follow(&file).map_err(bad)?;
        sink.write_to(file);
    }
    if let Some(show) = options.show_level {
        LOGGER.show_level.store(show, Ordering::Relaxed);
    }
    if let Some(show) = options.show_log_origin {
        LOGGER.show_origin.store(show, Ordering::Relaxed);
    }
    if options.module.is_some() {
        *LOGGER.module.write().unwrap_or_else(PoisonError::into_inner) = options.module;
    }
    if let Some(level) = options.level {
        log::set_max_level(level.0);
    }
    Ok(())
}

/// Logs from a signal handler or a panic: neither locks nor allocates nor waits, and does not ask which modules are wanted.
#[track_caller]
pub(crate) fn last_words(level: Level, message: Arguments<'_>) {
    if level > log::max_level() {
        return;
    }
    let origin = Location::caller();
    let thread = ThreadName::of_this_thread();
    let at = local_time_lock_free(SystemTime::now());
    let line = LOGGER.line(at, thread.as_str(), level, (origin.file(), origin.line()));
    let mut text = FixedText::<LAST_WORDS_LEN>::new();
    let _ = line.write(&mut text, &message);
    let bytes = text.as_line();
    if !matches!(LOGGER.lifeline.write(bytes), Ok(written) if written == bytes.len()) {
        telemetry::LOGGER.missed_log_count.inc();
    }
}

impl Logger {
    fn line<'l>(
        &'l self,
        at: vmm::sys::clock::LocalTime,
        thread: &'l str,
        level: Level,
        origin: (&'l str, u32),
    ) -> Line<'l> {
        Line {
            at,
            id: self.later_id.get().or(self.id.get()).map_or("", String::as_str),
            thread,
            level: self.show_level.load(Ordering::Relaxed).then_some(level),
            origin: self.show_origin.load(Ordering::Relaxed).then_some(origin),
        }
    }

    fn wants(&self, module: &str) -> bool {
        let wanted = self.module.read().unwrap_or_else(PoisonError::into_inner);
        wanted.as_ref().is_none_or(|prefix| module.starts_with(prefix))
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) || !self.wants(record.module_path().unwrap_or("")) {
            return;
        }
        let thread = std::thread::current();
        let origin = (record.file().unwrap_or("?"), record.line().unwrap_or(0));
        let line = self.line(local_time(SystemTime::now()), thread.name().unwrap_or("unnamed"), record.level(), origin);
        let text = line.render(record.args());
        self.sink.lock().unwrap_or_else(PoisonError::into_inner).put(&text, |lost| {
            line.render(&format_args!("{lost} log lines were lost because the log could not be written."))
        });
    }

    fn flush(&self) {}
}
