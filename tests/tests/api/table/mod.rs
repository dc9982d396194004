//! What every request is answered in every phase, as data.
//!
//! | module | rows about |
//! |---|---|
//! | [`machine`] | the instance, its start, what it boots, where it logs, snapshots |
//! | [`devices`] | drives, network interfaces, persistent memory, sockets, entropy |
//! | [`memory`] | the balloon and hot-pluggable memory |
//! | [`mmds`] | the metadata service |
//! | [`wrong`] | methods that a path does not have |
//!
//! Written down from the v1 contract, not from the code. Running and paused machines answer the same.

mod devices;
mod machine;
mod memory;
mod mmds;
pub(crate) mod wrong;

use serde_json::{Value, json};

pub(crate) const BEFORE: &str = "The requested operation is not supported before starting the microVM.";
pub(crate) const AFTER: &str = "The requested operation is not supported after starting the microVM.";
const NO_PCI: &str = "PCI is not enabled";
const IN_USE: &str = "Device ID in use";
const NO_ID: &str = "The ID cannot be empty.";
const BAD_ID: &str = "API Resource IDs can only contain alphanumeric characters and underscores.";
const OTHER_ID: &str = "The id from the path does not match the id from the body!";
const EMPTY_PATCH: &str = "Empty PATCH request.";

/// What is answered.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    /// 200 and JSON.
    Found,
    /// 204 and nothing.
    Done,
    /// 400 and this text.
    Fault(&'static str),
    /// 400 and a text that begins so.
    Begins(&'static str),
    /// 400 because the body is not what it should be, with this behind the contract's words.
    Json(&'static str),
    /// Not to be sent: it would make the machine another one.
    NotSent,
}
use Answer::{Begins, Done, Fault, Found, Json, NotSent};

/// One request and its answers.
pub(crate) struct Row {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) body: Option<Value>,
    /// Of a machine that has every device: before the start, and after it.
    pub(crate) with: [Answer; 2],
    /// The same of a machine that has none.
    pub(crate) without: [Answer; 2],
}

impl Row {
    /// The same request, answered otherwise by a machine that has no devices.
    fn without(self, without: [Answer; 2]) -> Self {
        Self { without, ..self }
    }
}

/// A request that does not depend on what the machine has.
fn row(method: &'static str, path: &'static str, body: impl Into<Option<Value>>, answers: [Answer; 2]) -> Row {
    Row { method, path, body: body.into(), with: answers, without: answers }
}

/// A request that is answered the same in every phase.
fn always(method: &'static str, path: &'static str, body: impl Into<Option<Value>>, answer: Answer) -> Row {
    row(method, path, body, [answer, answer])
}

/// Configuration, which belongs before the start. It would give a device to the machine that is to have none.
fn configure(path: &'static str, body: Value) -> Row {
    row("PUT", path, body, [Done, Fault(AFTER)]).without([NotSent, Fault(AFTER)])
}

/// Configuration that is refused before the start, too.
fn misconfigure(path: &'static str, body: Value, why: &'static str) -> Row {
    row("PUT", path, body, [Fault(why), Fault(AFTER)])
}

/// What belongs after the start, to a device that may be missing.
fn change(
    method: &'static str,
    path: &'static str,
    body: impl Into<Option<Value>>,
    with: Answer,
    without: &'static str,
) -> Row {
    row(method, path, body, [Fault(BEFORE), with]).without([Fault(BEFORE), Fault(without)])
}

/// What bodies name.
pub(crate) struct World {
    pub(crate) kernel: String,
    pub(crate) disk: String,
    pub(crate) tap: String,
    pub(crate) console: String,
    pub(crate) vsock: String,
}

/// Every row. Those that configure a device come before those that need it.
pub(crate) fn rows(world: &World) -> Vec<Row> {
    [machine::rows(world), devices::rows(world), memory::rows(), mmds::rows()].into_iter().flatten().collect()
}
