//! The harness shared by every integration test: it starts the real `mayfly`
//! binary, talks HTTP over its Unix socket and reads what it prints.
//!
//! Called by `tests/tests/*.rs` and by the benches. It knows the binaries, the
//! v1 API's shape and the kernel's public interfaces (`/dev/kvm`, taps); it must
//! not know the inside of any other crate.
//!
//! | module | question it answers |
//! |---|---|
//! | [`backend`] | processes that serve devices |
//! | [`binary`] | where is the binary under test, and may this machine run it |
//! | [`vmm`] | how to start, configure, watch and end one VMM process |
//! | [`http`] | what exactly went over the socket |
//! | [`lines`] | did this line appear before the deadline |
//! | [`metrics`] | is this line of metrics one that a strict reader takes |
//! | [`disk`] | backing files with known content |
//! | [`slow_disk`] | a file that answers when the test says so |
//! | [`stock`] | what is inside a distribution's kernel image, what goes into an initramfs |
//! | [`tap`] | a network the test owns alone |
//!
//! Every wait has a deadline, and a wait that fails prints what was captured.

pub mod backend;
pub mod binary;
pub mod disk;
pub mod http;
pub mod lines;
pub mod metrics;
pub mod slow_disk;
pub mod stock;
pub mod sys;
pub mod tap;
pub mod vmm;

pub use disk::Disk;
pub use http::{Client, Response};
pub use lines::Lines;
pub use slow_disk::SlowDisk;
pub use tap::{PacketSocket, Tap};
pub use vmm::{Vmm, VmmBuilder, on_pci};

/// How long a test waits for something that normally takes milliseconds.
///
/// Generous on purpose: CI shares two cores between the tests, and a deadline
/// that fires is a failure, never a synchronisation.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// Makes a call again as long as something interrupts it.
///
/// What has a deadline of its own is not begun again by the kernel after a signal, or after the process, or the machine it runs on, was
/// stopped for a while (signal(7)).
///
/// # Errors
/// What the call says else.
pub fn uninterrupted<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
