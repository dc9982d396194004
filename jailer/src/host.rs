//! What there is on the host, looked at before anything is changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::cli::Jail;
use crate::error::{Doing, Error};
use crate::layout::{Id, Layout};

/// A mounted hierarchy of control groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CgroupMount {
    /// 1 or 2.
    pub(crate) version: u8,
    pub(crate) path: PathBuf,
    /// Controllers of version 1.
    pub(crate) controllers: Vec<String>,
}

/// What a plan depends on.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) layout: Layout,
    /// The program, without links.
    pub(crate) exec_file: PathBuf,
    pub(crate) cgroups: Vec<CgroupMount>,
    /// Controllers that version 2 offers at its top.
    pub(crate) offered: Vec<String>,
    /// The control group above the machine's exists already (version 2).
    pub(crate) parent_exists: bool,
    /// Minor number of the userfaultfd device.
    pub(crate) userfaultfd: Option<u32>,
    /// Who calls.
    pub(crate) caller: (u32, u32),
}

impl Host {
    pub(crate) fn look(options: &Jail) -> Result<Self, Error> {
        let id = Id::new(&options.id)?;
        let (exec_file, name) = program(&options.exec_file)?;
        let base = canonical(&options.chroot_base_dir)?;
        if !options.rootless {
            check_flags(&base)?;
        }
        // Long on hosts with many machines, and not always needed.
        let asks_for_groups = !options.cgroup.is_empty() || options.parent_cgroup.is_some();
        let mounts = if asks_for_groups { fs::read_to_string("/proc/mounts") } else { Ok(String::new()) };
        let cgroups = cgroup_mounts(&mounts.doing(|| "Cannot read /proc/mounts".to_owned())?);
        let unified = cgroups.iter().find(|mount| mount.version == 2).map(|mount| mount.path.clone());
        let read = |path: Option<PathBuf>| path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let offered = read(unified.as_ref().map(|path| path.join("cgroup.controllers")));
        let parent = options.parent_cgroup.as_deref().map(Path::new);
        Ok(Self {
            layout: Layout { base, name, id },
            exec_file,
            parent_exists: unified.zip(parent).is_some_and(|(mount, parent)| mount.join(parent).is_dir()),
            offered: offered.split_whitespace().map(str::to_owned).collect(),
            cgroups,
            userfaultfd: minor_of("userfaultfd", &fs::read_to_string("/proc/misc").unwrap_or_default()),
            caller: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
        })
    }
}

/// The program's path without links, and its name, which is that of what a link points to.
pub(crate) fn program(path: &Path) -> Result<(PathBuf, String), Error> {
    let exec_file = canonical(path)?;
    let metadata = fs::metadata(&exec_file).doing(|| format!("Cannot look at {}", exec_file.display()))?;
    if !metadata.is_file() {
        return Err(Error::new(format!("{} is not a file", path.display())));
    }
    if metadata.mode() & 0o111 == 0 {
        return Err(Error::new(format!("{} cannot be executed: make it executable with chmod +x.", path.display())));
    }
    match exec_file.file_name().and_then(|name| name.to_str()) {
        Some(name) => Ok((exec_file.clone(), name.to_owned())),
        None => Err(Error::new(format!("{}: the name of the program is not UTF-8.", path.display()))),
    }
}

pub(crate) fn canonical(path: &Path) -> Result<PathBuf, Error> {
    fs::canonicalize(path).doing(|| format!("Failed to canonicalize path {}", path.display()))
}

/// A jail needs device nodes and runs a program.
fn check_flags(base: &Path) -> Result<(), Error> {
    let flags = statvfs(base).doing(|| format!("Cannot look at {}", base.display()))?.f_flag;
    for (flag, word, needs) in [
        (StatVfsMountFlags::NODEV, "nodev", "has device nodes"),
        (StatVfsMountFlags::NOEXEC, "noexec", "runs a program"),
    ] {
        if flags.contains(flag) {
            return Err(Error::new(format!(
                "{} is on a file system that is mounted {word}, and a jail {needs}: choose another --chroot-base-dir or mount it without.",
                base.display()
            )));
        }
    }
    Ok(())
}

/// The hierarchies in a text like `/proc/mounts`.
pub(crate) fn cgroup_mounts(text: &str) -> Vec<CgroupMount> {
    let mount = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (path, kind, options) = (words.next()?, words.next()?, words.next()?);
        let version = match kind {
            "cgroup" => 1,
            "cgroup2" => 2,
            _ => return None,
        };
        let controllers = if version == 1 { options.split(',').map(str::to_owned).collect() } else { Vec::new() };
        Some(CgroupMount { version, path: unescaped(path).into(), controllers })
    };
    text.lines().filter_map(mount).collect()
}

/// Blanks and such are octal numbers there (fs/proc_namespace.c).
fn unescaped(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (code, c)| path.replace(code, c))
}

/// The minor number of a device in a text like `/proc/misc`.
fn minor_of(name: &str, text: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let (minor, device) = line.trim().split_once(' ')?;
        (device == name).then(|| minor.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found() {
        let text = "proc /proc proc rw 0 0\n\
                    cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
                    cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw,nsdelegate 0 0\n\
                    garbage\n cgroup\n";
        let mounts = cgroup_mounts(text);
        assert_eq!(mounts.len(), 2);
        assert!(mounts[0].version == 1 && mounts[0].controllers.contains(&"cpuacct".to_owned()));
        assert_eq!((mounts[1].version, mounts[1].path.as_path()), (2, Path::new("/sys/fs/cgroup/uni fied")));
    }

    #[test]
    fn minors_are_found() {
        assert_eq!(minor_of("userfaultfd", "  1 psaux\n257 userfaultfd\n"), Some(257));
        assert_eq!(minor_of("userfaultfd", "kvm\n232 kvm\n"), None);
    }

    #[test]
    fn programs_are_files_that_can_run() {
        let dir = tempfile::tempdir().unwrap();
        let why = |path: &Path| program(path).unwrap_err().to_string();
        assert!(why(dir.path()).ends_with("is not a file"));
        assert_eq!(
            why(Path::new("/no/such")),
            "Failed to canonicalize path /no/such: No such file or directory (os error 2)"
        );
        let plain = dir.path().join("plain");
        fs::write(&plain, "").unwrap();
        assert!(why(&plain).contains("chmod +x"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/bin/sh", &link).unwrap();
        assert_ne!(program(&link).unwrap().1, "link", "the name is that of the target");
    }
}
