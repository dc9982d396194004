//! What is in a line: every group of the v1 contract, in its order. Strict readers refuse a line that lacks a group or has another one,
//! so groups of things that a machine does not have are there, too, and all zero.

use vmm::telemetry::{
    Group as Numbers, INTERRUPTS, LATENCIES, LOGGER, MetricGroup, NO_BALLOON, NO_BLOCK, NO_ENTROPY, NO_I8042,
    NO_MEMORY, NO_MMDS, NO_NET, NO_PMEM, NO_UART, NO_VCPU, NO_VHOST_USER, NO_VSOCK, Registry, SECCOMP, SIGNALS, VMM,
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
    /// Each is shown as `name_id`; there is no sum, and nothing where there is none.
    Each,
    /// Only their sum is shown.
    Sum,
}

use Shape::{Each, EachAndSum, One, Process, Sum};

const fn group(name: &'static str, shape: Shape, blank: &'static dyn MetricGroup) -> Group {
    Group { name, shape, blank }
}

/// The groups.
pub(super) static GROUPS: &[Group] = &[
    group("api_server", Process, &API_SERVER),
    group("balloon", One, &NO_BALLOON),
    group("block", EachAndSum, &NO_BLOCK),
    group("deprecated_api", Process, &DEPRECATED),
    group("get_api_requests", Process, &GET),
    group("patch_api_requests", Process, &PATCH),
    group("put_api_requests", Process, &PUT),
    group("i8042", One, &NO_I8042),
    group("latencies_us", Process, &LATENCIES),
    group("logger", Process, &LOGGER),
    group("mmds", One, &NO_MMDS),
    group("net", EachAndSum, &NO_NET),
    group("seccomp", Process, &SECCOMP),
    group("vmm", Process, &VMM),
    group("interrupts", Process, &INTERRUPTS),
    group("vcpu", Sum, &NO_VCPU),
    group("uart", One, &NO_UART),
    group("signals", Process, &SIGNALS),
    group("vsock", One, &NO_VSOCK),
    group("entropy", One, &NO_ENTROPY),
    group("pmem", EachAndSum, &NO_PMEM),
    group("memory_hotplug", One, &NO_MEMORY),
    group("vhost_user_block", Each, &NO_VHOST_USER),
    group("vhost_user_fs", Each, &NO_VHOST_USER),
];

/// Enters the groups that exist once per process.
pub(super) fn enter_those_of_the_process(registry: &Registry) {
    for group in GROUPS.iter().filter(|group| group.shape == Process) {
        registry.add(group.name, None, Numbers::Static(group.blank));
    }
}
