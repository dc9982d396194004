//! The state file of a snapshot, with a checksum that fits: see `vmm::snapshot`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    vmm::snapshot::fuzz(data);
});
