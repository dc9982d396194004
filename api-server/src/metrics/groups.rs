//! What is in a line: every group of the v1 contract, in its order. Strict readers refuse a line that lacks a group or has another one,
//! so groups of things that a machine does not have are there, too, and all zero.

use vmm::telemetry::{
    Counter, Group as Numbers, INTERRUPTS, LATENCIES, LOGGER, Latency, Metric, MetricGroup, NO_BLOCK, NO_I8042, NO_NET,
    NO_UART, NO_VCPU, Registry, SECCOMP, SIGNALS, VMM,
};

use super::api::{API_SERVER, DEPRECATED, GET, PATCH, PUT};

/// A group of a line.
pub(super) struct Group {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    /// What is shown when the registry has no such group: its names, and zeroes.
    pub(super) blank: &'static dyn MetricGroup,
}

/// How a group is made of those in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// There is one at most.
    One,
    /// One of the process, which is entered at the start.
    Process,
    /// Each is shown as `name_id`, and their sum as `name`. Of durations the contract wants sums only there.
    EachAndSum,
    /// Only their sum is shown.
    Sum,
}

use Shape::{EachAndSum, One, Process, Sum};

const fn group(name: &'static str, shape: Shape, blank: &'static dyn MetricGroup) -> Group {
    Group { name, shape, blank }
}

/// The groups.
pub(super) static GROUPS: &[Group] = &[
    group("api_server", Process, &API_SERVER),
    group("balloon", One, &BALLOON),
    group("block", EachAndSum, &NO_BLOCK),
    group("deprecated_api", Process, &DEPRECATED),
    group("get_api_requests", Process, &GET),
    group("patch_api_requests", Process, &PATCH),
    group("put_api_requests", Process, &PUT),
    group("i8042", One, &NO_I8042),
    group("latencies_us", Process, &LATENCIES),
    group("logger", Process, &LOGGER),
    group("mmds", One, &MMDS),
    group("net", EachAndSum, &NO_NET),
    group("seccomp", Process, &SECCOMP),
    group("vmm", Process, &VMM),
    group("interrupts", Process, &INTERRUPTS),
    group("vcpu", Sum, &NO_VCPU),
    group("uart", One, &NO_UART),
    group("signals", Process, &SIGNALS),
    group("vsock", One, &VSOCK),
    group("entropy", One, &ENTROPY),
    group("pmem", EachAndSum, &PMEM),
    group("memory_hotplug", One, &MEMORY_HOTPLUG),
];

/// Enters the groups that exist once per process.
pub(super) fn enter_those_of_the_process(registry: &Registry) {
    for group in GROUPS.iter().filter(|group| group.shape == Process) {
        registry.add(group.name, None, Numbers::Static(group.blank));
    }
}

/// The names of a group whose device this version does not have.
struct Names(&'static [&'static str]);

static NO_COUNT: Counter = Counter::new();
static NO_TIME: Latency = Latency::new();

impl MetricGroup for Names {
    fn v1(&self, see: &mut dyn FnMut(&'static str, Metric<'_>)) {
        for name in self.0 {
            see(name, if name.ends_with("_agg") { (&NO_TIME).into() } else { (&NO_COUNT).into() });
        }
    }

    fn beyond_v1(&self, _see: &mut dyn FnMut(&'static str, Metric<'_>)) {}
}

static BALLOON: Names = Names(&[
    "activate_fails",
    "inflate_count",
    "stats_updates_count",
    "stats_update_fails",
    "deflate_count",
    "event_fails",
    "free_page_report_count",
    "free_page_report_freed",
    "free_page_report_fails",
    "free_page_hint_count",
    "free_page_hint_freed",
    "free_page_hint_fails",
]);

static MMDS: Names = Names(&[
    "rx_accepted",
    "rx_accepted_err",
    "rx_accepted_unusual",
    "rx_bad_eth",
    "rx_invalid_token",
    "rx_no_token",
    "rx_count",
    "tx_bytes",
    "tx_count",
    "tx_errors",
    "tx_frames",
    "connections_created",
    "connections_destroyed",
]);

static VSOCK: Names = Names(&[
    "activate_fails",
    "cfg_fails",
    "rx_queue_event_fails",
    "tx_queue_event_fails",
    "ev_queue_event_fails",
    "muxer_event_fails",
    "conn_event_fails",
    "rx_queue_event_count",
    "tx_queue_event_count",
    "rx_bytes_count",
    "tx_bytes_count",
    "rx_packets_count",
    "tx_packets_count",
    "conns_added",
    "conns_killed",
    "conns_removed",
    "killq_resync",
    "tx_flush_fails",
    "tx_write_fails",
    "rx_read_fails",
]);

static ENTROPY: Names = Names(&[
    "activate_fails",
    "entropy_event_fails",
    "entropy_event_count",
    "entropy_bytes",
    "host_rng_fails",
    "entropy_rate_limiter_throttled",
    "rate_limiter_event_count",
]);

static PMEM: Names = Names(&[
    "activate_fails",
    "cfg_fails",
    "event_fails",
    "queue_event_count",
    "rate_limiter_throttled_events",
    "rate_limiter_event_count",
]);

static MEMORY_HOTPLUG: Names = Names(&[
    "activate_fails",
    "queue_event_fails",
    "queue_event_count",
    "plug_count",
    "plug_bytes",
    "plug_fails",
    "plug_agg",
    "unplug_count",
    "unplug_bytes",
    "unplug_fails",
    "unplug_discard_fails",
    "unplug_agg",
    "state_count",
    "state_fails",
    "state_agg",
    "unplug_all_count",
    "unplug_all_fails",
    "unplug_all_agg",
]);
