//! The binary over its real socket.
//!
//! | module | question it answers |
//! |---|---|
//! | [`contract`] | is `openapi.yaml` what the binary does |
//! | [`phases`] | which request is allowed before the start, while running, while paused |
//! | [`http`] | does it speak HTTP as v1 clients do, whatever they send |
//! | [`input`] | are wrong values and hostile paths refused without a trace |
//! | [`process`] | command line, socket, log, exit codes |
//!
//! [`phases`] and parts of the others start the bare-metal guest and need `/dev/kvm`; taps need root.

mod contract;
mod http;
mod input;
mod phases;
mod process;

use std::path::PathBuf;

use mayfly_tests::VmmBuilder;

/// Kernel command line of a guest that runs until it is stopped.
const SPIN: &str = "mayfly.mode=spin";

/// The bare-metal guest as a file in the directory of a VMM that has not been started yet.
fn guest_kernel(builder: &VmmBuilder) -> PathBuf {
    builder.file("guest.elf", guest::ELF)
}
