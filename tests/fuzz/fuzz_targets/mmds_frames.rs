//! Frames for the metadata service: see `devices::mmds::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    devices::mmds::fuzz::frames(data);
});
