//! Finding the binary under test and saying in one sentence what this machine lacks.

use std::path::{Path, PathBuf};

/// The cargo target whose directory holds the static binaries (`.cargo/config.toml`).
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Where cargo puts build products: `CARGO_TARGET_DIR`, else `target/` of the workspace.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The `mayfly` binary: `MAYFLY_BIN` when set, else the newer of the release and the debug build.
///
/// # Panics
/// When there is none; the message says how to build it.
#[track_caller]
pub fn mayfly() -> PathBuf {
    if let Some(path) = std::env::var_os("MAYFLY_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "MAYFLY_BIN={} is not a file", path.display());
        return path;
    }
    let built = ["release", "debug"].map(|profile| target_dir().join(TARGET).join(profile).join("mayfly"));
    let newest = built
        .iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max_by_key(|(modified, _)| *modified);
    match newest {
        Some((_, path)) => path.clone(),
        None => panic!(
            "no mayfly binary: run `cargo build --release -p api-server` or set MAYFLY_BIN \
             (looked at {} and {})",
            built[0].display(),
            built[1].display()
        ),
    }
}

/// The `mayfly-jailer` binary that was built with [`mayfly`].
///
/// # Panics
/// When there is none; the message says how to build it.
#[track_caller]
pub fn jailer() -> PathBuf {
    let path = mayfly().with_file_name("mayfly-jailer");
    assert!(
        path.is_file(),
        "there is no {}: run `cargo build -p jailer` (with --release as for mayfly)",
        path.display()
    );
    path
}

/// Copies an executable, for a test that runs it under another name or from another place.
///
/// By another process: a file that is open for writing in this one could not be executed while another test forks (ETXTBSY).
///
/// # Panics
/// When it cannot be copied.
#[track_caller]
pub fn copy(from: &Path, to: &Path) {
    // One that runs cannot be written to; its name can go to another.
    let _ = std::fs::remove_file(to);
    let copied = std::process::Command::new("cp").arg(from).arg(to).status();
    let copied = copied.is_ok_and(|status| status.success())
        && std::fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o755)).is_ok();
    assert!(copied, "{} cannot be copied to {}", from.display(), to.display());
}

/// Stops a test that needs `/dev/kvm` on a machine without it, with a clear sentence.
///
/// # Panics
/// When `/dev/kvm` cannot be opened for reading and writing.
#[track_caller]
pub fn require_kvm() {
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        panic!("this test needs /dev/kvm, and opening it failed: {error}");
    }
}

/// Stops a test that needs root (taps, network namespaces) when run as someone else.
///
/// # Panics
/// When the effective user is not root.
#[track_caller]
pub fn require_root() {
    assert!(crate::sys::is_root(), "this test needs root: run it with sudo");
}
