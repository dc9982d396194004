use std::os::unix::ffi::OsStrExt;

use super::*;
use crate::cli::{Task, parse};
use crate::layout::Id;

fn options(more: &str) -> Jail {
    let line = format!("mayfly-jailer --id vm --exec-file /bin/mayfly --uid 1 --gid 2 {more}");
    match parse(line.split_whitespace().map(OsString::from).collect()) {
        Task::Jail(jail) => *jail,
        other => panic!("{other:?}"),
    }
}

fn mount(version: u8, path: &str, controllers: &str) -> CgroupMount {
    let controllers = controllers.split_whitespace().map(str::to_owned).collect();
    CgroupMount { version, path: path.into(), controllers }
}

fn host(cgroups: Vec<CgroupMount>) -> Host {
    Host {
        layout: Layout { base: "/srv/jailer".into(), name: "mayfly".into(), id: Id::new("vm").unwrap() },
        exec_file: "/bin/mayfly".into(),
        cgroups,
        offered: vec!["cpu".into(), "memory".into()],
        parent_exists: false,
        userfaultfd: Some(257),
        caller: (0, 0),
    }
}

fn v1() -> Host {
    host(vec![mount(1, "/cg/cpu", "rw cpu cpuacct"), mount(1, "/cg/set", "rw cpuset"), mount(2, "/cg/unified", "")])
}

fn v2() -> Host {
    host(vec![mount(2, "/cg", "")])
}

#[track_caller]
fn steps(more: &str, host: &Host) -> Vec<Step> {
    plan(&options(more), host).unwrap().steps
}

#[track_caller]
fn refused(more: &str, host: &Host) -> String {
    plan(&options(more), host).unwrap_err().to_string()
}

fn place(steps: &[Step], what: impl Fn(&Step) -> bool) -> usize {
    steps.iter().position(what).unwrap_or_else(|| panic!("missing in {steps:?}"))
}

#[test]
fn the_order_is_the_contracts() {
    let all = steps("--netns /n --daemonize --new-pid-ns --cgroup cpu.shares=5 --bind /a:/b:ro", &v1());
    let order = [
        place(&all, |s| *s == Step::MakeJail),
        place(&all, |s| matches!(s, Step::CopyProgram { .. })),
        place(&all, |s| matches!(s, Step::JoinNetwork { .. })),
        place(&all, |s| matches!(s, Step::Limit(_))),
        place(&all, |s| matches!(s, Step::JoinCgroup { .. })),
        place(&all, |s| *s == Step::Unshare),
        place(&all, |s| matches!(s, Step::Bind { .. })),
        place(&all, |s| matches!(s, Step::OwnDirectory { .. })),
        place(&all, |s| matches!(s, Step::Node { .. })),
        place(&all, |s| *s == Step::EnterJail),
        place(&all, |s| *s == Step::Daemonize),
        place(&all, |s| *s == Step::EnterPidNamespace),
        place(&all, |s| *s == Step::DropPrivileges),
        place(&all, |s| matches!(s, Step::Run { .. })),
    ];
    assert!(order.is_sorted(), "{order:?}");
    assert!(!all.contains(&Step::WritePidFile), "whoever stays outside writes it");
    assert!(steps("", &v1()).contains(&Step::WritePidFile));
}

#[test]
fn limits_have_a_default_and_names() {
    let limits = |more| {
        steps(more, &v1())
            .into_iter()
            .filter_map(|s| if let Step::Limit(l) = s { Some(l) } else { None })
            .collect::<Vec<_>>()
    };
    assert_eq!(limits(""), [Limit::OpenFiles(2048)]);
    let both = limits("--resource-limit no-file=7 --resource-limit fsize=9");
    assert_eq!(both, [Limit::OpenFiles(2048), Limit::OpenFiles(7), Limit::FileSize(9)]);
    for bad in ["no-file", "no-file=x", "cpu=1", "=1", "no-file=-1"] {
        assert!(refused(&format!("--resource-limit {bad}"), &v1()).contains(bad), "{bad}");
    }
}

#[test]
fn version_1_groups() {
    let Plan { steps, cgroups, .. } =
        plan(&options("--cgroup cpu.shares=5 --cgroup cpuset.cpus=0-1 --cgroup cpu.x=1"), &v1()).unwrap();
    assert_eq!(cgroups, [Path::new("/cg/cpu/mayfly/vm"), Path::new("/cg/set/mayfly/vm")]);
    let set = |file: &str, value: &str| Step::SetCgroup { file: file.into(), value: value.into() };
    for step in [
        set("/cg/cpu/mayfly/vm/cpu.shares", "5"),
        set("/cg/set/mayfly/vm/cpuset.cpus", "0-1"),
        set("/cg/cpu/mayfly/vm/cpu.x", "1"),
        Step::InheritCpuset { mount: "/cg/set".into(), group: "mayfly/vm".into() },
        Step::JoinCgroup { procs: "/cg/cpu/mayfly/vm/tasks".into() },
        Step::JoinCgroup { procs: "/cg/set/mayfly/vm/tasks".into() },
    ] {
        assert_eq!(steps.iter().filter(|s| **s == step).count(), 1, "{step:?}");
    }
    assert!(refused("--cgroup memory.limit_in_bytes=1", &v1()).contains("Controller memory"));
}

#[test]
fn version_2_groups() {
    let Plan { steps, cgroups, .. } =
        plan(&options("--cgroup cpu.weight=5 --cgroup memory.max=1 --parent-cgroup a/b"), &v2()).unwrap();
    assert_eq!(cgroups, [Path::new("/cg/a/b/vm")]);
    assert!(steps.contains(&Step::EnableControllers {
        mount: "/cg".into(),
        group: "a/b/vm".into(),
        controllers: vec!["cpu".into(), "memory".into()],
    }));
    assert!(steps.contains(&Step::JoinCgroup { procs: "/cg/a/b/vm/cgroup.procs".into() }));
    assert!(refused("--cgroup io.max=1", &v2()).contains("there are cpu, memory"));
    // The host's own version is taken unless another is asked for.
    assert!(
        plan(&options("--cgroup cpu.weight=5 --cgroup-version 2"), &v1()).unwrap().cgroups[0]
            .starts_with("/cg/unified")
    );
    assert!(refused("--cgroup cpu.x=5 --cgroup-version 2", &host(Vec::new())).contains("not mounted"));
}

#[test]
fn a_parent_that_exists_is_joined_first() {
    let there = Host { parent_exists: true, ..v2() };
    assert_eq!(steps("--parent-cgroup all", &there)[0], Step::JoinCgroup { procs: "/cg/all/cgroup.procs".into() });
    assert_eq!(steps("", &there)[0], Step::MakeJail, "only if it was named");
    assert_eq!(steps("--parent-cgroup all", &v2())[0], Step::MakeJail, "only if it exists");
}

#[test]
fn what_could_lead_elsewhere_is_refused() {
    for bad in [
        "--parent-cgroup ../x",
        "--parent-cgroup /x",
        "--cgroup cpu.x/../../y=1",
        "--cgroup ../x.y=1",
        "--cgroup shares=1",
        "--cgroup cpu.shares=",
    ] {
        refused(bad, &v1());
    }
    for bad in ["a:/b", "/a:b", "/a", "/a:/../b", "/a:/", "/a:/b:rw", "/a:/b/../c"] {
        assert!(refused(&format!("--bind {bad}"), &v1()).contains("--bind"), "{bad}");
    }
}

#[test]
fn binds_are_as_they_are_written() {
    let bind = |text: &str| parse_bind(text).unwrap();
    let made = |from: &str, to: &str, read_only| Step::Bind {
        from: from.into(),
        to: to.into(),
        read_only,
        program: false,
        device: false,
    };
    assert_eq!(bind("/a b:/c"), made("/a b", "/c", false));
    assert_eq!(bind("/a:/c/d:ro"), made("/a", "/c/d", true));
}

#[test]
fn a_user_namespace_has_the_hosts_devices() {
    let ours = Host { caller: (1000, 1000), ..v2() };
    let all = steps("--rootless", &ours);
    assert!(all.contains(&Step::EnterUserNamespace { caller: (1000, 1000) }));
    assert!(!all.iter().any(|s| matches!(s, Step::Node { .. })));
    assert!(all.iter().any(|s| matches!(s, Step::Bind { from, device: true, .. } if from == Path::new("/dev/kvm"))));
    assert!(refused("", &ours).contains("--rootless"));
}

#[test]
fn the_plan_names_every_path_and_id() {
    let shown =
        plan(&options("--cleanup --netns /n --cgroup cpu.shares=5 --bind /img:/img:ro -- --api-sock /s"), &v1())
            .unwrap()
            .to_string();
    for part in [
        "/srv/jailer/mayfly/vm/root",
        "copy /bin/mayfly",
        "1:2",
        "/n",
        "/cg/cpu/mayfly/vm/cpu.shares",
        "10:232",
        "read-only",
        "--api-sock /s",
        "10:257",
    ] {
        assert!(shown.contains(part), "{part} is missing in\n{shown}");
    }
    assert_eq!(OsString::from("--api-sock").as_bytes(), b"--api-sock");
}
