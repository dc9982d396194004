//! What a jail looks like from outside, and what the process in it is.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use guest::{Job, Mode};
use mayfly_tests::{PATIENCE, binary};
use serde_json::json;

use super::{GID, Place, UID, kernel, run, spawn, weight};
use crate::{assert_confined, status};

#[track_caller]
fn is(path: &Path, mode: u32, owner: (u32, u32)) {
    let about = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!((about.mode() & 0o7777, (about.uid(), about.gid())), (mode, owner), "{}", path.display());
}

#[test]
fn paths_modes_owners_and_devices_are_the_contracts() {
    let place = Place::new("layout");
    let _jailed = place.start(&[]);
    let root = place.root();
    for directory in ["", "dev", "dev/net", "run"] {
        is(&root.join(directory), 0o700, (UID, GID));
    }
    let device = |path: &str, major, minor| {
        is(&root.join(path), 0o600, (UID, GID));
        let about = fs::metadata(root.join(path)).unwrap();
        assert!(about.file_type().is_char_device());
        assert_eq!(about.rdev(), libc::makedev(major, minor), "{path}");
    };
    device("dev/kvm", 10, 232);
    device("dev/net/tun", 10, 200);
    device("dev/urandom", 1, 9);
    let misc = fs::read_to_string("/proc/misc").unwrap();
    let userfaultfd = misc.lines().find_map(|line| line.trim().strip_suffix(" userfaultfd"));
    assert_eq!(root.join("dev/userfaultfd").exists(), userfaultfd.is_some());
    let program = root.join(place.name());
    is(&program, 0o755, (UID, GID));
    assert!(fs::read(program).unwrap() == fs::read(binary::mayfly()).unwrap(), "a copy");
    assert!(fs::metadata(place.socket()).unwrap().file_type().is_socket());
    assert!(Path::new(&format!("/proc/{}", place.pid())).exists());
}

/// J4: whatever the caller has, the program gets nothing of it.
#[test]
fn nothing_is_inherited() {
    let place = Place::new("inherit");
    let mut command = place.command(&["--resource-limit", "fsize=1000000"]);
    command.args(["--", "--api-sock", "/run/api.sock"]).env("LD_PRELOAD", "/evil.so").env("SECRET", "1");
    // SAFETY: between fork and exec, system calls only.
    unsafe {
        command.pre_exec(|| {
            for fd in 3..60 {
                libc::dup2(0, fd);
            }
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            libc::signal(libc::SIGTERM, libc::SIG_IGN);
            let mut all = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
            libc::umask(0);
            Ok(())
        });
    }
    let jailed = spawn(&mut command);
    place.wait_for_api(&jailed);
    let pid = place.pid().to_string();
    let of = |field: &str| status(&pid, field);
    assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let entry = entry.unwrap();
        // A connection of ours may end meanwhile.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let number: u32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let shown = target.to_string_lossy();
        assert!(number < 3 || shown.starts_with("anon_inode:") || shown.starts_with("socket:"), "{number} -> {shown}");
    }
    assert_eq!((of("SigBlk").as_str(), of("SigIgn").as_str()), ("0000000000000000", "0000000000000000"));
    assert_eq!(of("Umask"), "0022");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(of(set), "0000000000000000", "{set}");
    }
    assert_eq!((of("NoNewPrivs").as_str(), of("Groups").as_str()), ("1", ""));
    assert_eq!(of("Uid"), format!("{UID}\t{UID}\t{UID}\t{UID}"));
    assert_eq!(of("Gid"), format!("{GID}\t{GID}\t{GID}\t{GID}"));
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| {
        limits
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap()
            .split_whitespace()
            .rev()
            .skip(1)
            .take(2)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!((limit("Max open files").as_str(), limit("Max file size").as_str()), ("2048 2048", "1000000 1000000"));
    for kind in ["mnt", "ipc", "uts"] {
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{kind}")).unwrap();
        assert_ne!(of(&pid), of("self"), "{kind}");
    }
    // Nothing of the host is mounted there.
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
}

/// A guest boots from what was bound into the jail, and every task is confined meanwhile.
#[test]
fn a_guest_boots() {
    let place = Place::new("boots");
    let elf = kernel(&place);
    let disk = place.base.path().join("disk");
    fs::write(&disk, vec![0x5a; 1 << 20]).unwrap();
    std::os::unix::fs::chown(&disk, Some(UID), Some(GID)).unwrap();
    let (elf, disk) = (format!("{}:/images/guest.elf:ro", elf.display()), format!("{}:/disk", disk.display()));
    let jailed = place.start(&["--bind", &elf, "--bind", &disk]);
    place.put(
        "/boot-source",
        &json!({"kernel_image_path": "/images/guest.elf", "boot_args": Job::new(Mode::Spin).command_line()}),
    );
    place.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": 64}));
    place.put(
        "/drives/d",
        &json!({"drive_id": "d", "path_on_host": "/disk", "is_root_device": false, "io_engine": "Async"}),
    );
    // Log lines go where the guest's console goes, and one could come in the middle of what the guest says.
    place.put("/logger", &json!({"level": "Warning"}));
    place.put("/actions", &json!({"action_type": "InstanceStart"}));
    jailed.stdout.find(guest::READY, PATIENCE).unwrap_or_else(|| panic!("{}", jailed.said()));
    let pid = place.pid();
    assert_confined(pid);
    let report = place.try_get("/confinement").unwrap();
    assert_eq!(
        (&report["no_new_privs"], &report["dumpable"], &report["uid"]),
        (&true.into(), &false.into(), &UID.into())
    );
    assert_eq!(report["capabilities"]["bounding"], "0000000000000000");
    assert_eq!(report["namespaces"], json!({}), "there is no /proc in a jail");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    let options = |at: &str| {
        mounts.lines().find(|line| line.split(' ').nth(1) == Some(at)).unwrap().split(' ').nth(3).unwrap().to_owned()
    };
    assert!(options("/images/guest.elf").starts_with("ro,nosuid,nodev,noexec"), "{mounts}");
    assert!(options("/disk").starts_with("rw,nosuid,nodev,noexec"), "{mounts}");
}

#[test]
fn the_guest_ends_and_so_does_the_process() {
    let place = Place::new("ends");
    let elf = format!("{}:/guest.elf:ro", kernel(&place).display());
    let mut jailed = place.start(&["--bind", &elf]);
    place.put(
        "/boot-source",
        &json!({"kernel_image_path": "/guest.elf", "boot_args": Job::new(Mode::Hello).command_line()}),
    );
    place.put("/actions", &json!({"action_type": "InstanceStart"}));
    assert_eq!(jailed.wait(), 0, "{}", jailed.said());
    assert!(jailed.stdout.text().contains("Hello from inside"), "{}", jailed.said());
}

#[test]
fn a_shared_program_is_read_only_and_the_same_file() {
    let place = Place::new("shared");
    let _jailed = place.start(&["--share-exec"]);
    let pid = place.pid();
    let (theirs, ours) = (fs::metadata(format!("/proc/{pid}/exe")).unwrap(), fs::metadata(binary::mayfly()).unwrap());
    assert_eq!((theirs.dev(), theirs.ino()), (ours.dev(), ours.ino()));
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    let line = mounts.lines().find(|line| line.contains(&format!(" /{} ", place.name()))).unwrap();
    assert!(line.contains(" ro,nosuid,nodev"), "{line}");
}

/// A drop-in: the name, the version, the layout by the program's own name.
#[test]
fn called_jailer_it_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let (jailer, firecracker) = (dir.path().join("jailer"), dir.path().join("firecracker"));
    binary::copy(&binary::jailer(), &jailer);
    binary::copy(&binary::mayfly(), &firecracker);
    assert_eq!(run(&jailer, &["--version"]), (Some(0), "Jailer v1.17.0\n".to_owned()));
    let base = dir.path().join("base");
    fs::create_dir(&base).unwrap();
    let mut command = Command::new(&jailer);
    command
        .args(["--id", "vm", "--exec-file"])
        .arg(&firecracker)
        .args(["--uid", "61001", "--gid", "61002", "--chroot-base-dir"])
        .arg(&base);
    let jailed = spawn(command.args(["--", "--api-sock", "/api.sock"]));
    let socket = base.join("firecracker/vm/root/api.sock");
    let deadline = std::time::Instant::now() + PATIENCE;
    while !socket.exists() {
        assert!(std::time::Instant::now() < deadline, "{}", jailed.said());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(base.join("firecracker/vm/root/firecracker.pid").exists());
    is(&socket, 0o755, (61_001, 61_002));
}

#[test]
fn a_dry_run_shows_the_steps_and_changes_nothing() {
    let place = Place::new("dry");
    let elf = format!("{}:/guest.elf:ro", kernel(&place).display());
    let (file, value) = weight();
    let group = format!("{file}={value}");
    let options = ["--bind", &elf, "--cgroup", &group, "--cleanup", "--new-pid-ns", "--dry-run"];
    let before = super::everything(place.base.path());
    let output = place.command(&options).args(["--", "--api-sock", "/run/api.sock"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert_eq!(super::everything(place.base.path()), before);
    for part in
        [place.root().to_str().unwrap(), "61001:61002", "guest.elf", file, "10:232", "--api-sock /run/api.sock", "2048"]
    {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    // Every path of the jail that it names is there afterwards, and nothing but those.
    let _jailed = place.start(&options[..2]);
    let words = text.split_whitespace().map(|word| word.trim_end_matches([',', ';', ':']));
    for word in words.filter(|word| word.starts_with(place.root().to_str().unwrap())) {
        assert!(Path::new(word).symlink_metadata().is_ok(), "{word}");
    }
}
