//! Under which name the binary runs.
//!
//! Tools that were written for Firecracker look for its name and compare its version, so a copy or hard link called `firecracker`
//! presents itself as that; under any other name this is Mayfly.

use std::ffi::OsStr;
use std::path::Path;

use vmm::threads::Names;

/// Version of the v1 API contract that is followed, as a Firecracker release.
const FIRECRACKER_VERSION: &str = "1.17.0";

/// Who we say we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Ourselves.
    Mayfly,
    /// Invoked as `firecracker`.
    Firecracker,
}

impl Identity {
    /// Decides by the last part of `argv[0]`.
    pub(crate) fn of(argv0: &OsStr) -> Self {
        match Path::new(argv0).file_name() {
            Some(name) if name == "firecracker" => Self::Firecracker,
            _ => Self::Mayfly,
        }
    }

    /// Name shown in logs and in `GET /`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mayfly => "Mayfly",
            Self::Firecracker => "Firecracker",
        }
    }

    /// Version shown by `--version` and `GET /version`.
    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::Mayfly => env!("CARGO_PKG_VERSION"),
            Self::Firecracker => FIRECRACKER_VERSION,
        }
    }

    /// Where the API socket is unless told otherwise.
    pub(crate) fn default_socket(self) -> &'static str {
        match self {
            Self::Mayfly => "/run/mayfly.socket",
            Self::Firecracker => "/run/firecracker.socket",
        }
    }

    /// What threads are called.
    pub(crate) fn thread_names(self) -> Names {
        match self {
            Self::Mayfly => Names::Mayfly,
            Self::Firecracker => Names::Firecracker,
        }
    }

    /// Who may connect to the API socket, before the umask: the owner alone, or as with the reference whomever the umask leaves.
    pub(crate) fn socket_mode(self) -> u32 {
        match self {
            Self::Mayfly => 0o600,
            Self::Firecracker => 0o777,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_the_path_decides() {
        for (argv0, identity) in [
            ("mayfly", Identity::Mayfly),
            ("/usr/bin/firecracker", Identity::Firecracker),
            ("firecracker", Identity::Firecracker),
            ("/firecracker/mayfly", Identity::Mayfly),
            ("firecracker-v1", Identity::Mayfly),
            ("", Identity::Mayfly),
        ] {
            assert_eq!(Identity::of(OsStr::new(argv0)), identity, "{argv0}");
        }
    }
}
