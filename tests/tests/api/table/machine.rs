use super::*;
use crate::SPIN;

const REUSED: &str = "Metrics error: Reinitialization of metrics not allowed.";
const FEWER: &str = "Machine config error: max_vcpus is 1, and vcpu_count 2: it must be at least vcpu_count, at most 32, and 1 or an even number if SMT is enabled. Leave it out if no vCPU is to be plugged.";
const VCPUS: &str = "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even \
                     number if SMT is enabled.";
const NO_MEMORY: &str =
    "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size.";
const NO_KERNEL: &str = "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)";
const NOT_PRISTINE: &str =
    "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.";

/// The boot source and the machine itself are the same for both machines, so they are sent to both.
pub(super) fn rows(world: &World) -> Vec<Row> {
    let plain = |path, body| row("PUT", path, body, [Done, Fault(AFTER)]);
    let state = json!({"snapshot_path": "/nowhere/s", "mem_file_path": "/nowhere/m"});
    let restore =
        json!({"snapshot_path": "/nowhere/s", "mem_backend": {"backend_type": "File", "backend_path": "/nowhere/m"}});
    vec![
        always("GET", "/", None, Found),
        always("GET", "/version", None, Found),
        always("GET", "/vm/config", None, Found),
        always("GET", "/confinement", None, Found),
        // Pausing and resuming change the phase; the test does that between the phases.
        always(
            "PATCH",
            "/vm",
            json!({"state": "Running"}),
            Json("unknown variant `Running`, expected `Paused` or `Resumed`"),
        ),
        always("PATCH", "/vm", json!({}), Json("missing field `state`")),
        always("PUT", "/actions", json!({"action_type": "Halt"}), Json("unknown variant `Halt`, expected one of")),
        row("PUT", "/actions", json!({"action_type": "SendCtrlAltDel"}), [Fault(BEFORE), Done]),
        row("PUT", "/actions", json!({"action_type": "FlushMetrics"}), [Fault(BEFORE), Done]),
        row("PUT", "/actions", json!({"action_type": "InstanceStart"}), [NotSent, Fault(AFTER)]),
        plain("/boot-source", json!({"kernel_image_path": world.kernel, "boot_args": SPIN})),
        misconfigure("/boot-source", json!({"kernel_image_path": "/no/such"}), NO_KERNEL),
        always("PUT", "/boot-source", json!({"boot_args": "x"}), Json("missing field `kernel_image_path`")),
        always("GET", "/machine-config", None, Found),
        plain("/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 64})),
        misconfigure("/machine-config", json!({"vcpu_count": 0, "mem_size_mib": 64}), VCPUS),
        misconfigure("/machine-config", json!({"vcpu_count": 33, "mem_size_mib": 64}), VCPUS),
        misconfigure("/machine-config", json!({"vcpu_count": 3, "mem_size_mib": 64, "smt": true}), VCPUS),
        misconfigure("/machine-config", json!({"vcpu_count": 2, "mem_size_mib": 64, "max_vcpus": 1}), FEWER),
        misconfigure("/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 0}), NO_MEMORY),
        always("PUT", "/machine-config", json!({"mem_size_mib": 64}), Json("missing field `vcpu_count`")),
        row("PATCH", "/machine-config", json!({"mem_size_mib": 128}), [Done, Fault(AFTER)]),
        row("PATCH", "/machine-config", json!({"vcpu_count": 0}), [Fault(VCPUS), Fault(AFTER)]),
        always("PATCH", "/machine-config", json!({}), Fault(EMPTY_PATCH)),
        plain("/cpu-config", json!({})),
        always("PUT", "/cpu-config", json!({"reg_modifiers": []}), Json("unknown field `reg_modifiers`")),
        plain("/serial", json!({"serial_out_path": world.console})),
        always("PUT", "/serial", json!({"path": "/x"}), Json("unknown field `path`")),
        plain("/logger", json!({"level": "Info"})),
        always("PUT", "/logger", json!({"level": "loud"}), Json("")),
        // Both machines were started with a metrics file.
        misconfigure("/metrics", json!({"metrics_path": "/x"}), REUSED),
        always("PUT", "/metrics", json!({}), Json("missing field `metrics_path`")),
        // While it runs because it runs, while it stands still because there is no such place.
        row("PUT", "/snapshot/create", state.clone(), [Fault(BEFORE), Begins("Create snapshot error: Cannot ")]),
        always("PUT", "/snapshot/create", json!({"snapshot_path": "/s"}), Json("missing field `mem_file_path`")),
        row("PUT", "/snapshot/load", state, [Fault(NOT_PRISTINE), Fault(AFTER)]),
        row("PUT", "/snapshot/restore", restore, [Fault(NOT_PRISTINE), Fault(AFTER)]),
        always("PUT", "/snapshot/restore", json!({"snapshot_path": "/s"}), Json("missing field `mem_backend`")),
        always("PUT", "/snapshot/load", json!({"mem_file_path": "/m"}), Json("missing field `snapshot_path`")),
        always(
            "PUT",
            "/snapshot/load",
            json!({"snapshot_path": "/s"}),
            Fault("missing field: either `mem_backend` or `mem_file_path` is required"),
        ),
        always("GET", "/snapshot/progress", None, Found),
        always("DELETE", "/snapshot/progress", None, Fault("No snapshot is being written.")),
        row(
            "POST",
            "/clones",
            json!({"children": []}),
            [Fault(BEFORE), Begins("Clone error: this process was not started to make")],
        ),
        always("POST", "/clones", json!({}), Json("missing field `children`")),
        always("PUT", "/snapshot", json!({}), Fault("Missing snapshot operation type.")),
    ]
}
