/// Paths, methods they do not have, and what of the path the refusal names: its first piece, or as much as the monitor looked at.
pub(crate) const WRONG: &[(&str, &str, &str)] = &[
    ("/", "PUT PATCH DELETE", ""),
    ("/version", "PUT PATCH DELETE", "version"),
    ("/confinement", "PUT PATCH DELETE", "confinement"),
    ("/vm", "GET PUT DELETE", "vm"),
    ("/vm/config", "PUT DELETE", "vm"),
    ("/actions", "GET PATCH DELETE", "actions"),
    ("/boot-source", "GET PATCH DELETE", "boot-source"),
    ("/machine-config", "DELETE", "machine-config"),
    ("/cpu-config", "GET PATCH DELETE", "cpu-config"),
    ("/drives/{drive_id}", "GET", "drives"),
    ("/network-interfaces/{iface_id}", "GET", "network-interfaces"),
    ("/pmem/{id}", "GET", "pmem"),
    ("/fs/{fs_id}", "GET PATCH DELETE", "fs"),
    ("/balloon", "DELETE", "balloon"),
    ("/balloon/statistics", "DELETE", "balloon"),
    ("/balloon/hinting/start", "GET", "/balloon/hinting"),
    ("/balloon/hinting/start", "DELETE", "balloon"),
    ("/balloon/hinting/stop", "GET", "/balloon/hinting"),
    ("/balloon/hinting/stop", "DELETE", "balloon"),
    ("/balloon/hinting/status", "PATCH", "/balloon/hinting"),
    ("/balloon/hinting/status", "DELETE", "balloon"),
    ("/vsock", "GET PATCH DELETE", "vsock"),
    ("/entropy", "GET PATCH DELETE", "entropy"),
    ("/hotplug/memory", "DELETE", "hotplug"),
    ("/hotplug/vcpus", "PUT DELETE", "hotplug"),
    ("/mmds", "DELETE", "mmds"),
    ("/mmds/config", "DELETE", "mmds"),
    ("/serial", "GET PATCH DELETE", "serial"),
    ("/logger", "GET PATCH DELETE", "logger"),
    ("/metrics", "GET PATCH DELETE", "metrics"),
    ("/snapshot/create", "GET PATCH DELETE", "snapshot"),
    ("/snapshot/load", "GET PATCH DELETE", "snapshot"),
    ("/snapshot/restore", "GET PATCH DELETE", "snapshot"),
    ("/snapshot/progress", "PATCH", "snapshot"),
    ("/snapshot/progress", "PUT", "/snapshot/progress"),
    ("/clones", "GET PUT PATCH DELETE", "clones"),
];

/// Methods that a path has because another path, which it begins with, has them: the last piece is one that nobody reads.
pub(crate) const BORROWED: &[(&str, &str)] = &[
    ("/vm/config", "PATCH"),
    ("/balloon/statistics", "PUT"),
    ("/balloon/hinting/start", "PUT"),
    ("/balloon/hinting/stop", "PUT"),
    ("/balloon/hinting/status", "PUT"),
    ("/mmds/config", "GET PATCH"),
];

/// Paths that nothing has.
pub(crate) const NOWHERE: &[(&str, &str)] = &[
    ("/nothing", "nothing"),
    ("/nothing/at/all", "nothing"),
    ("/hotplug", "hotplug"),
    ("/hotplug/cpu", "hotplug"),
    ("/version?x=1", "version?x=1"),
    ("/VERSION", "VERSION"),
];
