//! Mayfly's bare-metal guest: a freestanding program that drives the virtual
//! machine's devices directly, as told by the kernel command line.
//!
//! It is demo, functional test, benchmark and malicious guest in one. It runs
//! in ring 3, polls, takes no interrupt, and reports on the serial console:
//! `mayfly-guest ready`, result lines of `key=value` words, `mayfly-guest
//! done`. The host-side crate around it documents modes and parameters.

#![no_std]
#![no_main]

mod balloon;
mod bench_block;
mod bench_net;
mod block;
mod block_mode;
mod block_queues;
mod boot_info;
mod bring_up;
mod busy;
mod checksum;
mod clock;
mod command_line;
mod console;
mod cpu;
mod cpuid;
mod cpus;
mod dma;
mod entry;
mod fs;
mod hello;
mod hostile;
mod hotplug_mode;
mod life;
mod mem;
mod memory_intrinsics;
mod mmds_mode;
mod mmio;
mod net;
mod net_mode;
#[path = "../pattern.rs"]
mod pattern;
mod pci;
mod pmem;
mod power;
mod rng;
mod second;
mod tables;
mod tcp;
mod virtqueue;
mod vsock;
mod vsock_mode;
mod watch;

use core::panic::PanicInfo;

use boot_info::BootInfo;
use clock::Clock;
use command_line::CommandLine;
use dma::Arena;
use mmio::Bus;

/// The boot timer's register and the value that stops it.
const BOOT_TIMER: u64 = 0xc000_0000;
const BOOT_TIMER_STOP: u8 = 123;
/// Where the image is linked.
const IMAGE: u64 = 0x100_0000;

/// What every mode works with.
struct Machine {
    boot: BootInfo,
    command_line: CommandLine,
    clock: Clock,
    bus: Bus,
    arena: Arena,
}

/// Entered in ring 3 by [`entry`].
extern "C" fn bare_main(kind: u64, info: u64) -> ! {
    let boot = BootInfo::read(kind, info);
    let command_line = CommandLine(boot.command_line);
    if command_line.switch("boot_timer", false) {
        cpu::write8(BOOT_TIMER, BOOT_TIMER_STOP);
    }
    let mode = command_line.text("mode").unwrap_or("hello");
    if mode == "spin-quiet" {
        power::spin();
    }
    say!("mayfly-guest ready");
    if mode == "spin" {
        power::spin();
    }
    let arena = Arena::behind_image(boot.ram_end_above(IMAGE));
    let mut machine =
        Machine { clock: Clock::new(command_line), bus: Bus::new(command_line), boot, command_line, arena };
    match mode {
        "hello" => hello::run(&mut machine),
        "probe" => hello::probe(&mut machine),
        "block" => block_mode::run(&mut machine),
        "block-queues" => block_queues::run(&mut machine),
        "bench-block" => bench_block::run(&mut machine),
        "net" => net_mode::run(&mut machine),
        "bench-net" => bench_net::run(&mut machine),
        "watch" => watch::run(&mut machine),
        "pmem" => pmem::run(&mut machine),
        "mem" => mem::run(&mut machine),
        "cpus" => cpus::run(&mut machine),
        "balloon" => balloon::run(&mut machine),
        "rng" => rng::run(&mut machine),
        "fs" => fs::run(&mut machine),
        "vsock" => vsock_mode::run(&mut machine),
        "mmds" => mmds_mode::run(&mut machine),
        "busy" => busy::run(&mut machine),
        "life" => life::run(&mut machine),
        "hotplug" => hotplug_mode::run(&mut machine),
        "hostile" => hostile::run(&mut machine),
        _ => say!("error=unknown-mode"),
    }
    say!("mayfly-guest done");
    power::end(command_line)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    say!("panic={}", info.message());
    if let Some(place) = info.location() {
        say!("panic_at={}:{}", place.file(), place.line());
    }
    power::reset();
    power::spin()
}
