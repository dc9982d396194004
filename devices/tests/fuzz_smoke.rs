//! A bounded, repeatable run of the fuzz entry points on stable Rust.
//!
//! `MAYFLY_FUZZ_RUNS` and `MAYFLY_FUZZ_SEED` change its length and where it starts; `MAYFLY_FUZZ_ONE=SEED` repeats the run that a failure
//! names.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|e| panic!("{name}={value}: {e}")))
}

/// Random bytes (splitmix64), mostly a few hundred of them.
fn input(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let len = (next() % 1500) as usize;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(next().to_le_bytes());
    }
    bytes
}

/// Runs `entry` on the corpus of the target `name` and on random inputs.
fn smoke(name: &str, entry: fn(&[u8])) {
    if let Some(seed) = number("MAYFLY_FUZZ_ONE") {
        return entry(&input(seed));
    }
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(name);
    let mut kept = 0;
    for file in std::fs::read_dir(corpus).into_iter().flatten().flatten() {
        entry(&std::fs::read(file.path()).unwrap());
        kept += 1;
    }
    let first = number("MAYFLY_FUZZ_SEED").unwrap_or(1);
    let runs = number("MAYFLY_FUZZ_RUNS").unwrap_or(1500);
    println!("{name}: {kept} inputs of the corpus, {runs} runs from seed {first}");
    for seed in first..first.saturating_add(runs) {
        let bytes = input(seed);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| entry(&bytes))) {
            eprintln!("{name} failed; repeat with MAYFLY_FUZZ_ONE={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn drive() {
    smoke("drive", |bytes| {
        devices::virtio::fuzz::drive(bytes);
    });
}

#[test]
fn net() {
    smoke("net", |bytes| {
        devices::virtio::fuzz::net(bytes);
    });
}

#[test]
fn queue() {
    smoke("queue", |bytes| {
        devices::virtio::fuzz::queue(bytes);
    });
}

#[test]
fn registers() {
    smoke("registers", |bytes| {
        devices::virtio::fuzz::registers(bytes);
    });
}

#[test]
fn entropy() {
    smoke("entropy", |bytes| {
        devices::virtio::fuzz::entropy(bytes);
    });
}

#[test]
fn balloon() {
    smoke("balloon", |bytes| {
        devices::virtio::fuzz::balloon(bytes);
    });
}

#[test]
fn mem() {
    smoke("mem", |bytes| {
        devices::virtio::fuzz::mem(bytes);
    });
}

#[test]
fn mmds_frames() {
    smoke("mmds_frames", |bytes| {
        devices::mmds::fuzz::frames(bytes);
    });
}

#[test]
fn mmds_request() {
    smoke("mmds_request", |bytes| {
        devices::mmds::fuzz::request(bytes);
    });
}

#[test]
fn pci() {
    smoke("pci", |bytes| {
        devices::virtio::fuzz::pci(bytes);
    });
}

#[test]
fn pmem() {
    smoke("pmem", |bytes| {
        devices::virtio::fuzz::pmem(bytes);
    });
}

#[test]
fn vsock() {
    smoke("vsock", |bytes| {
        devices::virtio::fuzz::vsock(bytes);
    });
}

/// Input that never gets past the registers would test little.
#[test]
fn the_input_reaches_the_requests() {
    let (mut done, mut refused) = (0, 0);
    for seed in 1..=200 {
        let (d, r) = devices::virtio::fuzz::drive(&input(seed));
        (done, refused) = (done + d, refused + r);
    }
    assert!(done > 200 && refused > 200, "{done} requests done, {refused} refused");

    let taken: u64 = (1..=200).map(|seed| devices::virtio::fuzz::queue(&input(seed))).sum();
    let live: u64 = (1..=200).map(|seed| devices::virtio::fuzz::registers(&input(seed))).sum();
    assert!(taken > 200 && live > 200, "{taken} chains taken, {live} times live");

    let (mut sent, mut received) = (0, 0);
    for seed in 1..=200 {
        let (s, r) = devices::virtio::fuzz::net(&input(seed));
        (sent, received) = (sent + s, received + r);
    }
    assert!(sent > 400 && received > 100, "{sent} frames sent, {received} received");

    let answered: u64 = (1..=200).map(|seed| devices::virtio::fuzz::entropy(&input(seed))).sum();
    assert!(answered > 200, "{answered} requests for entropy answered");
    let (mut done, mut refused) = (0, 0);
    for seed in 1..=200 {
        let (d, r) = devices::virtio::fuzz::mem(&input(seed));
        (done, refused) = (done + d, refused + r);
    }
    assert!(done > 200 && refused > 200, "{done} blocks changed, {refused} requests refused");

    let (mut done, mut refused) = (0, 0);
    for seed in 1..=200 {
        let (d, r) = devices::virtio::fuzz::pmem(&input(seed));
        (done, refused) = (done + d, refused + r);
    }
    assert!(done > 200 && refused > 200, "{done} flushes done, {refused} requests refused");

    let (mut named, mut gone) = (0, 0);
    for seed in 1..=200 {
        let (n, g) = devices::virtio::fuzz::balloon(&input(seed));
        (named, gone) = (named + n, gone + g);
    }
    assert!(named > 500 && gone > 200 << 12, "{named} times memory was named, {gone} bytes went back");

    let (mut sent, mut taken_up) = (0, 0);
    for seed in 1..=200 {
        let (s, t) = devices::virtio::fuzz::pci(&input(seed));
        (sent, taken_up) = (sent + s, taken_up + t);
    }
    assert!(sent > 400 && taken_up > 200, "{sent} interrupts, {taken_up} times taken up");

    let answers: u64 = (1..=200).map(|seed| devices::mmds::fuzz::frames(&input(seed))).sum();
    assert!(answers > 400, "{answers} answers of the metadata service");

    let (mut connections, mut bytes) = (0, 0);
    for seed in 1..=200 {
        let (c, b) = devices::virtio::fuzz::vsock(&input(seed));
        (connections, bytes) = (connections + c, bytes + b);
    }
    assert!(connections > 500 && bytes > 10_000, "{connections} connections, {bytes} bytes");
}

#[test]
fn saved() {
    smoke("saved", |bytes| {
        devices::virtio::fuzz::saved(bytes);
    });
}
