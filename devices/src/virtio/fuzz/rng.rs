//! An entropy device.

use super::*;
use crate::virtio::rng::{MAX_REQUEST_LEN, Rng, RngSpec};

/// Where the last request's bytes go.
const LAST: u64 = 0x2_0000;

/// Registers, rings and requests at an entropy device, as `data` says. Returns how many requests were answered.
pub fn entropy(data: &[u8]) -> u64 {
    let mut input = Input(data);
    let how = input.byte();
    let bucket = |size| Some(BucketSpec { size, one_time_burst: 0, refill_ms: 1 });
    let limits = match how >> 6 {
        0 | 1 => RateLimits::default(),
        2 => RateLimits { bandwidth: bucket(512), ops: None },
        _ => RateLimits { bandwidth: None, ops: bucket(2) },
    };
    let device = Rng::new(RngSpec { limits }).expect("spare descriptors");
    let metrics = device.metrics();
    let mut machine = Machine::new("fuzzed entropy device", AnyDevice::Rng(Box::new(device)), ram());
    if how & 1 == 0 {
        machine.bring_up(if how & 2 == 0 { u64::MAX } else { 0 });
    }
    while !input.0.is_empty() {
        if input.byte() < 100 {
            machine.step(&mut input);
        } else {
            request(&mut machine, &mut input);
        }
        machine.turn();
    }
    machine.reset();
    // Whatever happened before, a reset makes a working device of it.
    let lift = RateLimitChange { bandwidth: BucketChange::Remove, ops: BucketChange::Remove };
    machine.cell.limit_dials().iter().for_each(|dial| dial.turn(lift));
    machine.cell.resume();
    machine.bring_up(0);
    let beyond = GuestAddress(LAST + u64::from(MAX_REQUEST_LEN));
    machine.ram.write_obj(0u8, beyond).expect("in RAM");
    machine.descriptor(DESCRIPTORS, LAST, MAX_REQUEST_LEN + 1, 2, 0);
    let before = metrics.entropy_bytes.get();
    machine.offer(0);
    machine.write(0x50, 0);
    machine.turn();
    machine.cell.pause();
    assert_eq!(metrics.entropy_bytes.get() - before, u64::from(MAX_REQUEST_LEN), "the device did not recover");
    assert_eq!(machine.ram.read_obj::<u8>(beyond).expect("in RAM"), 0, "more than the most there is for one request");
    metrics.requests_count.get()
}

/// A chain of one to four buffers, mostly writable ones in RAM.
fn request(machine: &mut Machine, input: &mut Input<'_>) {
    let first = u16::from(input.byte());
    let count = u16::from(input.byte() % 4) + 1;
    for i in 0..count {
        let addr = input.address();
        let len = match input.byte() {
            0..=150 => input.byte().into(),
            151..=230 => input.u16().into(),
            _ => input.u32(),
        };
        let more = u16::from(i + 1 < count);
        let flags = if input.byte() < 20 { input.u16() & 7 } else { 2 | more };
        let index = (first + i) % 256;
        machine.descriptor(DESCRIPTORS + 16 * u64::from(index), addr, len, flags, (index + 1) % 256);
    }
    machine.offer(first);
    if input.byte() > 60 {
        machine.write(0x50, 0);
    }
}
