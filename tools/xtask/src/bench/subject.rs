//! One VMM binary under measurement, and one process of it, driven through the v1 API alone.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use mayfly_tests::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::console::{Console, tail};
use super::sys::{self, CpuMask, Sleeps};

/// What every process of a run shares.
#[derive(Debug)]
pub(crate) struct Rig {
    /// In memory when the host has a tmpfs, so that no disk is measured by accident.
    pub(crate) dir: TempDir,
    /// The bare-metal guest.
    pub(crate) kernel: PathBuf,
    /// Where the bench may run.
    pub(crate) cpus: CpuMask,
    /// For guests that cannot read it from CPUID.
    pub(crate) tsc_khz: Option<u64>,
    /// Few samples and short ones: only to see that the bench works.
    pub(crate) quick: bool,
}

/// Guest memory of every VM, in MiB.
pub(crate) const GUEST_MIB: u64 = 128;
/// For what normally takes milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Between two attempts to connect to a socket that does not exist yet.
const CONNECT_AGAIN: Duration = Duration::from_micros(50);

impl Rig {
    pub(crate) fn new(quick: bool) -> Result<Self> {
        let shm = Path::new("/dev/shm");
        let place = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("mayfly-bench-").tempdir_in(place)?;
        let kernel = dir.path().join("guest.elf");
        std::fs::write(&kernel, guest::ELF)?;
        Ok(Self {
            dir,
            kernel,
            cpus: CpuMask::of_this_thread()?,
            tsc_khz: sys::tsc_khz(Duration::from_millis(100)),
            quick,
        })
    }

    /// The CPU of the latency driver, and of the vCPU when throughput is measured.
    pub(crate) fn first_cpu(&self) -> CpuMask {
        self.cpus.nth(0).unwrap_or(self.cpus)
    }

    /// The CPU of the VMM's own threads; the same as the first when there is only one.
    pub(crate) fn second_cpu(&self) -> CpuMask {
        self.cpus.nth(1).unwrap_or(self.first_cpu())
    }

    /// A kernel that stops its processor for good.
    pub(crate) fn sleeper(&self) -> Result<PathBuf> {
        let path = self.dir.path().join("sleeper.elf");
        if !path.exists() {
            std::fs::write(&path, sleeper_elf())?;
        }
        Ok(path)
    }

    /// A new file of `mib` MiB in memory, every page of it present.
    pub(crate) fn disk(&self, name: &str, mib: usize) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        if !path.exists() {
            let mut file = File::create(&path)?;
            for n in 0..mib {
                io::Write::write_all(&mut file, &vec![n as u8 | 1; 1 << 20])?;
            }
        }
        Ok(path)
    }
}

/// A kernel that stops its processor for good: `cli`, `hlt`, and back to that, at 16 MiB. The usual guest runs in user mode, which cannot.
fn sleeper_elf() -> Vec<u8> {
    const AT: u64 = 0x100_0000;
    const CODE: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];
    const HEADERS: u64 = 64 + 56;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    // An executable for x86-64, of version 1.
    elf.extend([2u16, 62].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend(1u32.to_le_bytes());
    // Entry, program headers, no sections, no flags.
    elf.extend([AT, 64, 0].iter().flat_map(|n: &u64| n.to_le_bytes()));
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 1, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()));
    // To be loaded, readable and executable: offset, addresses, lengths, alignment.
    elf.extend([1u32, 5].iter().flat_map(|n| n.to_le_bytes()));
    let len = CODE.len() as u64;
    elf.extend([HEADERS, AT, AT, len, len, 1].iter().flat_map(|n: &u64| n.to_le_bytes()));
    elf.extend(CODE);
    elf
}

/// A binary and what the table calls it.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) label: String,
    pub(crate) binary: PathBuf,
}

/// Where the VMM may run from its first instruction on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the second CPU, with the driver on the first: for what happens without a guest.
    Apart,
    /// Where the scheduler likes: a spinning vCPU needs a CPU for itself.
    Anywhere,
}

/// One process. Killed, reaped and its directory removed when dropped.
#[derive(Debug)]
pub(crate) struct Vm {
    child: Child,
    client: Client,
    pub(crate) console: Console,
    dir: TempDir,
    /// From before fork and exec to an accepted connection.
    pub(crate) exec_to_connect: Duration,
    /// Kept open: a VMM may take the end of its input for a wish.
    _stdin: Option<ChildStdin>,
}

/// What starting the guest took, from before the request was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started {
    /// To the last byte of the reply.
    pub(crate) call: Duration,
    /// To the arrival of the guest's first byte.
    pub(crate) first_output: Duration,
}

impl Subject {
    /// Starts a process and returns as soon as its socket accepts.
    pub(crate) fn spawn(&self, rig: &Rig, place: Place) -> Result<Vm> {
        self.spawn_with(rig, place, &[])
    }

    /// The same with more arguments.
    pub(crate) fn spawn_with(&self, rig: &Rig, place: Place, arguments: &[&OsStr]) -> Result<Vm> {
        let dir = TempDir::new_in(rig.dir.path())?;
        let socket = dir.path().join("api.sock");
        let mut command = Command::new(&self.binary);
        command
            .arg("--api-sock")
            .arg(&socket)
            .args(["--id", "bench"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(dir.path().join("stderr"))?);
        // The child inherits CPUs and timer slack; setting them this way keeps the cheap spawn.
        let (mine, its) = match place {
            Place::Apart => (rig.first_cpu(), rig.second_cpu()),
            Place::Anywhere => (rig.cpus, rig.cpus),
        };
        sys::pin(0, its)?;
        let spawned = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.binary.display()))?;
        sys::pin(0, mine)?;
        sys::set_sleeps(Sleeps::Exact);
        let connected = connect(&socket, &mut child, spawned);
        sys::set_sleeps(Sleeps::Usual);
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("stdout is piped")?;
        match connected {
            Ok((client, exec_to_connect)) => {
                Ok(Vm { child, client, console: Console::new(stdout), dir, exec_to_connect, _stdin: stdin })
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let stderr = std::fs::read_to_string(dir.path().join("stderr"));
                let stdout = io::read_to_string(stdout);
                let said = stdout.unwrap_or_default() + &stderr.unwrap_or_default();
                Err(anyhow!("{error}{}", tail(&said)))
            }
        }
    }

    /// [`spawn`](Self::spawn) and the least a bootable VM needs: 1 vCPU, [`GUEST_MIB`], the guest with `words`.
    pub(crate) fn spawn_configured(&self, rig: &Rig, words: &str) -> Result<Vm> {
        self.spawn_configured_with(rig, words, &[])
    }

    /// The same with more arguments.
    pub(crate) fn spawn_configured_with(&self, rig: &Rig, words: &str, arguments: &[&OsStr]) -> Result<Vm> {
        let mut vm = self.spawn_with(rig, Place::Anywhere, arguments)?;
        vm.configure(rig, words, &machine())?;
        Ok(vm)
    }

    /// The same with so many vCPUs.
    pub(crate) fn spawn_with_vcpus(&self, rig: &Rig, words: &str, vcpus: u32) -> Result<Vm> {
        let mut vm = self.spawn(rig, Place::Anywhere)?;
        vm.configure(rig, words, &json!({"vcpu_count": vcpus, "mem_size_mib": GUEST_MIB}))?;
        Ok(vm)
    }
}

/// The body of `PUT /machine-config`.
pub(crate) fn machine() -> Value {
    json!({"vcpu_count": 1, "mem_size_mib": GUEST_MIB})
}

fn connect(socket: &Path, child: &mut Child, since: Instant) -> Result<(Client, Duration)> {
    let mut attempts: u32 = 0;
    loop {
        match Client::connect(socket) {
            Ok(client) => return Ok((client, since.elapsed())),
            Err(error) if since.elapsed() > PATIENCE => {
                bail!("the API socket did not accept in {PATIENCE:?}: {error}");
            }
            Err(_) => {}
        }
        attempts += 1;
        // Rarely, because it is a system call on the measured path.
        if attempts.is_multiple_of(200)
            && let Some(status) = child.try_wait()?
        {
            bail!("the process ended ({status}) before its API answered");
        }
        std::thread::sleep(CONNECT_AGAIN);
    }
}

impl Vm {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// One request on the kept connection, and how long until the last byte of its reply.
    ///
    /// # Errors
    /// Without a reply, and with one that is not 2xx: its `fault_message` is in the error.
    pub(crate) fn request(&mut self, method: &str, path: &str, body: Option<&str>) -> Result<Duration> {
        let start = Instant::now();
        let reply = self.client.request(method, path, body);
        let took = start.elapsed();
        let reply = reply.with_context(|| format!("{method} {path}{}", self.said()))?;
        if !(200..300).contains(&reply.status) {
            bail!("{method} {path}: {} {}", reply.status, reply.text());
        }
        Ok(took)
    }

    /// The guest with `words`, in a machine of this configuration.
    pub(crate) fn configure(&mut self, rig: &Rig, words: &str, machine: &Value) -> Result<()> {
        self.put("/machine-config", machine)?;
        let khz = rig.tsc_khz.map(|khz| format!(" mayfly.tsc_khz={khz}")).unwrap_or_default();
        let args = format!("{words}{khz}");
        self.put("/boot-source", &json!({"kernel_image_path": rig.kernel, "boot_args": args}))?;
        Ok(())
    }

    /// A request whose reply says something, and how long until its last byte.
    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &Value) -> Result<(Duration, Value)> {
        let start = Instant::now();
        let reply = self.client.request(method, path, Some(&body.to_string()));
        let took = start.elapsed();
        let reply = reply.with_context(|| format!("{method} {path}{}", self.said()))?;
        if reply.status != 200 {
            bail!("{method} {path}: {} {}", reply.status, reply.text());
        }
        Ok((took, reply.json()))
    }

    pub(crate) fn put(&mut self, path: &str, body: &Value) -> Result<Duration> {
        self.request("PUT", path, Some(&body.to_string()))
    }

    /// A writable drive that is not the root device.
    pub(crate) fn drive(&mut self, id: &str, path: &Path, engine: &str) -> Result<Duration> {
        let body = json!({
            "drive_id": id, "path_on_host": path, "is_root_device": false,
            "is_read_only": false, "io_engine": engine,
        });
        self.put(&format!("/drives/{id}"), &body)
    }

    /// The same with so many queues, which another VMM than ours may not have.
    pub(crate) fn drive_with_queues(&mut self, id: &str, path: &Path, engine: &str, queues: u32) -> Result<Duration> {
        let mut body = json!({
            "drive_id": id, "path_on_host": path, "is_root_device": false,
            "is_read_only": false, "io_engine": engine,
        });
        if queues > 1 {
            body["num_queues"] = queues.into();
        }
        self.put(&format!("/drives/{id}"), &body)
    }

    /// `InstanceStart`, and the wait for the guest's first words.
    pub(crate) fn start(&mut self) -> Result<Started> {
        let body = json!({"action_type": "InstanceStart"});
        self.put_and_hear("/actions", &body, |console| console.seen("mayfly-guest ready"))
    }

    /// `PUT /snapshot/load` with `resume_vm`, and the wait for the guest's next byte.
    pub(crate) fn load(&mut self, state: &Path, memory: &Path) -> Result<Started> {
        let backend = json!({"backend_type": "File", "backend_path": memory});
        let body = json!({"snapshot_path": state, "mem_backend": backend, "resume_vm": true});
        // Words of its ticks; what the monitor logs has none of these.
        self.put_and_hear("/snapshot/load", &body, |console| console.seen("=0 "))
    }

    /// [`load`](Self::load) by `PUT /snapshot/restore`, with more in its body; and the wait until the guest has said `text` as well.
    pub(crate) fn restore(&mut self, state: &Path, memory: &Path, more: &Value, text: &str) -> Result<Duration> {
        let backend = json!({"backend_type": "File", "backend_path": memory});
        let mut body = json!({"snapshot_path": state, "mem_backend": backend, "resume_vm": true});
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        let started = self.put_and_hear("/snapshot/restore", &body, |console| console.seen(text))?;
        Ok(started.first_output)
    }

    /// A request that makes the guest speak, and the wait for what it says.
    pub(crate) fn put_and_hear(
        &mut self,
        path: &str,
        body: &Value,
        heard: impl Fn(&Console) -> Option<Instant>,
    ) -> Result<Started> {
        let start = Instant::now();
        self.client.send("PUT", path, Some(&body.to_string()))?;
        let socket = self.client.stream().as_raw_fd();
        let (mut call, mut first_output) = (None, None);
        // Either may come first, and neither may be dated by the arrival of the other.
        while call.is_none() || first_output.is_none() {
            let waiting = call.is_none().then_some(socket);
            let [reply, output] = sys::readable([waiting, self.console.descriptor()], PATIENCE)?;
            if reply {
                let reply = self.client.read_response();
                call = Some(start.elapsed());
                let reply = reply.with_context(|| format!("PUT {path}{}", self.said()))?;
                if reply.status != 204 {
                    bail!("PUT {path}: {} {}", reply.status, reply.text());
                }
            }
            if output {
                self.console.take()?;
                first_output = heard(&self.console).map(|at| at.duration_since(start));
            }
            if !reply && !output || (self.console.descriptor().is_none() && first_output.is_none()) {
                bail!("the guest said nothing{}", self.said());
            }
        }
        Ok(Started { call: call.unwrap_or_default(), first_output: first_output.unwrap_or_default() })
    }

    /// Every thread: its id and name.
    pub(crate) fn threads(&self) -> Result<Vec<(u32, String)>> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid()))?;
        let mut threads = Vec::new();
        for task in tasks {
            let task = task?;
            // A thread may end between the two looks.
            let Ok(name) = std::fs::read_to_string(task.path().join("comm")) else {
                continue;
            };
            if let Ok(tid) = task.file_name().to_string_lossy().parse() {
                threads.push((tid, name.trim_end().to_owned()));
            }
        }
        Ok(threads)
    }

    /// vCPU threads to the first CPU, everything else to the second.
    pub(crate) fn split_threads(&self, rig: &Rig) -> Result<()> {
        for (tid, name) in self.threads()? {
            let cpu = if is_vcpu(&name) { rig.first_cpu() } else { rig.second_cpu() };
            // Kernel threads that live in the process may refuse, and do not matter.
            let _ = sys::pin(tid, cpu);
        }
        Ok(())
    }

    /// SIGKILL to reaped.
    pub(crate) fn kill(mut self) -> Result<Duration> {
        let start = Instant::now();
        self.child.kill()?;
        self.child.wait()?;
        Ok(start.elapsed())
    }

    /// What the process printed last, for an error message.
    pub(crate) fn said(&self) -> String {
        let stderr = std::fs::read_to_string(self.dir.path().join("stderr"));
        tail(&(self.console.text() + &stderr.unwrap_or_default()))
    }
}

/// Whether a thread of that name runs guest code, in every VMM seen so far.
pub(crate) fn is_vcpu(name: &str) -> bool {
    name.contains("vcpu")
}

/// Whether a thread of that name is the kernel's own, put into the process by KVM.
pub(crate) fn is_kernels(name: &str) -> bool {
    name.starts_with("kvm-") || name.starts_with("vhost-")
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Errors mean that it is gone already, which is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
