//! The metrics file as a strict reader takes it: exactly the groups and fields of the v1 contract, each of the right kind.
//!
//! Written down from the contract, not from the code.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

/// A group's name and its fields. Those that end in `_agg` are objects.
const GROUPS: &[(&str, &str)] = &[
    ("api_server", "process_startup_time_us process_startup_time_cpu_us"),
    (
        "balloon",
        "activate_fails inflate_count stats_updates_count stats_update_fails deflate_count event_fails free_page_report_count \
         free_page_report_freed free_page_report_fails free_page_hint_count free_page_hint_freed free_page_hint_fails",
    ),
    ("block", BLOCK),
    ("deprecated_api", "deprecated_http_api_calls"),
    ("get_api_requests", "instance_info_count machine_cfg_count mmds_count vmm_version_count hotplug_memory_count"),
    (
        "patch_api_requests",
        "drive_count drive_fails network_count network_fails machine_cfg_count machine_cfg_fails mmds_count mmds_fails \
         hotplug_memory_count hotplug_memory_fails pmem_count pmem_fails",
    ),
    (
        "put_api_requests",
        "actions_count actions_fails boot_source_count boot_source_fails drive_count drive_fails logger_count logger_fails \
         machine_cfg_count machine_cfg_fails cpu_cfg_count cpu_cfg_fails metrics_count metrics_fails network_count \
         network_fails mmds_count mmds_fails vsock_count vsock_fails pmem_count pmem_fails serial_count serial_fails \
         hotplug_memory_count hotplug_memory_fails",
    ),
    ("i8042", "error_count missed_read_count missed_write_count read_count reset_count write_count"),
    (
        "latencies_us",
        "full_create_snapshot diff_create_snapshot load_snapshot pause_vm resume_vm vmm_full_create_snapshot \
         vmm_diff_create_snapshot vmm_load_snapshot vmm_pause_vm vmm_resume_vm",
    ),
    ("logger", "missed_metrics_count metrics_fails missed_log_count rate_limited_log_count"),
    (
        "mmds",
        "rx_accepted rx_accepted_err rx_accepted_unusual rx_bad_eth rx_invalid_token rx_no_token rx_count tx_bytes tx_count \
         tx_errors tx_frames connections_created connections_destroyed",
    ),
    ("net", NET),
    ("seccomp", "num_faults"),
    ("vmm", "panic_count"),
    ("interrupts", "triggers config_updates"),
    (
        "vcpu",
        "exit_io_in exit_io_out exit_mmio_read exit_mmio_write failures kvmclock_ctrl_fails exit_io_in_agg exit_io_out_agg \
         exit_mmio_read_agg exit_mmio_write_agg",
    ),
    (
        "uart",
        "error_count flush_count missed_read_count missed_write_count read_count write_count rate_limiter_dropped_bytes",
    ),
    ("signals", "sigbus sigsegv sigxfsz sigxcpu sigpipe sighup sigill"),
    (
        "vsock",
        "activate_fails cfg_fails rx_queue_event_fails tx_queue_event_fails ev_queue_event_fails muxer_event_fails \
         conn_event_fails rx_queue_event_count tx_queue_event_count rx_bytes_count tx_bytes_count rx_packets_count \
         tx_packets_count conns_added conns_killed conns_removed killq_resync tx_flush_fails tx_write_fails rx_read_fails",
    ),
    (
        "entropy",
        "activate_fails entropy_event_fails entropy_event_count entropy_bytes host_rng_fails entropy_rate_limiter_throttled \
         rate_limiter_event_count",
    ),
    ("pmem", PMEM),
    (
        "memory_hotplug",
        "activate_fails queue_event_fails queue_event_count plug_count plug_bytes plug_fails plug_agg unplug_count \
         unplug_bytes unplug_fails unplug_discard_fails unplug_agg state_count state_fails state_agg unplug_all_count \
         unplug_all_fails unplug_all_agg",
    ),
];

const BLOCK: &str = "activate_fails cfg_fails no_avail_buffer event_fails execute_fails invalid_reqs_count flush_count \
    queue_event_count rate_limiter_event_count update_count update_fails read_bytes write_bytes read_count write_count \
    rate_limiter_throttled_events io_engine_throttled_events remaining_reqs_count read_agg write_agg";
const NET: &str = "activate_fails cfg_fails no_rx_avail_buffer no_tx_avail_buffer event_fails rx_queue_event_count \
    rx_event_rate_limiter_count rx_rate_limiter_throttled rx_tap_event_count rx_bytes_count rx_packets_count rx_fails rx_count \
    tap_read_fails tap_write_fails tx_bytes_count tx_malformed_frames tx_fails tx_count tx_packets_count tx_queue_event_count \
    tx_rate_limiter_event_count tx_rate_limiter_throttled tx_spoofed_mac_count tx_remaining_reqs_count tap_write_agg";
const PMEM: &str = "activate_fails cfg_fails event_fails queue_event_count rate_limiter_throttled_events \
    rate_limiter_event_count";

/// Kinds of device that have a group each, `block_<id>`, and one for their sum.
const SUMMED: [(&str, &str); 3] = [("block", BLOCK), ("net", NET), ("pmem", PMEM)];

/// The lines of a metrics file, each a valid one. A last line without its end counts as broken.
///
/// # Panics
/// When the file cannot be read or a line is not as the contract has it; the message says where.
#[track_caller]
pub fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("a metrics file");
    assert!(text.is_empty() || text.ends_with('\n'), "half a line at the end of {text:?}");
    text.lines().map(line).collect()
}

/// What a number of a group comes to over all lines.
///
/// # Panics
/// As [`lines`], and when there is no such number.
#[track_caller]
pub fn total(path: &Path, group: &str, field: &str) -> u64 {
    lines(path).iter().map(|line| line[group][field].as_u64().expect("a number")).sum()
}

/// One line.
///
/// # Panics
/// As [`lines`].
#[track_caller]
pub fn line(text: &str) -> Value {
    let line: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("not JSON ({e}): {text}"));
    let complaints = complaints(&line);
    assert!(complaints.is_empty(), "{complaints:#?} in {line:#}");
    line
}

/// How far the time in a line is from now, in milliseconds.
pub fn age_ms(line: &Value) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let then = line["utc_timestamp_ms"].as_u64().unwrap_or(0);
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX).abs_diff(then)
}

/// Everything that is wrong with a line.
fn complaints(line: &Value) -> Vec<String> {
    let Some(line) = line.as_object() else { return vec!["not an object".to_owned()] };
    let mut complaints = Vec::new();
    if !line.get("utc_timestamp_ms").is_some_and(Value::is_u64) {
        complaints.push("no utc_timestamp_ms".to_owned());
    }
    for (name, fields) in GROUPS {
        match line.get(*name) {
            Some(group) => check_group(name, fields, group, &mut complaints),
            None => complaints.push(format!("no group {name}")),
        }
    }
    for (name, value) in line {
        let one_of = SUMMED.iter().find(|(sum, _)| name.strip_prefix(sum).is_some_and(|rest| rest.starts_with('_')));
        match (name.as_str(), one_of) {
            ("utc_timestamp_ms", _) => {}
            ("id", _) if value.is_string() => {}
            ("properties", _) if value.as_object().is_some_and(|map| map.values().all(Value::is_string)) => {}
            (_, Some((_, fields))) => check_group(name, fields, value, &mut complaints),
            _ if GROUPS.iter().any(|(group, _)| group == name) => {}
            _ => complaints.push(format!("unknown {name}: {value}")),
        }
    }
    for (sum, _) in SUMMED {
        check_sum(sum, line, &mut complaints);
    }
    complaints
}

fn check_group(name: &str, fields: &str, group: &Value, complaints: &mut Vec<String>) {
    let Some(group) = group.as_object() else { return complaints.push(format!("{name} is not an object")) };
    let fields: Vec<&str> = fields.split_whitespace().collect();
    for field in &fields {
        let right = match group.get(*field) {
            Some(value) if field.ends_with("_agg") => is_spread(value),
            Some(value) => value.is_u64(),
            None => false,
        };
        if !right {
            complaints.push(format!("{name}.{field} is missing or of the wrong kind"));
        }
    }
    complaints
        .extend(group.keys().filter(|key| !fields.contains(&key.as_str())).map(|key| format!("unknown {name}.{key}")));
}

fn is_spread(value: &Value) -> bool {
    let keys = ["min_us", "max_us", "sum_us"];
    value
        .as_object()
        .is_some_and(|map| map.len() == keys.len() && keys.iter().all(|key| map.get(*key).is_some_and(Value::is_u64)))
}

/// The group of a kind equals the sum over its devices; of durations it has sums only.
fn check_sum(sum: &str, line: &Map<String, Value>, complaints: &mut Vec<String>) {
    let prefix = format!("{sum}_");
    let each: Vec<&Value> = line.iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(_, group)| group).collect();
    let Some(total) = line.get(sum).and_then(Value::as_object) else { return };
    for (field, value) in total {
        let of = |value: &Value| if field.ends_with("_agg") { value["sum_us"].as_u64() } else { value.as_u64() };
        let added: u64 = each.iter().filter_map(|group| of(&group[field])).sum();
        if of(value) != Some(added) {
            complaints.push(format!("{sum}.{field} is {value}, its devices have {added}"));
        }
        if field.ends_with("_agg") && (value["min_us"] != 0 || value["max_us"] != 0) {
            complaints.push(format!("{sum}.{field} has extremes: {value}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Value {
        let group = |fields: &str| -> Value {
            let of = |field: &str| match field.ends_with("_agg") {
                true => json!({"min_us": 0, "max_us": 0, "sum_us": 0}),
                false => json!(0),
            };
            fields.split_whitespace().map(|field| (field.to_owned(), of(field))).collect()
        };
        let mut line: Map<String, Value> =
            GROUPS.iter().map(|(name, fields)| ((*name).to_owned(), group(fields))).collect();
        line.insert("block_a".to_owned(), group(BLOCK));
        line.insert("utc_timestamp_ms".to_owned(), json!(1));
        Value::Object(line)
    }

    #[test]
    fn a_line_as_it_should_be_passes() {
        let mut line = sample();
        assert_eq!(complaints(&line), Vec::<String>::new());
        line["id"] = json!("vm");
        line["properties"] = json!({"a": "b"});
        line["block_a"]["read_count"] = json!(3);
        line["block"]["read_count"] = json!(3);
        assert_eq!(complaints(&line), Vec::<String>::new());
    }

    #[test]
    fn everything_else_is_complained_about() {
        let spoil = |spoil: &dyn Fn(&mut Value)| {
            let mut line = sample();
            spoil(&mut line);
            complaints(&line).len()
        };
        assert_eq!(spoil(&|line| line["extra"] = json!({})), 1);
        assert_eq!(spoil(&|line| line["vmm"]["extra"] = json!(0)), 1);
        assert_eq!(spoil(&|line| line["vmm"]["panic_count"] = json!("0")), 1);
        assert_eq!(spoil(&|line| line["vmm"] = json!({})), 1);
        assert_eq!(spoil(&|line| drop(line.as_object_mut().unwrap().remove("rtc"))), 0);
        assert_eq!(spoil(&|line| drop(line.as_object_mut().unwrap().remove("mmds"))), 1);
        assert_eq!(spoil(&|line| drop(line.as_object_mut().unwrap().remove("utc_timestamp_ms"))), 1);
        assert_eq!(spoil(&|line| line["block"]["read_count"] = json!(1)), 1);
        assert_eq!(spoil(&|line| line["block"]["read_agg"]["max_us"] = json!(1)), 1);
        assert_eq!(spoil(&|line| line["net_x"] = json!(1)), 1);
        assert_eq!(spoil(&|line| line["properties"] = json!({"a": 1})), 1);
    }
}
