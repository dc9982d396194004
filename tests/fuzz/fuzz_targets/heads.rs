//! The head of a request: see `api_server::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    api_server::fuzz::heads(data);
});
