//! R3: a host whose disks give errors, and signals that interrupt whatever they can. What was saved before stays, and the machine goes on.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mayfly_tests::{Disk, PATIENCE, Tap, Vmm, VmmBuilder, sys};
use serde_json::json;

use super::configured_with;
use super::network::{attach, network};
use super::snapshots::{LOAD, Saved, create, finish, life, names, save, set_state, ticks, wait_for_ticks};

/// A call that strace has fail is one that does not exist, which filters do not let pass.
fn unfiltered() -> VmmBuilder {
    VmmBuilder::new().arg("--no-seccomp")
}

/// Threads of a process under strace, which does something to some of their calls.
struct Strace(Child);

impl Strace {
    /// In every thread, the `which`th of these calls fails with EIO.
    #[track_caller]
    fn fails(vmm: &Vmm, calls: &str, which: &str) -> Self {
        Self::attach(vmm, vmm.pid(), &["-f"], calls, &format!("error=EIO:when={which}"), &threads(vmm))
    }

    /// The process is killed when this thread makes the `which`th of these calls.
    #[track_caller]
    fn kills(vmm: &Vmm, tid: u32, calls: &str, which: usize) -> Self {
        Self::attach(vmm, tid, &[], calls, &format!("signal=KILL:when={which}"), &[tid])
    }

    #[track_caller]
    fn attach(vmm: &Vmm, to: u32, more: &[&str], calls: &str, what: &str, tids: &[u32]) -> Self {
        let strace = Command::new("strace")
            .args(["-qq", "-o", "/dev/null", "-p", &to.to_string()])
            .args(more)
            .args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{what}")])
            .stdin(Stdio::null())
            .spawn()
            .expect("strace, which `cargo xtask test` installs");
        let strace = Self(strace);
        let deadline = Instant::now() + PATIENCE;
        while !tids.iter().all(|tid| traced(vmm, *tid)) {
            assert!(Instant::now() < deadline, "strace does not see all threads");
            std::thread::sleep(Duration::from_millis(2));
        }
        strace
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        // It lets go of the process when it is asked to end, and not when it is killed.
        let _ = Command::new("kill").args(["-INT", &self.0.id().to_string()]).stderr(Stdio::null()).status();
        let _ = self.0.wait();
    }
}

fn threads(vmm: &Vmm) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap();
    let names = tasks.filter_map(|task| task.ok()?.file_name().into_string().ok());
    // KVM's own are in there, too, and cannot be traced.
    let ours = names.filter(|tid| {
        let name = fs::read_to_string(format!("/proc/{}/task/{tid}/comm", vmm.pid())).unwrap_or_default();
        !name.starts_with("kvm-")
    });
    ours.map(|tid| tid.parse().unwrap()).collect()
}

fn traced(vmm: &Vmm, tid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/task/{tid}/status", vmm.pid())).unwrap_or_default();
    status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
}

fn contents(saved: &Saved) -> [Vec<u8>; 2] {
    [fs::read(saved.state()).unwrap(), fs::read(saved.memory()).unwrap()]
}

/// The first fsync is of the memory, the second of the state, the others of their directory. After an error nothing is claimed, and there is no
/// second fsync of the same file: it would succeed, and mean nothing.
#[test]
fn a_disk_that_does_not_take_what_is_written_costs_the_snapshot() {
    for (which, before_the_names) in [(1, true), (2, true), (3, false), (4, false)] {
        let vmm = configured_with(unfiltered(), guest::ELF, &life(1_000_000));
        vmm.instance_start();
        wait_for_ticks(&vmm, 2);
        let saved = save(&vmm);
        let before = contents(&saved);
        set_state(&vmm, "Resumed");
        wait_for_ticks(&vmm, 5);
        set_state(&vmm, "Paused");
        {
            let _failing = Strace::fails(&vmm, "fsync", &which.to_string());
            let fault = create(&vmm, &saved).expect_fault("Input/output error");
            assert!(fault.starts_with("Create snapshot error: Cannot write "), "{fault}");
        }
        let left: Vec<_> = fs::read_dir(saved.state().parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 2, "{which}: {left:?}");
        // Either the old pair or the new one, never one of each.
        assert_eq!(contents(&saved) == before, before_the_names, "{which}");
        // The machine goes on, and can be saved.
        set_state(&vmm, "Resumed");
        let lives = ticks(&vmm.console().text()).len();
        wait_for_ticks(&vmm, lives + 2);
        set_state(&vmm, "Paused");
        create(&vmm, &saved).expect_204();
        assert!(contents(&saved) != before);
        drop(vmm);
        let vmm = VmmBuilder::new().start();
        vmm.put(LOAD, &saved.load()).expect_204();
        wait_for_ticks(&vmm, 2);
    }
}

#[test]
fn a_disk_that_cannot_be_read_is_a_refusal() {
    let vmm = configured_with(unfiltered(), guest::ELF, &life(5));
    vmm.instance_start();
    wait_for_ticks(&vmm, 2);
    let saved = save(&vmm);
    let vmm = unfiltered().start();
    {
        let _failing = Strace::fails(&vmm, "pread64", "1");
        vmm.put(LOAD, &saved.load()).expect_fault("Input/output error");
    }
    assert_eq!(vmm.get("/").json()["state"], "Not started");
    vmm.put(LOAD, &saved.load()).expect_204();
    finish(&vmm);
}

/// Tries something with each call of each kind in turn, so many apart, until the process makes no more of that kind. How often it was killed.
fn at_each(calls: &[&str], apart: usize, attempt: impl Fn(&str, usize) -> bool) -> usize {
    let killed = |call: &&str| (1..).step_by(apart).take_while(|which| attempt(call, *which)).count();
    calls.iter().map(killed).sum()
}

/// A saved machine with little memory.
#[track_caller]
fn small() -> Saved {
    let vmm = configured_with(VmmBuilder::new(), guest::ELF, &life(3).with("pool_mib", 1));
    vmm.instance_start();
    wait_for_ticks(&vmm, 2);
    save(&vmm)
}

/// R1 at each system call of the thread that makes the files: the snapshot that was there is whole, or the new one is.
#[test]
fn a_kill_at_each_step_of_a_save_leaves_a_whole_snapshot() {
    const CALLS: [&str; 8] = ["openat", "ftruncate", "flock", "pwrite64", "write", "fsync", "rename", "close"];
    let saved = small();
    let mut paused = saved.load();
    paused["resume_vm"] = json!(false);
    let begin = || {
        let vmm = VmmBuilder::new().start();
        vmm.put(LOAD, &paused).expect_204();
        vmm
    };
    let attempt = |call: &str, which| {
        let vmm = begin();
        let name = |tid: &u32| fs::read_to_string(format!("/proc/{}/task/{tid}/comm", vmm.pid())).unwrap();
        let files = threads(&vmm).into_iter().find(|tid| name(tid).trim() == "files").unwrap();
        let _strace = Strace::kills(&vmm, files, call, which);
        let body = json!({"snapshot_path": saved.state(), "mem_file_path": saved.memory()}).to_string();
        let answer = vmm.client().request("PUT", "/snapshot/create", Some(&body));
        if let Ok(answer) = answer {
            answer.expect_204();
            return false;
        }
        assert_eq!(vmm.wait_exit(PATIENCE), 128 + libc::SIGKILL);
        let known = [".memory.partial", ".state.partial", "memory", "state"];
        assert!(
            names(saved.dir()).iter().all(|name| known.contains(&name.as_str())),
            "{call} {which}: {:?}",
            names(saved.dir())
        );
        begin();
        true
    };
    let steps = at_each(&CALLS, 1, attempt);
    assert!(steps > 15, "{steps} steps");
    // Between one name and the other: the next one puts that right before it writes anything.
    assert!(attempt("rename", 2));
    assert!(names(saved.dir()).contains(&".memory.partial".to_owned()));
    assert!(attempt("pwrite64", 1));
    assert!(!attempt("pwrite64", 10_000));
    assert_eq!(names(saved.dir()), ["memory", "state"]);
    let vmm = begin();
    set_state(&vmm, "Resumed");
    finish(&vmm);
}

/// The same at calls of a load by the thread that does it.
#[test]
fn a_kill_at_each_step_of_a_load_leaves_the_snapshot() {
    const CALLS: [&str; 8] = ["openat", "pread64", "mmap", "ioctl", "clone3", "eventfd2", "madvise", "seccomp"];
    let saved = small();
    let before = contents(&saved);
    let attempt = |call: &str, which| {
        let vmm = VmmBuilder::new().start();
        let _strace = Strace::kills(&vmm, vmm.pid(), call, which);
        let answer = vmm.client().request("PUT", LOAD, Some(&saved.load().to_string()));
        if answer.is_ok() {
            return false;
        }
        assert_eq!(vmm.wait_exit(PATIENCE), 128 + libc::SIGKILL);
        assert!(contents(&saved) == before, "{call} {which}");
        true
    };
    let steps = at_each(&CALLS, 2, attempt);
    assert!(steps > 12, "{steps} steps");
    let vmm = VmmBuilder::new().start();
    vmm.put(LOAD, &saved.load()).expect_204();
    finish(&vmm);
}

/// Sends a signal with a handler to every thread of a process, a thousand times a second, which interrupts whatever they wait for.
struct Storm {
    over: Arc<AtomicBool>,
    sender: Option<JoinHandle<u64>>,
}

/// The one that makes vCPUs leave the guest. Everyone has its handler, which does nothing.
const SIGNAL: i32 = 34;

impl Storm {
    fn over(vmm: &Vmm) -> Self {
        let (pid, tids, over) = (vmm.pid(), threads(vmm), Arc::new(AtomicBool::new(false)));
        let told = over.clone();
        let sender = std::thread::spawn(move || {
            let mut sent = 0;
            while !told.load(Ordering::Relaxed) {
                sent += tids.iter().filter(|tid| sys::signal_thread(pid, **tid, SIGNAL).is_ok()).count() as u64;
                std::thread::sleep(Duration::from_millis(1));
            }
            sent
        });
        Self { over, sender: Some(sender) }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(sent) = self.sender.take().and_then(|sender| sender.join().ok()) {
            assert!(sent > 20 || std::thread::panicking(), "{sent} signals only");
        }
    }
}

/// The end of the sentence in threats: nothing notices.
#[test]
fn signals_that_interrupt_everything_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::sparse(dir.path(), "disk", 1 << 20).unwrap();
    let tap: Tap = network("mfstorm");
    let said = Mutex::new(String::new());
    for engine in ["Sync", "Async"] {
        let mut vmm = configured_with(VmmBuilder::new(), guest::ELF, &life(1_000_000));
        vmm.drive("d", disk.path(), engine);
        attach(&vmm, &tap);
        vmm.put("/entropy", &json!({})).expect_204();
        vmm.instance_start();
        for _ in 0..5 {
            let saved = {
                let _storm = Storm::over(&vmm);
                let lives = ticks(&vmm.console().text()).len();
                wait_for_ticks(&vmm, lives + 5);
                for _ in 0..20 {
                    assert_eq!(vmm.get("/").status, 200);
                }
                save(&vmm)
            };
            said.lock().unwrap().push_str(&vmm.console().text());
            drop(vmm);
            vmm = VmmBuilder::new().start();
            vmm.put(LOAD, &saved.load()).expect_204();
        }
        {
            let _storm = Storm::over(&vmm);
            wait_for_ticks(&vmm, 5);
        }
        said.lock().unwrap().push_str(&vmm.console().text());
        drop(vmm);
    }
    let said = said.into_inner().unwrap();
    for (_, line) in ticks(&said) {
        for nothing in [" doubled=0", " failed=0", " changed=0", " memory=0", " random=0"] {
            assert!(line.contains(nothing), "{line}");
        }
    }
    assert!(!said.contains("life=stuck"), "{said}");
}
