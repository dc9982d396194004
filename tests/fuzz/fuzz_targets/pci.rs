//! A PCI bus with a few virtio functions: see `devices::virtio::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    devices::virtio::fuzz::pci(data);
});
