//! Every route, once.

use axum::http::Method;

use super::{
    Answer, Call, actions, balloon, boot_source, clones, confinement, cpu_config, drives, entropy, fs, hotplug,
    instance, logger, machine_config, metrics, mmds, network_interfaces, pmem, serial, snapshot, vm, vsock,
};

/// A method on a resource.
pub(crate) struct Route {
    /// The method.
    pub(crate) method: Method,
    /// The pieces of the path that must be there; more are tolerated.
    pub(crate) pieces: &'static [&'static str],
    /// Whether an id follows.
    pub(crate) has_id: bool,
    /// Whether the body may be left out, or sent where none is expected.
    pub(crate) body_optional: bool,
    /// What to do.
    pub(super) handle: for<'a> fn(&'a Call<'a>) -> Answer<'a>,
}

macro_rules! routes {
    ($($method:ident $($piece:literal)/ * $([$mark:tt])? => $handle:path;)*) => {
        &[$(Route {
            method: Method::$method,
            pieces: &[$($piece),*],
            has_id: routes!(@id $($mark)?),
            body_optional: routes!(@body $($mark)?),
            handle: |call| Box::pin($handle(call)),
        }),*]
    };
    (@id id) => { true };
    (@id $($other:tt)?) => { false };
    (@body ?) => { true };
    (@body $($other:tt)?) => { false };
}

/// The routes: `[id]` after the pieces asks for an id, `[?]` says that the body may be left out. A route whose pieces begin with those of
/// another one comes before it.
pub(crate) static ROUTES: &[Route] = routes! {
    GET => instance::get;
    GET "version" => instance::get_version;
    GET "confinement" => confinement::get;
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
    PUT "pmem" [id] => pmem::put;
    PATCH "pmem" [id] => pmem::patch;
    DELETE "pmem" [id] => pmem::delete;
    PUT "fs" [id] => fs::put;
    GET "balloon" / "statistics" => balloon::get_statistics;
    PATCH "balloon" / "statistics" => balloon::patch_statistics;
    GET "balloon" / "hinting" / "status" => balloon::get_hinting;
    PATCH "balloon" / "hinting" / "start" [?] => balloon::start_hinting;
    PATCH "balloon" / "hinting" / "stop" [?] => balloon::stop_hinting;
    GET "balloon" => balloon::get;
    PUT "balloon" => balloon::put;
    PATCH "balloon" => balloon::patch;
    PUT "vsock" => vsock::put;
    PUT "entropy" => entropy::put;
    GET "hotplug" / "memory" => hotplug::get_memory;
    PUT "hotplug" / "memory" => hotplug::put_memory;
    PATCH "hotplug" / "memory" => hotplug::patch_memory;
    GET "hotplug" / "vcpus" => hotplug::get_vcpus;
    PATCH "hotplug" / "vcpus" => hotplug::patch_vcpus;
    PUT "mmds" / "config" => mmds::put_config;
    GET "mmds" => mmds::get;
    PUT "mmds" => mmds::put;
    PATCH "mmds" => mmds::patch;
    PUT "serial" => serial::put;
    PUT "logger" => logger::put;
    PUT "metrics" => metrics::put;
    PUT "snapshot" / "create" => snapshot::create;
    PUT "snapshot" / "load" => snapshot::load;
    PUT "snapshot" / "restore" => snapshot::restore;
    GET "snapshot" / "progress" => snapshot::progress;
    DELETE "snapshot" / "progress" => snapshot::cancel;
    POST "clones" => clones::post;
};

/// The route of a request.
pub(crate) struct Found<'p> {
    pub(crate) route: &'static Route,
    /// The id in the path; empty where there is none.
    pub(crate) id: &'p str,
    /// The pieces of the path the route does not ask for.
    pub(crate) rest: &'p [&'p str],
}

/// Finds the route of a request.
pub(crate) fn find<'p>(method: &Method, pieces: &'p [&'p str]) -> Option<Found<'p>> {
    ROUTES.iter().filter(|route| route.method == *method).find_map(|route| {
        let rest = pieces.strip_prefix(route.pieces)?;
        match rest {
            [id, rest @ ..] if route.has_id => Some(Found { route, id, rest }),
            // The root has no pieces, so it would match everything.
            [_, ..] if route.pieces.is_empty() => None,
            _ => Some(Found { route, id: "", rest }),
        }
    })
}
