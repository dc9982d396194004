//! Every route, once.

use axum::http::Method;

use super::{
    Answer, Call, actions, boot_source, cpu_config, drives, instance, logger, machine_config, metrics,
    network_interfaces, serial, vm,
};

/// A method on a resource.
pub(crate) struct Route {
    /// The method.
    pub(crate) method: Method,
    /// The pieces of the path that must be there; more are tolerated.
    pub(crate) pieces: &'static [&'static str],
    /// Whether an id follows.
    pub(crate) has_id: bool,
    /// What to do.
    pub(super) handle: for<'a> fn(&'a Call<'a>) -> Answer<'a>,
}

macro_rules! routes {
    ($($method:ident $($piece:literal)/ * $([$id:ident])? => $handle:path;)*) => {
        &[$(Route {
            method: Method::$method,
            pieces: &[$($piece),*],
            has_id: routes!(@id $($id)?),
            handle: |call| Box::pin($handle(call)),
        }),*]
    };
    (@id) => { false };
    (@id id) => { true };
}

/// The routes. A route whose pieces begin with those of another one comes before it.
pub(crate) static ROUTES: &[Route] = routes! {
    GET => instance::get;
    GET "version" => instance::get_version;
    GET "vm" / "config" => instance::get_config;
    PATCH "vm" => vm::patch;
    PUT "actions" => actions::put;
    PUT "boot-source" => boot_source::put;
    GET "machine-config" => machine_config::get;
    PUT "machine-config" => machine_config::put;
    PATCH "machine-config" => machine_config::patch;
    PUT "cpu-config" => cpu_config::put;
    PUT "drives" [id] => drives::put;
    PATCH "drives" [id] => drives::patch;
    DELETE "drives" [id] => drives::delete;
    PUT "network-interfaces" [id] => network_interfaces::put;
    PATCH "network-interfaces" [id] => network_interfaces::patch;
    DELETE "network-interfaces" [id] => network_interfaces::delete;
    PUT "serial" => serial::put;
    PUT "logger" => logger::put;
    PUT "metrics" => metrics::put;
};

/// Endpoints of the v1 API that this version does not have. They are named in the answer, so that a client sees what is missing
/// rather than suspecting a typing mistake.
const LATER: &[(Method, &[&str], &str)] = &[
    (Method::PUT, &["pmem"], "/pmem"),
    (Method::PATCH, &["pmem"], "/pmem"),
    (Method::DELETE, &["pmem"], "/pmem"),
    (Method::GET, &["balloon", "statistics"], "/balloon/statistics"),
    (Method::PATCH, &["balloon", "statistics"], "/balloon/statistics"),
    (Method::GET, &["balloon", "hinting", "status"], "/balloon/hinting/status"),
    (Method::PATCH, &["balloon", "hinting", "start"], "/balloon/hinting/start"),
    (Method::PATCH, &["balloon", "hinting", "stop"], "/balloon/hinting/stop"),
    (Method::GET, &["balloon"], "/balloon"),
    (Method::PUT, &["balloon"], "/balloon"),
    (Method::PATCH, &["balloon"], "/balloon"),
    (Method::PUT, &["vsock"], "/vsock"),
    (Method::PUT, &["entropy"], "/entropy"),
    (Method::GET, &["hotplug", "memory"], "/hotplug/memory"),
    (Method::PUT, &["hotplug", "memory"], "/hotplug/memory"),
    (Method::PATCH, &["hotplug", "memory"], "/hotplug/memory"),
    (Method::PUT, &["mmds", "config"], "/mmds/config"),
    (Method::GET, &["mmds"], "/mmds"),
    (Method::PUT, &["mmds"], "/mmds"),
    (Method::PATCH, &["mmds"], "/mmds"),
    (Method::PUT, &["snapshot", "create"], "/snapshot/create"),
    (Method::PUT, &["snapshot", "load"], "/snapshot/load"),
];

/// The route of a request and the id in its path (empty where there is none).
pub(crate) fn find<'p>(method: &Method, pieces: &[&'p str]) -> Option<(&'static Route, &'p str)> {
    let route = ROUTES.iter().find(|route| {
        route.method == *method
            && pieces.starts_with(route.pieces)
            // The root has no pieces, so it would match everything.
            && (!route.pieces.is_empty() || pieces.is_empty())
    })?;
    let id = if route.has_id { pieces.get(route.pieces.len()).copied().unwrap_or("") } else { "" };
    Some((route, id))
}

/// The v1 endpoint a request is meant for, if it is one that this version does not have.
pub(crate) fn known_elsewhere(method: &Method, pieces: &[&str]) -> Option<&'static str> {
    LATER.iter().find(|(m, p, _)| m == method && pieces.starts_with(p)).map(|&(_, _, endpoint)| endpoint)
}
