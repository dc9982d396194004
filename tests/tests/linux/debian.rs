//! Debian's cloud kernel, and the image of its usual one, fetched by apt once and kept under `target/`. Nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use mayfly_tests::{binary, stock};

/// Depends on the current kernel of the release.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// The same for the kernel that has a driver for the generation id (`CONFIG_VMGENID`), which the other one has not.
const USUAL_META_PACKAGE: &str = "linux-image-amd64";

/// A kernel taken apart.
#[derive(Debug)]
pub(crate) struct Kernel {
    dir: PathBuf,
}

impl Kernel {
    /// The image as the distribution ships it.
    pub(crate) fn bzimage(&self) -> PathBuf {
        self.dir.join("bzImage")
    }

    /// The ELF image inside it.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The same without a usable PVH note.
    pub(crate) fn vmlinux_without_pvh(&self) -> PathBuf {
        self.dir.join("vmlinux-no-pvh")
    }

    /// The image of the usual kernel.
    pub(crate) fn usual_bzimage(&self) -> PathBuf {
        self.dir.join("bzImage-usual")
    }

    /// The module of that name.
    pub(crate) fn module(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.dir.join("modules").join(format!("{name}.ko"));
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    }
}

/// The cached kernel, or a fresh one.
pub(crate) fn kernel() -> Result<Kernel> {
    let cache = binary::target_dir().join("linux-tier");
    let kernel = Kernel { dir: cache.join("kernel") };
    if kernel.usual_bzimage().is_file() {
        println!("kernel: cached in {}", kernel.dir.display());
        return Ok(kernel);
    }
    // Complete or not there at all: made aside, then renamed.
    let aside = cache.join("kernel.new");
    if aside.exists() {
        fs::remove_dir_all(&aside)?;
    }
    fs::create_dir_all(&aside)?;
    unpack(&aside).context("cannot prepare Debian's kernel")?;
    if kernel.dir.exists() {
        // Of an earlier version of these tests.
        fs::remove_dir_all(&kernel.dir)?;
    }
    fs::rename(&aside, &kernel.dir)?;
    Ok(kernel)
}

fn unpack(dir: &Path) -> Result<()> {
    let (tree, bzimage) = fetch(META_PACKAGE, dir)?;
    let mut vmlinux = stock::kernel::vmlinux(&bzimage)?;
    fs::write(dir.join("bzImage"), bzimage)?;
    fs::write(dir.join("vmlinux"), &vmlinux)?;
    stock::kernel::deface_pvh_note(&mut vmlinux)?;
    fs::write(dir.join("vmlinux-no-pvh"), vmlinux)?;
    fs::create_dir(dir.join("modules"))?;
    copy_modules(&tree.join("lib/modules"), &dir.join("modules"))?;
    fs::remove_dir_all(tree)?;
    let (tree, bzimage) = fetch(USUAL_META_PACKAGE, dir)?;
    fs::write(dir.join("bzImage-usual"), bzimage)?;
    fs::remove_dir_all(tree)?;
    Ok(())
}

/// The files of the kernel that a package depends on, and its image.
fn fetch(meta_package: &str, dir: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let current_package = || current_package(meta_package);
    let package = current_package().or_else(|_| {
        tool("apt-get", &["update"], dir)?;
        current_package()
    })?;
    println!("kernel: downloading {package}");
    // The sandbox user of apt cannot write here, and the warning about it helps nobody.
    let download = ["-o", "APT::Sandbox::User=root", "download", &package];
    // The lists may be older than the mirror.
    if tool("apt-get", &download, dir).is_err() {
        tool("apt-get", &["update"], dir)?;
        tool("apt-get", &download, dir)?;
    }
    let deb = find(dir, &|name| name.ends_with(".deb"))?.context("apt-get left no package")?;
    tool("dpkg", &["-x", &deb.to_string_lossy(), "tree"], dir)?;
    let tree = dir.join("tree");
    let image =
        find(&tree.join("boot"), &|name| name.starts_with("vmlinuz-"))?.context("the package has no kernel image")?;
    let bzimage = fs::read(image)?;
    fs::remove_file(deb)?;
    Ok((tree, bzimage))
}

/// The package that the meta package depends on now.
fn current_package(meta_package: &str) -> Result<String> {
    let output = Command::new("apt-cache")
        .args(["depends", meta_package])
        .output()
        .context("cannot run apt-cache: this tier needs a Debian system")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let mut kernels = names.filter(|name| name.starts_with("linux-image-"));
    kernels.next().map(str::to_owned).with_context(|| format!("apt does not know {meta_package}"))
}

fn tool(program: &str, args: &[&str], dir: &Path) -> Result<()> {
    let status = Command::new(program).args(args).current_dir(dir).status();
    let status = status.with_context(|| format!("cannot run {program}"))?;
    ensure!(status.success(), "{program} {} failed ({status})", args.join(" "));
    Ok(())
}

fn find(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    for entry in dir.read_dir().with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        if wanted(&entry.file_name().to_string_lossy()) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// Every module of the package, without its directories.
fn copy_modules(from: &Path, to: &Path) -> Result<()> {
    for entry in from.read_dir().with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() {
            copy_modules(&path, to)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            fs::copy(&path, to.join(name))?;
        } else if path.extension().is_some_and(|extension| extension == "xz") {
            bail!("{} is compressed; this tier expects plain modules", path.display());
        }
    }
    Ok(())
}
