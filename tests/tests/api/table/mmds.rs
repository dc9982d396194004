use super::*;

const NO_STORE: &str = "MMDS error: The MMDS data store is not initialized.";
const NO_IDS: &str =
    "MMMDS config error: The list of network interface IDs that allow forwarding MMDS requests is empty.";
const UNKNOWN_ID: &str = "MMMDS config error: The list of network interface IDs provided contains at least one ID that does \
                          not correspond to any existing network interface.";

pub(super) fn rows() -> Vec<Row> {
    let config = |ids: &[&str]| json!({"network_interfaces": ids, "version": "V2"});
    // Without a configuration the metadata can be written before the start only; that would make it a machine with a store.
    let write = |method, body, fresh| always(method, "/mmds", body, Done).without([fresh, Fault(NO_STORE)]);
    vec![
        configure("/mmds/config", config(&["eth0"])),
        misconfigure("/mmds/config", config(&[]), NO_IDS),
        misconfigure("/mmds/config", config(&["eth9"]), UNKNOWN_ID),
        always(
            "PUT",
            "/mmds/config",
            json!({"network_interfaces": ["eth0"], "version": "foo"}),
            Json("unknown variant `foo`, expected `V1` or `V2`"),
        ),
        always("GET", "/mmds", None, Found).without([Found, Fault(NO_STORE)]),
        write("PUT", json!({"a": 1}), NotSent),
        write("PATCH", json!({"a": 2}), Fault(NO_STORE)),
        always("PUT", "/mmds", json!("text"), Json("invalid type: string \"text\", expected a map")),
    ]
}
