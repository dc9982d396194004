//! `mode=bench-net`: frames per second, one direction at a time.

use crate::block_mode::word;
use crate::bring_up::PATIENCE_MS;
use crate::net::{self, Net};
use crate::{Machine, cpu, say};

/// IEEE 802 local experimental ethertype 1.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// A locally administered address nobody has.
const NOBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

/// What came out.
#[derive(Default)]
struct Outcome {
    packets: u64,
    bytes: u64,
    cycles: u64,
    stalled: bool,
}

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let line = machine.command_line;
    let (size, packets) = (line.number("size", 64).clamp(14, 1514), line.number("packets", 100_000));
    let dir = line.text("dir").unwrap_or("tx");
    let Some(window) = net::chosen_window(machine) else {
        say!("error=no-interface");
        return;
    };
    let mut net = match Net::start(machine, window) {
        Ok(net) => net,
        Err(refusal) => {
            say!("error={}", word(refusal));
            return;
        }
    };
    let outcome =
        if dir == "rx" { receive(machine, &mut net, packets) } else { transmit(machine, &mut net, packets, size) };
    let clock = machine.clock;
    say!(
        "dir={dir} size={size} packets={} bytes={} kicks={} stalled={}",
        outcome.packets,
        outcome.bytes,
        if dir == "rx" { net.rx.kicks } else { net.tx.kicks },
        u8::from(outcome.stalled)
    );
    say!(
        "elapsed_cycles={} elapsed_ns={} tsc_khz={} pps={} bytes_per_s={}",
        outcome.cycles,
        clock.nanoseconds(outcome.cycles),
        clock.khz(),
        clock.per_second(outcome.packets, outcome.cycles),
        clock.per_second(outcome.bytes, outcome.cycles),
    );
}

/// Sends frames as fast as the device takes them, a doorbell per `batch`.
fn transmit(machine: &Machine, net: &mut Net, packets: u64, size: u64) -> Outcome {
    let batch = machine.command_line.number("batch", 32).max(1);
    for slot in 0..net.tx.size {
        let frame = net.frame(slot);
        frame.put(0, &NOBODY);
        frame.put(6, &net.mac);
        frame.put(12, &ETHERTYPE);
    }
    let mut outcome = Outcome::default();
    let (mut sent, mut since_kick) = (0, 0);
    let start = cpu::cycles();
    let mut deadline = machine.clock.deadline_ms(PATIENCE_MS);
    while outcome.packets < packets {
        let back = net.reclaim();
        outcome.packets += back;
        if back != 0 {
            deadline = machine.clock.deadline_ms(PATIENCE_MS);
        } else if deadline.passed() {
            outcome.stalled = true;
            break;
        }
        while sent < packets && since_kick < batch {
            let Some(slot) = net.claim() else { break };
            net.transmit(slot, size);
            sent += 1;
            since_kick += 1;
        }
        // A full batch, or nothing more to add until something comes back.
        if since_kick == batch || sent == packets || back == 0 {
            net.tx.kick();
            since_kick = 0;
        }
    }
    outcome.cycles = cpu::cycles() - start;
    outcome.bytes = outcome.packets * size;
    outcome
}

/// Counts frames of our ethertype, from the first to the last of them.
fn receive(machine: &Machine, net: &mut Net, packets: u64) -> Outcome {
    let idle_ms = machine.command_line.number("idle_ms", 1000);
    say!("net=listening");
    let mut outcome = Outcome::default();
    let (mut first, mut last) = (0, 0);
    let mut deadline = machine.clock.deadline_ms(machine.command_line.number("ms", 20_000));
    while outcome.packets < packets {
        let mut any = false;
        while let Some(frame) = net.receive() {
            if frame.bytes.get(12..14) == Some(&ETHERTYPE) {
                any = true;
                outcome.packets += 1;
                outcome.bytes += frame.bytes.len() as u64;
            }
            net.recycle(frame.slot);
        }
        net.rx.kick();
        if any {
            last = cpu::cycles();
            if first == 0 {
                first = last;
            }
            deadline = machine.clock.deadline_ms(idle_ms);
        } else if deadline.passed() {
            outcome.stalled = true;
            break;
        }
    }
    outcome.cycles = last - first;
    outcome
}
