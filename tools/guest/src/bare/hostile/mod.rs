//! `mode=hostile`: a guest that breaks the rules on purpose, and reports what
//! the VMM made of it.
//!
//! One case is one stimulus from the threat catalogue (G1 to G29), on a freshly
//! reset device. It prints one line, `case=NAME outcome=WORD …`, where the word
//! is what was observed, never a verdict: which words are acceptable is the
//! host-side crate's table. Then the device is reset and must work again.

mod balloon;
mod chains;
mod entropy;
mod geometry;
mod in_flight;
mod mem;
mod mmds;
mod network;
mod pci;
mod platform;
mod pmem;
mod races;
mod requests;
mod status;
mod storms;
mod vsock;

use crate::block::{self, Block, Options, UNTOUCHED, request};
use crate::bring_up::{Refusal, reset};
use crate::dma::Dma;
use crate::mmio::{Window, kind, reg, status as bit};
use crate::net::Net;
use crate::virtqueue::Piece;
use crate::{Machine, cpu, say};

/// What was observed, in one word.
type Outcome = &'static str;

/// A stimulus: its name and what it does.
type Case = (&'static str, fn(&mut Lab<'_>) -> Outcome);

/// Cases after which the machine is expected to be gone: never part of `all`.
const ENDINGS: &[&[Case]] = &[platform::ENDINGS, balloon::ENDINGS];

/// All other cases, in the order `all` runs them.
const GROUPS: &[&[Case]] = &[
    geometry::CASES,
    status::CASES,
    chains::CASES,
    requests::CASES,
    network::CASES,
    entropy::CASES,
    balloon::CASES,
    balloon::RACES,
    in_flight::CASES,
    mem::CASES,
    pmem::CASES,
    vsock::CASES,
    mmds::CASES,
    storms::CASES,
    platform::CASES,
    pci::CASES,
    pci::BAR_CASES,
    races::CASES,
    pci::RACES,
];

/// What cases work with.
struct Lab<'a> {
    machine: &'a mut Machine,
    /// Two facts worth printing beside the outcome.
    facts: [(&'static str, u64); 2],
}

/// Runs `case=NAME`, or every case the machine survives for `case=all`, or a
/// group for a prefix ending in a dash (`g9-`), or for `races` those that need
/// two processors.
pub fn run(machine: &mut Machine) {
    let wanted = machine.command_line.text("case").unwrap_or("all");
    let mut lab = Lab { machine, facts: [("", 0); 2] };
    let mut found = false;
    let groups: &[&[Case]] = if wanted == "races" { &[races::CASES, pci::RACES] } else { GROUPS };
    for (name, stimulus) in groups.iter().copied().flatten() {
        if matches!(wanted, "all" | "races") || wanted == *name || (wanted.ends_with('-') && name.starts_with(wanted)) {
            found = true;
            lab.examine(name, *stimulus);
        }
    }
    for (name, stimulus) in ENDINGS.iter().copied().flatten() {
        if wanted == *name {
            found = true;
            say!("case={name} outcome=ending");
            let outcome = stimulus(&mut lab);
            say!("case={name} outcome={outcome}");
        }
    }
    if !found {
        say!("error=unknown-case");
    }
}

impl Lab<'_> {
    fn examine(&mut self, name: &str, stimulus: fn(&mut Self) -> Outcome) {
        self.facts = [("", 0); 2];
        let mark = self.machine.arena.mark();
        let outcome = stimulus(self);
        let status = self.window(name).map_or(0, Window::status);
        let facts = self.facts;
        let recovered = self.recovers(name);
        self.machine.arena.rewind(mark);
        use core::fmt::Write as _;
        let mut console = crate::console::Console;
        let _ = write!(console, "case={name} outcome={outcome} status={status:#x} recovered={recovered}");
        for (key, value) in facts.iter().filter(|(key, _)| !key.is_empty()) {
            let _ = write!(console, " {key}={value}");
        }
        say!("");
    }

    /// The device a case is about: G13 and its like are about the network.
    fn window(&self, name: &str) -> Option<Window> {
        match name.split_once('-') {
            Some(("g13", _) | ("g26", "net-header")) => crate::net::chosen_window(self.machine),
            Some(("g22", _)) => crate::mem::chosen_window(self.machine),
            Some(("g24", _)) => crate::pmem::chosen_window(self.machine),
            Some(("g20" | "g21", _)) => crate::balloon::chosen_window(self.machine),
            Some(("g25", _)) => crate::net::chosen_window(self.machine).filter(|_| self.has_service()),
            Some(("g15" | "g16" | "g17" | "g18", _)) => crate::vsock::chosen_window(self.machine),
            Some(("g14", _)) => crate::rng::chosen_window(self.machine),
            _ => self.drive(),
        }
    }

    fn drive(&self) -> Option<Window> {
        block::chosen_window(self.machine)
    }

    /// Whether the device works after a reset: a read, or a frame sent.
    fn recovers(&mut self, name: &str) -> &'static str {
        let Some(window) = self.window(name) else {
            return "no-device";
        };
        let works = match window.kind {
            kind::NET if name.starts_with("g25") => mmds::works(self),
            kind::NET => network::works(self),
            kind::MEM => mem::works(self),
            kind::PMEM => pmem::works(self),
            kind::BALLOON => balloon::works(self),
            kind::RNG => entropy::works(self),
            kind::VSOCK => vsock::works(self),
            _ => self.block().is_ok_and(|mut block| self.read_ok(&mut block)),
        };
        // Leave nothing running that could touch memory used by the next case.
        let quiet = reset(window, self.machine.clock).is_ok();
        if works && quiet { "yes" } else { "no" }
    }

    /// A freshly started drive.
    fn block(&mut self) -> Result<Block, Outcome> {
        self.block_with(Options::PLAIN)
    }

    fn block_with(&mut self, options: Options) -> Result<Block, Outcome> {
        let window = self.drive().ok_or("skipped-no-drive")?;
        Block::start(self.machine, window, options).map_err(refusal)
    }

    /// A freshly started network interface.
    fn net(&mut self) -> Result<Net, Outcome> {
        let window = crate::net::chosen_window(self.machine).ok_or("skipped-no-interface")?;
        Net::start(self.machine, window).map_err(refusal)
    }

    /// Memory for data.
    fn buffer(&mut self, len: u64) -> Dma {
        self.machine.arena.take(len, 4096)
    }

    /// Reads the first sector the proper way.
    fn read_ok(&mut self, block: &mut Block) -> bool {
        let data = self.buffer(512);
        let answer = block.run(self.machine.clock, request::IN, 0, &[Piece::writable(data)]);
        answer.is_some_and(|a| a.status == 0)
    }

    /// Waits for the device's reaction to a kicked chain: a used element, or
    /// DEVICE_NEEDS_RESET, or nothing for a while.
    fn observe(&mut self, block: &mut Block, status_byte: Dma) -> Outcome {
        let deadline = self.machine.clock.deadline_ms(self.machine.command_line.number("patience_ms", 500));
        loop {
            // Reading the status is an exit; look at the ring often, at it rarely.
            for _ in 0..2000 {
                if let Some(used) = block.queue.poll() {
                    self.facts[0] = ("used_len", used.len.into());
                    return answered(status_byte.read8(0), used.len);
                }
                cpu::pause();
            }
            if block.window.status() & bit::NEEDS_RESET != 0 {
                return "needs-reset";
            }
            if deadline.passed() {
                return "silent";
            }
        }
    }

    /// Offers one chain of `pieces` in slot 0, kicks and observes.
    fn try_chain(&mut self, block: &mut Block, pieces: &[Piece]) -> Outcome {
        let status = block.status_byte(0);
        status.write8(0, UNTOUCHED);
        block.queue.chain(0, pieces);
        block.queue.offer(0);
        block.queue.kick();
        self.observe(block, status)
    }
}

/// The word for a completed request: what its status byte says, or for one the
/// device did not touch, what the used length says.
fn answered(status: u8, len: u32) -> Outcome {
    match (status, len) {
        (0, _) => "ok",
        (1, _) => "ioerr",
        (2, _) => "unsupp",
        (UNTOUCHED, 0) => "len0",
        (UNTOUCHED, _) => "untouched",
        _ => "odd-status",
    }
}

/// The word for a device that did not come up.
fn refusal(refusal: Refusal) -> Outcome {
    match refusal {
        Refusal::Reset => "reset-hangs",
        Refusal::Features => "features-refused",
        Refusal::Start => "start-refused",
    }
}

/// The word for the status right after DRIVER_OK; `None` if the device is up.
fn refused_start(window: Window) -> Option<Outcome> {
    let now = window.status();
    if now & bit::NEEDS_RESET != 0 {
        Some("needs-reset")
    } else if now & bit::DRIVER_OK == 0 {
        Some("driver-ok-refused")
    } else if window.read(reg::QUEUE_READY) == 0 {
        Some("ready-refused")
    } else {
        None
    }
}
