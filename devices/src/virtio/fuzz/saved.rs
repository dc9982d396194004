//! Devices that are saved in the middle of whatever a driver does, and taken up by others: as they were, or spoiled.

use super::*;
use crate::virtio::balloon::{Balloon, BalloonSpec};
use crate::virtio::rng::{Rng, RngSpec};
use crate::virtio::state::{CellState, DeviceState, Progress};

/// A device of the kind that `how` says, always made alike.
fn device(how: u8, file: &File) -> AnyDevice {
    let bucket = BucketSpec { size: 1 << 20, one_time_burst: 100, refill_ms: 1 };
    let limits = RateLimits { bandwidth: Some(bucket), ops: None };
    match how % 3 {
        0 => {
            let file = file.try_clone().expect("a spare descriptor");
            let spec = BlockSpec { file, read_only: false, writeback: true, engine: Engine::Sync, queues: 1, limits };
            AnyDevice::Block(Box::new(Block::new(spec).expect("a drive")))
        }
        1 => AnyDevice::Rng(Box::new(Rng::new(RngSpec { limits }).expect("spare descriptors"))),
        _ => {
            let spec = BalloonSpec { hinting: true, reporting: true, deflate_on_oom: true, ..BalloonSpec::default() };
            AnyDevice::Balloon(Box::new(Balloon::new(spec).expect("spare descriptors")))
        }
    }
}

/// Changes something that a file could say otherwise.
fn spoil(state: &mut CellState, input: &mut Input<'_>) {
    let registers = &mut state.registers;
    match input.byte() % 12 {
        0 => registers.accepted ^= input.u64(),
        1 => registers.status = input.u32(),
        2 => registers.status = u32::from(input.byte()),
        3 => registers.queue_select = input.u32(),
        4 => drop(registers.queues.pop()),
        5 | 6 => {
            let (address, size, what) = (input.address(), input.u16(), input.byte());
            let at = usize::from(input.byte()) % registers.queues.len().max(1);
            if let Some(queue) = registers.queues.get_mut(at) {
                match what % 5 {
                    0 => queue.size = size,
                    1 => queue.ready = !queue.ready,
                    2 => queue.descriptors = address,
                    3 => queue.available = address,
                    _ => queue.used = address,
                }
            }
        }
        7 => {
            let all = [Progress::Idle, Progress::Activating, Progress::Live, Progress::NeedsReset];
            state.progress = all[usize::from(input.byte()) % all.len()];
        }
        8 => {
            let at = usize::from(input.byte()) % state.positions.len().max(1);
            if let Some(position) = state.positions.get_mut(at) {
                (position.next_avail, position.next_used) = (input.u16(), input.u16());
            }
        }
        9 => drop(state.positions.pop()),
        10 => state.interrupts = input.u32(),
        _ => {
            if let DeviceState::Balloon(balloon) = &mut state.device {
                (balloon.target_pages, balloon.actual_pages) = (input.u32(), input.u32());
                (balloon.hinting.host, balloon.hinting.run) = (input.u32(), Some(input.u32()));
            } else {
                state.device = DeviceState::Vsock { next_host_port: input.u32() };
            }
        }
    }
}

/// Registers, rings and requests at a device that is saved and taken up again and again, as `data` says. Returns how often it was, as it was.
pub fn saved(data: &[u8]) -> u64 {
    let mut input = Input(data);
    let how = input.byte();
    let file = disk();
    let mut machine = Machine::new("fuzzed device", device(how, &file), ram());
    if how & 16 == 0 {
        machine.bring_up(if how & 32 == 0 { u64::MAX } else { 0 });
    }
    let mut times = 0;
    while !input.0.is_empty() {
        machine.step(&mut input);
        machine.turn();
        if input.byte() > 40 {
            continue;
        }
        machine.cell.pause();
        let mut state = machine.cell.save().expect("it stands still");
        let spoils = input.byte() % 3;
        (0..spoils).for_each(|_| spoil(&mut state, &mut input));
        let next = Machine::new("fuzzed device", device(how, &file), machine.ram.clone());
        match next.cell.restore(&state) {
            Ok(()) => {
                machine = Machine { available: machine.available, ..next };
                assert_eq!(machine.cell.save().expect("it stands still").registers, state.registers);
                times += u64::from(spoils == 0);
            }
            Err(bad) => assert!(spoils > 0, "what was saved is not taken up: {bad}"),
        }
        machine.cell.resume();
        machine.turn();
    }
    machine.cell.resume();
    machine.reset();
    check(&file, false);
    times
}
