//! Why the process ends, and with which code. The first reason wins.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest asked for a reset (i8042 0xFE, ACPI reset register).
    GuestReboot,
    /// The guest switched itself off (ACPI S5).
    GuestPowerOff,
    /// The guest died of a triple fault or an equivalent shutdown event.
    TripleFault,
    /// SIGTERM or SIGINT: ended in good order on the operator's wish.
    Signal(i32),
    /// The machine cannot go on (a vCPU failed, KVM reported an internal error).
    Lost(String),
    /// The guest's kernel told that it panicked, and then this happened. The exit code is that of what happened.
    AfterPanic(Box<ExitReason>),
}

impl ExitReason {
    /// The process exit code: 0 for a guest that ended itself in good order, 1 for a lost machine, 128 + n for signal n.
    pub fn code(&self) -> u8 {
        match self {
            ExitReason::GuestReboot | ExitReason::GuestPowerOff => 0,
            ExitReason::TripleFault | ExitReason::Lost(_) => 1,
            ExitReason::Signal(number) => u8::try_from(128 + number).unwrap_or(1),
            ExitReason::AfterPanic(reason) => reason.code(),
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitReason::GuestReboot => f.write_str("the guest rebooted"),
            ExitReason::GuestPowerOff => f.write_str("the guest powered off"),
            ExitReason::TripleFault => f.write_str("the guest died of a triple fault"),
            ExitReason::Signal(number) => write!(f, "signal {number} was received"),
            ExitReason::Lost(why) => write!(f, "the machine is lost: {why}"),
            ExitReason::AfterPanic(reason) => {
                let then = reason.to_string();
                match then.strip_prefix("the guest ") {
                    Some(did) => write!(f, "the guest panicked and then {did}"),
                    None => write!(f, "the guest panicked, and then {then}"),
                }
            }
        }
    }
}

/// Holds the first [`ExitReason`] anyone reports and wakes the VMM thread.
#[derive(Debug)]
pub struct ExitLatch {
    reason: OnceLock<ExitReason>,
    guest_panicked: AtomicBool,
    wake: EventFd,
}

impl ExitLatch {
    /// An open latch.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            reason: OnceLock::new(),
            guest_panicked: AtomicBool::new(false),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Reports why the machine must end. Only the first report counts.
    pub fn report(&self, reason: ExitReason) {
        if self.reason.set(reason).is_ok() {
            // A full counter is impossible after one write; there is nobody to tell about another failure.
            let _ = self.wake.write(1);
        }
    }

    /// The guest told that its kernel panicked. That ends nothing: what it does next is its own affair.
    pub fn note_panic(&self) {
        self.guest_panicked.store(true, Ordering::Relaxed);
    }

    /// Whether the guest has told of a panic.
    pub fn guest_panicked(&self) -> bool {
        self.guest_panicked.load(Ordering::Relaxed)
    }

    /// The reason, once there is one.
    pub fn reason(&self) -> Option<&ExitReason> {
        self.reason.get()
    }

    /// Becomes readable when there is a reason.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_reason_wins_and_wakes_once() {
        let latch = ExitLatch::new().unwrap();
        latch.report(ExitReason::GuestReboot);
        latch.report(ExitReason::TripleFault);
        assert_eq!(latch.reason(), Some(&ExitReason::GuestReboot));
        assert_eq!(latch.wake().read().unwrap(), 1);
    }

    #[test]
    fn codes() {
        assert_eq!(ExitReason::GuestPowerOff.code(), 0);
        assert_eq!(ExitReason::TripleFault.code(), 1);
        assert_eq!(ExitReason::Signal(15).code(), 143);
    }

    #[test]
    fn a_panic_is_told_and_changes_no_code() {
        for (reason, said) in [
            (ExitReason::GuestReboot, "the guest panicked and then rebooted"),
            (ExitReason::TripleFault, "the guest panicked and then died of a triple fault"),
            (ExitReason::Signal(15), "the guest panicked, and then signal 15 was received"),
        ] {
            let after = ExitReason::AfterPanic(Box::new(reason.clone()));
            assert_eq!((after.to_string().as_str(), after.code()), (said, reason.code()));
        }
    }
}
