//! Filters and Landlock domains, tried out by making the real threads of the real binary make calls.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use guest::{Job, Mode};
use mayfly_tests::backend::Backend;
use mayfly_tests::sys::inject::{Outcome, Puppet};
use mayfly_tests::{Disk, PATIENCE, Vmm, VmmBuilder, binary};
use serde_json::{Value, json};

use super::{assert_confined, said, status, threads};

/// No pointer, no descriptor, and all flags but the lowest two.
const BAD: u64 = !0x3;
/// Calls that no thread can be told to make without being gone.
const ENDS: [i64; 4] = [libc::SYS_exit, libc::SYS_exit_group, libc::SYS_rt_sigreturn, libc::SYS_restart_syscall];
/// `uretprobe` and `uprobe`: the kernel never asks filters about them and answers with SIGILL unless it put the call there itself
/// (kernel/seccomp.c, arch/x86/kernel/uprobes.c).
const PROBES: [i64; 2] = [335, 336];
/// One more than the last call that there is (arch/x86/entry/syscalls/syscall_64.tbl, Linux 6.18), with some room.
const CALLS: i64 = 480;

/// A machine with a drive of each kind, running.
fn machine(builder: VmmBuilder) -> (tempfile::TempDir, Vmm) {
    binary::require_kvm();
    binary::require_root();
    let vmm = builder.start();
    let dir = tempfile::tempdir().unwrap();
    vmm.boot_source(&vmm.file("guest.elf", guest::ELF), &Job::new(Mode::Spin).command_line());
    vmm.machine(1, 64);
    for engine in ["Sync", "Async"] {
        let disk = Disk::sparse(dir.path(), engine, 1 << 20).unwrap();
        vmm.drive(engine, disk.path(), engine);
    }
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    (dir, vmm)
}

#[track_caller]
fn thread(vmm: &Vmm, name: &str) -> u32 {
    let all = threads(vmm.pid());
    all.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no thread {name} in {all:?}")).1
}

/// Names of the calls that each thread may make with any arguments at all, as it is written down here. Whoever adds one adds it here,
/// and whoever reads the change sees it.
const EVERY: &str = "read write close poll brk munmap mremap sched_yield getpid gettid futex clock_gettime clock_nanosleep sigaltstack \
                     rt_sigprocmask getrandom";
const GOLDEN: [(&str, &str); 6] = [
    ("mayfly", "epoll_wait epoll_ctl timerfd_settime timerfd_gettime unlink statx fstat fdatasync io_uring_enter"),
    ("api", "epoll_wait epoll_ctl accept4 recvfrom writev shutdown"),
    ("vcpu 0", "timerfd_settime io_uring_enter"),
    ("io 0", "epoll_wait epoll_ctl timerfd_settime preadv pwritev fallocate fdatasync"),
    ("io 1", "epoll_wait epoll_ctl timerfd_settime io_uring_enter fdatasync"),
    (
        "files",
        "epoll_wait epoll_ctl openat2 openat statx fstat fstatfs readlink flock ftruncate pwrite64 mincore sysinfo uname utimensat fsync rename unlink",
    ),
];

/// The same for `files` of a machine that can be cloned, besides.
const CLONES: &str = "memfd_create setsockopt connect sendmsg sendto recvfrom pread64";

macro_rules! numbered {
    ($($name:ident)*) => {
        /// Calls by name.
        const NUMBERS: &[(&str, i64)] = &[$((stringify!($name), libc::$name)),*];
    };
}

numbered! {
    SYS_read SYS_write SYS_close SYS_poll SYS_brk SYS_munmap SYS_mremap SYS_sched_yield SYS_getpid SYS_gettid SYS_futex SYS_clock_gettime
    SYS_clock_nanosleep SYS_sigaltstack SYS_rt_sigprocmask SYS_getrandom SYS_epoll_wait SYS_epoll_ctl SYS_timerfd_settime
    SYS_timerfd_gettime SYS_unlink SYS_statx SYS_fstat SYS_fdatasync SYS_io_uring_enter SYS_accept4 SYS_recvfrom SYS_writev
    SYS_shutdown SYS_preadv SYS_pwritev SYS_fallocate SYS_openat2 SYS_openat SYS_fstatfs SYS_readlink SYS_flock SYS_ftruncate
    SYS_pwrite64 SYS_mincore SYS_sysinfo SYS_uname SYS_fsync SYS_rename SYS_memfd_create SYS_setsockopt SYS_connect SYS_sendmsg
    SYS_sendto SYS_pread64 SYS_utimensat SYS_recvmsg SYS_eventfd2 SYS_timerfd_create SYS_epoll_create1 SYS_clone SYS_clone3
    SYS_set_robust_list SYS_rseq SYS_sched_getaffinity SYS_seccomp SYS_landlock_create_ruleset SYS_landlock_restrict_self
    SYS_io_uring_setup SYS_io_uring_register SYS_readv
}

fn number(name: &str) -> i64 {
    let found = NUMBERS.iter().find(|(known, _)| known.strip_prefix("SYS_") == Some(name));
    found.unwrap_or_else(|| panic!("no number for {name}")).1
}

/// J5: every system call there is, on every thread, with arguments that make no sense. What is not written down above is caught.
#[test]
fn threads_make_the_calls_that_are_written_down_and_no_others() {
    let (_dir, vmm) = machine(VmmBuilder::new());
    for (name, own) in GOLDEN {
        assert_makes_these_calls_only(&vmm, name, own);
    }
    // Nobody minds: the machine goes on.
    vmm.get("/").expect_200();
    assert!(vmm.is_running(), "{}", said(&vmm));
}

/// What `--clonable` adds, to one thread. A socket it gets only if that is a Unix one.
#[test]
fn a_machine_that_can_be_cloned_has_one_thread_that_may_do_more() {
    let (_dir, vmm) = machine(VmmBuilder::new().arg("--clonable"));
    for (name, own) in GOLDEN {
        let more = if name == "files" { CLONES } else { "" };
        assert_makes_these_calls_only(&vmm, name, &format!("{own} {more}"));
    }
    let mut puppet = Puppet::seize(thread(&vmm, "files")).unwrap();
    let mut socket = |family: libc::c_int| puppet.call(libc::SYS_socket, [family as u64, BAD, 0, 0, 0, 0]).unwrap();
    assert_ne!(socket(libc::AF_UNIX), Outcome::Caught);
    for family in [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_VSOCK] {
        assert_eq!(socket(family), Outcome::Caught, "{family}");
    }
    puppet.let_go().unwrap();
}

/// What `max_vcpus` adds, to one thread: two questions of KVM's. It starts no thread later on, so nobody else gets anything.
#[test]
fn a_machine_whose_vcpus_come_and_go_has_one_thread_that_may_do_more() {
    binary::require_kvm();
    binary::require_root();
    const SET_MP_STATE: u64 = 0x4004_ae99;
    const SET_LAPIC: u64 = 0x4400_ae8f;
    for max in [None, Some(2)] {
        let vmm = Vmm::start();
        vmm.boot_source(&vmm.file("guest.elf", guest::ELF), &Job::new(Mode::Spin).command_line());
        let config = json!({"vcpu_count": 1, "mem_size_mib": 64, "max_vcpus": max});
        vmm.put("/machine-config", &config).expect_204();
        vmm.instance_start();
        vmm.wait_for_line(guest::READY, PATIENCE);
        let all = ["mayfly", "api", "files", "vcpu 0", "vcpu 1"];
        for name in all.into_iter().filter(|name| max.is_some() || *name != "vcpu 1") {
            let mut puppet = Puppet::seize(thread(&vmm, name)).unwrap();
            for request in [SET_MP_STATE, SET_LAPIC] {
                let outcome = puppet.call(libc::SYS_ioctl, [u64::MAX, request, 0, 0, 0, 0]).unwrap();
                let may = name == "mayfly" && max.is_some();
                assert_eq!(outcome != Outcome::Caught, may, "{name}: {request:#x} with {max:?}");
            }
            // No thread starts another one.
            assert_eq!(puppet.call(libc::SYS_clone3, [BAD; 6]).unwrap(), Outcome::Caught, "{name}");
            puppet.let_go().unwrap();
        }
        vmm.get("/").expect_200();
    }
}

/// What `--enable-pci` adds, to whom: one thread makes devices and the threads that serve them; those let a device come to its end; vCPUs and
/// the VMM thread do what devices that may come ask of them. The machine itself has the same devices as in [`GOLDEN`].
const PLUG: [(&str, &str); 5] = [
    ("mayfly", "readv writev"),
    ("vcpu 0", ""),
    ("io 0", ""),
    ("io 1", ""),
    (
        "files",
        "eventfd2 timerfd_create timerfd_settime epoll_create1 clone clone3 set_robust_list rseq sched_getaffinity seccomp \
         landlock_create_ruleset landlock_restrict_self io_uring_setup io_uring_enter io_uring_register fdatasync preadv pwritev fallocate \
         readv writev sendto recvfrom",
    ),
];

#[test]
fn a_machine_whose_devices_come_and_go_has_one_thread_that_may_do_more() {
    let (_dir, vmm) = machine(VmmBuilder::new().arg("--enable-pci"));
    for (name, own) in GOLDEN {
        let more = PLUG.iter().find(|(known, _)| *known == name).map_or("", |(_, more)| more);
        assert_makes_these_calls_only(&vmm, name, &format!("{own} {more}"));
    }
    const IOEVENTFD: u64 = 0x4040_ae79;
    const IRQFD: u64 = 0x4020_ae76;
    const SET_MEMORY: u64 = 0x4020_ae46;
    let names = GOLDEN.map(|(name, _)| name);
    let asked = [
        ("a BAR that moves", IOEVENTFD, &["mayfly", "vcpu 0", "io 0", "io 1", "files"][..]),
        ("an interrupt", IRQFD, &["files"]),
        ("memory", SET_MEMORY, &["files"]),
        ("a tap that is opened", libc::TUNSETIFF, &["files"]),
        ("a tap that a driver uses pairs of", libc::TUNSETQUEUE, &["mayfly", "vcpu 0", "files"]),
        ("another machine", 0xae01, &[]),
    ];
    for name in names {
        let mut puppet = Puppet::seize(thread(&vmm, name)).unwrap();
        for (what, request, who) in asked {
            let outcome = puppet.call(libc::SYS_ioctl, [u64::MAX, request, 0, 0, 0, 0]).unwrap();
            assert_eq!(outcome != Outcome::Caught, who.contains(&name), "{name}: {what}");
        }
        // Of the other calls only those for threads without programs to run, and a question about taps.
        let of_files = name == "files";
        let made = |puppet: &mut Puppet, call, arguments| puppet.call(call, arguments).unwrap() != Outcome::Caught;
        let exec = libc::PROT_EXEC as u64;
        assert_eq!(made(&mut puppet, libc::SYS_mprotect, [0, 0, libc::PROT_READ as u64, 0, 0, 0]), of_files, "{name}");
        assert!(!made(&mut puppet, libc::SYS_mprotect, [0, 0, exec, 0, 0, 0]), "{name}");
        let socket = |family: libc::c_int, protocol: u64| (libc::SYS_socket, [family as u64, 3, protocol, 0, 0, 0]);
        for ((call, arguments), may) in [
            (socket(libc::AF_NETLINK, libc::NETLINK_ROUTE as u64), of_files),
            (socket(libc::AF_NETLINK, libc::NETLINK_NETFILTER as u64), false),
            (socket(libc::AF_UNIX, 0), false),
            (socket(libc::AF_INET, 0), false),
            ((libc::SYS_execve, [BAD; 6]), false),
            ((libc::SYS_connect, [BAD; 6]), false),
        ] {
            assert_eq!(made(&mut puppet, call, arguments), may, "{name}: {call} {arguments:x?}");
        }
        puppet.let_go().unwrap();
    }
    vmm.get("/").expect_200();
    assert!(vmm.is_running(), "{}", said(&vmm));
}

/// A machine that begins without devices has vCPUs that do what those may ask that come: a guest that moved a BAR of one once ended the process.
#[test]
fn vcpus_are_ready_for_devices_that_come() {
    binary::require_kvm();
    binary::require_root();
    for (plug, builder) in [(false, VmmBuilder::new()), (true, VmmBuilder::new().arg("--enable-pci"))] {
        let vmm = builder.start();
        vmm.boot_source(&vmm.file("guest.elf", guest::ELF), &Job::new(Mode::Spin).command_line());
        vmm.machine(1, 64);
        vmm.instance_start();
        vmm.wait_for_line(guest::READY, PATIENCE);
        let mut puppet = Puppet::seize(thread(&vmm, "vcpu 0")).unwrap();
        // KVM_IOEVENTFD, TUNSETOFFLOAD, TUNSETQUEUE.
        for request in [0x4040_ae79, libc::TUNSETOFFLOAD, libc::TUNSETQUEUE] {
            let outcome = puppet.call(libc::SYS_ioctl, [u64::MAX, request, 0, 0, 0, 0]).unwrap();
            assert_eq!(outcome != Outcome::Caught, plug, "{request:#x}");
        }
        assert_eq!(puppet.call(libc::SYS_io_uring_enter, [BAD; 6]).unwrap() != Outcome::Caught, plug);
        puppet.let_go().unwrap();
    }
}

/// Threads that come with devices are behind the same fences as those that were there; the report shows them, and does not grow.
#[test]
fn threads_that_come_with_devices_are_confined() {
    let (dir, vmm) = machine(VmmBuilder::new().arg("--enable-pci"));
    let disk = Disk::sparse(dir.path(), "late", 1 << 20).unwrap();
    let shown = || {
        let report = vmm.get("/confinement").expect_200();
        let threads = report["threads"].as_array().unwrap().clone();
        let mut names: Vec<String> = threads.iter().map(|thread| thread["name"].as_str().unwrap().to_owned()).collect();
        names.sort_unstable();
        (names, threads)
    };
    let mut known = Vec::new();
    for round in 0..5 {
        for engine in ["Sync", "Async"] {
            let body =
                json!({"drive_id": "late", "path_on_host": disk.path(), "is_root_device": false, "io_engine": engine});
            vmm.put("/drives/late", &body).expect_204();
            vmm.put("/pmem/late", &json!({"id": "late", "path_on_host": disk.path()})).expect_204();
            assert_confined(vmm.pid());
            let (names, threads) = shown();
            for name in ["io 2", "io 3"] {
                let fence = threads.iter().find(|thread| thread["name"] == name).unwrap_or_else(|| panic!("{names:?}"));
                assert_eq!(fence["role"], "io", "{fence}");
                assert_eq!(fence["seccomp"], "filter", "{fence}");
                assert_eq!(fence["opens_files"], false, "{fence}");
                // It was made by a thread that may do more, but does not get that.
                if round == 0 {
                    let mut puppet = Puppet::seize(thread(&vmm, name)).unwrap();
                    for call in
                        [libc::SYS_openat, libc::SYS_openat2, libc::SYS_clone3, libc::SYS_clone, libc::SYS_seccomp]
                    {
                        assert_eq!(puppet.call(call, [BAD; 6]).unwrap(), Outcome::Caught, "{name}: {call}");
                    }
                    for (wish, call, arguments) in wishes() {
                        assert_eq!(puppet.call(call, arguments).unwrap(), Outcome::Caught, "{name}: {wish}");
                    }
                    puppet.let_go().unwrap();
                }
            }
            if round == 0 && engine == "Sync" {
                for (name, own) in [
                    ("io 2", "epoll_wait epoll_ctl timerfd_settime preadv pwritev fallocate fdatasync"),
                    ("io 3", "epoll_wait epoll_ctl timerfd_settime fdatasync statx fstat"),
                ] {
                    assert_makes_these_calls_only(&vmm, name, own);
                }
            }
            for path in ["/drives/late", "/pmem/late"] {
                vmm.request("DELETE", path, None).expect_204();
            }
            let names = shown().0;
            if known.is_empty() {
                known = names;
            } else {
                assert_eq!(names, known, "names are used again");
            }
        }
    }
    let all = threads(vmm.pid());
    assert!(all.iter().all(|(name, _)| name != "io 2" && name != "io 3"), "they ended with their devices: {all:?}");
}

/// With Landlock alone, a thread that came with a device opens no files either.
#[test]
fn landlock_holds_threads_that_come_with_devices() {
    let (dir, vmm) = machine(VmmBuilder::new().args(["--enable-pci", "--no-seccomp"]));
    let disk = Disk::sparse(dir.path(), "late", 1 << 20).unwrap();
    vmm.put("/drives/late", &json!({"drive_id": "late", "path_on_host": disk.path(), "is_root_device": false}))
        .expect_204();
    let mut puppet = Puppet::seize(thread(&vmm, "io 2")).unwrap();
    let place = puppet.hold(b"/etc/hostname\0").unwrap();
    let open = puppet.call(libc::SYS_open, [place, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(open, Outcome::Made(-i64::from(libc::EACCES)));
    puppet.let_go().unwrap();
    vmm.request("DELETE", "/drives/late", None).expect_204();
}

/// What a device with a backend adds: to its thread, and for resets to vCPUs. Sockets are Unix ones.
#[test]
fn a_machine_with_a_backend_may_talk_to_it() {
    binary::require_kvm();
    binary::require_root();
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", 1 << 20).unwrap();
    let socket = dir.path().join("backend");
    let _backend = Backend::storage(disk.path(), &socket, true);
    let vmm = VmmBuilder::new().start();
    vmm.boot_source(&vmm.file("guest.elf", guest::ELF), &Job::new(Mode::Spin).command_line());
    vmm.machine(1, 64);
    vmm.put("/drives/d", &json!({"drive_id": "d", "is_root_device": false, "socket": socket})).expect_204();
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    for (name, own) in [
        ("mayfly", "epoll_wait epoll_ctl timerfd_settime timerfd_gettime unlink statx fstat shutdown"),
        ("vcpu 0", "timerfd_settime epoll_ctl sendmsg recvmsg shutdown"),
        ("io 0", "epoll_wait epoll_ctl timerfd_settime sendmsg recvmsg shutdown connect"),
    ] {
        assert_makes_these_calls_only(&vmm, name, own);
    }
    let mut puppet = Puppet::seize(thread(&vmm, "io 0")).unwrap();
    for (call, family, caught) in [
        (libc::SYS_socket, libc::AF_UNIX, false),
        (libc::SYS_socket, libc::AF_INET, true),
        (libc::SYS_socketpair, libc::AF_UNIX, false),
        (libc::SYS_socketpair, libc::AF_NETLINK, true),
    ] {
        let outcome = puppet.call(call, [family as u64, BAD, 0, 0, 0, 0]).unwrap();
        assert_eq!(outcome == Outcome::Caught, caught, "{call} {family}");
    }
    puppet.let_go().unwrap();
}

#[track_caller]
fn assert_makes_these_calls_only(vmm: &Vmm, name: &str, own: &str) {
    let expected: BTreeSet<i64> = EVERY.split_whitespace().chain(own.split_whitespace()).map(number).collect();
    let mut puppet = Puppet::seize(thread(vmm, name)).unwrap();
    let mut made = BTreeSet::new();
    for call in (0..CALLS).filter(|call| !ENDS.contains(call) && !PROBES.contains(call)) {
        if let Outcome::Made(_) = puppet.call(call, [BAD; 6]).unwrap_or_else(|e| panic!("{name}: {call}: {e}")) {
            made.insert(call);
        }
    }
    puppet.let_go().unwrap();
    let text = |set: Vec<&i64>| format!("{set:?}");
    assert_eq!(
        made,
        expected,
        "{name}: too many {}, too few {}",
        text(made.difference(&expected).collect()),
        text(expected.difference(&made).collect())
    );
}

/// Calls that whoever breaks out would like to make. Pointers are bad on purpose: a filter looks first.
fn wishes() -> Vec<(&'static str, i64, [u64; 6])> {
    let any = |name, number| (name, number, [BAD; 6]);
    let ioctl = |name, request: u64| (name, libc::SYS_ioctl, [0, request, BAD, 0, 0, 0]);
    let memory = |name, number, protection: libc::c_int| {
        (name, number, [0, 4096, protection as u64, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64, u64::MAX, 0])
    };
    let socket =
        |name, family: libc::c_int| (name, libc::SYS_socket, [family as u64, libc::SOCK_STREAM as u64, 0, 0, 0, 0]);
    let (read, write, exec) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    vec![
        any("open", libc::SYS_open),
        any("creat", libc::SYS_creat),
        any("connect", libc::SYS_connect),
        any("bind", libc::SYS_bind),
        any("execve", libc::SYS_execve),
        any("execveat", libc::SYS_execveat),
        any("fork", libc::SYS_fork),
        any("vfork", libc::SYS_vfork),
        any("clone3", libc::SYS_clone3),
        ("clone in a user namespace", libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]),
        any("unshare", libc::SYS_unshare),
        any("setns", libc::SYS_setns),
        any("ptrace", libc::SYS_ptrace),
        any("process_vm_readv", libc::SYS_process_vm_readv),
        any("process_vm_writev", libc::SYS_process_vm_writev),
        any("pidfd_getfd", libc::SYS_pidfd_getfd),
        any("bpf", libc::SYS_bpf),
        any("perf_event_open", libc::SYS_perf_event_open),
        any("keyctl", libc::SYS_keyctl),
        any("add_key", libc::SYS_add_key),
        any("userfaultfd", libc::SYS_userfaultfd),
        any("io_uring_setup", libc::SYS_io_uring_setup),
        any("mount", libc::SYS_mount),
        any("open_tree", libc::SYS_open_tree),
        any("pivot_root", libc::SYS_pivot_root),
        any("chroot", libc::SYS_chroot),
        any("mknodat", libc::SYS_mknodat),
        any("renameat2", libc::SYS_renameat2),
        any("symlinkat", libc::SYS_symlinkat),
        any("fchmodat", libc::SYS_fchmodat),
        any("fchownat", libc::SYS_fchownat),
        any("open_by_handle_at", libc::SYS_open_by_handle_at),
        any("setuid", libc::SYS_setuid),
        any("setresgid", libc::SYS_setresgid),
        any("capset", libc::SYS_capset),
        any("prlimit64", libc::SYS_prlimit64),
        any("init_module", libc::SYS_init_module),
        any("kexec_load", libc::SYS_kexec_load),
        any("kill", libc::SYS_kill),
        any("tkill", libc::SYS_tkill),
        ("tgkill with SIGKILL", libc::SYS_tgkill, [1, 1, libc::SIGKILL as u64, 0, 0, 0]),
        any("memfd_create", libc::SYS_memfd_create),
        any("modify_ldt", libc::SYS_modify_ldt),
        any("personality", libc::SYS_personality),
        any("sendmsg", libc::SYS_sendmsg),
        any("seccomp", libc::SYS_seccomp),
        ("prctl PR_SET_DUMPABLE", libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0, 0]),
        ("prctl PR_SET_SECCOMP", libc::SYS_prctl, [libc::PR_SET_SECCOMP as u64, 0, 0, 0, 0, 0]),
        ioctl("ioctl TIOCSTI", libc::TIOCSTI),
        ioctl("ioctl TUNSETIFF", libc::TUNSETIFF),
        ioctl("ioctl TUNSETQUEUE", libc::TUNSETQUEUE),
        ioctl("ioctl KVM_CREATE_VM", 0xae01),
        ioctl("ioctl KVM_SET_MSRS", 0x4008_ae89),
        memory("mmap to run", libc::SYS_mmap, read | exec),
        memory("mmap to write and run", libc::SYS_mmap, read | write | exec),
        any("mprotect", libc::SYS_mprotect),
        socket("socket AF_INET", libc::AF_INET),
        socket("socket AF_NETLINK", libc::AF_NETLINK),
        socket("socket AF_UNIX, without a socket device", libc::AF_UNIX),
        socket("socket AF_VSOCK", libc::AF_VSOCK),
    ]
}

#[test]
fn what_would_lead_out_is_caught_on_every_thread() {
    let (_dir, vmm) = machine(VmmBuilder::new());
    for (name, _) in GOLDEN {
        let mut puppet = Puppet::seize(thread(&vmm, name)).unwrap();
        for (wish, call, arguments) in wishes() {
            assert_eq!(puppet.call(call, arguments).unwrap(), Outcome::Caught, "{name}: {wish}");
        }
        // Only the one that is there for it opens files.
        for call in [libc::SYS_openat, libc::SYS_openat2] {
            let caught = puppet.call(call, [BAD; 6]).unwrap() == Outcome::Caught;
            assert_eq!(caught, name != "files", "{name}");
        }
        puppet.let_go().unwrap();
    }
    vmm.get("/").expect_200();
}

/// What is needed passes, with the arguments with which it is needed: how it ends is then the kernel's affair.
#[test]
fn what_is_needed_passes_with_the_arguments_it_is_needed_with() {
    let (_dir, vmm) = machine(VmmBuilder::new());
    let ioctl = |request: u64| (libc::SYS_ioctl, [u64::MAX, request, 0, 0, 0, 0]);
    let every: Vec<(i64, [u64; 6])> = vec![
        (
            libc::SYS_mmap,
            [
                0,
                4096,
                (libc::PROT_READ | libc::PROT_WRITE) as u64,
                (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64,
                u64::MAX,
                0,
            ],
        ),
        (libc::SYS_madvise, [1, 4096, libc::MADV_DONTNEED as u64, 0, 0, 0]),
        (libc::SYS_prctl, [libc::PR_GET_NAME as u64, BAD, 0, 0, 0, 0]),
        (libc::SYS_rt_sigaction, [libc::SIGABRT as u64, BAD, 0, 8, 0, 0]),
        (libc::SYS_fcntl, [u64::MAX, libc::F_GETFD as u64, 0, 0, 0, 0]),
        ioctl(libc::TCSETS),
    ];
    let more = [
        (
            "mayfly",
            vec![
                (libc::SYS_tgkill, [u64::from(vmm.pid()), BAD, 34, 0, 0, 0]),
                (libc::SYS_io_uring_register, [u64::MAX, 6, 0, 0, 0, 0]),
            ],
        ),
        ("api", Vec::new()),
        ("vcpu 0", vec![ioctl(0xae80), ioctl(0xaead), ioctl(0x8090_ae81), ioctl(0x4008_ae6a)]),
        ("io 0", vec![ioctl(0x4040_ae79)]),
        ("io 1", vec![ioctl(0x4040_ae79), (libc::SYS_io_uring_register, [u64::MAX, 6, 0, 0, 0, 0])]),
        ("files", vec![ioctl(0x8008_1272), (libc::SYS_fcntl, [u64::MAX, libc::F_SETFL as u64, 0, 0, 0, 0])]),
    ];
    for (name, own) in more {
        let mut puppet = Puppet::seize(thread(&vmm, name)).unwrap();
        for (call, arguments) in every.iter().chain(&own) {
            assert_ne!(puppet.call(*call, *arguments).unwrap(), Outcome::Caught, "{name}: {call} {arguments:x?}");
        }
        puppet.let_go().unwrap();
    }
    vmm.get("/").expect_200();
}

/// Has a thread of a machine of its own make a call, which must end the process, with thread and call named.
#[track_caller]
fn assert_ends_the_process(name: &str, call: i64, arguments: [u64; 6], call_name: &str) {
    let (_dir, vmm) = machine(VmmBuilder::new());
    let puppet = Puppet::seize(thread(&vmm, name)).unwrap();
    puppet.let_go_with(call, arguments).unwrap();
    assert_eq!(vmm.wait_exit(PATIENCE), 148, "{name}: {call_name}\n{}", said(&vmm));
    let shown = if name == "mayfly" { "main" } else { name };
    for line in [
        format!("{shown}] Shutting down VM after intercepting a bad syscall ({call})."),
        format!("{shown}] Its seccomp filter does not let this thread call {call_name}."),
    ] {
        assert!(vmm.log().contains(&line), "{line} is missing in\n{}", vmm.log());
    }
}

/// What a filter catches ends the process, whichever thread it is.
#[test]
fn a_caught_call_ends_the_process_and_says_who_made_it() {
    for (name, _) in GOLDEN {
        assert_ends_the_process(name, libc::SYS_execve, [BAD; 6], "execve");
    }
}

/// Each call of [`wishes`] ends the process when a thread makes it, and call and thread are named.
mod every_forbidden_call {
    use super::*;

    #[track_caller]
    fn ends_the_process(name: &str) {
        for (wish, call, arguments) in wishes() {
            // The first word of a wish is the call's name.
            assert_ends_the_process(name, call, arguments, wish.split(' ').next().unwrap());
        }
    }

    #[test]
    fn of_the_vmm_thread() {
        ends_the_process("mayfly");
    }

    #[test]
    fn of_the_api_thread() {
        ends_the_process("api");
    }

    #[test]
    fn of_a_vcpu_thread() {
        ends_the_process("vcpu 0");
    }

    #[test]
    fn of_a_device_thread() {
        ends_the_process("io 0");
    }

    #[test]
    fn of_a_device_thread_with_a_ring() {
        ends_the_process("io 1");
    }

    #[test]
    fn of_the_thread_that_opens_files() {
        ends_the_process("files");
    }
}

/// J8, and that what the process says of itself is what the kernel says.
#[test]
fn every_task_has_its_filter_and_the_report_is_true() {
    let (_dir, vmm) = machine(VmmBuilder::new());
    assert_confined(vmm.pid());
    let report = vmm.get("/confinement").expect_200();
    let named =
        |name: &str| report["threads"].as_array().unwrap().iter().find(|thread| thread["name"] == name).cloned();
    let all = threads(vmm.pid());
    assert_eq!(all.len(), report["threads"].as_array().unwrap().len(), "{report:#}");
    // Fewer than the reference has for the same threads.
    let most = |role: &Value| match role.as_str().unwrap() {
        "api" => 36,
        "vcpu" => 49,
        _ => 76,
    };
    for (name, _) in all {
        let shown = if name == "mayfly" { "main" } else { &name };
        let fence = named(shown).unwrap_or_else(|| panic!("{shown} is missing in {report:#}"));
        assert_eq!(fence["seccomp"], "filter", "{fence}");
        assert!(fence["rules"].as_u64().unwrap() < most(&fence["role"]), "{fence}");
        assert_eq!(fence["opens_files"], name == "files", "{fence}");
    }
    assert_eq!(report["capabilities"]["effective"], status(&vmm.pid().to_string(), "CapEff"));
    assert_eq!(report["no_new_privs"], false, "it was not started so");
    let net = std::fs::read_link(format!("/proc/{}/ns/net", vmm.pid())).unwrap();
    assert_eq!(report["namespaces"]["net"], net.to_str().unwrap());
}

/// A console may be anything: what is done with it passes.
#[test]
fn consoles_on_sockets_and_terminals_work() {
    binary::require_kvm();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let vmm = VmmBuilder::new().stdout(OwnedFd::from(theirs)).start();
    vmm.boot_source(&vmm.file("guest.elf", guest::ELF), &Job::new(Mode::Hello).command_line());
    vmm.instance_start();
    assert_eq!(vmm.wait_exit(PATIENCE), 0, "{}", said(&vmm));
    ours.set_nonblocking(true).unwrap();
    let mut text = Vec::new();
    let _ = (&ours).read_to_end(&mut text);
    assert!(String::from_utf8_lossy(&text).contains(guest::DONE), "{}", String::from_utf8_lossy(&text));

    // script(1) runs it on a terminal.
    let builder = VmmBuilder::new();
    let kernel = builder.file("guest.elf", guest::ELF);
    let source = json!({"kernel_image_path": kernel, "boot_args": Job::new(Mode::Hello).command_line()});
    let config = builder.file("config.json", json!({"boot-source": source, "drives": []}).to_string().as_bytes());
    let command = format!("{} --no-api --config-file {}", binary::mayfly().display(), config.display());
    let output = Command::new("script").args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(0) && text.contains(guest::DONE), "{:?}: {text}", output.status);
}

#[test]
fn before_the_start_only_the_api_has_a_fence_and_it_narrows() {
    binary::require_root();
    let vmm = VmmBuilder::new().start();
    let report = vmm.get("/confinement").expect_200();
    assert_eq!(report["threads"].as_array().unwrap().len(), 1);
    assert_eq!((&report["threads"][0]["role"], &report["threads"][0]["opens_files"]), (&"api".into(), &true.into()));
    let mut puppet = Puppet::seize(thread(&vmm, "api")).unwrap();
    assert_eq!(puppet.call(libc::SYS_execve, [BAD; 6]).unwrap(), Outcome::Caught);
    assert_ne!(puppet.call(libc::SYS_openat, [BAD; 6]).unwrap(), Outcome::Caught, "PUT /logger");
    puppet.let_go().unwrap();
}

#[test]
fn filters_can_be_switched_off_and_brought() {
    let (_dir, vmm) = machine(VmmBuilder::new().arg("--no-seccomp"));
    for (name, tid) in threads(vmm.pid()) {
        assert_eq!(status(&format!("{}/task/{tid}", vmm.pid()), "Seccomp"), "0", "{name}");
    }
    assert!(
        vmm.get("/confinement").expect_200()["threads"]
            .as_array()
            .unwrap()
            .iter()
            .all(|thread| thread["seccomp"] == "off")
    );
    drop(vmm);

    // One that lets everything pass, as seccompiler's compiler writes it.
    let allow = (0x7fff_0000_u64 << 32 | 0x06).to_le_bytes();
    let mut bytes = 3u64.to_le_bytes().to_vec();
    for name in ["vmm", "api", "vcpu"] {
        bytes.extend((name.len() as u64).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(allow);
    }
    let builder = VmmBuilder::new();
    let path = builder.file("filters", &bytes);
    let (_dir, vmm) = machine(builder.arg("--seccomp-filter").arg(path));
    assert_confined(vmm.pid());
    let mut puppet = Puppet::seize(thread(&vmm, "vcpu 0")).unwrap();
    assert!(matches!(puppet.call(libc::SYS_getuid, [0; 6]).unwrap(), Outcome::Made(_)), "the brought one lets it pass");
    // Landlock is another fence.
    let place = puppet.hold(b"/etc/hostname\0").unwrap();
    let open = puppet.call(libc::SYS_open, [place, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(open, Outcome::Made(-i64::from(libc::EACCES)));
    puppet.let_go().unwrap();
}
