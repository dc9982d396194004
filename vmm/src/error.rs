//! What goes wrong below the porch, said once.
//!
//! [`Error`] is what a refused request gets back. It knows a kind (how the caller should react) and a subject (which part of the
//! configuration it concerns), but nothing of HTTP: `api-server` maps kinds to status codes in one place.

use std::fmt;

/// How the caller should read a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A value in the request is wrong.
    Invalid,
    /// The request is valid but not in this phase of the machine's life.
    Phase,
    /// The request is valid but this build does not offer it.
    Unsupported,
    /// The host refused something (a file, a tap, KVM, memory).
    Host,
    /// The value does not fit a limit (HTTP 413).
    TooLarge,
    /// The VMM has ended and takes no more requests.
    Gone,
}

/// The part of the machine an error is about. Its prefix starts the message, as clients of the v1 API expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// No prefix.
    None,
    /// `/boot-source`.
    BootSource,
    /// `/machine-config`.
    Machine,
    /// `/drives`.
    Drive,
    /// `/network-interfaces`.
    Network,
    /// `/serial`.
    Serial,
    /// `/balloon` before the start.
    Balloon,
    /// `/balloon` of a started machine.
    BalloonUpdate,
    /// `/cpu-config`.
    Cpu,
    /// `/entropy`.
    Entropy,
    /// `/pmem`.
    Pmem,
    /// `/fs`.
    Fs,
    /// `/hotplug/memory` before the start.
    MemoryHotplug,
    /// `/hotplug/memory` of a started machine.
    MemoryHotplugUpdate,
    /// `/hotplug/vcpus` of a started machine.
    VcpuHotplug,
    /// Devices of a started machine.
    Pci,
    /// `/mmds`.
    Mmds,
    /// `/mmds`, when it does not fit.
    MmdsLimit,
    /// `/mmds/config`.
    MmdsConfig,
    /// `/vsock`.
    Vsock,
    /// `/snapshot/create`.
    SaveSnapshot,
    /// `/snapshot/load`.
    LoadSnapshot,
    /// `/clones`.
    Clone,
    /// `InstanceStart`.
    Start,
    /// Anything after start that is not the caller's doing.
    Internal,
}

impl Subject {
    /// The text that starts a message about this subject (v1 contract, "error prefix by subsystem").
    pub const fn prefix(self) -> &'static str {
        match self {
            Subject::None => "",
            Subject::BootSource => "Boot source error: ",
            Subject::Machine => "Machine config error: ",
            Subject::Drive => "Drive config error: ",
            Subject::Network => "Network config error: ",
            Subject::Serial => "Serial config error: ",
            Subject::Balloon => "Balloon config error: ",
            Subject::BalloonUpdate => "Balloon update error: ",
            Subject::Cpu => "Configure CPU error: ",
            Subject::Entropy => "Entropy config error: ",
            Subject::Pmem => "Pmem config error: ",
            Subject::Fs => "File system config error: ",
            Subject::MemoryHotplug => "Memory hotplug config error: ",
            Subject::MemoryHotplugUpdate => "Memory hotplug update error: ",
            Subject::VcpuHotplug => "vCPU hotplug update error: ",
            Subject::Pci => "PCI manager error: ",
            Subject::Mmds => "MMDS error: ",
            Subject::MmdsLimit => "MMDS limit exceeded error: ",
            // Three Ms: existing clients compare this text.
            Subject::MmdsConfig => "MMMDS config error: ",
            Subject::Vsock => "Vsock config error: ",
            Subject::SaveSnapshot => "Create snapshot error: ",
            Subject::LoadSnapshot => "Load snapshot error: ",
            Subject::Clone => "Clone error: ",
            Subject::Start => "Start microvm error: ",
            Subject::Internal => "Internal VMM error: ",
        }
    }
}

/// A refused request. The machine is as it was before the request.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    subject: Subject,
    what: String,
}

impl Error {
    /// Says what is wrong with which part; `what` names the field, the value and the remedy where there is one.
    pub fn new(kind: Kind, subject: Subject, what: impl fmt::Display) -> Self {
        Self { kind, subject, what: what.to_string() }
    }

    /// [`Kind::Invalid`].
    pub fn invalid(subject: Subject, what: impl fmt::Display) -> Self {
        Self::new(Kind::Invalid, subject, what)
    }

    /// [`Kind::Host`].
    pub fn host(subject: Subject, what: impl fmt::Display) -> Self {
        Self::new(Kind::Host, subject, what)
    }

    /// The VMM thread has ended.
    pub fn gone() -> Self {
        Self::new(Kind::Gone, Subject::None, "The microVM has ended.")
    }

    /// How the caller should react.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What is wrong, without saying with which part.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Which part of the machine it concerns.
    pub fn subject(&self) -> Subject {
        self.subject
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.subject.prefix(), self.what)
    }
}

impl std::error::Error for Error {}
