//! `mode=hello`: what a person sees in the demo.

use crate::{Machine, say};

pub fn run(machine: &mut Machine) {
    say!("boot={} ram={} tsc_khz={}", machine.boot.protocol, machine.boot.ram_bytes(), machine.clock.khz());
    for w in crate::mmio::scan() {
        say!("dev {} {}", w.kind, w.address);
    }
}
