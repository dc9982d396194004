//! What the API counts: requests by route, and how the process began.

use axum::http::Method;
use vmm::telemetry::Counter;

vmm::telemetry::metric_group! {
    /// How long it took from a moment the caller knows until the API answered.
    pub struct ApiServerMetrics {
        /// Since `--start-time-us`.
        process_startup_time_us: Stored,
        /// CPU time since `--start-time-cpu-us`, the caller's own included.
        process_startup_time_cpu_us: Stored,
    }
}

vmm::telemetry::metric_group! {
    /// Uses of what is deprecated.
    pub struct DeprecatedMetrics {
        /// Requests.
        deprecated_http_api_calls: Counter,
    }
}

vmm::telemetry::metric_group! {
    /// GET requests.
    pub struct GetMetrics {
        /// `/`
        instance_info_count: Counter,
        /// `/machine-config`
        machine_cfg_count: Counter,
        /// `/mmds`
        mmds_count: Counter,
        /// `/version`
        vmm_version_count: Counter,
        /// `/hotplug/memory`
        hotplug_memory_count: Counter,
    }
}

vmm::telemetry::metric_group! {
    /// PATCH requests, and those that were refused.
    pub struct PatchMetrics {
        /// `/drives`
        drive_count: Counter,
        /// `/drives`
        drive_fails: Counter,
        /// `/network-interfaces`
        network_count: Counter,
        /// `/network-interfaces`
        network_fails: Counter,
        /// `/machine-config`
        machine_cfg_count: Counter,
        /// `/machine-config`
        machine_cfg_fails: Counter,
        /// `/mmds`
        mmds_count: Counter,
        /// `/mmds`
        mmds_fails: Counter,
        /// `/hotplug/memory`
        hotplug_memory_count: Counter,
        /// `/hotplug/memory`
        hotplug_memory_fails: Counter,
        /// `/pmem`
        pmem_count: Counter,
        /// `/pmem`
        pmem_fails: Counter,
    }
}

vmm::telemetry::metric_group! {
    /// PUT requests, and those that were refused.
    pub struct PutMetrics {
        /// `/actions`
        actions_count: Counter,
        /// `/actions`
        actions_fails: Counter,
        /// `/boot-source`
        boot_source_count: Counter,
        /// `/boot-source`
        boot_source_fails: Counter,
        /// `/drives`
        drive_count: Counter,
        /// `/drives`
        drive_fails: Counter,
        /// `/logger`
        logger_count: Counter,
        /// `/logger`
        logger_fails: Counter,
        /// `/machine-config`
        machine_cfg_count: Counter,
        /// `/machine-config`
        machine_cfg_fails: Counter,
        /// `/cpu-config`
        cpu_cfg_count: Counter,
        /// `/cpu-config`
        cpu_cfg_fails: Counter,
        /// `/metrics`
        metrics_count: Counter,
        /// `/metrics`
        metrics_fails: Counter,
        /// `/network-interfaces`
        network_count: Counter,
        /// `/network-interfaces`
        network_fails: Counter,
        /// `/mmds` and `/mmds/config`
        mmds_count: Counter,
        /// `/mmds` and `/mmds/config`
        mmds_fails: Counter,
        /// `/vsock`
        vsock_count: Counter,
        /// `/vsock`
        vsock_fails: Counter,
        /// `/pmem`
        pmem_count: Counter,
        /// `/pmem`
        pmem_fails: Counter,
        /// `/serial`
        serial_count: Counter,
        /// `/serial`
        serial_fails: Counter,
        /// `/hotplug/memory`
        hotplug_memory_count: Counter,
        /// `/hotplug/memory`
        hotplug_memory_fails: Counter,
    }
}

/// Of the process.
pub(crate) static API_SERVER: ApiServerMetrics = ApiServerMetrics::new();
pub(super) static DEPRECATED: DeprecatedMetrics = DeprecatedMetrics::new();
pub(super) static GET: GetMetrics = GetMetrics::new();
pub(super) static PATCH: PatchMetrics = PatchMetrics::new();
pub(super) static PUT: PutMetrics = PutMetrics::new();

/// Counts a request for something deprecated.
pub(crate) fn note_deprecated() {
    DEPRECATED.deprecated_http_api_calls.inc();
}

/// Counts a request that was answered. The one place that knows which routes the contract counts; all others are not.
pub(crate) fn count_request(method: &Method, path: &str, succeeded: bool) {
    let mut pieces = path.split('/').filter(|piece| !piece.is_empty());
    let (first, second) = (pieces.next().unwrap_or(""), pieces.next().unwrap_or(""));
    let Some((count, fails)) = counters(method, first, second) else { return };
    count.inc();
    if let Some(fails) = fails
        && !succeeded
    {
        fails.inc();
    }
}

type Counters = (&'static Counter, Option<&'static Counter>);

fn counters(method: &Method, first: &str, second: &str) -> Option<Counters> {
    let (count, fails) = match (method.as_str(), first, second) {
        ("GET", "", _) => return Some((&GET.instance_info_count, None)),
        ("GET", "machine-config", _) => return Some((&GET.machine_cfg_count, None)),
        ("GET", "mmds", _) => return Some((&GET.mmds_count, None)),
        ("GET", "version", _) => return Some((&GET.vmm_version_count, None)),
        ("GET", "hotplug", "memory") => return Some((&GET.hotplug_memory_count, None)),
        ("PATCH", "drives", _) => (&PATCH.drive_count, &PATCH.drive_fails),
        ("PATCH", "network-interfaces", _) => (&PATCH.network_count, &PATCH.network_fails),
        ("PATCH", "machine-config", _) => (&PATCH.machine_cfg_count, &PATCH.machine_cfg_fails),
        ("PATCH", "mmds", _) => (&PATCH.mmds_count, &PATCH.mmds_fails),
        ("PATCH", "hotplug", "memory") => (&PATCH.hotplug_memory_count, &PATCH.hotplug_memory_fails),
        ("PATCH", "pmem", _) => (&PATCH.pmem_count, &PATCH.pmem_fails),
        ("PUT", "actions", _) => (&PUT.actions_count, &PUT.actions_fails),
        ("PUT", "boot-source", _) => (&PUT.boot_source_count, &PUT.boot_source_fails),
        ("PUT", "drives", _) => (&PUT.drive_count, &PUT.drive_fails),
        ("PUT", "logger", _) => (&PUT.logger_count, &PUT.logger_fails),
        ("PUT", "machine-config", _) => (&PUT.machine_cfg_count, &PUT.machine_cfg_fails),
        ("PUT", "cpu-config", _) => (&PUT.cpu_cfg_count, &PUT.cpu_cfg_fails),
        ("PUT", "metrics", _) => (&PUT.metrics_count, &PUT.metrics_fails),
        ("PUT", "network-interfaces", _) => (&PUT.network_count, &PUT.network_fails),
        ("PUT", "mmds", _) => (&PUT.mmds_count, &PUT.mmds_fails),
        ("PUT", "vsock", _) => (&PUT.vsock_count, &PUT.vsock_fails),
        ("PUT", "pmem", _) => (&PUT.pmem_count, &PUT.pmem_fails),
        ("PUT", "serial", _) => (&PUT.serial_count, &PUT.serial_fails),
        ("PUT", "hotplug", "memory") => (&PUT.hotplug_memory_count, &PUT.hotplug_memory_fails),
        _ => return None,
    };
    Some((count, Some(fails)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use vmm::telemetry::{Metric, MetricGroup};

    /// Every counter of the three groups belongs to some route.
    #[test]
    fn every_counter_is_reached() {
        let address = |counter: &Counter| std::ptr::from_ref(counter) as usize;
        let firsts = [
            "",
            "machine-config",
            "mmds",
            "version",
            "drives",
            "network-interfaces",
            "pmem",
            "actions",
            "boot-source",
            "logger",
            "cpu-config",
            "metrics",
            "vsock",
            "serial",
        ];
        let routes = firsts.into_iter().map(|first| (first, "x")).chain([("hotplug", "memory")]);
        let mut reached = BTreeSet::new();
        for (first, second) in routes {
            for method in [Method::GET, Method::PUT, Method::PATCH] {
                let Some((count, fails)) = counters(&method, first, second) else { continue };
                reached.insert(address(count));
                reached.extend(fails.map(address));
            }
        }
        let mut there = BTreeSet::new();
        for group in [&GET as &dyn MetricGroup, &PUT, &PATCH] {
            group.v1(&mut |_, metric| match metric {
                Metric::Counter(counter) => assert!(there.insert(address(counter))),
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(reached, there);
        assert!(counters(&Method::GET, "vm", "config").is_none());
        assert!(counters(&Method::PUT, "hotplug", "").is_none());
    }
}
