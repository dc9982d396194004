//! Whose turn it is in free-page hinting (virtio 1.3 §5.5.6.6): command ids the device shows and those the driver answers with.

use crate::virtio::state::HintingState;

/// VIRTIO_BALLOON_CMD_ID_STOP: the driver has no more pages to name.
pub(super) const STOP: u32 = 0;
/// VIRTIO_BALLOON_CMD_ID_DONE: the driver may use the pages again.
pub(super) const DONE: u32 = 1;
/// The first command id that starts a run.
const FIRST: u32 = 2;

/// How a run goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HintingStatus {
    /// The command last shown to the driver.
    pub host_cmd: u32,
    /// The command it last sent, if it ever did.
    pub guest_cmd: Option<u32>,
}

/// Runs of hinting.
#[derive(Debug, Default)]
pub(super) struct Hinting {
    host: u32,
    guest: Option<u32>,
    /// The run the driver is in, by its own account.
    run: Option<u32>,
    /// The last run started. Never forgotten: an id must not be used again before the driver has seen the end of its run.
    last: u32,
    acknowledge: bool,
}

impl Hinting {
    pub(super) fn status(&self) -> HintingStatus {
        HintingStatus { host_cmd: self.host, guest_cmd: self.guest }
    }

    /// Starts a run. With `acknowledge`, the driver has its pages back as soon as it has named them all.
    pub(super) fn start(&mut self, acknowledge: bool) {
        self.last = self.last.wrapping_add(1).max(FIRST);
        self.host = self.last;
        self.acknowledge = acknowledge;
    }

    /// Ends a run: the driver has its pages back.
    pub(super) fn stop(&mut self) {
        self.host = DONE;
    }

    /// The driver sent a command. `true` if this ends the run, so that there is a new command for it.
    pub(super) fn guest_said(&mut self, command: u32) -> bool {
        self.guest = Some(command);
        if command >= FIRST {
            self.run = Some(command);
            return false;
        }
        // Only the end of the current run counts: that of an earlier one may arrive after a new one was started.
        let ends = self.host >= FIRST && self.run.take() == Some(self.host) && self.acknowledge;
        if ends {
            self.host = DONE;
        }
        ends
    }

    /// Whether pages named now belong to the current run.
    pub(super) fn wants_pages(&self) -> bool {
        self.host >= FIRST && self.run == Some(self.host)
    }

    /// Whether pages named now belong to a run that the host has ended. They are late, not wrong.
    pub(super) fn is_over(&self) -> bool {
        self.host < FIRST
    }

    /// What outlives the process.
    pub(super) fn save(&self) -> HintingState {
        let Self { host, guest, run, last, acknowledge } = *self;
        HintingState { host, guest, run, last, acknowledge }
    }

    /// Takes up what was saved. Any numbers will do: at worst hints are dropped.
    pub(super) fn restore(&mut self, state: HintingState) {
        let HintingState { host, guest, run, last, acknowledge } = state;
        *self = Self { host, guest, run, last, acknowledge };
    }

    /// The driver is gone.
    pub(super) fn reset(&mut self) {
        *self = Self { host: STOP, last: self.last, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_with_acknowledgement() {
        let mut hinting = Hinting::default();
        assert_eq!(hinting.status(), HintingStatus { host_cmd: STOP, guest_cmd: None });
        hinting.start(true);
        assert_eq!(hinting.status().host_cmd, 2);
        assert!(!hinting.wants_pages(), "the driver has not begun");
        assert!(!hinting.guest_said(2) && hinting.wants_pages());
        assert!(hinting.guest_said(STOP));
        assert_eq!(hinting.status(), HintingStatus { host_cmd: DONE, guest_cmd: Some(STOP) });
        assert!(!hinting.wants_pages());
        hinting.start(false);
        assert_eq!(hinting.status().host_cmd, 3);
        hinting.guest_said(3);
        assert!(!hinting.guest_said(STOP), "the pages stay where they are until the host says so");
        assert_eq!(hinting.status().host_cmd, 3);
        hinting.stop();
        assert!(hinting.is_over());
        assert_eq!(hinting.status().host_cmd, DONE);
    }

    #[test]
    fn a_late_end_does_not_end_the_next_run() {
        let mut hinting = Hinting::default();
        hinting.start(true);
        hinting.guest_said(2);
        hinting.start(true);
        assert!(!hinting.wants_pages(), "pages of the run before");
        assert!(!hinting.guest_said(STOP));
        assert_eq!(hinting.status().host_cmd, 3);
        hinting.guest_said(3);
        assert!(hinting.wants_pages() && hinting.guest_said(DONE), "a driver that says DONE has ended too");
    }

    #[test]
    fn ids_are_not_used_twice_and_never_reserved() {
        let mut hinting = Hinting { last: u32::MAX - 1, ..Hinting::default() };
        hinting.start(true);
        assert_eq!(hinting.status().host_cmd, u32::MAX);
        hinting.reset();
        assert_eq!(hinting.status(), HintingStatus { host_cmd: STOP, guest_cmd: None });
        hinting.start(true);
        assert_eq!(hinting.status().host_cmd, 2);
        for wrong in [5, 1, 0, u32::MAX] {
            assert!(!hinting.guest_said(wrong) && !hinting.wants_pages());
        }
    }
}
