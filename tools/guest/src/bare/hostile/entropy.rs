//! G14: requests for more random bytes than there is memory, and for very many.

use super::{Case, Lab, Outcome};
use crate::cpu;
use crate::mmio::status as bit;
use crate::rng::{self, Rng};
use crate::virtqueue::Piece;

/// Most bytes a request may get.
const REQUEST_MAX: u64 = 64 << 10;
const MARK: u64 = 0x5a5a_5a5a_5a5a_5a5a;

pub const CASES: &[Case] = &[
    ("g14-claims-4g", claims_4g),
    ("g14-over-4g", |lab| chain(lab, 16, |data| Piece { len: 0x1000_0000, ..data })),
    ("g14-past-ram", |lab| chain(lab, 1, |data| Piece { len: 0xffff_f000, ..data })),
    ("g14-device-window", |lab| chain(lab, 1, |data| Piece { address: 0xc000_0000, ..data })),
    ("g14-readable", |lab| chain(lab, 1, |data| Piece { writable: false, ..data })),
    ("g14-empty", |lab| chain(lab, 1, |data| Piece { len: 0, ..data })),
    ("g14-many-requests", many_requests),
];

impl Lab<'_> {
    /// A freshly started entropy device.
    fn rng(&mut self) -> Result<Rng, Outcome> {
        let window = rng::chosen_window(self.machine).ok_or("skipped-no-entropy-device")?;
        Rng::start(self.machine, window).map_err(super::refusal)
    }
}

/// Whether a proper request is answered by a freshly started device.
pub fn works(lab: &mut Lab<'_>) -> bool {
    let data = lab.buffer(64);
    lab.rng().is_ok_and(|mut rng| ask(lab, &mut rng, &[Piece::writable(data)]) == Ok(64))
}

/// Offers one chain, kicks, and returns how many bytes came.
fn ask(lab: &Lab<'_>, rng: &mut Rng, pieces: &[Piece]) -> Result<u32, Outcome> {
    rng.queue.chain(0, pieces);
    rng.queue.offer(0);
    rng.queue.kick();
    let deadline = lab.machine.clock.deadline_ms(lab.machine.command_line.number("patience_ms", 500));
    loop {
        for _ in 0..2000 {
            if let Some(used) = rng.queue.poll() {
                return Ok(used.len);
            }
            cpu::pause();
        }
        if rng.window.status() & bit::NEEDS_RESET != 0 {
            return Err("needs-reset");
        }
        if deadline.passed() {
            return Err("silent");
        }
    }
}

/// 255 descriptors of 16 MiB, all at the same place: nearly 4 GiB, of which the
/// device may write the first 64 KiB.
fn claims_4g(lab: &mut Lab<'_>) -> Outcome {
    let mut rng = match lab.rng() {
        Ok(rng) => rng,
        Err(outcome) => return outcome,
    };
    let data = lab.buffer(REQUEST_MAX + 8);
    data.write64(REQUEST_MAX, MARK);
    let list = [Piece { len: 0x100_0000, ..Piece::writable(data) }; 256];
    let count = usize::from(rng.queue.size).min(255);
    let outcome = ask(lab, &mut rng, &list[..count]);
    match outcome {
        Ok(len) => {
            lab.facts[0] = ("used_len", len.into());
            if u64::from(len) <= REQUEST_MAX && data.read64(REQUEST_MAX) == MARK { "capped" } else { "too-much" }
        }
        Err(outcome) => outcome,
    }
}

/// A chain of `count` times a buffer that the case spoils.
fn chain(lab: &mut Lab<'_>, count: usize, spoil: fn(Piece) -> Piece) -> Outcome {
    let mut rng = match lab.rng() {
        Ok(rng) => rng,
        Err(outcome) => return outcome,
    };
    let list = [spoil(Piece::writable(lab.buffer(4096))); 16];
    match ask(lab, &mut rng, &list[..count]) {
        Ok(0) => "len0",
        Ok(_) => "written",
        Err(outcome) => outcome,
    }
}

/// `requests` proper ones, as many at a time as the queue takes.
fn many_requests(lab: &mut Lab<'_>) -> Outcome {
    let mut rng = match lab.rng() {
        Ok(rng) => rng,
        Err(outcome) => return outcome,
    };
    let requests = lab.machine.command_line.number("requests", 100_000);
    let data = Piece::writable(lab.buffer(64));
    let (mut asked, mut answered) = (0, 0);
    while asked < u64::from(rng.queue.size).min(requests) {
        rng.ask(asked as u16, data);
        asked += 1;
    }
    let mut deadline = lab.machine.clock.deadline_ms(5000);
    while answered < requests {
        rng.queue.kick();
        while let Some(used) = rng.queue.poll() {
            answered += 1;
            if asked < requests {
                rng.ask(used.head, data);
                asked += 1;
            }
            deadline = lab.machine.clock.deadline_ms(5000);
        }
        if deadline.passed() {
            return "silent";
        }
    }
    lab.facts = [("requests", answered), ("kicks", rng.queue.kicks)];
    "alive"
}
