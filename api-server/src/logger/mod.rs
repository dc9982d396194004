//! Log lines of the v1 contract, behind the `log` facade.
//!
//! One line per event, written with one system call, to standard output or to the file or FIFO of `--log-path` and `PUT /logger`.
//! Logging never blocks: a sink that takes no more loses lines, which are counted and reported with the next line that gets
//! through. Knows nothing of HTTP; `process` sets it up, everyone logs through `log`'s macros.

mod line;
mod sink;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use log::{LevelFilter, Log, Metadata, Record};

use crate::identity::Identity;
use crate::wire;
use sink::Sink;

static LOGGER: Logger = Logger {
    name: OnceLock::new(),
    serving: AtomicBool::new(false),
    style: RwLock::new(Style { show_level: false, show_origin: false, module: None }),
    sink: Mutex::new(Sink::new()),
};

/// Why the logger could not be configured.
#[derive(Debug, thiserror::Error)]
#[error("Cannot open the log file {path}: {source}")]
pub(crate) struct BadLogPath {
    path: String,
    source: std::io::Error,
}

/// What lines look like and which are written.
#[derive(Debug)]
struct Style {
    show_level: bool,
    show_origin: bool,
    module: Option<String>,
}

struct Logger {
    name: OnceLock<(String, Identity)>,
    serving: AtomicBool,
    style: RwLock<Style>,
    sink: Mutex<Sink>,
}

/// Starts logging for the machine called `id`, at level Info to standard output.
pub(crate) fn start(id: &str, identity: Identity) {
    // Both fail only if called twice, and then the first call stands.
    let _ = LOGGER.name.set((id.to_owned(), identity));
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Info);
}

/// Applies what is given; the rest stays as it is. If the file cannot be opened nothing is changed.
pub(crate) fn configure(options: wire::Logger) -> Result<(), BadLogPath> {
    if let Some(path) = options.log_path {
        let file = sink::open(&path).map_err(|source| BadLogPath { path: path.display().to_string(), source })?;
        LOGGER.sink.lock().unwrap_or_else(PoisonError::into_inner).write_to(file);
    }
    let mut style = LOGGER.style.write().unwrap_or_else(PoisonError::into_inner);
    style.show_level = options.show_level.unwrap_or(style.show_level);
    style.show_origin = options.show_log_origin.unwrap_or(style.show_origin);
    style.module = options.module.or(style.module.take());
    drop(style);
    if let Some(level) = options.level {
        log::set_max_level(level.0);
    }
    Ok(())
}

/// From now on the main thread goes by the name of the API thread.
pub(crate) fn main_thread_serves() {
    LOGGER.serving.store(true, Ordering::Relaxed);
}

impl Logger {
    fn thread_name<'t>(&self, thread: &'t std::thread::Thread) -> &'t str {
        match thread.name() {
            Some("main") if self.serving.load(Ordering::Relaxed) => {
                self.name.get().map_or("main", |(_, identity)| identity.api_thread())
            }
            Some(name) => name,
            None => "unnamed",
        }
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
        let style = self.style.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = &style.module
            && !record.module_path().unwrap_or("").starts_with(module.as_str())
        {
            return;
        }
        let thread = std::thread::current();
        let origin = style.show_origin.then(|| (record.file().unwrap_or("?"), record.line().unwrap_or(0)));
        let line = line::Line {
            at: std::time::SystemTime::now(),
            id: self.name.get().map_or("", |(id, _)| id),
            thread: self.thread_name(&thread),
            level: style.show_level.then(|| record.level()),
            origin,
        };
        let text = line.render(record.args());
        drop(style);
        self.sink.lock().unwrap_or_else(PoisonError::into_inner).put(&text, |lost| {
            line.render(&format_args!("{lost} log lines were lost because the log could not be written."))
        });
    }

    fn flush(&self) {}
}
