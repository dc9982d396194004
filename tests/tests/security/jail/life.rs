//! Beginning and end: namespaces and groups that are joined, jails that are taken over, cleaned up, or never were.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use mayfly_tests::{PATIENCE, binary, tap};

use super::{Place, cgroup, everything, is_v1, jailers, run, spawn, weight};
use crate::status;

#[test]
fn the_process_is_in_its_control_group() {
    let place = Place::new("groups");
    let (file, value) = weight();
    let option = format!("{file}={value}");
    let mut options = vec!["--cgroup", &option];
    if is_v1() {
        options.extend(["--cgroup", "cpuset.cpus=0"]);
    }
    let jailed = place.start(&options);
    let group = cgroup(&place, "cpu");
    assert_eq!(fs::read_to_string(group.join(file)).unwrap().trim(), value);
    let members = fs::read_to_string(group.join("cgroup.procs")).unwrap();
    assert!(members.lines().any(|line| line == place.pid().to_string()), "{members}\n{}", jailed.said());
    if is_v1() {
        let set = cgroup(&place, "cpuset");
        assert_eq!(fs::read_to_string(set.join("cpuset.cpus")).unwrap().trim(), "0");
        assert_ne!(fs::read_to_string(set.join("cpuset.mems")).unwrap().trim(), "", "inherited");
        assert_eq!(status(&place.pid().to_string(), "Cpus_allowed_list"), "0");
    }
    place.kill();
    clean(&place, 0);
    assert!(!group.exists());
}

/// The `clean` command, and what it says.
#[track_caller]
fn clean(place: &Place, code: i32) -> String {
    let mut command = Command::new(binary::jailer());
    command
        .args(["clean", "--id", &place.id, "--exec-file"])
        .arg(binary::mayfly())
        .arg("--chroot-base-dir")
        .arg(place.base.path());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

#[test]
fn a_network_namespace_is_joined() {
    tap::private_network();
    let place = Place::new("net");
    let netns = format!("/proc/{}/ns/net", std::process::id());
    // This thread's own, which is not the process's.
    let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let thread = format!("/proc/{}/task/{}/ns/net", std::process::id(), status("thread-self", "Pid"));
    assert_ne!(fs::read_link(netns).unwrap(), own);
    // Started from another thread, it is in another namespace unless it joins.
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let _jailed = place.start(&["--netns", &thread]);
                assert_eq!(fs::read_link(format!("/proc/{}/ns/net", place.pid())).unwrap(), own);
            })
            .join()
            .unwrap();
    });
}

#[test]
fn a_process_namespace_has_a_first_process_and_the_caller_is_told_which() {
    let place = Place::new("pidns");
    let mut jailed = place.start(&["--new-pid-ns"]);
    assert_eq!(jailed.wait(), 0, "{}", jailed.said());
    let pid = place.pid();
    assert_ne!(pid, jailed.child.id());
    let numbers = status(&pid.to_string(), "NSpid");
    assert!(numbers.ends_with("\t1"), "{numbers}");
    assert!(place.try_get("/").is_some());
}

#[test]
fn a_daemon_has_no_terminal_and_a_session_of_its_own() {
    let place = Place::new("daemon");
    let mut jailed = place.start(&["--daemonize"]);
    assert_eq!(jailed.wait(), 0, "{}", jailed.said());
    let pid = place.pid();
    for stream in 0..3 {
        assert_eq!(fs::read_link(format!("/proc/{pid}/fd/{stream}")).unwrap(), Path::new("/dev/null"));
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_eq!(fields[4], "0", "a terminal: {stat}");
    assert_ne!(
        fields[3],
        fs::read_to_string("/proc/self/stat").unwrap().rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap()
    );
    assert!(place.try_get("/").is_some());
}

#[test]
fn a_jail_in_use_is_refused_and_a_dead_ones_is_taken_over() {
    let place = Place::new("stale");
    let mut first = place.start(&[]);
    let pid = place.pid();
    let before = everything(place.base.path());
    let said = place.refused(&[]);
    assert!(said.contains(&format!("in use by process {pid}")), "{said}");
    assert!(clean(&place, 1).contains("in use"));
    assert_eq!(everything(place.base.path()), before);
    assert!(place.try_get("/").is_some(), "the first one goes on");
    // SIGKILL leaves the socket, the pid file and the devices.
    place.kill();
    first.wait();
    fs::remove_file(place.socket()).unwrap();
    let _second = place.start(&[]);
    assert_ne!(place.pid(), pid);
}

#[test]
fn clean_removes_everything_and_can_be_repeated() {
    let place = Place::new("clean");
    let (file, value) = weight();
    let mut jailed = place.start(&["--cgroup", &format!("{file}={value}")]);
    let group = cgroup(&place, "cpu");
    place.kill();
    jailed.wait();
    assert!(group.exists() && place.jail().exists());
    clean(&place, 0);
    assert!(!group.exists() && !place.jail().exists());
    clean(&place, 0);
}

/// A hundred machines, each killed: no path, control group, mount or process is left.
#[test]
fn a_hundred_jails_leave_nothing() {
    let place = Place::new("x");
    let (file, value) = weight();
    let option = format!("{file}={value}");
    let before = everything(place.base.path());
    for n in 0..100 {
        // The base is the first one's; each has its own id.
        let mut command = Command::new(binary::jailer());
        let id = format!("vm-{n}");
        command.args(["--id", &id, "--exec-file"]).arg(binary::mayfly()).args([
            "--uid",
            "61001",
            "--gid",
            "61002",
            "--cleanup",
            "--cgroup",
            &option,
        ]);
        command.arg("--chroot-base-dir").arg(place.base.path()).args(["--", "--api-sock", "/run/api.sock"]);
        let mut jailed = spawn(&mut command);
        let root = place.base.path().join(place.name()).join(&id).join("root");
        let deadline = Instant::now() + PATIENCE;
        while !root.join("run/api.sock").exists() {
            assert!(Instant::now() < deadline, "{}", jailed.said());
            std::thread::sleep(Duration::from_millis(1));
        }
        // With and without warning.
        let signal = if n % 2 == 0 { "-9" } else { "-15" };
        run("kill", &[signal, &jailed.child.id().to_string()]);
        jailed.wait();
    }
    place.wait_until_only(&before);
    let parent = cgroup(&place, "cpu").parent().unwrap().to_owned();
    let left = fs::read_dir(&parent)
        .map(|entries| entries.flatten().filter(|e| e.file_name().to_str().unwrap().starts_with("vm-")).count());
    assert_eq!(left.unwrap_or(0), 0, "control groups");
}

/// Whatever step fails, what was done before is undone; what the operator had put there stays.
#[test]
fn what_fails_leaves_nothing() {
    let place = Place::new("fails");
    let mine = place.root().join("images/vmlinux");
    fs::create_dir_all(mine.parent().unwrap()).unwrap();
    fs::write(&mine, "mine").unwrap();
    let (file, value) = weight();
    let good = format!("{file}={value}");
    let bad = format!("{file}=nonsense");
    // Another machine's group has the same parent, which is there already.
    let sibling = Place::new("sibling");
    let _running = sibling.start(&["--cgroup", &good]);
    for options in [
        vec!["--netns", "/etc/hostname"],
        vec!["--cgroup", &good, "--cgroup", &bad],
        vec!["--cgroup", &good, "--bind", "/no/such:/x"],
        vec!["--cgroup", &good, "--cleanup", "--bind", "/etc/hostname:/images"],
        vec!["--cgroup", &good, "--new-pid-ns", "--bind", "/etc:/images/vmlinux"],
    ] {
        let said = place.refused(&options);
        assert!(said.starts_with("Error: "), "{said}");
        assert!(!cgroup(&place, "cpu").exists(), "{options:?}: {said}");
    }
    assert_eq!(fs::read(&mine).unwrap(), b"mine");
    assert_eq!(jailers(&place), 0, "a process is left");
    // And then it works.
    let _jailed = place.start(&["--cgroup", &good]);
    for place in [&place, &sibling] {
        place.kill();
        place.wait_until_dead();
        clean(place, 0);
    }
}
