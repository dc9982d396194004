//! The file systems of the tier: the initramfs of the outer guest with everything in it, the
//! initramfs of the guests under test, and an ext4 image for the root-disk case.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use mayfly_tests::{binary, stock::cpio::Archive};

use crate::debian::Kernel;

const OUTER_INIT: &str = include_str!("scripts/outer-init.sh");
const SCENARIO: &str = include_str!("scripts/scenario.sh");
const INNER_INIT: &str = include_str!("scripts/inner-init.sh");
const ROOT_INIT: &str = include_str!("scripts/root-init.sh");

/// In the order of their dependencies.
const OUTER_MODULES: [&str; 4] = ["irqbypass", "kvm", "kvm-amd", "tun"];
const INNER_MODULES: [&str; 25] = [
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "pvpanic",
    "pvpanic-mmio",
    "virtio-rng",
    "virtio_balloon",
    "virtio_mem",
    "libnvdimm",
    "nd_virtio",
    "virtio_pmem",
    "nd_btt",
    "nd_pmem",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vmw_vsock_virtio_transport",
    "fuse",
    "virtiofs",
];
/// What serves devices: of qemu-system-common.
const BACKENDS: [&str; 2] = ["qemu-storage-daemon", "/usr/lib/qemu/virtiofsd"];
/// What the tests of filters and jails run besides: busybox's own are others. All from packages that these tests install.
const SECURITY_PROGRAMS: [&str; 4] = ["find", "setpriv", "script", "unshare"];
/// Built with this test; static, as everything in this workspace.
const VSOCK_CAT: &str = env!("CARGO_BIN_EXE_vsock-cat");
const NIC: &str = env!("CARGO_BIN_EXE_nic");
/// Mount points and homes that every root needs.
const DIRECTORIES: [&str; 8] = ["bin", "sbin", "proc", "sys", "dev", "tmp", "run", "modules"];

/// What the outer guest boots from.
#[derive(Debug)]
pub(crate) struct Images {
    /// The outer guest's initramfs.
    pub(crate) outer: PathBuf,
}

/// Makes them afresh; it takes about a second. They stay under `target/`, to be looked at or
/// booted by hand.
pub(crate) fn prepare(kernel: &Kernel) -> Result<Images> {
    let busybox = Busybox::find()?;
    let dir = binary::target_dir().join("linux-tier").join("images");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    let root_disk = root_disk(&dir, &busybox)?;
    let inner = inner(kernel, &busybox, &dir)?;
    let outer = dir.join("outer.cpio");
    let mut archive = Archive::new(BufWriter::new(File::create(&outer)?));
    busybox.add_to(&mut archive, OUTER_INIT, &SECURITY_PROGRAMS)?;
    for module in OUTER_MODULES {
        archive.file(&format!("modules/{module}.ko"), 0o644, &kernel.module(module)?)?;
    }
    let mayfly = binary::mayfly();
    println!("binary under test: {}", mayfly.display());
    archive.file("bin/mayfly", 0o755, &fs::read(mayfly)?)?;
    archive.file("bin/mayfly-jailer", 0o755, &fs::read(binary::jailer())?)?;
    archive.file("bin/vsock-cat", 0o755, &fs::read(VSOCK_CAT)?)?;
    archive.file("bin/nic", 0o755, &fs::read(NIC)?)?;
    let mut known = BTreeSet::new();
    for program in ["curl"].iter().chain(&BACKENDS).chain(&SECURITY_PROGRAMS) {
        add_program(&mut archive, program, &mut known)?;
    }
    archive.file("bin/security", 0o755, &fs::read(security_tests()?)?)?;
    archive.file("scenario.sh", 0o644, SCENARIO.as_bytes())?;
    archive.file("readme.sh", 0o644, readme_lines("the Linux tier runs the next block as it stands")?.as_bytes())?;
    archive.file("readme-jail.sh", 0o644, readme_lines("the tests run the next block as it stands")?.as_bytes())?;
    archive.directory("scenarios")?;
    for (name, script) in SCENARIOS {
        archive.file(&format!("scenarios/{name}.sh"), 0o644, script.as_bytes())?;
    }
    archive.directory("images")?;
    for (name, path) in [
        ("bzImage", kernel.bzimage()),
        ("bzImage-usual", kernel.usual_bzimage()),
        ("vmlinux", kernel.vmlinux()),
        ("vmlinux-no-pvh", kernel.vmlinux_without_pvh()),
        ("inner.cpio", inner),
        ("root.ext4", root_disk),
    ] {
        archive.file(&format!("images/{name}"), 0o644, &fs::read(path)?)?;
    }
    archive.file("images/guest.elf", 0o644, guest::ELF)?;
    archive.finish()?.flush()?;
    Ok(Images { outer })
}

macro_rules! scenarios {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("scripts/scenarios/", $name, ".sh")))),*]
    };
}
const SCENARIOS: [(&str, &str); crate::cases::CASES.len()] = scenarios![
    "05-readme",
    "06-readme-jail",
    "07-fences",
    "08-jails",
    "09-jails-rootless",
    "10-bzimage",
    "20-pvh-disks",
    "30-elf64-pause",
    "40-root-network",
    "42-multi-queue",
    "45-vhost-user",
    "50-panic",
    "60-triple-fault",
    "65-races",
    "70-cpu-identity",
    "72-vcpu-hotplug",
    "73-device-hotplug",
    "80-rng-balloon",
    "81-balloon-free-pages",
    "82-pmem",
    "83-memory-hotplug",
    "84-vsock",
    "85-mmds",
    "90-snapshot",
    "91-clones",
    "92-reseed",
];

/// The README's block behind the first comment with this text.
fn readme_lines(mark: &str) -> Result<String> {
    let path = binary::workspace().join("README.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let after = text.split_once(mark).map(|(_, after)| after);
    let block = after.and_then(|after| after.split_once("```sh\n")).map(|(_, block)| block);
    let lines = block.and_then(|block| block.split_once("```")).map(|(lines, _)| lines.to_owned());
    lines.with_context(|| format!("the README has no block that is marked: {mark}"))
}

/// The initramfs of the guests under test.
fn inner(kernel: &Kernel, busybox: &Busybox, dir: &Path) -> Result<PathBuf> {
    let path = dir.join("inner.cpio");
    let mut archive = Archive::new(BufWriter::new(File::create(&path)?));
    busybox.add_to(&mut archive, INNER_INIT, &[])?;
    for module in INNER_MODULES {
        archive.file(&format!("modules/{module}.ko"), 0o644, &kernel.module(module)?)?;
    }
    archive.file("bin/vsock-cat", 0o755, &fs::read(VSOCK_CAT)?)?;
    archive.file("bin/nic", 0o755, &fs::read(NIC)?)?;
    archive.finish()?.flush()?;
    Ok(path)
}

/// An ext4 file system made on the host, from a directory, without mounting anything.
fn root_disk(dir: &Path, busybox: &Busybox) -> Result<PathBuf> {
    let tree = dir.join("root");
    for directory in DIRECTORIES {
        fs::create_dir_all(tree.join(directory))?;
    }
    fs::copy(&busybox.path, tree.join("bin/busybox"))?;
    for applet in &busybox.applets {
        symlink("busybox", tree.join("bin").join(applet))?;
    }
    let init = tree.join("sbin/init");
    fs::write(&init, ROOT_INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    let image = dir.join("root.ext4");
    let output = Command::new("/sbin/mkfs.ext4")
        // Blocks of a page, which DAX needs.
        .args(["-q", "-F", "-b", "4096", "-d"])
        .args([&tree, &image])
        .arg("32M")
        .output()
        .context("cannot run mkfs.ext4: install e2fsprogs")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "mkfs.ext4 failed: {said}");
    Ok(image)
}

/// The user space of all guests: one static binary with many names.
#[derive(Debug)]
struct Busybox {
    path: PathBuf,
    applets: BTreeSet<String>,
}

impl Busybox {
    fn find() -> Result<Self> {
        let path = PathBuf::from("/bin/busybox");
        let output = Command::new(&path).arg("--list").output();
        let output = output.context("cannot run /bin/busybox: install busybox-static")?;
        let names = String::from_utf8_lossy(&output.stdout);
        let applets = names.lines().filter(|name| *name != "busybox").map(str::to_owned).collect();
        Ok(Self { path, applets })
    }

    /// All of it, but for names that others have.
    fn add_to<W: Write>(&self, archive: &mut Archive<W>, init: &str, except: &[&str]) -> Result<()> {
        for directory in DIRECTORIES {
            archive.directory(directory)?;
        }
        archive.device("dev/console", 5, 1)?;
        archive.file("bin/busybox", 0o755, &fs::read(&self.path)?)?;
        for applet in self.applets.iter().filter(|applet| !except.contains(&applet.as_str())) {
            archive.link(&format!("bin/{applet}"), "busybox")?;
        }
        archive.file("init", 0o755, init.as_bytes())?;
        Ok(())
    }
}

/// The tests of filters and jails, as a program; built already, when all tests were.
fn security_tests() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["test", "--workspace", "--test", "security", "--no-run", "--message-format", "json-render-diagnostics"])
        .current_dir(binary::workspace())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs = messages
        .filter(|message| message.pointer("/target/name").is_some_and(|name| name == "security"))
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from));
    programs.next().with_context(|| format!("cargo built no security tests ({})", output.status))
}

/// Adds a program of the host, of /usr/bin unless its path is given, with the shared libraries that `ldd` names.
fn add_program<W: Write>(archive: &mut Archive<W>, path: &str, known: &mut BTreeSet<PathBuf>) -> Result<()> {
    let program = Path::new("/usr/bin").join(path);
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    archive.file(
        &format!("bin/{name}"),
        0o755,
        &fs::read(&program).with_context(|| format!("there is no {path}: install it"))?,
    )?;
    let output = Command::new("ldd").arg(&program).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let libraries: BTreeSet<&str> = text.split_whitespace().filter(|word| word.starts_with('/')).collect();
    ensure!(!libraries.is_empty(), "ldd names no library of {}", program.display());
    for library in libraries {
        if known.insert(library.into()) {
            add_parents(archive, Path::new(library), known)?;
            archive.file(library, 0o755, &fs::read(library)?)?;
        }
    }
    Ok(())
}

/// Adds the directories above a path that are not known yet.
fn add_parents<W: Write>(archive: &mut Archive<W>, path: &Path, known: &mut BTreeSet<PathBuf>) -> Result<()> {
    let parents: Vec<_> = path.ancestors().skip(1).collect();
    for parent in parents.into_iter().rev().skip(1) {
        if known.insert(parent.to_owned()) {
            archive.directory(&parent.to_string_lossy())?;
        }
    }
    Ok(())
}
