//! A register window alone: any access, at any place, of any width.

use super::*;

/// Accesses to a drive's window, as `data` says. Returns how often the driver's status was accepted up to DRIVER_OK.
pub fn registers(data: &[u8]) -> u64 {
    let mut input = Input(data);
    let spec = BlockSpec {
        file: disk(),
        read_only: true,
        writeback: false,
        engine: Engine::Sync,
        queues: 1,
        limits: RateLimits::default(),
    };
    let device = AnyDevice::Block(Box::new(Block::new(spec).expect("a drive")));
    let mut machine = Machine::new("fuzzed window", device, ram());
    let read = |machine: &Machine, offset| {
        let mut bytes = [0; 4];
        machine.window.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    };
    let mut live = 0;
    while !input.0.is_empty() {
        match input.byte() % 8 {
            0 => machine.bring_up(input.u64()),
            1 => machine.write(0x70, input.byte().into()),
            2 => machine.write(0x70, 0),
            kind => {
                let offset = if kind < 6 { u64::from(input.byte()) * 4 } else { u64::from(input.u16() % 0x1100) };
                let width = if kind < 6 { 4 } else { usize::from(input.byte()) % 8 + 1 };
                let mut bytes: [u8; 8] = input.take();
                if input.byte() & 1 == 0 {
                    machine.window.write(offset, &bytes[..width]);
                } else {
                    machine.window.read(offset, &mut bytes[..width]);
                }
            }
        }
        machine.turn();
        let status = read(&machine, 0x70);
        // DRIVER_OK without FEATURES_OK is never accepted (§3.1.1).
        assert!(status & 4 == 0 || status & 8 != 0 || status & 0x40 != 0, "status {status:#x}");
        live += u64::from(status & 0x44 == 4);
        assert_eq!((read(&machine, 0), read(&machine, 8)), (0x7472_6976, 2), "the constants changed");
    }
    machine.reset();
    live
}
