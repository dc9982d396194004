use super::*;

const NO_BALLOON: &str = "Balloon config error: No balloon device found.";
const NO_LIVE_BALLOON: &str = "Balloon update error: No balloon device found.";
const LARGE: &str = "Balloon config error: Amount of pages requested is too large.";
const LIVE_LARGE: &str = "Balloon update error: Amount of pages requested is too large.";
const SWITCH: &str = "Balloon update error: Statistics cannot be enabled/disabled after activation.";
const NO_MEMORY: &str = "Memory hotplug update error: No memory hotplug device found.";
const NO_VCPUS: &str = "vCPU hotplug update error: No vCPU can be plugged: the machine was started without max_vcpus. Give it one in PUT /machine-config before the start.";
/// The bare-metal guest has no driver for the balloon, which hinting needs; the Linux tier hints.
const NO_DRIVER: &str = "Balloon update error: Device not activated yet";

pub(super) fn rows() -> Vec<Row> {
    balloon().into_iter().chain(hotplug()).collect()
}

fn balloon() -> Vec<Row> {
    let balloon = |mib: u32| json!({"amount_mib": mib, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_hinting": true});
    let interval = |seconds: u64| json!({"stats_polling_interval_s": seconds});
    vec![
        configure("/balloon", balloon(8)),
        misconfigure("/balloon", balloon(1 << 30), LARGE),
        always("PUT", "/balloon", json!({"amount_mib": 1}), Json("missing field `deflate_on_oom`")),
        always("GET", "/balloon", None, Found).without([Fault(NO_BALLOON), Fault(NO_BALLOON)]),
        change("PATCH", "/balloon", json!({"amount_mib": 4}), Done, NO_LIVE_BALLOON),
        change("PATCH", "/balloon", json!({"amount_mib": 1 << 30}), Fault(LIVE_LARGE), NO_LIVE_BALLOON),
        always("PATCH", "/balloon", json!({"deflate_on_oom": true}), Json("unknown field `deflate_on_oom`")),
        change("GET", "/balloon/statistics", None, Found, NO_LIVE_BALLOON),
        change("PATCH", "/balloon/statistics", interval(2), Done, NO_LIVE_BALLOON),
        change("PATCH", "/balloon/statistics", interval(0), Fault(SWITCH), NO_LIVE_BALLOON),
        always("PATCH", "/balloon/statistics", interval(65_536), Json("invalid value: integer `65536`, expected u16")),
        change("PATCH", "/balloon/hinting/start", None, Begins(NO_DRIVER), NO_LIVE_BALLOON),
        change(
            "PATCH",
            "/balloon/hinting/start",
            json!({"acknowledge_on_stop": false}),
            Begins(NO_DRIVER),
            NO_LIVE_BALLOON,
        ),
        change("PATCH", "/balloon/hinting/stop", None, Begins(NO_DRIVER), NO_LIVE_BALLOON),
        change("GET", "/balloon/hinting/status", None, Found, NO_LIVE_BALLOON),
    ]
}

fn hotplug() -> Vec<Row> {
    let small =
        "Memory hotplug config error: total_size_mib is 1: Total size must not be lower than slot size (128 MiB)";
    vec![
        configure("/hotplug/memory", json!({"total_size_mib": 256})),
        misconfigure("/hotplug/memory", json!({"total_size_mib": 1}), small),
        always("PUT", "/hotplug/memory", json!({"block_size_mib": 2}), Json("missing field `total_size_mib`")),
        change("GET", "/hotplug/memory", None, Found, NO_MEMORY),
        change("PATCH", "/hotplug/memory", json!({"requested_size_mib": 128}), Done, NO_MEMORY),
        change("PATCH", "/hotplug/memory", json!({"requested_size_mib": 0}), Done, NO_MEMORY),
        always("PATCH", "/hotplug/memory", json!({}), Json("missing field `requested_size_mib`")),
        // The machine of this table has no max_vcpus.
        row("GET", "/hotplug/vcpus", None, [Fault(BEFORE), Fault(NO_VCPUS)]),
        row("PATCH", "/hotplug/vcpus", json!({"vcpu_count": 1}), [Fault(BEFORE), Fault(NO_VCPUS)]),
        always("PATCH", "/hotplug/vcpus", json!({}), Json("missing field `vcpu_count`")),
        always(
            "PATCH",
            "/hotplug/vcpus",
            json!({"vcpu_count": 256}),
            Json("invalid value: integer `256`, expected u8"),
        ),
    ]
}
