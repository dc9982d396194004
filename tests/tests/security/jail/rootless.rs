//! Without root: a user namespace, and what the caller may do by itself.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use guest::{Job, Mode};
use mayfly_tests::{PATIENCE, binary};
use serde_json::json;

use super::{Jailed, Place, kernel, spawn};
use crate::{assert_confined, status};

/// An ordinary user.
pub(super) const USER: u32 = 65_534;
/// Lets that user use `/dev/kvm` and `/dev/net/tun`, in mounts of one's own.
pub(super) const NODES: &str = "mkdir -p nodes; for n in kvm:232 tun:200; do mknod nodes/${n%:*} c 10 ${n#*:}; chown 65534 nodes/${n%:*}; done; \
                                mount --bind nodes/kvm /dev/kvm; mount --bind nodes/tun /dev/net/tun;";

/// Starts a jailer as an ordinary user who may use `/dev/kvm` and `/dev/net/tun`: in mounts of their own, in which those are the user's.
fn start(place: &Place, options: &str) -> Jailed {
    let dir = place.base.path();
    chown(dir, Some(USER), Some(USER)).unwrap();
    // The user must reach the programs, wherever the tests were built.
    let bin = dir.join("bin");
    fs::create_dir(&bin).unwrap();
    let (jailer, mayfly) = (bin.join("mayfly-jailer"), bin.join(place.name()));
    fs::copy(binary::jailer(), &jailer).unwrap();
    fs::copy(binary::mayfly(), &mayfly).unwrap();
    let script = format!(
        "set -e; cd {dir}; {NODES} \
         exec setpriv --reuid {USER} --regid {USER} --clear-groups bin/mayfly-jailer --rootless --id {id} --exec-file bin/{name} --uid 7 --gid 8 \
         --chroot-base-dir . {options} -- --api-sock /run/api.sock",
        dir = dir.display(),
        id = place.id,
        name = place.name(),
    );
    spawn(Command::new("unshare").args(["--mount", "sh", "-c", &script]))
}

#[test]
fn a_guest_boots_without_root() {
    let place = Place::new("rootless");
    let elf = kernel(&place);
    let jailed = start(&place, &format!("--cleanup --bind {}:/guest.elf:ro", elf.display()));
    place.wait_for_api(&jailed);
    let pid = place.pid();
    assert_eq!(status(&pid.to_string(), "Uid"), format!("{USER}\t{USER}\t{USER}\t{USER}"), "outside");
    let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["7", &USER.to_string(), "1"]);
    place.put(
        "/boot-source",
        &json!({"kernel_image_path": "/guest.elf", "boot_args": Job::new(Mode::Spin).command_line()}),
    );
    place.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 64}));
    place.put("/actions", &json!({"action_type": "InstanceStart"}));
    jailed.stdout.find(guest::READY, PATIENCE).unwrap_or_else(|| panic!("{}", jailed.said()));
    assert_confined(pid);
    let report = place.try_get("/confinement").unwrap();
    assert_eq!((&report["uid"], &report["capabilities"]["bounding"]), (&7.into(), &"0000000000000000".into()));
    place.kill();
    place.wait_until_gone();
}

#[test]
fn what_a_user_may_not_do_is_told() {
    let place = Place::new("rootless");
    let mut jailed = start(&place, "--cgroup cpu.shares=5 --cgroup cpu.weight=5");
    assert_eq!(jailed.wait(), 1);
    assert!(jailed.stderr.text().contains("cpu"), "{}", jailed.said());
    assert!(!place.jail().exists(), "{}", jailed.said());

    let place = Place::new("root");
    let output = Command::new("setpriv")
        .args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups", "--"])
        .arg({
            let copy = place.base.path().join("mayfly-jailer");
            fs::copy(binary::jailer(), &copy).unwrap();
            copy
        })
        .args(["--id", "x", "--exec-file", "/bin/true", "--uid", "1", "--gid", "1", "--chroot-base-dir"])
        .arg(place.base.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("--rootless"), "{said}");
    assert!(Path::new("/proc/self/ns/user").exists());
}
