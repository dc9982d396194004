//! Without root: a user namespace, and what the caller may do by itself.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use guest::{Job, Mode};
use mayfly_tests::{PATIENCE, binary};
use serde_json::json;

use super::attacks::{assert_no_way_out, assert_races_are_lost_safely};
use super::{Jailed, Place, everything, is_v1, kernel, run, spawn};
use crate::{assert_confined, status};

/// An ordinary user.
pub(super) const USER: u32 = 65_534;

/// Lets a user use `/dev/kvm` and `/dev/net/tun`, in mounts of one's own.
pub(super) fn nodes(user: u32) -> String {
    format!(
        "mkdir -p nodes; for n in kvm:232 tun:200; do [ -e nodes/${{n%:*}} ] || mknod nodes/${{n%:*}} c 10 ${{n#*:}}; chown {user} nodes/${{n%:*}}; done; \
         mount --bind nodes/kvm /dev/kvm; mount --bind nodes/tun /dev/net/tun;"
    )
}

/// A jailer run by an ordinary user who may use `/dev/kvm` and `/dev/net/tun`: in mounts of their own, in which those are the user's.
fn command(place: &Place, user: u32, options: &str) -> Command {
    command_with(place, user, options, "")
}

/// The same, with more arguments for the program.
fn command_with(place: &Place, user: u32, options: &str, more: &str) -> Command {
    let dir = place.base.path();
    chown(dir, Some(user), Some(user)).unwrap();
    // The user must reach the programs, wherever the tests were built.
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let (jailer, mayfly) = (bin.join("mayfly-jailer"), bin.join(place.name()));
    binary::copy(&binary::jailer(), &jailer);
    binary::copy(&binary::mayfly(), &mayfly);
    let script = format!(
        "set -e; cd {dir}; {nodes} \
         exec /bin/setpriv --reuid {user} --regid {user} --clear-groups bin/mayfly-jailer --rootless --id {id} --exec-file bin/{name} --uid 7 --gid 8 \
         --chroot-base-dir . {options} -- --api-sock /run/api.sock {more}",
        dir = dir.display(),
        nodes = nodes(user),
        id = place.id,
        name = place.name(),
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    command
}

fn start(place: &Place, options: &str) -> Jailed {
    spawn(&mut command(place, USER, options))
}

/// J1: what was planted where the user keeps jails.
#[test]
fn what_was_planted_is_refused_without_root_too() {
    let secret_dir = tempfile::tempdir().unwrap();
    let secret = secret_dir.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    chown(&secret, Some(USER), Some(USER)).unwrap();
    let program = Place::new("probe").name();
    for target in ["dev", "dev/net", "run", "dev/kvm", &program, &format!("{program}.pid"), "bound"] {
        for kind in ["link", "hard link", "FIFO"] {
            if kind == "hard link" && matches!(target, "bound" | "dev/kvm") {
                // Something is mounted upon it, which changes nothing of the file.
                continue;
            }
            let place = Place::new("planted");
            let at = place.root().join(target);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            match kind {
                "link" => std::os::unix::fs::symlink(&secret, &at).unwrap(),
                "hard link" => fs::hard_link(&secret, &at).unwrap(),
                _ => assert!(Command::new("mkfifo").arg(&at).status().unwrap().success()),
            }
            let mut command = command(&place, USER, "--bind /etc/hostname:/bound");
            run("chown", &["-R", "-h", &USER.to_string(), place.jail().parent().unwrap().to_str().unwrap()]);
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(1) && said.contains(target), "{target} {kind}: {said}");
            assert_eq!(fs::read(&secret).unwrap(), b"secret", "{target} {kind}");
            assert!(fs::symlink_metadata(&at).is_ok(), "{target} {kind}: what was there is gone");
        }
    }
}

/// J2: the same race without root.
#[test]
fn what_is_swapped_meanwhile_leads_nowhere_without_root_either() {
    let place = Place::new("swapped");
    chown(place.base.path(), Some(USER), Some(USER)).unwrap();
    assert_races_are_lost_safely(&place, 50, || command_with(&place, USER, "", "--version"));
}

/// A hundred machines of an ordinary user, each killed: nothing is left.
#[test]
fn a_hundred_jails_without_root_leave_nothing() {
    let mut place = Place::new("x");
    let mut before = Vec::new();
    for n in 0..=100 {
        place.id = format!("vm-{n}");
        let mut jailed = start(&place, "--cleanup");
        place.wait_for_api(&jailed);
        // With and without warning.
        let signal = if n % 2 == 0 { "-9" } else { "-15" };
        run("kill", &[signal, &place.pid().to_string()]);
        jailed.wait();
        if n == 0 {
            // The first one's base has what all of them need.
            place.wait_until_gone();
            before = everything(place.base.path());
        }
    }
    place.wait_until_only(&before);
}

/// J3 and J6.
#[test]
fn bad_names_are_refused_and_there_is_no_way_out_without_root_either() {
    for id in ["", "..", "a/b"] {
        let place = Place::with_id(id);
        let output = command(&place, USER, "").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // An empty one is no argument in the script, and so another mistake.
        assert!(
            output.status.code() == Some(1) && (said.contains("Invalid instance ID") || id.is_empty()),
            "{id:?}: {said}"
        );
    }
    let place = Place::new("inside");
    let jailed = spawn(&mut command_with(&place, USER, "", "--no-seccomp"));
    place.wait_for_api(&jailed);
    assert_no_way_out(&place);
}

/// J4 and J7: nothing is inherited, and one user's machine is nothing to another user.
#[test]
fn two_users_have_nothing_of_each_other() {
    let (one, other) = (Place::new("one"), Place::new("other"));
    let mut first = command(&one, USER, "");
    first.env("LD_PRELOAD", "/evil.so").env("SECRET", "1");
    let (first, second) = (spawn(&mut first), spawn(&mut command(&other, USER - 1, "")));
    one.wait_for_api(&first);
    other.wait_for_api(&second);
    let pid = one.pid().to_string();
    assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(&pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(&pid, "NoNewPrivs"), "1");
    for kind in ["mnt", "ipc", "uts", "user"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        assert!(of(&pid) != of("self") && of(&pid) != of(&other.pid().to_string()), "{kind}");
    }
    let user = (USER - 1).to_string();
    let as_other = |arguments: &[&str]| {
        run("setpriv", &[&["--reuid", &user, "--regid", &user, "--clear-groups", "--"], arguments].concat())
    };
    for path in [one.socket(), one.pid_file(), one.root().join(one.name()), format!("/proc/{pid}/maps").into()] {
        let (code, said) = as_other(&["cat", path.to_str().unwrap()]);
        assert!(code != Some(0) && said.contains("Permission denied"), "{said}");
    }
    assert_ne!(as_other(&["kill", "-0", &pid]).0, Some(0), "signals");
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
    // Log lines go where the guest's console goes, and one could come in the middle of what the guest says.
    place.put("/logger", &json!({"level": "Warning"}));
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
    let place_of_groups = if is_v1() { "/sys/fs/cgroup/cpu" } else { "/sys/fs/cgroup/" };
    assert!(jailed.stderr.text().contains(place_of_groups), "{}", jailed.said());
    assert!(!place.jail().exists(), "{}", jailed.said());

    let place = Place::new("root");
    let output = Command::new("setpriv")
        .args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups", "--"])
        .arg({
            let copy = place.base.path().join("mayfly-jailer");
            binary::copy(&binary::jailer(), &copy);
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
