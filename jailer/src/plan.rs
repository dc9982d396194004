//! From options to steps. No system calls: what is known of the host is in [`Host`].

use std::ffi::OsString;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use crate::cli::Jail;
use crate::error::Error;
use crate::host::{CgroupMount, Host};
use crate::layout::Layout;

/// Open files of the process unless told otherwise.
const NO_FILE: u64 = 2048;

/// Everything that is done, in order, and what it is done to.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) layout: Layout,
    pub(crate) owner: Owner,
    pub(crate) steps: Vec<Step>,
    /// A process stays behind to remove the jail.
    pub(crate) cleanup: bool,
    /// Directories of control groups that are the machine's.
    pub(crate) cgroups: Vec<PathBuf>,
}

/// Who runs the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// In a user namespace: whom these ids are outside.
    pub(crate) rootless: Option<(u32, u32)>,
}

/// A limit of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Largest file, in bytes.
    FileSize(u64),
    /// Open files.
    OpenFiles(u64),
}

/// One step. Paths that begin with `/` and are not said to be in the jail are the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Moves into a control group that exists.
    JoinCgroup { procs: PathBuf },
    /// Makes the directories of the jail.
    MakeJail,
    /// Refuses a jail in use, and removes what a dead machine left in one.
    TakeOver,
    /// Copies the program into the jail.
    CopyProgram { from: PathBuf },
    /// Joins a network namespace.
    JoinNetwork { path: PathBuf },
    /// Limits the process.
    Limit(Limit),
    /// Makes a directory of a control group, and those above it.
    MakeCgroup { mount: PathBuf, group: PathBuf },
    /// Lets groups below have controllers (version 2), from the top down to the parent of the machine's.
    EnableControllers { mount: PathBuf, group: PathBuf, controllers: Vec<String> },
    /// Gives a group without processors or memory nodes those of the one above (version 1).
    InheritCpuset { mount: PathBuf, group: PathBuf },
    /// Writes a value of a control group.
    SetCgroup { file: PathBuf, value: String },
    /// Makes ids of a user namespace those of the caller.
    EnterUserNamespace { caller: (u32, u32) },
    /// Leaves the host's mounts, messages and names.
    Unshare,
    /// Makes a file or directory of the host appear in the jail.
    Bind { from: PathBuf, to: PathBuf, read_only: bool, program: bool, device: bool },
    /// Makes the jail the root of all paths.
    EnterJail,
    /// Makes a directory that is the owner's alone.
    OwnDirectory { path: &'static str },
    /// Makes a device node that is the owner's alone.
    Node { path: &'static str, major: u32, minor: u32, optional: bool },
    /// Leaves the caller's session and terminal.
    Daemonize,
    /// Goes on as the first process of a process namespace; the caller's process ends.
    EnterPidNamespace,
    /// Writes down which process it is.
    WritePidFile,
    /// Gives up capabilities, groups, ids and ways to gain any.
    DropPrivileges,
    /// Becomes the program.
    Run { program: PathBuf, arguments: Vec<OsString> },
}

/// What `--cgroup` says.
struct Setting {
    file: String,
    value: String,
}

/// Makes the plan.
pub(crate) fn plan(options: &Jail, host: &Host) -> Result<Plan, Error> {
    let Host { layout, exec_file, .. } = host;
    let rootless = options.rootless.then_some(host.caller);
    if rootless.is_none() && host.caller.0 != 0 {
        return Err(Error::new("Only root can do this: run it as root, or with --rootless in a user namespace."));
    }
    let mut steps = Vec::new();
    let (cgroups, mut in_cgroups) = cgroup_steps(options, host)?;
    // Joining a parent comes first, as in v1: everything after is accounted for there.
    if let Some(first @ Step::JoinCgroup { .. }) = in_cgroups.first().cloned().filter(|_| options.cgroup.is_empty()) {
        steps.push(first);
        in_cgroups.clear();
    }
    steps.extend([Step::MakeJail, Step::TakeOver]);
    if !options.share_exec {
        steps.push(Step::CopyProgram { from: exec_file.clone() });
    }
    if let Some(path) = &options.netns {
        steps.push(Step::JoinNetwork { path: path.clone() });
    }
    steps.extend(limits(&options.resource_limit)?.map(Step::Limit));
    steps.extend(in_cgroups);
    if let Some(caller) = rootless {
        steps.push(Step::EnterUserNamespace { caller });
    }
    steps.push(Step::Unshare);
    for bind in &options.bind {
        steps.push(parse_bind(bind)?);
    }
    let program = Path::new("/").join(&layout.name);
    if options.share_exec {
        steps.push(Step::Bind {
            from: exec_file.clone(),
            to: program.clone(),
            read_only: true,
            program: true,
            device: false,
        });
    }
    steps.extend(["/", "/dev", "/dev/net", "/run"].map(|path| Step::OwnDirectory { path }));
    steps.extend(devices(host, rootless.is_some()));
    steps.push(Step::EnterJail);
    if options.daemonize {
        steps.push(Step::Daemonize);
    }
    if options.new_pid_ns {
        steps.push(Step::EnterPidNamespace);
    }
    // In a namespace of its own the process does not know its number outside: whoever stays outside writes it down.
    if !options.new_pid_ns {
        steps.push(Step::WritePidFile);
    }
    steps.push(Step::DropPrivileges);
    steps.push(Step::Run { program, arguments: options.rest.clone() });
    Ok(Plan {
        layout: layout.clone(),
        owner: Owner { uid: options.uid, gid: options.gid, rootless },
        steps,
        cleanup: options.cleanup,
        cgroups,
    })
}

/// Device nodes, or in a user namespace, which may make none, those of the host.
fn devices(host: &Host, rootless: bool) -> Vec<Step> {
    const MISC: u32 = 10;
    let node = |path, major, minor, optional| match rootless {
        false => Step::Node { path, major, minor, optional },
        true => Step::Bind { from: path.into(), to: path.into(), read_only: false, program: false, device: true },
    };
    let mut nodes = vec![
        node("/dev/net/tun", MISC, 200, false),
        node("/dev/kvm", MISC, 232, false),
        node("/dev/urandom", 1, 9, true),
    ];
    if let Some(minor) = host.userfaultfd.filter(|_| !rootless) {
        nodes.push(node("/dev/userfaultfd", MISC, minor, true));
    }
    nodes
}

fn limits(asked: &[String]) -> Result<impl Iterator<Item = Limit> + use<>, Error> {
    let mut limits = vec![Limit::OpenFiles(NO_FILE)];
    for text in asked {
        let bad =
            || Error::new(format!("Invalid format for resource limit {text}: write fsize=BYTES or no-file=NUMBER."));
        let (name, value) = text.split_once('=').ok_or_else(bad)?;
        let value = value.parse().map_err(|_| bad())?;
        match name {
            "fsize" => limits.push(Limit::FileSize(value)),
            "no-file" => limits.push(Limit::OpenFiles(value)),
            _ => return Err(bad()),
        }
    }
    Ok(limits.into_iter())
}

/// `SRC:DST[:ro]`.
fn parse_bind(text: &str) -> Result<Step, Error> {
    let bad = |why: &str| Error::new(format!("Invalid --bind {text}: {why}. Write SRC:DST or SRC:DST:ro."));
    let (rest, read_only) = match text.strip_suffix(":ro") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let (from, to) = rest.split_once(':').ok_or_else(|| bad("there is no `:`"))?;
    if !from.starts_with('/') || !to.starts_with('/') {
        return Err(bad("both paths begin with /"));
    }
    let plain = |component: Component<'_>| matches!(component, Component::RootDir | Component::Normal(_));
    if to.contains(':') || to == "/" || !Path::new(to).components().all(plain) {
        return Err(bad("the path in the jail is a plain one, and not / itself"));
    }
    Ok(Step::Bind { from: from.into(), to: to.into(), read_only, program: false, device: false })
}

/// The machine's control groups, and what is done about them.
fn cgroup_steps(options: &Jail, host: &Host) -> Result<(Vec<PathBuf>, Vec<Step>), Error> {
    let parent = options.parent_cgroup.clone().unwrap_or_else(|| host.layout.name.clone());
    let plain = |component: Component<'_>| matches!(component, Component::Normal(_));
    if parent.is_empty() || !Path::new(&parent).components().all(plain) {
        return Err(Error::new(format!(
            "Invalid --parent-cgroup {parent}: it is a path below the mount, without / at its start and without `..`."
        )));
    }
    let group = Path::new(&parent).join(host.layout.id.as_str());
    let settings = options.cgroup.iter().map(|text| setting(text)).collect::<Result<Vec<_>, _>>()?;
    let newest = if host.cgroups.iter().any(|mount| mount.version == 1) { 1 } else { 2 };
    match options.cgroup_version.unwrap_or(newest) {
        1 => version_1(host, &group, &settings),
        _ => version_2(options, host, &parent, &group, &settings),
    }
}

fn setting(text: &str) -> Result<Setting, Error> {
    let bad =
        |why: &str| Error::new(format!("Invalid --cgroup {text}: {why}. Write FILE=VALUE, such as cpu.shares=512."));
    let (file, value) = text.split_once('=').ok_or_else(|| bad("there is no `=`"))?;
    if value.is_empty() {
        return Err(bad("the value is missing"));
    }
    if file.contains('/') || file.contains("..") || !file.contains('.') {
        return Err(bad("the file is CONTROLLER.NAME, without a path"));
    }
    Ok(Setting { file: file.to_owned(), value: value.to_owned() })
}

fn version_1(host: &Host, group: &Path, settings: &[Setting]) -> Result<(Vec<PathBuf>, Vec<Step>), Error> {
    let mut steps = Vec::new();
    let mut groups: Vec<PathBuf> = Vec::new();
    for Setting { file, value } in settings {
        let controller = file.split('.').next().unwrap_or_default();
        let found =
            host.cgroups.iter().find(|mount| mount.version == 1 && mount.controllers.iter().any(|c| c == controller));
        let Some(CgroupMount { path: mount, .. }) = found else {
            return Err(Error::new(format!(
                "Controller {controller} of --cgroup {file}={value} is not mounted: mount it, or choose another --cgroup-version."
            )));
        };
        let directory = mount.join(group);
        if !groups.contains(&directory) {
            steps.push(Step::MakeCgroup { mount: mount.clone(), group: group.to_owned() });
            if controller == "cpuset" {
                steps.push(Step::InheritCpuset { mount: mount.clone(), group: group.to_owned() });
            }
            groups.push(directory.clone());
        }
        steps.push(Step::SetCgroup { file: directory.join(file), value: value.clone() });
    }
    steps.extend(groups.iter().map(|directory| Step::JoinCgroup { procs: directory.join("tasks") }));
    Ok((groups, steps))
}

fn version_2(
    options: &Jail,
    host: &Host,
    parent: &str,
    group: &Path,
    settings: &[Setting],
) -> Result<(Vec<PathBuf>, Vec<Step>), Error> {
    let mount = host.cgroups.iter().find(|mount| mount.version == 2).map(|mount| mount.path.clone());
    if settings.is_empty() {
        let joins = mount.filter(|_| options.parent_cgroup.is_some() && host.parent_exists);
        let step = joins.map(|mount| Step::JoinCgroup { procs: mount.join(parent).join("cgroup.procs") });
        return Ok((Vec::new(), step.into_iter().collect()));
    }
    let Some(mount) = mount else {
        return Err(Error::new(
            "Control groups of version 2 are not mounted: mount them, or choose --cgroup-version 1.",
        ));
    };
    let mut controllers: Vec<String> = Vec::new();
    for Setting { file, value } in settings {
        let controller = file.split('.').next().unwrap_or_default().to_owned();
        // Files of the group itself belong to no controller.
        if controller != "cgroup" && !host.offered.contains(&controller) {
            return Err(Error::new(format!(
                "Controller {controller} of --cgroup {file}={value} is not offered by {}: there are {}.",
                mount.display(),
                host.offered.join(", ")
            )));
        }
        if controller != "cgroup" && !controllers.contains(&controller) {
            controllers.push(controller);
        }
    }
    let directory = mount.join(group);
    let mut steps = vec![
        Step::MakeCgroup { mount: mount.clone(), group: group.to_owned() },
        Step::EnableControllers { mount, group: group.to_owned(), controllers },
    ];
    let set = |Setting { file, value }: &Setting| Step::SetCgroup { file: directory.join(file), value: value.clone() };
    steps.extend(settings.iter().map(set));
    steps.push(Step::JoinCgroup { procs: directory.join("cgroup.procs") });
    Ok((vec![directory], steps))
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FileSize(bytes) => write!(f, "files of at most {bytes} bytes"),
            Self::OpenFiles(count) => write!(f, "at most {count} open files"),
        }
    }
}

impl Step {
    fn show(&self, plan: &Plan, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { layout, owner, .. } = plan;
        let root = layout.shown();
        let inside = |path: &Path| format!("{}{}", root.display(), path.display());
        let whose = format!("{}:{}", owner.uid, owner.gid);
        match self {
            Self::JoinCgroup { procs } => {
                write!(f, "join the control group: write the process's number to {}", procs.display())
            }
            Self::MakeJail => write!(f, "make the directory {}", root.display()),
            Self::TakeOver => write!(
                f,
                "refuse a jail in use; remove {} and device nodes of a dead machine",
                inside(Path::new(&format!("/{}", layout.pid_file())))
            ),
            Self::CopyProgram { from } => write!(
                f,
                "copy {} to {}, mode 0755, owner {whose}",
                from.display(),
                inside(Path::new(&format!("/{}", layout.name)))
            ),
            Self::JoinNetwork { path } => write!(f, "join the network namespace {}", path.display()),
            Self::Limit(limit) => write!(f, "limit the process: {limit}"),
            Self::MakeCgroup { mount, group } => write!(f, "make the control group {}", mount.join(group).display()),
            Self::EnableControllers { mount, group, controllers } => {
                write!(
                    f,
                    "let groups from {} to {} have controllers {}",
                    mount.display(),
                    mount.join(group).display(),
                    controllers.join(", ")
                )
            }
            Self::InheritCpuset { mount, group } => {
                write!(
                    f,
                    "give groups from {} to {} the processors and memory nodes above them",
                    mount.display(),
                    mount.join(group).display()
                )
            }
            Self::SetCgroup { file, value } => write!(f, "write {value} to {}", file.display()),
            Self::EnterUserNamespace { caller } => {
                write!(f, "enter a user namespace in which {whose} is {}:{} outside", caller.0, caller.1)
            }
            Self::Unshare => {
                write!(f, "leave the host's mounts, System V objects and host name, and the session's keys")
            }
            Self::Bind { from, to, read_only, .. } => {
                write!(
                    f,
                    "let {} appear at {}{}",
                    from.display(),
                    inside(to),
                    if *read_only { ", read-only" } else { "" }
                )
            }
            Self::EnterJail => write!(f, "make {} the root directory, and let go of the old one", root.display()),
            Self::OwnDirectory { path } => {
                write!(f, "make the directory {}, mode 0700, owner {whose}", inside(Path::new(path)))
            }
            Self::Node { path, major, minor, optional } => write!(
                f,
                "make the character device {} ({major}:{minor}), mode 0600, owner {whose}{}",
                inside(Path::new(path)),
                if *optional { ", if possible" } else { "" }
            ),
            Self::Daemonize => write!(f, "leave the session and the terminal; standard input and output are /dev/null"),
            Self::EnterPidNamespace => write!(
                f,
                "enter a process namespace, and write the first process's number to {}",
                inside(Path::new(&format!("/{}", layout.pid_file())))
            ),
            Self::WritePidFile => {
                write!(f, "write the process's number to {}", inside(Path::new(&format!("/{}", layout.pid_file()))))
            }
            Self::DropPrivileges => write!(f, "give up all capabilities and groups, for good, and become {whose}"),
            Self::Run { program, arguments } => {
                write!(
                    f,
                    "run {} with an empty environment: --id {} --start-time-us … --start-time-cpu-us … --parent-cpu-time-us …",
                    inside(program),
                    layout.id
                )?;
                arguments.iter().try_for_each(|argument| write!(f, " {}", argument.to_string_lossy()))
            }
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Shown<'a>(&'a Plan, &'a Step);
        impl fmt::Display for Shown<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.1.show(self.0, f)
            }
        }
        for (number, step) in (1..).zip(&self.steps) {
            writeln!(f, "{number:>2}. {}", Shown(self, step))?;
        }
        if self.cleanup {
            writeln!(
                f,
                "    and when the program has ended: remove {} and its control groups",
                self.layout.base.join(self.layout.jail()).display()
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
