//! Jails of machines that have ended: taken over by a new one, or removed.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cli::Clean;
use crate::error::{Doing, Error};
use crate::host::{canonical, cgroup_mounts, program};
use crate::layout::{Id, Layout};
use crate::sys::beneath::Dir;

/// A control group stays busy for a moment after its last process has ended.
const GROUPS_EMPTY_WITHIN: Duration = Duration::from_secs(5);

/// The process that the jail belongs to, if it lives.
fn tenant(root: &Dir, layout: &Layout) -> Result<Option<i32>, Error> {
    let Some(text) = root.read_if_any(Path::new(&layout.pid_file()))? else { return Ok(None) };
    let Ok(pid) = text.trim().parse::<i32>() else { return Ok(None) };
    match layout.is_root_of(root, pid) {
        Ok(true) => Ok(Some(pid)),
        // It lives, and we may not look: another user's, or one that hides. Better safe than sorry.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Some(pid)),
        _ => Ok(None),
    }
}

fn in_use(layout: &Layout, pid: i32) -> Error {
    Error::new(format!(
        "{} is in use by process {pid}: end that machine first, or choose another --id.",
        layout.shown().display()
    ))
}

/// Makes a jail ready for a new machine. Refuses one whose machine lives.
pub(crate) fn take_over(root: &Dir, layout: &Layout) -> Result<(), Error> {
    if let Some(pid) = tenant(root, layout)? {
        return Err(in_use(layout, pid));
    }
    // Devices are replaced where they are made.
    root.remove(Path::new(&layout.pid_file()));
    Ok(())
}

/// The `clean` command.
pub(crate) fn clean(options: &Clean) -> Result<(), Error> {
    let id = Id::new(&options.id)?;
    // The program itself may be gone by now, and then its name is all there is to it.
    let name = match program(&options.exec_file) {
        Ok((_, name)) => name,
        Err(error) => match options.exec_file.file_name().and_then(|name| name.to_str()) {
            Some(name) => name.to_owned(),
            None => return Err(error),
        },
    };
    let layout = Layout { base: canonical(&options.chroot_base_dir)?, name, id };
    let parent = options.parent_cgroup.clone().unwrap_or_else(|| layout.name.clone());
    if !Path::new(&parent).components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(Error::new(format!(
            "Invalid --parent-cgroup {parent}: it is a path below the mount, without / at its start and without `..`."
        )));
    }
    let base = Dir::open(&layout.base)?;
    if let Some(root) = base.dir_if_any(&layout.root())?
        && let Some(pid) = tenant(&root, &layout)?
    {
        return Err(in_use(&layout, pid));
    }
    let mounts = cgroup_mounts(&fs::read_to_string("/proc/mounts").doing(|| "Cannot read /proc/mounts".to_owned())?);
    let group = Path::new(&parent).join(layout.id.as_str());
    let groups: Vec<PathBuf> = mounts.iter().map(|mount| mount.path.join(&group)).collect();
    remove(&base, &layout, &groups)
}

/// Removes a jail and its control groups. What is not there is no error.
pub(crate) fn remove(base: &Dir, layout: &Layout, groups: &[PathBuf]) -> Result<(), Error> {
    let jail = if base.dir_if_any(&layout.jail())?.is_some() { base.remove_all(&layout.jail()) } else { Ok(()) };
    // What machines share goes with the last of them; until then it is not empty.
    base.remove(Path::new(&layout.name));
    let deadline = Instant::now() + GROUPS_EMPTY_WITHIN;
    for group in groups {
        loop {
            match fs::remove_dir(group) {
                Ok(()) => {
                    let _ = group.parent().map(fs::remove_dir);
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) if Instant::now() > deadline => {
                    return Err(Error::new(format!("Cannot remove the control group {}: {error}", group.display())));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
    jail
}
