//! The README's walk-throughs, as they stand there. The Linux tier runs the first one with a stock kernel.

use std::fs;
use std::process::Command;

use guest::{Job, Mode};
use mayfly_tests::binary;

use super::rootless::{USER, nodes};

/// The README's blocks that are marked for tests, in order.
fn blocks() -> Vec<String> {
    // Part of the program, which also runs where the sources are not.
    let text = include_str!("../../../../README.md");
    let marked = text.split("<!-- the tests run the next block as it stands -->").skip(1);
    marked.map(|rest| rest.split_once("```sh\n").unwrap().1.split_once("```").unwrap().0.to_owned()).collect()
}

/// Runs a block where `/srv` is empty but for the images it needs, and says what it said and what is left there.
#[track_caller]
fn walk(block: &str, user: Option<u32>) -> (String, String) {
    binary::require_root();
    let dir =
        tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    for (name, path) in [("mayfly", binary::mayfly()), ("mayfly-jailer", binary::jailer())] {
        binary::copy(&path, &dir.path().join(name));
    }
    fs::write(dir.path().join("guest.elf"), guest::ELF).unwrap();
    // The only change: our guest, which would end at once, is told to stay, as a kernel does by itself.
    let block = block.replace("panic=-1", &format!("panic=-1 {}", Job::new(Mode::Spin).command_line()));
    fs::write(dir.path().join("block.sh"), block).unwrap();
    let as_user =
        user.map_or(String::new(), |user| format!("/bin/setpriv --reuid {user} --regid {user} --clear-groups"));
    let owner = user.unwrap_or(0);
    let script = format!(
        "set -e; cd {dir}; mount -t tmpfs -o mode=755 tmpfs /srv; mkdir /srv/images /srv/home; chown {owner} /srv/home . ; {nodes} \
         cp guest.elf /srv/images/bzImage; echo initrd >/srv/images/initrd; \
         PATH={dir}:$PATH HOME=/srv/home {as_user} timeout 200 sh -e block.sh; find /srv -mindepth 2 -not -path '/srv/images/*' >left",
        dir = dir.path().display(),
        nodes = nodes(owner),
    );
    let output = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    (said, fs::read_to_string(dir.path().join("left")).unwrap())
}

#[test]
fn the_walk_through_as_root() {
    let (said, left) = walk(&blocks()[0], None);
    assert!(said.contains("Mayfly") && said.contains("mayfly-guest"), "{said}");
    assert!(said.contains("\"seccomp\":\"filter\"") && !said.contains("fault_message"), "{said}");
    assert_eq!(left, "", "nothing is left");
}

/// Not about jails, but this is where walk-throughs are run.
#[test]
fn the_walk_through_of_clones() {
    let (said, left) = walk(&blocks()[2], None);
    assert!(!said.contains("fault_message"), "{said}");
    assert!(said.contains("fit this host") && said.contains("pages that were compared"), "{said}");
    assert_eq!(said.matches("'load snapshot' API request took").count(), 1, "{said}");
    assert_eq!((said.matches("\"load_us\":").count(), said.matches("\"error\":").count()), (20, 0), "{said}");
    assert_eq!(said.matches("'create full snapshot' API request took").count(), 1, "{said}");
    assert!(said.contains("\"id\":\"vm-20\",\"state\":\"Running\""), "{said}");
    assert!((1..=20).all(|i| left.contains(&format!("/srv/vm/{i}.console"))), "{left}");
    assert!(![".vsock", ".sock", ".clone"].iter().any(|end| left.contains(end)), "ended in good order: {left}");
}

#[test]
fn the_walk_through_without_root() {
    let (said, left) = walk(&blocks()[1], Some(USER));
    // The machine was started, and ended at once by the last lines: whether its guest came to say something is a matter of milliseconds.
    assert!(said.contains("InstanceStart") && said.contains("signal 15 was received"), "{said}");
    assert_eq!((said.matches("Status code: 204").count(), said.contains("fault_message")), (2, false), "{said}");
    assert_eq!(left.trim(), "/srv/home/jails", "what the first line made");
}
