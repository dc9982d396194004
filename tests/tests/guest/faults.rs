//! R3: a host whose disks give errors, and signals that interrupt whatever they can. What was saved before stays, and the machine goes on.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mayfly_tests::{Disk, PATIENCE, Tap, Vmm, VmmBuilder, sys};
use serde_json::{Value, json};

use super::configured_with;
use super::network::{attach, network};
use super::snapshots::{LOAD, Saved, finish, life, save, set_state, ticks, wait_for_ticks};

/// A call that strace has fail is one that does not exist, which filters do not let pass.
fn unfiltered() -> VmmBuilder {
    VmmBuilder::new().arg("--no-seccomp")
}

/// Every thread of a process under strace, which has some of its calls fail.
struct Failing(Child);

impl Failing {
    /// The `which`th of these calls fails with EIO, in each thread.
    #[track_caller]
    fn calls(vmm: &Vmm, call: &str, which: &str) -> Self {
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-p", &vmm.pid().to_string()])
            .args(["-e", &format!("trace={call}"), "-e", &format!("inject={call}:error=EIO:when={which}")])
            .stdin(Stdio::null())
            .spawn()
            .expect("strace, which `cargo xtask test` installs");
        let failing = Self(strace);
        let deadline = Instant::now() + PATIENCE;
        while !threads(vmm).iter().all(|tid| traced(vmm, *tid)) {
            assert!(Instant::now() < deadline, "strace does not see all threads");
            std::thread::sleep(Duration::from_millis(5));
        }
        failing
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        // It lets go of the process when it is asked to end, and not when it is killed.
        let _ = Command::new("kill").args(["-INT", &self.0.id().to_string()]).status();
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

fn create(vmm: &Vmm, saved: &Saved) -> mayfly_tests::Response {
    vmm.put("/snapshot/create", &json!({"snapshot_path": saved.state(), "mem_file_path": saved.memory()}))
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
            let _failing = Failing::calls(&vmm, "fsync", &which.to_string());
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
        vmm.put(LOAD, &load(&saved)).expect_204();
        wait_for_ticks(&vmm, 2);
    }
}

fn load(saved: &Saved) -> Value {
    let backend = json!({"backend_type": "File", "backend_path": saved.memory()});
    json!({"snapshot_path": saved.state(), "mem_backend": backend, "resume_vm": true})
}

#[test]
fn a_disk_that_cannot_be_read_is_a_refusal() {
    let vmm = configured_with(unfiltered(), guest::ELF, &life(5));
    vmm.instance_start();
    wait_for_ticks(&vmm, 2);
    let saved = save(&vmm);
    let vmm = unfiltered().start();
    {
        let _failing = Failing::calls(&vmm, "pread64", "1");
        vmm.put(LOAD, &load(&saved)).expect_fault("Input/output error");
    }
    assert_eq!(vmm.get("/").json()["state"], "Not started");
    vmm.put(LOAD, &load(&saved)).expect_204();
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
            vmm.put(LOAD, &load(&saved)).expect_204();
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
