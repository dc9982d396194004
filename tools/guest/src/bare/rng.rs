//! `mode=rng`: random bytes from the entropy device (virtio 1.3 §5.4).

use crate::block_mode::word;
use crate::bring_up::{self, PATIENCE_MS, Refusal, feature};
use crate::mmio::{Window, kind};
use crate::virtqueue::{Piece, Queue};
use crate::{Machine, cpu, say};

/// Most bytes of buffers in flight.
const IN_FLIGHT_MAX: u64 = 8 << 20;

/// A started entropy device.
pub struct Rng {
    pub window: Window,
    pub queue: Queue,
}

/// The window of the entropy device.
pub fn chosen_window(machine: &Machine) -> Option<Window> {
    machine.bus.find(kind::RNG, 0)
}

impl Rng {
    /// Starts the device.
    pub fn start(machine: &mut Machine, window: Window) -> Result<Self, Refusal> {
        let features = bring_up::negotiate(window, feature::EVENT_IDX, machine.clock)?;
        let size = window.queue_max(0).min(256) as u16;
        let event_idx = features & feature::EVENT_IDX != 0;
        let queue = Queue::allocate(window, 0, size, event_idx, &mut machine.arena);
        queue.announce();
        bring_up::start(window)?;
        Ok(Self { window, queue })
    }

    /// Asks for random bytes in one buffer, without a kick.
    pub fn ask(&mut self, slot: u16, buffer: Piece) {
        self.queue.chain(slot, &[buffer]);
        self.queue.offer(slot);
    }
}

/// What came back.
#[derive(Default)]
struct Tally {
    requests: u64,
    bytes: u64,
    longest: u64,
    empty: u64,
    /// Words of eight bytes that are zero or as the one before.
    suspicious: u64,
    ones: u64,
    last_word: u64,
}

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let line = machine.command_line;
    let requests = line.number("requests", 100);
    let len = line.number("len", 64).clamp(8, 1 << 20) & !7;
    let Some(window) = chosen_window(machine) else {
        say!("error=no-entropy-device");
        return;
    };
    let mut rng = match Rng::start(machine, window) {
        Ok(rng) => rng,
        Err(refusal) => {
            say!("error={}", word(refusal));
            return;
        }
    };
    say!("rng=started queue_max={}", window.queue_max(0));
    let depth = requests.min(rng.queue.size.into()).min(IN_FLIGHT_MAX / len).max(1);
    let buffers = machine.arena.take(depth * len, 4096);
    let buffer = |slot: u16| buffers.part(u64::from(slot) * len, len);
    let mut asked = 0;
    for slot in 0..depth as u16 {
        rng.ask(slot, Piece::writable(buffer(slot)));
        asked += 1;
    }
    rng.queue.kick();

    let mut tally = Tally::default();
    let mut stalled = false;
    let patience = line.number("patience_ms", PATIENCE_MS);
    let mut deadline = machine.clock.deadline_ms(patience);
    while tally.requests < requests && !stalled {
        let Some(used) = rng.queue.poll() else {
            rng.queue.kick();
            stalled = deadline.passed();
            cpu::pause();
            continue;
        };
        deadline = machine.clock.deadline_ms(patience);
        tally.count(buffer(used.head), u64::from(used.len).min(len));
        if asked < requests {
            buffer(used.head).fill(0);
            rng.ask(used.head, Piece::writable(buffer(used.head)));
            asked += 1;
        }
    }
    let Tally { requests, bytes, longest, empty, suspicious, ones, .. } = tally;
    say!(
        "requests={requests} bytes={bytes} longest={longest} empty={empty} suspicious={suspicious} ones={ones} kicks={} stalled={}",
        rng.queue.kicks,
        u8::from(stalled)
    );
}

impl Tally {
    fn count(&mut self, buffer: crate::dma::Dma, len: u64) {
        self.requests += 1;
        self.bytes += len;
        self.longest = self.longest.max(len);
        self.empty += u64::from(len == 0);
        for at in (0..len & !7).step_by(8) {
            let word = buffer.read64(at);
            self.suspicious += u64::from(word == 0 || word == self.last_word);
            self.ones += u64::from(word.count_ones());
            self.last_word = word;
        }
    }
}
