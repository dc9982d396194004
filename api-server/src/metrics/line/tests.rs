use std::sync::Arc;

use serde_json::{Value as Json, json};
use vmm::telemetry::{Group, Metric, NO_BLOCK};

use super::*;

/// Numbers of the same names as `of`, all as large as they get.
struct Largest(&'static dyn MetricGroup);

impl MetricGroup for Largest {
    fn v1(&self, see: &mut dyn FnMut(&'static str, Metric<'_>)) {
        let (stored, latency) = (vmm::telemetry::Stored::new(), vmm::telemetry::Latency::new());
        stored.set(u64::MAX);
        latency.record_ns(u64::MAX);
        self.0.v1(&mut |name, metric| match metric {
            Metric::Latency(_) => see(name, (&latency).into()),
            _ => see(name, (&stored).into()),
        });
    }

    fn beyond_v1(&self, _see: &mut dyn FnMut(&'static str, Metric<'_>)) {}
}

fn line(buffer: &mut Buffer, head: &Head, registry: &Registry) -> Json {
    buffer.make_room(head, registry);
    assert!(buffer.write(head, registry, 1_700_000_000_123));
    let text = buffer.line().strip_suffix(b"\n").unwrap();
    assert!(!text.contains(&b'\n'));
    serde_json::from_slice(text).unwrap()
}

#[test]
fn a_line_without_a_machine_has_every_group_and_only_zeroes() {
    let line = line(&mut Buffer::default(), &Head::default(), &Registry::new());
    let object = line.as_object().unwrap();
    assert_eq!(object["utc_timestamp_ms"], 1_700_000_000_123u64);
    // Of those that are shown one by one, nothing.
    let groups = || GROUPS.iter().filter(|group| group.shape != Shape::Each);
    assert_eq!(object.len(), groups().count() + 1);
    for group in groups() {
        for (name, value) in object[group.name].as_object().unwrap() {
            let zero = if name.ends_with("_agg") { json!({"min_us": 0, "max_us": 0, "sum_us": 0}) } else { json!(0) };
            assert_eq!(*value, zero, "{}.{name}", group.name);
        }
    }
}

#[test]
fn there_is_room_for_the_largest_numbers_and_not_a_byte_more_is_needed() {
    let registry = Registry::new();
    for group in GROUPS {
        for id in ["a", "long_enough_to_matter"] {
            let id = matches!(group.shape, Shape::Each | Shape::EachAndSum).then_some(id);
            registry.add(group.name, id, Group::Shared(Arc::new(Largest(group.blank))));
        }
    }
    let properties = BTreeMap::from([("q\"uote".to_owned(), "line\nend".to_owned())]);
    let head = Head::new(Some("vm-1"), Some(&properties));
    let mut buffer = Buffer::default();
    buffer.make_room(&head, &registry);
    let room = buffer.text.bytes.capacity();
    let line = line(&mut buffer, &head, &registry);
    assert_eq!(buffer.text.bytes.capacity(), room, "it grew");
    assert_eq!((&line["id"], &line["properties"]), (&json!("vm-1"), &json!({"q\"uote": "line\nend"})));
    assert_eq!(line["block_a"]["read_bytes"], u64::MAX);
    assert_eq!(line["vhost_user_block_a"]["init_time_us"], u64::MAX);
    assert!(line.get("vhost_user_block").is_none());
    // Without room nothing is written that could be taken for a line.
    let mut small = Buffer::default();
    small.text.bytes.reserve(100);
    assert!(!small.write(&head, &registry, 0));
}

#[test]
fn drives_are_shown_one_by_one_and_summed_up() {
    let registry = Registry::new();
    let drives = ["a", "b"].map(|id| {
        let drive = Arc::new(<_>::default());
        fn same<T: MetricGroup>(_: &T, drive: Arc<T>) -> Arc<T> {
            drive
        }
        let drive = same(&NO_BLOCK, drive);
        registry.add("block", Some(id), Group::Shared(drive.clone()));
        drive
    });
    for (drive, us) in drives.iter().zip([3, 5]) {
        drive.read_count.inc();
        drive.read_bytes.add(512 * us);
        drive.read_agg.record_ns(us * 1000);
    }
    let line = line(&mut Buffer::default(), &Head::default(), &registry);
    assert_eq!(line["block_b"]["read_agg"], json!({"min_us": 5, "max_us": 5, "sum_us": 5}));
    assert_eq!(line["block_a"]["read_bytes"], 1536);
    assert_eq!(line["block"]["read_bytes"], 4096);
    assert_eq!(line["block"]["read_agg"], json!({"min_us": 0, "max_us": 0, "sum_us": 8}));
}

#[test]
fn vcpus_are_shown_as_one() {
    let registry = Registry::new();
    let (first, second) = (Arc::new(vmm::vcpu::VcpuMetrics::new()), Arc::new(vmm::vcpu::VcpuMetrics::new()));
    // The third one has not exited yet, which is no reason for a minimum of 0.
    for (id, vcpu) in ["0", "1", "2"].iter().zip([&first, &second, &Arc::default()]) {
        registry.add("vcpu", Some(id), Group::Shared(vcpu.clone()));
    }
    for (vcpu, us) in [(&first, 3), (&second, 5), (&second, 9)] {
        vcpu.exit_io_out.inc();
        vcpu.exit_io_out_agg.record_ns(us * 1000);
    }
    let line = line(&mut Buffer::default(), &Head::default(), &registry);
    assert_eq!(line["vcpu"]["exit_io_out"], 3);
    assert_eq!(line["vcpu"]["exit_io_out_agg"], json!({"min_us": 3, "max_us": 9, "sum_us": 17}));
    assert!(line.get("vcpu_0").is_none());
}
