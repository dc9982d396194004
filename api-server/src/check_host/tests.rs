use std::os::unix::fs::PermissionsExt;

use super::*;

fn item(name: &str) -> &'static Item {
    ITEMS.iter().find(|item| item.name == name).unwrap_or_else(|| panic!("no item {name}"))
}

#[test]
fn each_value_has_its_verdict() {
    use Verdict::{Advice, Ok, Problem, Unknown};
    for (name, text, verdict) in [
        ("kvm", "can be read and written", Ok),
        ("kvm", "Permission denied (os error 13)", Problem),
        ("tun", "No such file or directory (os error 2)", Advice),
        ("kernel", "5.4.0-1", Problem),
        ("kernel", "5.15.0-generic", Advice),
        ("kernel", "6.18.44-fc", Ok),
        ("kernel", "garbage", Unknown),
        ("cpu-flaws", "mds, tsx_async_abort", Problem),
        ("cpu-flaws", "all mitigated", Ok),
        ("smt", "1", Advice),
        ("smt", "0", Ok),
        ("smt", "x", Unknown),
        ("ksm", "1", Problem),
        ("ksm", "2", Ok),
        ("swap", "/dev/sda2", Advice),
        ("nx-huge-pages", "N", Problem),
        ("nx-huge-pages", "Y", Ok),
        ("cgroup", "cgroup rw,cpu", Advice),
        ("cgroup", "cgroup2 rw", Ok),
        ("favordynmods", "cgroup2 rw,favordynmods", Ok),
        ("favordynmods", "cgroup2 rw", Advice),
        ("seccomp", "kill_process trap errno", Ok),
        ("seccomp", "kill_process", Problem),
        ("io-uring", "2", Advice),
        ("user-namespaces", "0", Advice),
        ("user-namespaces", "96365", Ok),
        ("ptrace", "0", Advice),
        ("ptrace", "1", Ok),
        ("huge-pages", "always madvise [never]", Advice),
        ("huge-pages", "[always] madvise never", Ok),
        ("open-files", "1024", Advice),
        ("open-files", "unlimited", Ok),
    ] {
        assert_eq!((item(name).judge)(text), verdict, "{name}: {text}");
    }
}

#[test]
fn files_are_read_below_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("proc/mounts", "cgroup2 /u cgroup2 rw,favordynmods 0 0\nproc /proc proc rw 0 0\n");
    write("proc/swaps", "Filename Type Size\n/dev/sda2 partition 1\n");
    write("sys/devices/system/cpu/vulnerabilities/mds", "Vulnerable: no microcode\n");
    write("sys/devices/system/cpu/vulnerabilities/l1tf", "Not affected\n");
    write(
        "proc/self/limits",
        "Limit Soft Hard Units\nMax open files            1024                 4096                 files\n",
    );
    let findings = look(&Host { root: dir.path().to_owned(), landlock: None });
    let of = |name: &str| findings.iter().find(|finding| finding.item == name).unwrap();
    assert_eq!(of("cgroup").found.as_deref(), Some("cgroup2 rw,favordynmods"));
    assert_eq!(of("swap").found.as_deref(), Some("/dev/sda2"));
    assert_eq!(of("cpu-flaws").found.as_deref(), Some("mds"));
    assert_eq!(of("open-files").found.as_deref(), Some("1024"));
    assert_eq!((of("kvm").verdict, of("landlock").verdict), (Verdict::Problem, Verdict::Advice));
    // What is not there is told, not guessed.
    assert_eq!((of("smt").verdict, of("smt").found.as_deref()), (Verdict::Unknown, None));

    // A device that may not be written.
    write("dev/kvm", "");
    fs::set_permissions(dir.path().join("dev/kvm"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(look(&Host { root: dir.path().to_owned(), landlock: Some(3) })[0].verdict, Verdict::Ok);
}

#[test]
fn every_item_is_explained_where_operators_read() {
    let page = include_str!("../../../docs/production-host.md");
    for item in ITEMS {
        assert!(page.contains(&format!("`{}`", item.name)), "docs/production-host.md says nothing of {}", item.name);
        assert!(item.why.ends_with('.') || item.why.contains(['=', '/', ' ']), "{}", item.name);
    }
    let names: std::collections::BTreeSet<_> = ITEMS.iter().map(|item| item.name).collect();
    assert_eq!(names.len(), ITEMS.len(), "a name is there twice");
}
