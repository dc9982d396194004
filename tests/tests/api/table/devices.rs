use super::*;

const NO_DRIVE: &str = "Drive config error: Unable to patch the block device: there is no drive `data`. Please verify the \
                        request arguments.";
const REFRESH: &str = "Drive config error: Unable to patch the block device: Running method expected different backend. \
                       Please verify the request arguments.";
const NO_FILE: &str = "Drive config error: Unable to create the virtio block device: Virtio backend error: Error manipulating \
                       the backing file: No such file or directory (os error 2) /no/such";
const NOBODY: &str = "Drive config error: Unable to create the virtio block device: Vhost-user backend error: socket /no/such: \
                      No such file or directory (os error 2)";
const NOT_BOTH: &str = "Drive config error: socket and path_on_host exclude each other: leave one of them out.";
const NO_FS: &str = "File system config error: the backend at socket /no/such is of no use: No such file or directory \
                     (os error 2)";
const NO_TAG: &str = "File system config error: tag has 0 bytes: choose one of 1 to 36 bytes.";
const NO_NEW_FILE: &str = "Drive config error: Unable to patch the block device: Drive config error: Unable to create the \
                           virtio block device: Virtio backend error: Error manipulating the backing file: No such file or \
                           directory (os error 2) /no/such Please verify the request arguments.";
const NO_NET: &str = "Network config error: Unable to update the network device: there is no network interface `eth0`.";
const NO_PMEM: &str = "Pmem config error: Unable to patch the pmem device: pmem device `code` not found. Please verify the \
                       request arguments.";
const MULTICAST: &str = "Network config error: MAC address `01:00:5e:00:00:01` is a multicast address; clear the lowest bit \
                         of its first byte";
const RESERVED: &str = "Vsock config error: guest_cid 2 is reserved: choose one from 3 to 4294967294.";

impl Row {
    /// What a machine with every device answers whose devices can come and go, and whose guest uses none of them. Each phase ends with the
    /// devices taken away, so that they come anew in the next one.
    pub(crate) fn on_pci(&self, phase: &str) -> Answer {
        let families = ["/drives/", "/network-interfaces/", "/pmem/"];
        let comes = self.method == "PUT" && families.iter().any(|family| self.path.starts_with(family));
        match (phase, self.with) {
            ("Not started", [before, _]) => before,
            (_, [_, Fault(NO_PCI)]) => Done,
            ("Running", [Done, Fault(AFTER)]) if comes => Fault(IN_USE),
            (_, [Done, Fault(AFTER)]) if comes => Done,
            // What the request says is judged before the machine is looked at, and that before any file.
            (_, [Fault(why @ (NOT_BOTH | MULTICAST)), Fault(AFTER)]) if comes => Fault(why),
            (_, [Fault(_), Fault(AFTER)]) if comes => Fault(IN_USE),
            (_, [_, after]) => after,
        }
    }
}

pub(super) fn rows(world: &World) -> Vec<Row> {
    [drives(world), nets(world), pmems(world), file_systems(), others(world)].into_iter().flatten().collect()
}

fn drives(world: &World) -> Vec<Row> {
    let drive = |id: &str, path: &str| json!({"drive_id": id, "path_on_host": path, "is_root_device": false});
    let moved = |path: &str| json!({"drive_id": "data", "path_on_host": path});
    let served = |mut more: Value| {
        more["drive_id"] = json!("data");
        more["is_root_device"] = json!(false);
        more["socket"] = json!("/no/such");
        more
    };
    vec![
        configure("/drives/data", drive("data", &world.disk)),
        misconfigure("/drives/data", drive("data", "/no/such"), NO_FILE),
        always("PUT", "/drives/other", drive("data", &world.disk), Fault(OTHER_ID)),
        always("PUT", "/drives/da-ta", drive("da-ta", &world.disk), Fault(BAD_ID)),
        always("PUT", "/drives", drive("data", &world.disk), Fault(NO_ID)),
        always("PUT", "/drives/data", json!({"drive_id": "data"}), Json("missing field `is_root_device`")),
        misconfigure("/drives/data", served(json!({})), NOBODY),
        misconfigure("/drives/data", served(json!({"path_on_host": world.disk})), NOT_BOTH),
        change("PATCH", "/drives/data", moved(&world.disk), Done, NO_DRIVE),
        change("PATCH", "/drives/data", moved("/no/such"), Fault(NO_NEW_FILE), NO_DRIVE),
        change("PATCH", "/drives/data", json!({"drive_id": "data", "rate_limiter": {}}), Done, NO_DRIVE),
        change("PATCH", "/drives/data", json!({"drive_id": "data"}), Fault(REFRESH), NO_DRIVE),
        always("PATCH", "/drives/other", moved(&world.disk), Fault(OTHER_ID)),
        always("PATCH", "/drives", moved(&world.disk), Fault(NO_ID)),
        always(
            "PATCH",
            "/drives/data",
            json!({"drive_id": "data", "is_read_only": true}),
            Json("unknown field `is_read_only`, expected one of `drive_id`, `path_on_host`, `rate_limiter`"),
        ),
        row("DELETE", "/drives/data", None, [Fault(BEFORE), Fault(NO_PCI)]),
        always("DELETE", "/drives", None, Fault(NO_ID)),
        always("DELETE", "/drives/da-ta", None, Fault(BAD_ID)),
    ]
}

fn nets(world: &World) -> Vec<Row> {
    let net = |mac: &str| json!({"iface_id": "eth0", "host_dev_name": world.tap, "guest_mac": mac});
    let other = "The id from the path [eth1] does not match the id from the body [eth0]!";
    vec![
        configure("/network-interfaces/eth0", net("06:00:ac:10:00:02")),
        misconfigure("/network-interfaces/eth0", net("01:00:5e:00:00:01"), MULTICAST),
        always("PUT", "/network-interfaces/eth1", net("06:00:ac:10:00:02"), Fault(other)),
        always("PUT", "/network-interfaces", net("06:00:ac:10:00:02"), Fault(NO_ID)),
        always("PUT", "/network-interfaces/eth0", json!({"iface_id": "eth0"}), Json("missing field `host_dev_name`")),
        change("PATCH", "/network-interfaces/eth0", json!({"iface_id": "eth0"}), Done, NO_NET),
        change(
            "PATCH",
            "/network-interfaces/eth0",
            json!({"iface_id": "eth0", "rx_rate_limiter": {"ops": {"size": 1, "refill_time": 1}}}),
            Done,
            NO_NET,
        ),
        always("PATCH", "/network-interfaces/eth1", json!({"iface_id": "eth0"}), Fault(other)),
        always("PATCH", "/network-interfaces", json!({"iface_id": "eth0"}), Fault(NO_ID)),
        // Clients rely on this being refused.
        always(
            "PATCH",
            "/network-interfaces/eth0",
            json!({"iface_id": "eth0", "host_dev_name": world.tap}),
            Json("unknown field `host_dev_name`, expected one of `iface_id`, `rx_rate_limiter`, `tx_rate_limiter`"),
        ),
        row("DELETE", "/network-interfaces/eth0", None, [Fault(BEFORE), Fault(NO_PCI)]),
        always("DELETE", "/network-interfaces", None, Fault(NO_ID)),
    ]
}

fn pmems(world: &World) -> Vec<Row> {
    let pmem = json!({"id": "code", "path_on_host": world.disk});
    let patch = json!({"id": "code", "rate_limiter": {"ops": {"size": 1, "refill_time": 1}}});
    vec![
        configure("/pmem/code", pmem.clone()),
        always("PUT", "/pmem/other", pmem.clone(), Fault(OTHER_ID)),
        always("PUT", "/pmem", pmem, Fault(NO_ID)),
        always("PUT", "/pmem/code", json!({"id": "code"}), Json("missing field `path_on_host`")),
        change("PATCH", "/pmem/code", json!({"id": "code"}), Done, NO_PMEM),
        change("PATCH", "/pmem/code", patch.clone(), Done, NO_PMEM),
        always("PATCH", "/pmem/other", patch.clone(), Fault(OTHER_ID)),
        always("PATCH", "/pmem", patch, Fault(NO_ID)),
        always("PATCH", "/pmem/code", json!({"id": "code", "read_only": true}), Json("unknown field `read_only`")),
        row("DELETE", "/pmem/code", None, [Fault(BEFORE), Fault(NO_PCI)]),
        always("DELETE", "/pmem", None, Fault(NO_ID)),
    ]
}

fn file_systems() -> Vec<Row> {
    let fs = |tag: &str| json!({"fs_id": "share", "tag": tag, "socket": "/no/such"});
    vec![
        misconfigure("/fs/share", fs("shared"), NO_FS),
        misconfigure("/fs/share", fs(""), NO_TAG),
        always("PUT", "/fs/other", fs("shared"), Fault(OTHER_ID)),
        always("PUT", "/fs", fs("shared"), Fault(NO_ID)),
        always("PUT", "/fs/share", json!({"fs_id": "share"}), Json("missing field `tag`")),
    ]
}

fn others(world: &World) -> Vec<Row> {
    vec![
        configure("/vsock", json!({"guest_cid": 3, "uds_path": world.vsock})),
        misconfigure("/vsock", json!({"guest_cid": 2, "uds_path": world.vsock}), RESERVED),
        always("PUT", "/vsock", json!({"guest_cid": 3}), Json("missing field `uds_path`")),
        configure("/entropy", json!({})),
        configure("/entropy", json!({"rate_limiter": {"ops": {"size": 1, "refill_time": 1}}})),
        always("PUT", "/entropy", json!({"rate": 1}), Json("unknown field `rate`, expected `rate_limiter`")),
    ]
}
