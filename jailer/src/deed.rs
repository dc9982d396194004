//! Carries a plan out, and takes back what was done when a step fails.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::process::Resource;
use rustix::thread::UnshareFlags;

use crate::clean;
use crate::error::{Doing, Error};
use crate::layout::Layout;
use crate::plan::{Limit, Owner, Plan, Step};
use crate::sys::beneath::Dir;
use crate::sys::clock::{Began, cpu_us};
use crate::sys::mounts::{self, Manner, Source};
use crate::sys::process;
use crate::watch::Watcher;

/// What has been done so far.
struct Deed<'a> {
    plan: &'a Plan,
    /// The directory of all jails. Stays good after the jail was entered.
    base: Dir,
    /// What becomes `/`; a mount of its own once the host's mounts were left.
    root: Option<Dir>,
    /// Below the base, in the order in which they were made.
    made: Vec<PathBuf>,
    /// Control groups, in the order in which they were made.
    groups: Vec<PathBuf>,
    /// The group of version 2 that this process came from.
    came_from: PathBuf,
    null: Option<File>,
    watcher: Option<Watcher>,
    /// Processor time of processes that this one goes on for.
    parent_cpu_us: i64,
}

/// Does everything, and becomes the program. Comes back only with an error, and then nothing is left.
pub(crate) fn carry_out(plan: &Plan, began: Began) -> Result<(), Error> {
    rustix::process::umask(rustix::fs::Mode::empty());
    let base = Dir::open(&plan.layout.base)?;
    let watcher = if plan.cleanup { Some(Watcher::start(plan)?) } else { None };
    let mut deed = Deed {
        plan,
        base,
        root: None,
        made: Vec::new(),
        groups: Vec::new(),
        came_from: PathBuf::new(),
        null: None,
        watcher,
        parent_cpu_us: 0,
    };
    let outcome = deed.prepare().and_then(|()| plan.steps.iter().try_for_each(|step| deed.take(step, began)));
    if outcome.is_err() {
        deed.undo();
    }
    outcome
}

impl Deed<'_> {
    /// Opens, and remembers, what is out of reach later.
    fn prepare(&mut self) -> Result<(), Error> {
        if !self.plan.cgroups.is_empty() {
            // cgroups(7): the line of version 2 has no number and no controllers. Without one there is none to go back to.
            let lines = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            let own = lines.lines().find_map(|line| line.strip_prefix("0::/"));
            self.came_from = own.unwrap_or_default().into();
        }
        if self.plan.steps.contains(&Step::Daemonize) {
            let null = File::options().read(true).write(true).open("/dev/null");
            self.null = Some(null.doing(|| "Failed to open /dev/null".to_owned())?);
        }
        Ok(())
    }

    fn root(&self) -> Result<&Dir, Error> {
        self.root.as_ref().ok_or_else(|| Error::new("The jail has no directory yet."))
    }

    /// What is ours to give away; in a user namespace everything is the caller's already.
    fn owner(&self) -> Option<(u32, u32)> {
        let Owner { uid, gid, rootless } = self.plan.owner;
        rootless.is_none().then_some((uid, gid))
    }

    fn note_made(&mut self, paths: Vec<PathBuf>) {
        let root = self.plan.layout.root();
        self.made.extend(paths.into_iter().map(|path| root.join(path)));
    }

    fn take(&mut self, step: &Step, began: Began) -> Result<(), Error> {
        let layout = &self.plan.layout;
        match step {
            Step::JoinCgroup { procs } => write_group(procs, &process::own_number().to_string())
                .map_err(|e| Error::new(format!("Failed to move process to cgroup ({}): {e}", procs.display()))),
            Step::MakeJail => {
                let made = again(|| self.base.make_dirs(&layout.root(), 0o755))?;
                self.made.extend(made);
                self.root = Some(self.base.dir(&layout.root())?);
                Ok(())
            }
            Step::TakeOver => clean::take_over(self.root()?, layout),
            Step::CopyProgram { from } => self.copy_program(from),
            Step::JoinNetwork { path } => process::join_network(path),
            Step::Limit(limit) => {
                let (resource, value) = match *limit {
                    Limit::FileSize(bytes) => (Resource::Fsize, bytes),
                    Limit::OpenFiles(count) => (Resource::Nofile, count),
                };
                process::limit(resource, value).doing(|| format!("Cannot set a limit ({limit})"))
            }
            Step::MakeCgroup { mount, group } => self.make_group(mount, group),
            Step::EnableControllers { mount, group, controllers } => enable(mount, group, controllers),
            Step::InheritCpuset { mount, group } => inherit_cpuset(mount, group),
            Step::SetCgroup { file, value } => {
                write_group(file, value).doing(|| format!("Cannot write {value} to {}", file.display()))
            }
            Step::EnterUserNamespace { caller } => self.enter_user_namespace(*caller),
            Step::Unshare => self.unshare(),
            Step::Bind { from, to, read_only, program, .. } => self.bind(from, to, *read_only, *program),
            Step::EnterJail => {
                let root = self.root()?;
                mounts::enter(root.fd())
                    .doing(|| format!("Cannot make {} the root directory", layout.shown().display()))
            }
            Step::OwnDirectory { path } => {
                let path = Path::new(path);
                let owner = self.owner();
                if self.root()?.own_dir(path, owner, 0o700)? {
                    self.note_made(vec![path.strip_prefix("/").unwrap_or(path).to_owned()]);
                }
                Ok(())
            }
            Step::Node { path, major, minor, optional } => self.node(Path::new(path), (*major, *minor), *optional),
            Step::Daemonize => {
                let null = self.null.as_ref().ok_or_else(|| Error::new("/dev/null was not opened."))?;
                self.parent_cpu_us += cpu_us();
                process::daemonize(null).doing(|| "Cannot leave the session".to_owned())
            }
            Step::EnterPidNamespace => self.enter_pid_namespace(),
            Step::WritePidFile => self.write_pid_file(process::own_number()),
            Step::DropPrivileges => self.drop_privileges(),
            Step::Run { program, arguments } => self.run(program, arguments, began),
        }
    }

    fn copy_program(&mut self, from: &Path) -> Result<(), Error> {
        let name = PathBuf::from(&self.plan.layout.name);
        let source = File::open(from).doing(|| format!("Failed to open {}", from.display()))?;
        let (target, new) = self.root()?.create(&name, 0o755)?;
        if new {
            self.note_made(vec![name.clone()]);
        }
        copy(&source, &target).doing(|| format!("Cannot copy {}", from.display()))?;
        self.root()?.own(&name, target.as_fd(), self.owner(), 0o755)
    }

    fn make_group(&mut self, mount: &Path, group: &Path) -> Result<(), Error> {
        let top = Dir::open(mount)?;
        let made = again(|| top.make_dirs(group, 0o755))?;
        self.groups.extend(made.into_iter().map(|path| mount.join(path)));
        Ok(())
    }

    fn enter_user_namespace(&self, (uid, gid): (u32, u32)) -> Result<(), Error> {
        let Owner { uid: inside_uid, gid: inside_gid, .. } = self.plan.owner;
        process::unshare(UnshareFlags::NEWUSER).doing(|| {
            "Cannot make a user namespace (the host may forbid it: see user.max_user_namespaces and \
             kernel.apparmor_restrict_unprivileged_userns)"
                .to_owned()
        })?;
        let write = |file: &str, text: String| {
            fs::write(format!("/proc/self/{file}"), text).doing(|| format!("Cannot map ids ({file})"))
        };
        write("setgroups", "deny".to_owned())?;
        write("uid_map", format!("{inside_uid} {uid} 1"))?;
        write("gid_map", format!("{inside_gid} {gid} 1"))
    }

    fn unshare(&mut self) -> Result<(), Error> {
        let flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        process::unshare(flags).doing(|| "Cannot leave the host's namespaces".to_owned())?;
        process::forget_keys();
        mounts::keep_to_ourselves()?;
        let shown = self.plan.layout.shown();
        // What was opened before belongs to the host's mounts: the same directory again, among our own.
        let root = Dir::open(&self.plan.layout.base)?.dir(&self.plan.layout.root())?;
        if !root.is(self.root()?) {
            return Err(Error::new(format!("{} was replaced while the jail was made.", shown.display())));
        }
        let fd = mounts::mount_on_itself(root.fd()).doing(|| format!("Cannot mount {}", shown.display()))?;
        self.root = Some(Dir::of(fd, &shown));
        Ok(())
    }

    fn bind(&mut self, from: &Path, to: &Path, read_only: bool, program: bool) -> Result<(), Error> {
        let source = Source::open(from)?;
        let (point, made) = self.root()?.mount_point(to, source.is_dir)?;
        self.note_made(made);
        let manner = Manner { read_only, no_exec: !program, no_dev: true };
        source
            .mount_at(point.as_fd(), manner)
            .doing(|| format!("Cannot mount {} at {} in the jail", from.display(), to.display()))
    }

    fn node(&mut self, path: &Path, number: (u32, u32), optional: bool) -> Result<(), Error> {
        let Owner { uid, gid, .. } = self.plan.owner;
        match self.root()?.node(path, number, (uid, gid)) {
            Ok(()) => {
                self.note_made(vec![path.strip_prefix("/").unwrap_or(path).to_owned()]);
                Ok(())
            }
            Err(error) if optional => {
                let _ = writeln!(io::stderr(), "Warning: {error}");
                Ok(())
            }
            other => other,
        }
    }

    fn write_pid_file(&mut self, pid: i32) -> Result<(), Error> {
        let name = PathBuf::from(self.plan.layout.pid_file());
        self.root()?.create_new(&name, 0o644, &pid.to_string())?;
        self.note_made(vec![name]);
        Ok(())
    }

    /// The child goes on as the first process of the namespace; the parent writes down which one it is, and ends.
    fn enter_pid_namespace(&mut self) -> Result<(), Error> {
        process::unshare(UnshareFlags::NEWPID).doing(|| "Cannot make a process namespace".to_owned())?;
        let leads = process::leads_session();
        let (mut news, mut tell) = process::pipe().doing(|| "Cannot make a pipe".to_owned())?;
        self.parent_cpu_us += cpu_us();
        match process::fork().doing(|| "Cannot start the namespace's first process".to_owned())? {
            Some(child) => {
                let pid = child.as_raw_nonzero().get();
                let written = self.write_pid_file(pid).and_then(|()| self.watch(pid));
                if let Err(error) = written {
                    let _ = writeln!(io::stderr(), "Error: {error}");
                    // The child sees the end of the pipe, and ends.
                    drop(tell);
                    process::reap(child);
                    self.undo();
                    process::end(1);
                }
                let _ = tell.write_all(b"+");
                process::end(0)
            }
            None => {
                drop(tell);
                let mut byte = [0];
                if io::Read::read(&mut news, &mut byte).ok() != Some(1) {
                    process::end(1);
                }
                self.watcher = None;
                if leads {
                    // Or the end of the parent would hang up on us.
                    process::own_session().doing(|| "Cannot start a session".to_owned())?;
                }
                Ok(())
            }
        }
    }

    fn drop_privileges(&self) -> Result<(), Error> {
        let failed = || "Cannot give up privileges".to_owned();
        process::reset_signals();
        process::empty_bounding_set().doing(failed)?;
        process::lock_secure_bits().doing(failed)?;
        if let Some((uid, gid)) = self.owner() {
            process::become_user(uid, gid).doing(|| format!("Cannot become {uid}:{gid}"))?;
        }
        process::drop_capabilities().doing(failed)
    }

    /// Tells the process that stays behind whom it waits for, and waits until it does.
    fn watch(&mut self, pid: i32) -> Result<(), Error> {
        match self.watcher.take() {
            Some(watcher) => watcher.watch(pid),
            None => Ok(()),
        }
    }

    fn run(&mut self, program: &Path, arguments: &[OsString], began: Began) -> Result<(), Error> {
        self.watch(process::own_number())?;
        let forked = self.parent_cpu_us > 0;
        let own = [
            "--id".to_owned(),
            self.plan.layout.id.to_string(),
            "--start-time-us".to_owned(),
            began.at_us.to_string(),
            "--start-time-cpu-us".to_owned(),
            // Another process has not used any of its own before.
            if forked { 0 } else { began.cpu_us }.to_string(),
            "--parent-cpu-time-us".to_owned(),
            self.parent_cpu_us.to_string(),
        ];
        let all: Vec<&OsStr> = own.iter().map(OsStr::new).chain(arguments.iter().map(OsString::as_os_str)).collect();
        match process::run(program, &all) {
            Ok(never) => match never {},
            Err(error) => Err(Error::new(format!("Cannot run {} in the jail: {error}", program.display()))),
        }
    }

    /// Removes what was made, the last first. What was there before stays.
    fn undo(&mut self) {
        // Mounts go with this process, which is the only one that sees them.
        self.root = None;
        while let Some(path) = self.made.pop() {
            self.base.remove(&path);
        }
        self.leave_groups();
        while let Some(group) = self.groups.pop() {
            let _ = fs::remove_dir(group);
        }
        // Who waits for nobody ends.
        self.watcher = None;
    }

    /// A group with a process in it cannot be removed.
    fn leave_groups(&self) {
        let number = process::own_number().to_string();
        let mounts = self.plan.steps.iter().filter_map(|step| match step {
            Step::MakeCgroup { mount, .. } => Some(mount),
            _ => None,
        });
        for mount in mounts {
            // Of version 1 any group takes it. Of version 2 those that share out controllers do not, such as the one above the machine's.
            let _ = write_group(&mount.join("tasks"), &number)
                .or_else(|_| write_group(&mount.join(&self.came_from).join("cgroup.procs"), &number));
        }
    }
}

/// Whoever cleans up after another machine may remove a directory that is shared and empty just when we want it.
fn again<T>(mut make: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    const TRIES: usize = 20;
    (1..TRIES).find_map(|_| make().ok()).map_or_else(make, Ok)
}

/// Files of control groups are written by one call, and never made.
fn write_group(file: &Path, value: &str) -> io::Result<()> {
    File::options().write(true).open(file)?.write_all(value.as_bytes())
}

fn enable(mount: &Path, group: &Path, controllers: &[String]) -> Result<(), Error> {
    let mut above = mount.to_owned();
    for part in group.iter() {
        let file = above.join("cgroup.subtree_control");
        for controller in controllers {
            write_group(&file, &format!("+{controller}"))
                .doing(|| format!("Cannot turn on controller {controller} in {}", file.display()))?;
        }
        above.push(part);
    }
    Ok(())
}

fn inherit_cpuset(mount: &Path, group: &Path) -> Result<(), Error> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let mut directory = mount.to_owned();
        let mut value = fs::read_to_string(directory.join(name))
            .doing(|| format!("Cannot read {}", directory.join(name).display()))?;
        for part in group.iter() {
            directory.push(part);
            let file = directory.join(name);
            let own = fs::read_to_string(&file).doing(|| format!("Cannot read {}", file.display()))?;
            if own.trim().is_empty() {
                write_group(&file, value.trim()).doing(|| format!("Cannot write {}", file.display()))?;
            } else {
                value = own;
            }
        }
    }
    Ok(())
}

/// Copies a file's contents: shared until they are changed where the file system can do that, else within the kernel.
fn copy(from: &File, to: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    // Room at once instead of block by block: a third of the time on ext4. A file system that cannot do that does without.
    let _ = rustix::fs::fallocate(to, rustix::fs::FallocateFlags::empty(), 0, from.metadata()?.len());
    let (mut from, mut to) = (from, to);
    io::copy(&mut from, &mut to).map(drop)
}

impl Layout {
    /// Whether a process's root directory is this one.
    pub(crate) fn is_root_of(&self, root: &Dir, pid: i32) -> io::Result<bool> {
        let theirs = rustix::fs::stat(format!("/proc/{pid}/root"))?;
        Ok(root.has_number(theirs.st_dev, theirs.st_ino))
    }
}
