//! J1 to J3, J6, J7: whoever prepared the place, or is in another jail, gets nothing.

use std::ffi::CString;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mayfly_tests::binary;
use mayfly_tests::sys::inject::{Outcome, Puppet};

use super::{GID, Place, UID, everything, run, spawn};

/// J1: a link, another name or a FIFO wherever the jailer makes or changes something.
#[test]
fn what_was_planted_is_refused_and_what_it_points_to_stays() {
    let secret_dir = tempfile::tempdir().unwrap();
    let secret = secret_dir.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let before = everything(secret_dir.path());
    type Plant = fn(&Path, &Path);
    let plants: [(&str, Plant); 3] = [
        ("link", |at, secret| symlink(secret, at).unwrap()),
        ("hard link", |at, secret| fs::hard_link(secret, at).unwrap()),
        ("FIFO", |at, _| assert!(Command::new("mkfifo").arg(at).status().unwrap().success())),
    ];
    let probe = Place::new("probe");
    let program = probe.name();
    let targets = ["", "dev", "dev/net", "run", "dev/kvm", "dev/net/tun", &program, &format!("{program}.pid"), "bound"];
    for target in targets {
        for (kind, plant) in &plants {
            if target == "bound" && *kind == "hard link" {
                // Something is mounted upon it, which changes nothing of the file.
                continue;
            }
            let place = Place::new("planted");
            let at = place.root().join(target);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            if target.is_empty() {
                // The root itself.
                let _ = fs::remove_dir(place.root());
            }
            let at = if target.is_empty() { place.root() } else { at };
            plant(&at, &secret);
            let bind = format!("{}:/bound", binary::mayfly().display());
            let output =
                place.command(&["--bind", &bind]).args(["--", "--api-sock", "/run/api.sock"]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{target} {kind}: {said}");
            assert!(said.contains(target), "{target} {kind}: {said}");
            assert_eq!(fs::read(&secret).unwrap(), b"secret", "{target} {kind}");
            assert!(fs::symlink_metadata(&at).is_ok(), "{target} {kind}: what was there is gone\n{said}");
            drop(place);
            // The number of names, but nothing else, may have changed with the plant.
            let now = everything(secret_dir.path());
            assert_eq!(now, before, "{target} {kind}");
        }
    }
}

/// J1: the directories above the root.
#[test]
fn links_on_the_way_are_refused() {
    let elsewhere = tempfile::tempdir().unwrap();
    for depth in 0..2 {
        let place = Place::new("way");
        let at = if depth == 0 { place.jail().parent().unwrap().to_owned() } else { place.jail() };
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        symlink(elsewhere.path(), &at).unwrap();
        assert!(place.refused(&[]).contains("symbolic link"));
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0, "something got out");
    }
}

/// J2: somebody swaps a directory of the jail for a link to another place, again and again, while jails are made.
#[test]
fn what_is_swapped_meanwhile_leads_nowhere() {
    let place = Place::new("swapped");
    assert_races_are_lost_safely(&place, 100, || {
        let mut command = place.command(&[]);
        command.args(["--", "--version"]);
        command
    });
}

/// Runs jailers while directories of the jail are swapped for links. Each makes its jail or refuses; nothing happens outside.
#[track_caller]
pub(super) fn assert_races_are_lost_safely(place: &Place, tries: u32, jailer: impl Fn() -> Command) {
    let outside = tempfile::tempdir().unwrap();
    for inner in ["net", "run"] {
        fs::create_dir(outside.path().join(inner)).unwrap();
    }
    fs::write(outside.path().join("kvm"), "secret").unwrap();
    let root = place.root();
    for (name, link) in [("dev", "dev.link"), ("run", "run.link")] {
        fs::create_dir_all(root.join(name)).unwrap();
        symlink(outside.path(), root.join(link)).unwrap();
    }
    // The user whose jail it is may do all this.
    let owner = fs::metadata(place.base.path()).unwrap().uid().to_string();
    run("chown", &["-R", "-h", &owner, place.base.path().to_str().unwrap(), outside.path().to_str().unwrap()]);
    let before = everything(outside.path());
    let stop = AtomicBool::new(false);
    let mut made = 0;
    let swaps = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0u64;
            while !stop.load(Ordering::Relaxed) {
                for (name, link) in [("dev", "dev.link"), ("run", "run.link")] {
                    swaps += u64::from(exchange(&root.join(name), &root.join(link)));
                }
                // The jailer must get somewhere, too.
                std::thread::sleep(Duration::from_micros(swaps % 300));
            }
            swaps
        });
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..tries {
                let output = jailer().output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(matches!(output.status.code(), Some(0 | 1)), "{said}");
                made += u32::from(output.status.success());
                assert_eq!(everything(outside.path()), before, "something got out\n{said}");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        let swaps = swapper.join().unwrap();
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        swaps
    });
    // Both sides had their chance.
    assert!(swaps > u64::from(tries) && made > 0, "{tries} jailers made {made} jails during {swaps} swaps");
    assert_eq!(fs::read_to_string(outside.path().join("kvm")).unwrap(), "secret");
}

/// Swaps two paths at once; whether it did.
fn exchange(one: &Path, other: &Path) -> bool {
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    let (one, other) = (path(one), path(other));
    // SAFETY: two strings that end with zero.
    unsafe { libc::renameat2(libc::AT_FDCWD, one.as_ptr(), libc::AT_FDCWD, other.as_ptr(), libc::RENAME_EXCHANGE) == 0 }
}

/// J3: names and places that cannot be, each refused before anything is done.
#[test]
fn bad_names_and_places_are_refused() {
    for id in ["", "..", "a/b", "a b", &"x".repeat(65)] {
        let place = Place::with_id(id);
        assert!(place.refused(&[]).contains("Invalid instance ID"), "{id:?}");
    }
    let place = Place::new("places");
    let refused = |base: &Path, exec: &Path| {
        let mut command = Command::new(binary::jailer());
        command
            .args(["--id", "vm", "--uid", "1", "--gid", "1", "--chroot-base-dir"])
            .arg(base)
            .arg("--exec-file")
            .arg(exec);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let mayfly = binary::mayfly();
    let gone = refused(Path::new("/no/such"), &mayfly);
    assert!(gone.contains("Failed to canonicalize path /no/such: No such file or directory (os error 2)"), "{gone}");
    assert!(refused(place.base.path(), Path::new("/no/such")).contains("Failed to canonicalize path /no/such"));
    assert!(refused(place.base.path(), place.base.path()).contains("is not a file"));
    for (option, word) in [("nodev", "device nodes"), ("noexec", "runs a program")] {
        let at = place.base.path().join(option);
        fs::create_dir(&at).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", option, "tmpfs"]).arg(&at).status().unwrap();
        assert!(mount.success());
        let said = refused(&at, &mayfly);
        let left = fs::read_dir(&at).unwrap().count();
        assert!(Command::new("umount").arg(&at).status().unwrap().success());
        assert!(said.contains(option) && said.contains(word) && left == 0, "{said}");
    }
    for options in [
        ["--cgroup", "cpu.shares"],
        ["--resource-limit", "cpu=1"],
        ["--bind", "/a"],
        ["--netns", "/no/such"],
        ["--parent-cgroup", "../x"],
    ] {
        let said = place.refused(&options);
        assert!(said.contains(options[1]), "{said}");
    }
}

/// J6: what a process in a jail gets by itself, were there no filters.
#[test]
fn from_inside_there_is_no_way_out() {
    let place = Place::new("inside");
    let mut command = place.command(&[]);
    let jailed = spawn(command.args(["--", "--api-sock", "/run/api.sock", "--no-seccomp"]));
    place.wait_for_api(&jailed);
    assert_no_way_out(&place);
}

/// Makes the process in the jail, which has no filters, try to get out.
#[track_caller]
pub(super) fn assert_no_way_out(place: &Place) {
    let abi = place.try_get("/confinement").unwrap()["landlock"]["abi"].as_u64().unwrap_or(0);
    let mut puppet = Puppet::seize(place.pid()).unwrap();
    let path = |puppet: &mut Puppet, call: i64, path: &str, second: u64| {
        let at = puppet.hold(format!("{path}\0").as_bytes()).unwrap();
        match puppet.call(call, [at, second, 0, 0, 0, 0]).unwrap() {
            Outcome::Made(result) => -result,
            Outcome::Caught => panic!("there are no filters"),
        }
    };
    let (none, denied, not_permitted) = (i64::from(libc::ENOENT), i64::from(libc::EACCES), i64::from(libc::EPERM));
    for outside in [
        "/etc/passwd",
        "/../../../../etc/passwd",
        "/proc/1/root/etc/passwd",
        "/proc/self/mem",
        "/sys/kernel",
        "/old_root",
        "/dev/mem",
    ] {
        assert_eq!(path(&mut puppet, libc::SYS_open, outside, 0), none, "{outside}");
    }
    let program = format!("/{}", place.name());
    if abi > 0 {
        assert_eq!(path(&mut puppet, libc::SYS_execve, &program, 0), denied, "to run a program");
        assert_eq!(path(&mut puppet, libc::SYS_mkdir, "/run/d", 0o700), denied, "to make a directory");
    }
    let device = path(&mut puppet, libc::SYS_mknod, "/run/sda", u64::from(libc::S_IFBLK));
    assert!([denied, not_permitted].contains(&device), "to make a device: {device}");
    assert_eq!(path(&mut puppet, libc::SYS_chroot, "/run", 0), not_permitted);
    let mut errno = |call: i64, arguments: [u64; 6]| match puppet.call(call, arguments).unwrap() {
        Outcome::Made(result) => -result,
        Outcome::Caught => panic!("there are no filters"),
    };
    for flag in [libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWPID] {
        assert_eq!(errno(libc::SYS_unshare, [flag as u64, 0, 0, 0, 0, 0]), not_permitted);
    }
    // A user namespace has no user 0 to become.
    let root = errno(libc::SYS_setuid, [0; 6]);
    assert!([not_permitted, i64::from(libc::EINVAL)].contains(&root), "to become root: {root}");
    assert_eq!(errno(libc::SYS_kill, [std::process::id().into(), 0, 0, 0, 0, 0]), not_permitted, "signals to others");
    assert_eq!(errno(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), 1, 0, 0, 0, 0]), not_permitted);
    // Somebody listens at an abstract name, which no file system separates.
    let name = format!("mayfly-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let socket = -errno(libc::SYS_socket, [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0, 0, 0, 0]);
    assert!(socket >= 0);
    let tcp = -errno(libc::SYS_socket, [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, 0, 0, 0]);
    let address = [&[libc::AF_UNIX as u8, 0, 0][..], name.as_bytes()].concat();
    let at = puppet.hold(&address).unwrap();
    let connected = puppet.call(libc::SYS_connect, [socket as u64, at, address.len() as u64, 0, 0, 0]).unwrap();
    let anywhere = puppet.hold(&[libc::AF_INET as u8, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    let called = puppet.call(libc::SYS_connect, [tcp as u64, anywhere, 16, 0, 0, 0]).unwrap();
    puppet.let_go().unwrap();
    if abi >= 6 {
        assert_eq!(connected, Outcome::Made(-not_permitted), "an abstract socket");
        assert_eq!(called, Outcome::Made(-denied), "TCP");
    } else {
        println!("skipped: this kernel's Landlock (version {abi}) does not know abstract sockets");
    }
}

/// J7: two machines of different users.
#[test]
fn one_jail_cannot_look_into_another() {
    let (one, other) = (Place::new("one"), Place::new("other"));
    let (_one, _other) = (one.start(&[]), other.start(&[]));
    // As the user of a third machine, who has seen all paths.
    let as_other = |arguments: &[&str]| {
        let user = (UID + 7).to_string();
        run("setpriv", &[&["--reuid", &user, "--regid", &user, "--clear-groups", "--"], arguments].concat())
    };
    let pid = one.pid();
    for path in [one.socket(), one.pid_file(), one.root().join("dev/kvm"), one.root().join(one.name())] {
        let (code, said) = as_other(&["cat", path.to_str().unwrap()]);
        assert!(code != Some(0) && said.contains("Permission denied"), "{said}");
    }
    for path in ["mem", "maps", "root/", "cwd/", "fd/", "environ"] {
        let path = format!("/proc/{pid}/{path}");
        let (code, said) = as_other(&["ls", "-lL", &path]);
        let (read, text) = as_other(&["cat", &path]);
        assert!(code != Some(0) || (read != Some(0) && text.contains("denied")), "{path}: {said}{text}");
    }
    let (code, _) = as_other(&["kill", "-0", &pid.to_string()]);
    assert_ne!(code, Some(0), "signals");
    let socket = one.socket();
    let (code, said) = as_other(&["curl", "-sv", "--unix-socket", socket.to_str().unwrap(), "http://localhost/"]);
    assert!(code != Some(0) && said.contains("Permission denied"), "{said}");
    // Not even the same user from outside: the process hides.
    let user = UID.to_string();
    let (code, said) = run(
        "setpriv",
        &["--reuid", &user, "--regid", &GID.to_string(), "--clear-groups", "--", "cat", &format!("/proc/{pid}/maps")],
    );
    assert!(code != Some(0) && said.contains("denied"), "{said}");
}
