//! The log: one line per event, to standard output or to a file or FIFO that is never waited for.
//!
//! A line that cannot be written at once is lost and counted; a guest's machine does not stand still because nobody reads its log.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::{LevelFilter, Log, Metadata, Record};
use vmm::sys::NonBlocking;
use vmm::sys::clock::local_now;

use crate::identity::Identity;
use crate::wire::Logger as Options;

/// Lines that could not be written.
static MISSED_LINES: AtomicU64 = AtomicU64::new(0);

static LOGGER: Logger = Logger(Mutex::new(None));

struct Logger(Mutex<Option<State>>);

struct State {
    identity: Identity,
    id: String,
    sink: NonBlocking,
    show_level: bool,
    show_origin: bool,
    /// Only modules whose path starts with this are logged.
    module: Option<String>,
    /// Reused for every line.
    line: String,
}

/// Why the logger could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoggerError {
    #[error("Failed to open target file: {0}: {1}")]
    Open(String, io::Error),
    #[error("Standard output cannot be written: {0}")]
    Stdout(io::Error),
}

/// Starts logging to standard output, at level Info.
pub(crate) fn start(identity: Identity, id: &str) -> Result<(), LoggerError> {
    let sink = NonBlocking::writer(io::stdout().as_fd()).map_err(LoggerError::Stdout)?;
    *LOGGER.lock() = Some(State {
        identity,
        id: id.to_owned(),
        sink,
        show_level: false,
        show_origin: false,
        module: None,
        line: String::new(),
    });
    log::set_max_level(LevelFilter::Info);
    // Fails if it is called twice, and then the first one serves.
    let _ = log::set_logger(&LOGGER);
    Ok(())
}

/// Changes what is given in `options`, or nothing if that fails.
pub(crate) fn configure(options: Options) -> Result<(), LoggerError> {
    let sink = match &options.log_path {
        Some(path) => Some(open(path).map_err(|e| LoggerError::Open(path.display().to_string(), e))?),
        None => None,
    };
    let mut guard = LOGGER.lock();
    let Some(state) = guard.as_mut() else { return Ok(()) };
    if let Some(sink) = sink {
        state.sink = sink;
    }
    state.show_level = options.show_level.unwrap_or(state.show_level);
    state.show_origin = options.show_log_origin.unwrap_or(state.show_origin);
    if options.module.is_some() {
        state.module = options.module;
    }
    if let Some(level) = options.level {
        log::set_max_level(level.0);
    }
    Ok(())
}

/// A FIFO is opened for reading too, so that neither opening nor writing depends on a reader.
fn open(path: &Path) -> io::Result<NonBlocking> {
    let file: File = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    NonBlocking::writer(file.as_fd())
}

impl Logger {
    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if let Some(state) = self.lock().as_mut() {
            state.log(record);
        }
    }

    fn flush(&self) {}
}

impl State {
    fn log(&mut self, record: &Record<'_>) {
        let wanted =
            self.module.as_deref().is_none_or(|m| record.module_path().is_some_and(|path| path.starts_with(m)));
        if !wanted {
            return;
        }
        self.line.clear();
        // Writing to a string does not fail.
        let _ = self.compose(record);
        if self.sink.write(self.line.as_bytes()).ok() != Some(self.line.len()) {
            MISSED_LINES.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn compose(&mut self, record: &Record<'_>) -> std::fmt::Result {
        let t = local_now();
        let thread = std::thread::current();
        let thread = self.identity.thread_in_log(thread.name().unwrap_or("-"));
        let line = &mut self.line;
        write!(
            line,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09} [{}:{thread}",
            t.year, t.month, t.day, t.hour, t.minute, t.second, t.nanosecond, self.id
        )?;
        if self.show_level {
            write!(line, ":{}", record.level())?;
        }
        if self.show_origin {
            write!(line, ":{}:{}", record.file().unwrap_or("?"), record.line().unwrap_or(0))?;
        }
        writeln!(line, "] {}", record.args())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn state(sink: NonBlocking) -> State {
        State {
            identity: Identity::Mayfly,
            id: "vm".to_owned(),
            sink,
            show_level: true,
            show_origin: true,
            module: Some("vmm".to_owned()),
            line: String::new(),
        }
    }

    fn say(state: &mut State, module: &str, text: std::fmt::Arguments<'_>) {
        let mut record = Record::builder();
        record.args(text).level(log::Level::Warn).module_path(Some(module)).file(Some("f.rs")).line(Some(7));
        state.log(&record.build());
    }

    #[test]
    fn lines_have_the_shape_tools_parse() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut state = state(NonBlocking::writer(writer.as_fd()).unwrap());
        say(&mut state, "vmm::machine", format_args!("hello"));
        say(&mut state, "api_server", format_args!("filtered out"));
        drop((state, writer));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let (time, rest) = text.split_once(' ').unwrap();
        assert_eq!(time.len(), "2026-11-23T09:18:00.123456789".len());
        let thread = std::thread::current();
        assert_eq!(rest, format!("[vm:{}:WARN:f.rs:7] hello\n", thread.name().unwrap()));
    }

    #[test]
    fn a_full_pipe_loses_lines_and_counts_them() {
        let (_reader, writer) = io::pipe().unwrap();
        let mut state = state(NonBlocking::writer(writer.as_fd()).unwrap());
        let before = MISSED_LINES.load(Ordering::Relaxed);
        for _ in 0..100 {
            say(&mut state, "vmm", format_args!("{}", "x".repeat(1000)));
        }
        assert!(MISSED_LINES.load(Ordering::Relaxed) > before);
    }
}
