//! `mayfly demo`: what a newcomer sees first. Starts a monitor as anyone would, drives it through its own API socket, boots the embedded
//! guest, and tells what happened when.

mod client;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm::sys::signals::TerminationSignals;

use crate::cli::DemoOptions;
use client::Client;

/// How long the monitor may take to answer for the first time.
const PATIENCE: Duration = Duration::from_secs(10);
/// After a signal, how long the monitor may take to end by itself.
const GRACE: Duration = Duration::from_millis(500);
/// Size of the disk the guest is given.
const DISK_BYTES: u64 = 8 << 20;
/// What the disk begins with; the guest shows its first bytes.
const DISK_GREETING: &[u8] = b"MAYFLY";

/// Runs the demo and returns the exit code.
pub(crate) fn run(options: &DemoOptions) -> u8 {
    match tour(options) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("mayfly demo: {error}");
            1
        }
    }
}

/// A directory of the demo's own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("mayfly-demo-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The monitor's process; killed if the demo ends early.
struct Monitor(Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One thing that happened.
struct Mark {
    what: String,
    at: Instant,
}

fn tour(options: &DemoOptions) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    // The monitor shares our terminal: Ctrl-C reaches both, it ends in good order, and we tidy up when it has.
    let signals = options.keep.then(TerminationSignals::take_over).transpose().map_err(text)?;
    let scratch = Scratch::new().map_err(|e| format!("cannot make a directory for the demo: {e}"))?;
    let [socket, log, kernel, disk] = ["api.sock", "log", "guest.elf", "disk.img"].map(|name| scratch.file(name));
    let kernel = match &options.kernel {
        Some(path) => std::path::absolute(path).map_err(text)?,
        None => {
            fs::write(&kernel, guest::ELF).map_err(text)?;
            kernel
        }
    };
    let boot_args = match (&options.boot_args, &options.kernel, options.keep) {
        (Some(args), _, _) => args,
        (None, Some(_), _) => "console=ttyS0 reboot=k panic=1",
        (None, None, keep) => {
            let end = if keep { guest::End::Spin } else { guest::End::Reset };
            &guest::Job::new(guest::Mode::Hello).end(end).command_line()
        }
    };
    fs::write(&disk, DISK_GREETING).map_err(text)?;
    fs::OpenOptions::new().write(true).open(&disk).and_then(|file| file.set_len(DISK_BYTES)).map_err(text)?;

    let mut marks = Vec::new();
    let mut mark = |what: &str| marks.push(Mark { what: what.to_owned(), at: Instant::now() });
    mark("process started");
    let child = Command::new("/proc/self/exe")
        .arg("--api-sock")
        .arg(&socket)
        .arg("--log-path")
        .arg(&log)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start the monitor: {e}"))?;
    let mut monitor = Monitor(child);
    let mut client = connect(&socket, &mut monitor.0)?;
    mark("API socket answers");

    let requests = requests(&kernel, boot_args, &disk);
    let console = monitor.0.stdout.take().ok_or("the console is missing")?;
    let mut watcher: Option<Console> = None;
    let mut console = Some(console);
    for (method, path, body) in &requests {
        if path == "/actions"
            && let Some(console) = console.take()
        {
            println!("--- console of the guest ---");
            watcher = Some(watch(console));
        }
        let answer = client.send(method, path, body).map_err(|e| format!("{method} {path}: {e}"))?;
        if answer.status >= 300 {
            return Err(format!("{method} {path} was refused: {}", fault(&answer.body)));
        }
        mark(&format!("{method} {path}"));
    }

    if options.keep {
        // If the embedded guest says nothing the user will see that, too; of another kernel no last words are known.
        if let (Some(console), None) = (&watcher, &options.kernel) {
            let _ = console.done.recv_timeout(PATIENCE);
        }
        print_by_hand(&socket, &requests);
        print_play(&socket);
    }
    let status = wait(&mut monitor.0, signals.as_ref()).map_err(text)?;
    let ended = Instant::now();
    let first_byte = watcher.and_then(|console| console.thread.join().ok().flatten());
    if let Some(at) = first_byte {
        marks.push(Mark { what: "guest's first byte on the console".to_owned(), at });
    }
    marks.push(Mark { what: "guest done, process reaped".to_owned(), at: ended });
    if !options.keep {
        println!("--- end of the console ---\n");
        print_timeline(&marks);
        let yours = self::requests(Path::new("vmlinux"), boot_args, Path::new("disk.img"));
        print_by_hand(Path::new("/tmp/mayfly.sock"), &yours);
        println!("\n`mayfly demo --keep` leaves the machine running for you to play with.");
    }
    match status.code() {
        Some(0) => Ok(()),
        Some(_) if options.keep => Ok(()),
        code => {
            let log = fs::read_to_string(&log).unwrap_or_default();
            Err(format!("the monitor ended with {code:?}; its log:\n{log}"))
        }
    }
}

/// Waits until the monitor answers on its socket.
fn connect(socket: &Path, monitor: &mut Child) -> Result<Client, String> {
    let started = Instant::now();
    loop {
        if let Ok(mut client) = Client::connect(socket)
            && client.send("GET", "/", "").is_ok()
        {
            return Ok(client);
        }
        if let Ok(Some(status)) = monitor.try_wait() {
            return Err(format!("the monitor ended at once ({status})"));
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("the monitor did not answer for {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Waits for the monitor's end; a signal that reached only us ends it too.
fn wait(monitor: &mut Child, signals: Option<&TerminationSignals>) -> io::Result<ExitStatus> {
    let Some(signals) = signals else { return monitor.wait() };
    let mut grace = None;
    loop {
        if let Some(status) = monitor.try_wait()? {
            return Ok(status);
        }
        if signals.next().is_some() {
            grace = Some(Instant::now());
        }
        if grace.is_some_and(|since| since.elapsed() > GRACE) {
            monitor.kill()?;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn requests(kernel: &Path, boot_args: &str, disk: &Path) -> Vec<(&'static str, String, String)> {
    vec![
        ("PUT", "/machine-config".to_owned(), r#"{"vcpu_count": 1, "mem_size_mib": 128}"#.to_owned()),
        (
            "PUT",
            "/boot-source".to_owned(),
            format!(r#"{{"kernel_image_path": "{}", "boot_args": "{boot_args}"}}"#, kernel.display()),
        ),
        (
            "PUT",
            "/drives/disk".to_owned(),
            format!(r#"{{"drive_id": "disk", "path_on_host": "{}", "is_root_device": false}}"#, disk.display()),
        ),
        ("PUT", "/actions".to_owned(), r#"{"action_type": "InstanceStart"}"#.to_owned()),
    ]
}

/// The guest's console, copied to ours by a thread.
struct Console {
    /// Ends with the console, and tells when its first byte came.
    thread: JoinHandle<Option<Instant>>,
    /// Hears when the guest says that its tour is over.
    done: Receiver<()>,
}

fn watch(console: impl Read + Send + 'static) -> Console {
    let (tell, done) = channel();
    let thread = std::thread::spawn(move || {
        let mut first = None;
        let mut console = BufReader::new(console);
        let mut line = Vec::new();
        while let Ok(1..) = console.read_until(b'\n', &mut line) {
            first.get_or_insert_with(Instant::now);
            let mut out = io::stdout().lock();
            // Without an audience there is still a machine to wait for.
            let _ = out.write_all(&line).and_then(|()| out.flush());
            if line.starts_with(guest::DONE.as_bytes()) {
                let _ = tell.send(());
            }
            line.clear();
        }
        first
    });
    Console { thread, done }
}

fn fault(body: &str) -> String {
    serde_json::from_str::<serde_json::Value>(body)
        .ok()
        .and_then(|json| Some(json.get("fault_message")?.as_str()?.to_owned()))
        .unwrap_or_else(|| body.to_owned())
}

fn print_timeline(marks: &[Mark]) {
    let mut in_order: Vec<&Mark> = marks.iter().collect();
    in_order.sort_by_key(|mark| mark.at);
    let Some(first) = in_order.first() else { return };
    println!("timeline (microseconds since the process was started, and since the line above)");
    let mut previous = first.at;
    for mark in &in_order {
        println!(
            "{:>9}  {:>+8}  {}",
            mark.at.duration_since(first.at).as_micros(),
            mark.at.duration_since(previous).as_micros(),
            mark.what
        );
        previous = mark.at;
    }
}

fn print_by_hand(socket: &Path, requests: &[(&str, String, String)]) {
    let socket = socket.display();
    println!("\nthe same by hand:");
    println!("  mayfly --api-sock {socket} &");
    for (method, path, body) in requests {
        println!("  curl --unix-socket {socket} -X {method} http://localhost{path} \\\n    -d '{body}'");
    }
}

fn print_play(socket: &Path) {
    let curl = format!("curl --unix-socket {}", socket.display());
    println!("\nthe machine is running; in another terminal:");
    println!("  {curl} http://localhost/");
    println!("  {curl} http://localhost/vm/config");
    println!("  {curl} -X PATCH http://localhost/vm -d '{{\"state\": \"Paused\"}}'");
    println!("  {curl} -X PATCH http://localhost/vm -d '{{\"state\": \"Resumed\"}}'");
    println!("Ctrl-C ends it.");
}
