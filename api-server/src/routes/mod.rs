//! From a method, a path and a body to a request of the VMM.
//!
//! [`table`] lists every route once; each resource has a file with its handlers. A handler reads the body into a `wire` struct, turns
//! it into a `vmm` request and says what to answer; it never blocks. Routing goes by path pieces, as v1 clients expect: leading and
//! trailing slashes and pieces nobody reads do not matter.

mod actions;
mod balloon;
mod boot_source;
mod clones;
mod confinement;
mod cpu_config;
mod drives;
mod entropy;
mod fs;
mod hotplug;
mod instance;
mod logger;
mod machine_config;
mod metrics;
mod mmds;
mod network_interfaces;
mod pmem;
mod serial;
mod snapshot;
mod table;
mod vm;
mod vsock;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::http::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vmm::config::ResourceId;
use vmm::machine::DeviceName;
use vmm::requests::Unplug;
use vmm::telemetry::{Stored, microseconds};
use vmm::{Ask, Error};

use crate::app::App;
use crate::error::Fault;
use crate::wire::Later;

/// What a handler answers: nothing (204) or a JSON text (200).
pub(crate) type Reply = Option<Vec<u8>>;

type Answer<'a> = Pin<Box<dyn Future<Output = Result<Reply, Fault>> + Send + 'a>>;

/// One request on its way through a handler.
pub(crate) struct Call<'a> {
    app: &'a App,
    /// The path piece after the resource, for resources that have ids.
    id: &'a str,
    /// The path pieces that the route does not ask for.
    rest: &'a [&'a str],
    body: &'a [u8],
    deprecated: AtomicBool,
}

/// What came of a request.
pub(crate) struct Served {
    /// The answer.
    pub(crate) outcome: Result<Reply, Fault>,
    /// Whether a deprecated field was used; the answer says so in a header, whether it succeeded or not.
    pub(crate) deprecated: bool,
}

impl<'a> Call<'a> {
    fn deprecate_if(&self, used: bool) {
        self.deprecated.fetch_or(used, Ordering::Relaxed);
    }

    fn json<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        // serde would also take an array for a struct, its fields by position. Nobody means that.
        if self.body.trim_ascii_start().starts_with(b"[") {
            return Err(Fault::json(&serde::de::Error::custom("invalid type: sequence, expected an object")));
        }
        serde_json::from_slice(self.body).map_err(|e| Fault::json(&e))
    }

    /// The id in the path, well formed.
    fn id(&self) -> Result<ResourceId, Fault> {
        ResourceId::try_from(self.id).map_err(|e| Fault::bad_request(e.to_string()))
    }

    /// Unwraps a value that was asked for. A wrong one is a reason to refuse only where it would have been allowed.
    async fn valid<T>(&self, value: Result<T, Error>, ask: Ask) -> Result<T, Fault> {
        match value {
            Ok(value) => Ok(value),
            Err(refusal) => {
                self.app.permit(ask).await?;
                Err(refusal.into())
            }
        }
    }

    /// DELETE of a device: `?force=true` does not ask the guest, `?timeout_ms=N` says how long to wait for it.
    async fn unplug(&self, name: impl FnOnce(ResourceId) -> DeviceName) -> Result<Reply, Fault> {
        // A query is part of the path, as in the contract, where no path has one. It may come after a slash that does not matter.
        let id = self.id.split('?').next().unwrap_or_default();
        let pieces = std::iter::once(self.id).chain(self.rest.iter().copied());
        let query = pieces.filter_map(|piece| piece.split_once('?')).map(|(_, query)| query).next().unwrap_or_default();
        let name = name(ResourceId::try_from(id).map_err(|e| Fault::bad_request(e.to_string()))?);
        let (mut force, mut patience) = (false, Unplug::PATIENCE);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let bad = || {
                Fault::bad_request(format!(
                    "{pair} is no parameter of this request: it takes force=true, force=false and timeout_ms, a number of milliseconds."
                ))
            };
            match pair.split_once('=') {
                Some(("force", "true")) => force = true,
                Some(("force", "false")) => force = false,
                Some(("timeout_ms", text)) => {
                    patience = Duration::from_millis(text.parse::<u32>().map_err(|_| bad())?.into())
                }
                _ => return Err(bad()),
            }
        }
        self.app.ask(Unplug { name, force, patience }).await?;
        DONE
    }

    /// Refuses what this version does not do, but only where it would have been allowed.
    async fn refuse_later(&self, later: Option<Later>, ask: Ask) -> Result<(), Fault> {
        match later {
            None => Ok(()),
            Some(later) => {
                self.app.permit(ask).await?;
                Err(later.into())
            }
        }
    }
}

/// 200 with `value`.
fn found(value: &impl Serialize) -> Result<Reply, Fault> {
    serde_json::to_vec(value).map(Some).map_err(|e| Fault::bad_request(format!("The answer cannot be shown: {e}.")))
}

/// Keeps and logs how long a request took whose time v1's clients look for.
fn took(what: &str, asked: Instant, latency: &Stored) {
    let us = microseconds(asked.elapsed());
    latency.set(us);
    log::info!("'{what}' API request took {us} us.");
}

/// 204.
const DONE: Result<Reply, Fault> = Ok(None);

/// Refuses a method on a path, `path` being what the contract names of it.
fn unknown(method: &Method, path: &str) -> Fault {
    Fault::bad_request(format!("Invalid request method and/or path: {method} {path}."))
}

/// Refuses what has no route.
fn nowhere(method: &Method, pieces: &[&str]) -> Fault {
    match (method.as_str(), pieces) {
        ("PUT", ["snapshot"]) => Fault::bad_request("Missing snapshot operation type."),
        ("PUT", ["snapshot", piece, ..]) => unknown(method, &format!("/snapshot/{piece}")),
        (_, [first, ..]) => unknown(method, first),
        (_, []) => unknown(method, ""),
    }
}

/// Finds the handler of a request and runs it.
pub(crate) async fn serve(app: &App, method: &Method, path: &str, body: &[u8]) -> Served {
    app.narrow();
    let served = handle(app, method, path, body).await;
    app.narrow();
    served
}

async fn handle(app: &App, method: &Method, path: &str, body: &[u8]) -> Served {
    let refused = |fault| Served { outcome: Err(fault), deprecated: false };
    let pieces: Vec<&str> = path.split('/').filter(|piece| !piece.is_empty()).collect();
    let found = table::find(method, &pieces);
    // Judged before the path, so it holds for unknown paths too.
    if !found.as_ref().is_some_and(|found| found.route.body_optional)
        && let Err(fault) = check_body(method, body)
    {
        return refused(fault);
    }
    let Some(table::Found { route, id, rest }) = found else {
        return refused(nowhere(method, &pieces));
    };
    let call = Call { app, id, rest, body, deprecated: AtomicBool::new(false) };
    let outcome = (route.handle)(&call).await;
    Served { outcome, deprecated: call.deprecated.into_inner() }
}

/// How the contract writes a method in log lines.
pub(crate) fn word(method: &Method) -> &str {
    match method.as_str() {
        "GET" => "Get",
        "PUT" => "Put",
        "POST" => "Post",
        "PATCH" => "Patch",
        "DELETE" => "Delete",
        other => other,
    }
}

/// Which methods want a body.
fn check_body(method: &Method, body: &[u8]) -> Result<(), Fault> {
    let text = match (method.as_str(), body.is_empty()) {
        ("GET", false) => "GET request cannot have a body.",
        ("PUT", true) => "Empty PUT request.",
        ("PATCH", true) => "Empty PATCH request.",
        ("POST", true) => "Empty POST request.",
        ("DELETE", false) => "Empty Delete request.",
        _ => return Ok(()),
    };
    Err(Fault::bad_request(text))
}

#[cfg(test)]
mod tests;
