//! The metrics file of the v1 contract: one line of JSON per report.
//!
//! `groups` says what is in a line, `line` writes one down, `file` delivers it. The VMM says when ([`vmm::telemetry::Reporter`]); at a
//! fatal signal or a panic [`last_line`] does. Since that may be in a signal handler, making a line allocates nothing and takes one lock,
//! which a handler only tries.

mod api;
mod file;
mod groups;
mod line;

use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vmm::telemetry::{LOGGER, REGISTRY, Reporter, report_to};

use crate::wire;
use file::MetricsFile;
use line::{Buffer, Head};

pub(crate) use api::{API_SERVER, count_request, note_deprecated};

/// How often and how long apart a handler asks for the lock. Whoever has it, unless it is the interrupted thread itself, is done by then.
const TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(1);

/// Why metrics could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadMetrics {
    /// They are already.
    #[error("Reinitialization of metrics not allowed.")]
    Again,
    /// The file cannot be opened.
    #[error("Cannot open the metrics file {0}: {1}")]
    Path(String, io::Error),
}

struct Metrics {
    head: Head,
    options: wire::Metrics,
    buffer: Buffer,
    file: MetricsFile,
}

static METRICS: OnceLock<Mutex<Metrics>> = OnceLock::new();

/// Opens the file for the machine called `id`. Nothing is written yet.
pub(crate) fn configure(options: wire::Metrics, id: &str) -> Result<(), BadMetrics> {
    if METRICS.get().is_some() {
        return Err(BadMetrics::Again);
    }
    let path = &options.metrics_path;
    let file = MetricsFile::open(path).map_err(|e| BadMetrics::Path(path.display().to_string(), e))?;
    let head = Head::new(options.emit_id.then_some(id), options.properties.as_ref());
    groups::enter_those_of_the_process(&REGISTRY);
    let mut buffer = Buffer::default();
    // So that the first line can be a last one.
    buffer.make_room(&head, &REGISTRY);
    METRICS.set(Mutex::new(Metrics { head, options, buffer, file })).map_err(|_| BadMetrics::Again)?;
    report_to(&ToFile);
    Ok(())
}

/// The machine is called `id` from now on.
pub(crate) fn rename(id: &str) {
    let Some(metrics) = METRICS.get() else { return };
    let mut metrics = metrics.lock().unwrap_or_else(PoisonError::into_inner);
    metrics.head = Head::new(metrics.options.emit_id.then_some(id), metrics.options.properties.as_ref());
}

/// Writes a last line if that is possible at all. For signal handlers and panics.
pub(crate) fn last_line() {
    let Some(metrics) = METRICS.get() else { return };
    for _ in 0..TRIES {
        match metrics.try_lock() {
            Ok(metrics) => return drop(write_line(metrics)),
            Err(TryLockError::Poisoned(metrics)) => return drop(write_line(metrics.into_inner())),
            Err(TryLockError::WouldBlock) => std::thread::sleep(BETWEEN_TRIES),
        }
    }
}

/// Reports to the file.
struct ToFile;

impl Reporter for ToFile {
    fn is_set_up(&self) -> bool {
        METRICS.get().is_some()
    }

    fn report(&self) -> io::Result<()> {
        let Some(metrics) = METRICS.get() else { return Ok(()) };
        let mut metrics = metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let Metrics { head, buffer, .. } = &mut *metrics;
        buffer.make_room(head, &REGISTRY);
        write_line(metrics)
    }
}

fn write_line(mut metrics: MutexGuard<'_, Metrics>) -> io::Result<()> {
    let Metrics { head, buffer, file, .. } = &mut *metrics;
    let lost = |_: &io::Error| LOGGER.missed_metrics_count.inc();
    // The buffer holds the last line until it is delivered whole.
    file.finish(buffer.line()).inspect_err(lost)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if !buffer.write(head, &REGISTRY, u64::try_from(now.as_millis()).unwrap_or(u64::MAX)) {
        LOGGER.metrics_fails.inc();
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    file.write(buffer.line()).inspect_err(lost)?;
    REGISTRY.iter().for_each(|entry| entry.settle());
    Ok(())
}
