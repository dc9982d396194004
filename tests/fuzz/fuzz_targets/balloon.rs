//! A memory balloon behind its register window: see `devices::virtio::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    devices::virtio::fuzz::balloon(data);
});
