use crate::actor::Vmm;
use crate::error::{Error, Subject};
use crate::lifecycle::Phase;
use crate::telemetry;

/// A report that nobody asked for was lost; the next one contains what it would have said.
fn note(outcome: std::io::Result<()>) {
    if let Err(error) = outcome {
        log::error!("The metrics could not be written: {error}");
    }
}

impl Vmm {
    /// Writes the report now, on the operator's wish.
    pub(crate) fn flush_metrics(&mut self) -> Result<(), Error> {
        telemetry::report()
            .map_err(|e| Error::host(Subject::Internal, format!("The metrics could not be written: {e}.")))
    }

    /// The machine has begun to run: one report now, and one every minute from now on.
    pub(super) fn begin_reports(&mut self) {
        note(telemetry::report());
        if let Err(error) = self.report_clock.start() {
            log::error!("The metrics will be written only when asked for: {error}");
        }
    }

    /// A minute has passed. While the machine is paused nothing is written; see [`Self::catch_up_on_reports`].
    pub(in crate::actor) fn report_on_time(&mut self) {
        if self.report_clock.tick(self.phase == Phase::Running) {
            note(telemetry::report());
        }
    }

    /// The machine runs again: writes the report that fell due while it was paused.
    pub(super) fn catch_up_on_reports(&mut self) {
        if self.report_clock.overdue() {
            note(telemetry::report());
        }
    }

    /// The machine is gone.
    pub(in crate::actor) fn report_at_last(&self) {
        note(telemetry::report());
    }
}
