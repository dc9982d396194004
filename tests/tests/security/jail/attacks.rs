//! J1 to J3, J6, J7: whoever prepared the place, or is in another jail, gets nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use mayfly_tests::binary;

use super::{GID, Place, UID, everything, run};

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
    let connect = "socket(S, AF_UNIX, SOCK_STREAM, 0) && connect(S, sockaddr_un($ARGV[0])) or die $!";
    let (code, said) = as_other(&["perl", "-MSocket", "-e", connect, one.socket().to_str().unwrap()]);
    assert!(code != Some(0) && said.contains("Permission denied"), "{said}");
    // Not even the same user from outside: the process hides.
    let user = UID.to_string();
    let (code, said) = run(
        "setpriv",
        &["--reuid", &user, "--regid", &GID.to_string(), "--clear-groups", "--", "cat", &format!("/proc/{pid}/maps")],
    );
    assert!(code != Some(0) && said.contains("denied"), "{said}");
}
