//! Compiles the freestanding guest in `src/bare` with the same `rustc` that
//! compiles everything else, into `guest.elf` and `guest-pvh.elf`.
//!
//! No extra target is needed: the ordinary Linux target, linked statically
//! without start files by the linker that ships with the toolchain and a linker
//! script, yields an image that needs no operating system. Cargo's flags for
//! the workspace (`RUSTFLAGS`, `crt-static`) do not apply and are not passed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Program header types.
const PT_NULL: u32 = 0;
const PT_NOTE: u32 = 4;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/bare");
    println!("cargo::rerun-if-changed=src/pattern.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let with_note = out.join("guest-pvh.elf");
    compile(&with_note);

    let pvh = fs::read(&with_note).expect("rustc wrote the image");
    let mut plain = pvh;
    hide_note(&mut plain);
    fs::write(out.join("guest.elf"), plain).expect("OUT_DIR is writable");
}

fn compile(image: &Path) {
    let rustc = env::var_os("RUSTC").expect("cargo sets RUSTC");
    let script = Path::new("src/bare/link.ld").canonicalize().expect("the linker script exists");
    let status = Command::new(rustc)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .args(["--crate-name", "mayfly_guest", "--crate-type", "bin", "--edition", "2024"])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .args(["-C", "panic=abort", "-C", "opt-level=2", "-C", "codegen-units=1", "-C", "lto=fat"])
        .args(["-C", "relocation-model=static", "-C", "code-model=small", "-C", "strip=symbols"])
        .args(["-C", "linker=rust-lld", "-C", "linker-flavor=ld.lld"])
        .arg("-C")
        .arg(format!("link-arg=-T{}", script.display()))
        .args([
            "-C",
            "link-arg=--build-id=none",
            "-C",
            "link-arg=--no-eh-frame-hdr",
            "-C",
            "link-arg=--orphan-handling=error",
        ])
        .arg(format!("--remap-path-prefix={}=.", env::current_dir().expect("a current directory").display()))
        .arg("-o")
        .arg(image)
        .arg("src/bare/main.rs")
        .status()
        .expect("rustc runs");
    assert!(status.success(), "the bare-metal guest does not compile");
}

/// Turns the note's program header into an unused one: the same image, byte
/// for byte, but loaders now use the ELF entry point (Linux 64-bit protocol).
fn hide_note(elf: &mut [u8]) {
    let word = |at: usize, elf: &[u8]| usize::from(elf[at]) | usize::from(elf[at + 1]) << 8;
    // ELF64 header: e_phoff at 32 (small here), e_phentsize at 54, e_phnum at 56.
    let (table, size, count) = (word(32, elf), word(54, elf), word(56, elf));
    for at in (0..count).map(|i| table + i * size) {
        if elf[at..at + 4] == PT_NOTE.to_le_bytes() {
            elf[at..at + 4].copy_from_slice(&PT_NULL.to_le_bytes());
        }
    }
}
