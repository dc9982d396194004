//! `mayfly-jailer`: will confine a VMM process before it starts (chroot, cgroups, namespaces, privileges).
//!
//! Not written yet. It says so and fails, so that nobody mistakes an unconfined VMM for a jailed one.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!(
        "mayfly-jailer {}: the jailer is not part of this version yet. Start `mayfly` directly, confined by your own means.",
        env!("CARGO_PKG_VERSION")
    );
    ExitCode::FAILURE
}
