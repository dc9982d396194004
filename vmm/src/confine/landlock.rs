//! Landlock domains (Documentation/userspace-api/landlock.rst): what no thread ever needs, and what no thread needs once the guest runs.
//! As much of it as the kernel knows; a kernel without it is told of, and is no error.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys::landlock::{self as sys, Ruleset};

/// What Landlock can do here, and does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Version of its interface; `None` where it is missing or switched off.
    pub abi: Option<u32>,
    /// Whether the process's domain is in force.
    pub process: bool,
}

static ABI: OnceLock<Option<u32>> = OnceLock::new();
static IN_FORCE: AtomicBool = AtomicBool::new(false);

/// What Landlock can do here.
pub fn state() -> State {
    State { abi: *ABI.get_or_init(sys::abi), process: IN_FORCE.load(Ordering::Relaxed) }
}

/// For the process: the calling thread and those it starts from now on run no programs, make no device nodes, directories, links or FIFOs,
/// use no TCP, and reach neither abstract sockets nor processes outside. Nothing of that is ever needed, so nothing can miss it.
pub fn forbid_the_unneeded() {
    let Some(abi) = state().abi else { return };
    let ruleset = Ruleset {
        files: sys::known(
            abi,
            sys::EXECUTE
                | sys::MAKE_CHAR
                | sys::MAKE_BLOCK
                | sys::MAKE_DIR
                | sys::MAKE_FIFO
                | sys::MAKE_SYM
                | sys::REMOVE_DIR
                | sys::REFER,
        ),
        tcp: if abi >= 4 { sys::BIND_TCP | sys::CONNECT_TCP } else { 0 },
        scoped: if abi >= 6 { sys::ABSTRACT_SOCKETS | sys::SIGNALS } else { 0 },
    };
    IN_FORCE.store(tell("the process", ruleset.enforce()), Ordering::Relaxed);
}

/// For the calling thread: no file can be opened, made or cut any more. Open ones stay as they are. Whether it is in force.
pub(super) fn forbid_files() -> bool {
    let Some(abi) = state().abi else { return false };
    let files = sys::READ_FILE
        | sys::WRITE_FILE
        | sys::READ_DIR
        | sys::MAKE_REG
        | sys::MAKE_SOCK
        | sys::TRUNCATE
        | sys::IOCTL_DEVICE;
    tell("a thread", Ruleset { files: sys::known(abi, files), tcp: 0, scoped: 0 }.enforce())
}

fn tell(whom: &str, outcome: io::Result<()>) -> bool {
    if let Err(error) = &outcome {
        log::warn!("Landlock does not confine {whom}: {error}");
    }
    outcome.is_ok()
}
