//! Devices that are saved and taken up by others, as they were or spoiled: see `devices::virtio::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    devices::virtio::fuzz::saved(data);
});
