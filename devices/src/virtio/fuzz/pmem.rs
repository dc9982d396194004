//! Persistent memory behind its register window.
//!
//! The guest's memory has a file in it, which may be written, and one that may only be read: a device that stores to the latter dies
//! of it, and one that keeps its rings in either has broken a promise.

use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegionBuilder;

use crate::ram::GuestRegion;

use super::*;
use crate::rate_limit::{BucketChange, BucketSpec, RateLimitChange, RateLimits};
use crate::virtio::pmem::{Pmem, PmemSpec};

const FILE_LEN: u64 = 0x4000;
const WRITABLE: u64 = 0x20_0000;
const READ_ONLY: u64 = 0x30_0000;

fn file() -> File {
    let mut file = TempFile::new().expect("a temporary file").into_file();
    file.write_all(&[0x22; FILE_LEN as usize]).expect("room for a small file");
    file
}

fn mapped(file: &File, base: u64, prot: i32) -> Arc<GuestRegion> {
    let region = MmapRegionBuilder::new(FILE_LEN as usize)
        .with_mmap_prot(prot)
        .with_mmap_flags(libc::MAP_SHARED)
        .with_file_offset(FileOffset::new(file.try_clone().expect("a spare descriptor"), 0));
    let region = GuestRegion::new(region.build().expect("a mapping"), GuestAddress(base));
    Arc::new(region.expect("addresses"))
}

/// A request, more often right than not.
fn ask(machine: &mut Machine, input: &mut Input<'_>) {
    let place = |input: &mut Input<'_>| match input.byte() {
        0..=30 => WRITABLE + u64::from(input.u16() % 0x4100),
        31..=60 => READ_ONLY + u64::from(input.u16() % 0x4100),
        61..=80 => input.u64(),
        _ => 0x8000 + 8 * u64::from(input.byte()),
    };
    let (request, answer) = (place(input), place(input));
    // A guest's own store to what it may only read does not get there.
    if input.byte() > 40 && crate::ram::piece(&machine.ram, GuestAddress(request), 4).is_some() {
        let _ = machine.ram.write_obj(u32::from(input.byte() & 1), GuestAddress(request));
    }
    let len = |input: &mut Input<'_>| if input.byte() > 40 { 4 } else { input.u32() };
    let first = u16::from(input.byte());
    let at = |i: u16| DESCRIPTORS + 16 * u64::from(i % 256);
    machine.descriptor(at(first), request, len(input), 1, (first + 1) % 256);
    machine.descriptor(at(first + 1), answer, len(input), if input.byte() > 20 { 2 } else { input.u16() & 7 }, 0);
    machine.offer(first);
    if input.byte() > 60 {
        machine.write(0x50, 0);
    }
}

/// Registers, rings and requests at a persistent-memory device, as `data` says. Returns how many flushes were done and how many requests
/// were refused.
pub fn pmem(data: &[u8]) -> (u64, u64) {
    let mut input = Input(data);
    let how = input.byte();
    let (writable, fixed) = (file(), file());
    let ram = ram()
        .insert_region(mapped(&writable, WRITABLE, libc::PROT_READ | libc::PROT_WRITE))
        .and_then(|ram| ram.insert_region(mapped(&fixed, READ_ONLY, libc::PROT_READ)))
        .expect("no overlap");
    let ops = |refill_ms| BucketSpec { size: 2, one_time_burst: 0, refill_ms };
    let pmem = Pmem::new(PmemSpec {
        file: writable,
        read_only: how & 1 != 0,
        start: WRITABLE,
        len: FILE_LEN,
        limits: RateLimits { bandwidth: None, ops: (how & 2 != 0).then(|| ops(1)) },
    })
    .expect("a device");
    let metrics = pmem.metrics();
    let mut machine = Machine::new("fuzzed pmem", AnyDevice::Pmem(Box::new(pmem)), ram);
    if how & 4 == 0 {
        machine.bring_up(u64::MAX);
    }
    while !input.0.is_empty() {
        if input.byte() > 100 {
            ask(&mut machine, &mut input)
        } else {
            machine.step(&mut input)
        }
        machine.turn();
        if input.0.len() % 61 == 60 {
            let ops = if input.byte() > 128 { BucketChange::Remove } else { BucketChange::Set(ops(1)) };
            let change = RateLimitChange { ops, ..Default::default() };
            let changed = machine.cell.reconfigure(|device| match device {
                AnyDevice::Pmem(pmem) => {
                    pmem.change_limits(change);
                    Ok(((), ConfigChange::Silent))
                }
                _ => Err(()),
            });
            assert!(changed.is_ok(), "the device became another one");
        }
    }
    let mut bytes = vec![0; FILE_LEN as usize];
    fixed.read_exact_at(&mut bytes, 0).expect("the file can be read");
    assert!(bytes.iter().all(|b| *b == 0x22), "memory that may only be read was written");
    machine.reset();
    // Whatever happened before, a reset makes a working device of it; the limiter may want a moment.
    machine.cell.resume();
    machine.bring_up(0);
    machine.descriptor(0x8000, 0, 0, 0, 0);
    machine.descriptor(DESCRIPTORS, 0x8000, 4, 1, 1);
    machine.descriptor(DESCRIPTORS + 16, 0x9000, 4, 2, 0);
    machine.ram.write_obj(0xeeee_eeeeu32, GuestAddress(0x9000)).expect("in RAM");
    machine.offer(0);
    machine.write(0x50, 0);
    let start = std::time::Instant::now();
    while machine.ram.read_obj::<u32>(GuestAddress(0x9000)).expect("in RAM") == 0xeeee_eeee {
        assert!(start.elapsed().as_secs() < 20, "the device did not recover");
        machine.turn();
    }
    machine.cell.pause();
    (metrics.flush_count.get(), metrics.event_fails.get())
}
