//! The phases of a machine's life and which request is allowed in which: one pure table.

use crate::error::{Error, Kind, Subject};

/// Where the machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Being configured; no KVM VM exists yet.
    Configuring,
    /// vCPUs run.
    Running,
    /// vCPUs and devices stand still.
    Paused,
    /// The machine is gone; the process is about to end.
    Ended,
}

/// What a request asks for, without its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Read something that exists in every phase.
    Look,
    /// Change what the guest can be told in every phase.
    Tell,
    /// Change the configuration of a machine that does not run yet.
    Configure,
    /// Change a device of a started machine (swap a drive's file).
    Reconfigure,
    /// Add a device: to the configuration, or to a machine that runs and has a place for it.
    Plug,
    /// Build the machine and run it.
    Start,
    /// Build a machine that was saved.
    Load,
    /// Save the machine as it stands.
    Save,
    /// Make others like the machine.
    Clone,
    /// Stop vCPUs and devices.
    Pause,
    /// Run them again.
    Resume,
    /// Act on a started machine (keys, metrics).
    Act,
    /// End the process in good order.
    Shutdown,
}

impl Phase {
    /// Every phase, for exhaustive tests.
    pub const ALL: [Phase; 4] = [Phase::Configuring, Phase::Running, Phase::Paused, Phase::Ended];
}

impl Ask {
    /// Every ask, for exhaustive tests.
    pub const ALL: [Ask; 13] = [
        Ask::Look,
        Ask::Tell,
        Ask::Configure,
        Ask::Reconfigure,
        Ask::Plug,
        Ask::Start,
        Ask::Load,
        Ask::Save,
        Ask::Clone,
        Ask::Pause,
        Ask::Resume,
        Ask::Act,
        Ask::Shutdown,
    ];
}

impl Ask {
    /// Whether it may not happen while the machine is on its way from one phase to another.
    pub const fn changes_the_machine(self) -> bool {
        match self {
            Ask::Look | Ask::Tell | Ask::Act | Ask::Shutdown => false,
            Ask::Configure | Ask::Reconfigure | Ask::Plug | Ask::Start | Ask::Load => true,
            Ask::Save | Ask::Clone | Ask::Pause | Ask::Resume => true,
        }
    }
}

/// Why a request is refused in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Only a started machine can do this.
    NotStarted,
    /// Only a machine that has not been started can do this.
    AlreadyStarted,
    /// Only a machine that stands still can do this.
    NotPaused,
    /// The machine has ended.
    Ended,
}

/// The whole policy: `Ok` if `ask` is allowed in `phase`.
pub const fn permit(phase: Phase, ask: Ask) -> Result<(), Refusal> {
    match (phase, ask) {
        (Phase::Ended, _) => Err(Refusal::Ended),
        (_, Ask::Look | Ask::Tell | Ask::Shutdown) => Ok(()),
        (Phase::Configuring, Ask::Configure | Ask::Plug | Ask::Start | Ask::Load) => Ok(()),
        (Phase::Configuring, _) => Err(Refusal::NotStarted),
        (Phase::Running | Phase::Paused, Ask::Configure | Ask::Start | Ask::Load) => Err(Refusal::AlreadyStarted),
        (Phase::Running, Ask::Save) => Err(Refusal::NotPaused),
        (Phase::Running | Phase::Paused, _) => Ok(()),
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotStarted => Error::new(
                Kind::Phase,
                Subject::None,
                "The requested operation is not supported before starting the microVM.",
            ),
            Refusal::AlreadyStarted => Error::new(
                Kind::Phase,
                Subject::None,
                "The requested operation is not supported after starting the microVM.",
            ),
            Refusal::NotPaused => Error::new(
                Kind::Phase,
                Subject::SaveSnapshot,
                "Cannot save the microVM state: save/restore unavailable while running. Pause it first (PATCH /vm).",
            ),
            Refusal::Ended => Error::gone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table, written a second time in another shape: a row per ask, a column per phase.
    #[test]
    fn table_is_what_the_contract_says() {
        use Refusal::{AlreadyStarted as A, Ended as E, NotPaused as P, NotStarted as N};
        let rows = [
            (Ask::Look, [Ok(()), Ok(()), Ok(()), Err(E)]),
            (Ask::Tell, [Ok(()), Ok(()), Ok(()), Err(E)]),
            (Ask::Configure, [Ok(()), Err(A), Err(A), Err(E)]),
            (Ask::Reconfigure, [Err(N), Ok(()), Ok(()), Err(E)]),
            (Ask::Plug, [Ok(()), Ok(()), Ok(()), Err(E)]),
            (Ask::Start, [Ok(()), Err(A), Err(A), Err(E)]),
            (Ask::Load, [Ok(()), Err(A), Err(A), Err(E)]),
            (Ask::Save, [Err(N), Err(P), Ok(()), Err(E)]),
            (Ask::Clone, [Err(N), Ok(()), Ok(()), Err(E)]),
            (Ask::Pause, [Err(N), Ok(()), Ok(()), Err(E)]),
            (Ask::Resume, [Err(N), Ok(()), Ok(()), Err(E)]),
            (Ask::Act, [Err(N), Ok(()), Ok(()), Err(E)]),
            (Ask::Shutdown, [Ok(()), Ok(()), Ok(()), Err(E)]),
        ];
        assert_eq!(rows.len(), Ask::ALL.len());
        for (ask, expected) in rows {
            for (phase, expected) in Phase::ALL.into_iter().zip(expected) {
                assert_eq!(permit(phase, ask), expected, "{ask:?} while {phase:?}");
            }
        }
    }
}
