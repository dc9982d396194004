//! What a caller can get wrong: each is refused with a sentence that says what and why, and nothing is lost.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use guest::{Job, Mode};
use mayfly_tests::{PATIENCE, Vmm, VmmBuilder, binary};
use serde_json::json;

use super::{configured, finish, kernel};

fn start(vmm: &Vmm) -> mayfly_tests::Response {
    vmm.put("/actions", &json!({"action_type": "InstanceStart"}))
}

fn boot_source(vmm: &Vmm, path: &std::path::Path) -> mayfly_tests::Response {
    vmm.put("/boot-source", &json!({"kernel_image_path": path}))
}

/// A7.
#[test]
fn kernel_paths_that_are_no_kernel() {
    let vmm = VmmBuilder::new().start();
    let fifo = vmm.dir().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let missing = vmm.dir().join("missing");
    boot_source(&vmm, &missing)
        .expect_fault("Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)");
    for (path, what) in [
        (fifo.as_path(), "a FIFO"),
        (vmm.dir(), "a directory"),
        (std::path::Path::new("/dev/zero"), "a character device"),
        (vmm.socket(), ""),
    ] {
        boot_source(&vmm, path).expect_fault("The kernel file cannot be opened");
        let fault = boot_source(&vmm, path).fault().unwrap();
        assert!(fault.contains(what), "{fault}");
    }
    let elf = vmm.file("guest.elf", guest::ELF);
    let body = json!({"kernel_image_path": elf, "initrd_path": missing});
    vmm.put("/boot-source", &body)
        .expect_fault("The initrd file cannot be opened due to invalid path or invalid permissions.");
    assert_eq!(vmm.get("/vm/config").json()["boot-source"], json!(null), "nothing was kept");
    start(&vmm).expect_fault("Cannot start microvm without kernel configuration.");
}

#[test]
fn kernels_that_are_hostile_or_broken_fail_at_start_and_the_caller_can_try_again() {
    let vmm = configured(&Job::new(Mode::Probe));
    let elf = guest::ELF;
    let patched = |at: usize, bytes: &[u8]| {
        let mut image = elf.to_vec();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    let header = 64;
    let images: [(&str, Vec<u8>); 9] = [
        ("empty", Vec::new()),
        ("text", b"this is no kernel".to_vec()),
        ("truncated", elf[..2000].to_vec()),
        ("no program headers", patched(56, &0u16.to_le_bytes())),
        ("headers beyond the end", patched(32, &u64::MAX.to_le_bytes())),
        ("entry outside RAM", patched(24, &0xffff_ffff_0000_0000u64.to_le_bytes())),
        ("segment over the boot tables", patched(header + 24, &0x7000u64.to_le_bytes())),
        ("segment longer in the file than in memory", patched(header + 40, &1u64.to_le_bytes())),
        ("segment that wraps", patched(header + 24, &(u64::MAX - 0xfff).to_le_bytes())),
    ];
    for (what, image) in images {
        let path = vmm.file("bad.elf", &image);
        boot_source(&vmm, &path).expect_204();
        let reply = start(&vmm);
        assert_eq!(reply.status, 400, "{what}: {}", reply.text());
        let fault = reply.fault().unwrap();
        assert!(fault.starts_with("Start microvm error: ") && fault.len() > 40, "{what}: {fault}");
        assert_eq!(vmm.get("/").json()["state"], "Not started", "{what}");
    }
    vmm.boot_source(&kernel(&vmm, elf), &Job::new(Mode::Probe).command_line());
    start(&vmm).expect_204();
    finish(&vmm);
}

/// A10.
#[test]
fn an_initrd_larger_than_memory() {
    let vmm = configured(&Job::new(Mode::Probe));
    let initrd = vmm.file("initrd", b"");
    std::fs::File::options().write(true).open(&initrd).unwrap().set_len(1 << 30).unwrap();
    let body = json!({"kernel_image_path": kernel(&vmm, guest::ELF), "initrd_path": initrd});
    vmm.put("/boot-source", &body).expect_204();
    let fault = start(&vmm).expect_fault("initrd");
    assert!(fault.starts_with("Start microvm error: "), "{fault}");
}

/// A10.
#[test]
fn command_lines() {
    let vmm = VmmBuilder::new().start();
    let elf = kernel(&vmm, guest::ELF);
    let put = |args: &str| vmm.put("/boot-source", &json!({"kernel_image_path": elf, "boot_args": args}));
    put(&"x".repeat(2048)).expect_fault("The kernel command line is invalid");
    put("a\u{1}b").expect_fault("The kernel command line is invalid");
    put("caf\u{e9}").expect_fault("The kernel command line is invalid");
    put(&"x".repeat(2000)).expect_204();
    put("root=/dev/vda -- --single").expect_204();
}

/// A8. Memory that cannot be had fails at start with the contract's text, and the same process can go on with less.
#[test]
fn memory_that_the_host_does_not_have() {
    let vmm = configured(&Job::new(Mode::Probe));
    vmm.machine(1, 1 << 30);
    start(&vmm).expect_fault(
        "Start microvm error: Invalid Memory Configuration: Cannot create mmap region: Cannot allocate memory (os error 12)",
    );
    for mem in [0u64, 1 << 44, u64::MAX] {
        vmm.put("/machine-config", &json!({"vcpu_count": 1, "mem_size_mib": mem}))
            .expect_fault("The memory size (MiB) is either 0, or not a multiple of the configured page size.");
    }
    vmm.machine(1, 64);
    start(&vmm).expect_204();
    finish(&vmm);
}

/// A template for other processors is accepted, as the contract has it, but must not be ignored.
#[test]
fn a_cpu_template_that_does_not_fit_fails_at_start() {
    let vmm = configured(&Job::new(Mode::Probe));
    let intel = std::fs::read_to_string("/proc/cpuinfo").unwrap().contains("GenuineIntel");
    vmm.patch("/machine-config", &json!({"cpu_template": if intel { "T2A" } else { "T2" }})).expect_204();
    let mismatch = "Start microvm error: CPU vendor mismatched between actual CPU and CPU template.";
    start(&vmm).expect_fault(mismatch);
    let custom = |leaf: &str, addr: &str, capability: &str| {
        json!({
            "kvm_capabilities": [capability],
            "cpuid_modifiers": [{"leaf": leaf, "subleaf": "0x0", "flags": 0, "modifiers": []}],
            "msr_modifiers": [{"addr": addr, "bitmap": "0b"}],
        })
    };
    for (template, fault) in [
        (custom("0x1", "0x10", "99999"), "Missing KVM capabilities: 0x1869f"),
        (custom("0x5555", "0x10", "3"), "not supported by KVM: Leaf: 0x5555, Subleaf: 0x0"),
        (custom("0x1", "0x5555", "3"), "not supported by KVM: Register Address: 0x5555"),
    ] {
        vmm.put("/cpu-config", &template).expect_204();
        start(&vmm).expect_fault(fault);
    }
    // What is struck out is not checked, and the rest fits any host.
    vmm.put("/cpu-config", &custom("0x1", "0x10", "!121")).expect_204();
    start(&vmm).expect_204();
    finish(&vmm);
}

/// A8.
#[test]
fn vcpu_counts() {
    let vmm = VmmBuilder::new().start();
    for count in [0, 33, 255] {
        vmm.put("/machine-config", &json!({"vcpu_count": count, "mem_size_mib": 64})).expect_fault(
            "The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled.",
        );
    }
    assert_eq!(vmm.get("/machine-config").json()["vcpu_count"], 1);
}

#[test]
fn thirty_two_vcpus_start_and_end() {
    let vmm = configured(&Job::new(Mode::Probe));
    vmm.machine(32, 64);
    start(&vmm).expect_204();
    finish(&vmm);
}

#[test]
fn drives() {
    let vmm = configured(&Job::new(Mode::Probe));
    let disk = vmm.file("disk", &[0; 512]);
    let put = |id: &str, path: &std::path::Path, root: bool| {
        vmm.put(&format!("/drives/{id}"), &json!({"drive_id": id, "path_on_host": path, "is_root_device": root}))
    };
    put("a", &vmm.dir().join("missing"), false)
        .expect_fault("Error manipulating the backing file: No such file or directory (os error 2)");
    put("a", vmm.dir(), false).expect_fault("Error manipulating the backing file");
    put("a", std::path::Path::new("/dev/null"), false).expect_fault("a character device");
    // Opening a FIFO for reading waits for a writer; nobody must wait here.
    let fifo = vmm.dir().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    put("a", &fifo, false).expect_fault("a FIFO");
    put("a", &disk, true).expect_204();
    put("b", &disk, true).expect_fault("A root block device already exists!");
    // A write-protected file is a drive if it is asked for read-only, even for those who could write it anyway.
    std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o400)).unwrap();
    let body = json!({"drive_id": "c", "path_on_host": disk, "is_root_device": false, "is_read_only": true});
    vmm.put("/drives/c", &body).expect_204();
    assert_eq!(vmm.get("/vm/config").json()["drives"].as_array().unwrap().len(), 2);
}

/// Where `/dev/kvm` is missing, is something else, or is not for us, one sentence says what to do, and the process goes on.
#[test]
fn no_kvm() {
    binary::require_root();
    let script = |hide: &str, run: &str| {
        let out = Command::new("unshare")
            .args(["-m", "sh", "-c", &format!("{hide} && {run}")])
            .output()
            .expect("unshare is part of util-linux");
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
    };
    let demo = format!("{} demo; echo code=$?", binary::mayfly().display());
    let missing = script("mount -t tmpfs none /dev && mknod /dev/null c 1 3", &demo);
    assert!(missing.contains("/dev/kvm does not exist"), "{missing}");
    assert!(missing.contains("code=1"), "{missing}");
    let other = script("mount --bind /dev/null /dev/kvm", &demo);
    assert!(other.contains("/dev/kvm is not the KVM device"), "{other}");
    let public = tempfile::tempdir().unwrap();
    std::fs::set_permissions(public.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = public.path().join("mayfly");
    binary::copy(&binary::mayfly(), &copy);
    let unprivileged =
        format!("TMPDIR=/tmp setpriv --reuid 65534 --regid 65534 --clear-groups {} demo; echo code=$?", copy.display());
    let denied = script("true", &unprivileged);
    assert!(denied.contains("/dev/kvm may not be opened by this user"), "{denied}");
}

/// The same through the API: the start is refused, the process and its configuration stay.
#[test]
fn a_start_without_kvm_is_refused_and_the_process_goes_on() {
    binary::require_root();
    let builder = VmmBuilder::new();
    // A mount namespace of its own, in which /dev/kvm is something else.
    let script = format!(
        "#!/bin/sh\nexec unshare -m sh -c 'mount --bind /dev/null /dev/kvm && exec {} \"$@\"' mayfly \"$@\"\n",
        binary::mayfly().display()
    );
    let wrapper = builder.dir().join("without-kvm");
    binary::copy(&builder.file("script", script.as_bytes()), &wrapper);
    let vmm = builder.binary(wrapper).start();
    vmm.boot_source(&kernel(&vmm, guest::ELF), "");
    for _ in 0..2 {
        start(&vmm).expect_fault("/dev/kvm");
        assert_eq!(vmm.get("/").json()["state"], "Not started");
    }
    vmm.signal(libc::SIGTERM);
    assert_eq!(vmm.wait_exit(PATIENCE), 143, "{}", vmm.said());
}

/// A start that fails leaves nothing of the machine behind in the process.
#[test]
fn failed_starts_leak_nothing() {
    let vmm = configured(&Job::new(Mode::Probe));
    let bad = vmm.file("bad", b"\x7fELF, but only at first sight");
    boot_source(&vmm, &bad).expect_204();
    let count = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", vmm.pid())).unwrap().count();
    start(&vmm).expect_fault("Start microvm error");
    let before = (count("fd"), count("task"));
    for _ in 0..20 {
        start(&vmm).expect_fault("Start microvm error");
    }
    assert_eq!((count("fd"), count("task")), before);
    vmm.signal(libc::SIGTERM);
    assert_eq!(vmm.wait_exit(PATIENCE), 143);
}
