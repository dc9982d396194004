//! A bounded, repeatable run of the fuzz entry points on stable Rust.
//!
//! `MAYFLY_FUZZ_RUNS` and `MAYFLY_FUZZ_SEED` change its length and where it starts; `MAYFLY_FUZZ_ONE=SEED` repeats the run that a failure
//! names.

use std::panic::{AssertUnwindSafe, catch_unwind};

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

#[test]
fn drive() {
    if let Some(seed) = number("MAYFLY_FUZZ_ONE") {
        devices::virtio::fuzz::drive(&input(seed));
        return;
    }
    let first = number("MAYFLY_FUZZ_SEED").unwrap_or(1);
    let runs = number("MAYFLY_FUZZ_RUNS").unwrap_or(1500);
    println!("{runs} runs from seed {first}");
    let (mut done, mut refused) = (0, 0);
    for seed in first..first.saturating_add(runs) {
        let bytes = input(seed);
        match catch_unwind(AssertUnwindSafe(|| devices::virtio::fuzz::drive(&bytes))) {
            Ok((d, r)) => (done, refused) = (done + d, refused + r),
            Err(panic) => {
                eprintln!("failed; repeat with MAYFLY_FUZZ_ONE={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{done} requests done, {refused} refused");
    // Input that never gets past the registers would test little.
    assert!(done > runs && refused > runs, "the input does not reach the requests");
}
