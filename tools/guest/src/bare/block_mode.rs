//! `mode=block`: functional requests with checksums.

use crate::block::{self, Block, Options, PIECES_MAX, request};
use crate::bring_up::Refusal;
use crate::dma::Dma;
use crate::pattern::{self, CHECKSUM_START, SECTOR};
use crate::virtqueue::Piece;
use crate::{Machine, say};

const SECTOR_BYTES: u64 = SECTOR as u64;
/// Largest request, in sectors (1 MiB).
const REQUEST_MAX: u64 = 2048;

/// What the requests came to.
struct Tally {
    requests: u64,
    errors: u64,
    /// The first status that was not OK, else OK.
    status: u8,
    checksum: u64,
    mismatches: u64,
}

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let line = machine.command_line;
    let pieces = line.number("chain", 1).clamp(1, PIECES_MAX as u64 - 2) as u16;
    let options = Options {
        depth: 1,
        data_pieces: pieces,
        indirect: line.switch("indirect", false),
        event_idx: line.switch("event_idx", false),
    };
    let Some(window) = block::chosen_window(machine) else {
        say!("error=no-drive");
        return;
    };
    let mut block = match Block::start(machine, window, options) {
        Ok(block) => block,
        Err(refusal) => {
            say!("error={}", word(refusal));
            return;
        }
    };
    say!("capacity={} features={:#x}", block.capacity, block.features);

    let op = line.text("op").unwrap_or("read");
    let tally = match op {
        "read" | "write" | "verify" => transfer(machine, &mut block, op, pieces),
        "flush" => single(machine, &mut block, request::FLUSH, &[]),
        "discard" => range(machine, &mut block, request::DISCARD),
        "zeroes" => range(machine, &mut block, request::WRITE_ZEROES),
        "getid" => identify(machine, &mut block),
        _ => {
            say!("error=unknown-op");
            return;
        }
    };
    say!(
        "op={op} requests={} errors={} status={} checksum={:#x} mismatches={} kicks={}",
        tally.requests,
        tally.errors,
        tally.status,
        tally.checksum,
        tally.mismatches,
        block.queue.kicks
    );
}

/// The word for a refusal in results.
pub fn word(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Reset => "reset-hangs",
        Refusal::Features => "features-refused",
        Refusal::Start => "start-refused",
    }
}

impl Tally {
    const EMPTY: Self = Self { requests: 0, errors: 0, status: 0, checksum: CHECKSUM_START, mismatches: 0 };

    fn count(&mut self, answer: Option<block::Answer>) {
        let status = answer.map_or(block::UNTOUCHED, |a| a.status);
        self.requests += 1;
        if status != 0 {
            self.errors += 1;
            if self.status == 0 {
                self.status = status;
            }
        }
    }
}

/// Reads or writes `sectors` from `sector` on, `request` sectors at a time.
fn transfer(machine: &mut Machine, block: &mut Block, op: &str, pieces: u16) -> Tally {
    let line = machine.command_line;
    let (seed, first) = (line.number("seed", 1), line.number("sector", 0));
    let count = line.number("sectors", 8);
    let per_request = line.number("request", 8).clamp(1, REQUEST_MAX);
    let writing = op == "write";
    let buffer = machine.arena.take(per_request * SECTOR_BYTES, 4096);
    let mut expected = [0; SECTOR];
    let mut tally = Tally::EMPTY;

    let mut done = 0;
    while done < count {
        let (sector, sectors) = (first + done, per_request.min(count - done));
        let data = buffer.part(0, sectors * SECTOR_BYTES);
        if writing {
            for i in 0..sectors {
                pattern::fill(seed, sector + i, data.part(i * SECTOR_BYTES, SECTOR_BYTES).bytes_mut());
            }
        } else {
            data.fill(0xee);
        }
        let mut list = [Piece::readable(data); PIECES_MAX];
        let used = split(data, pieces, !writing, &mut list);
        let kind = if writing { request::OUT } else { request::IN };
        let answer = block.run(machine.clock, kind, sector, &list[..used]);
        tally.count(answer);
        if answer.is_none() {
            break;
        }
        tally.checksum = pattern::checksum(tally.checksum, data.bytes());
        if op == "verify" {
            for i in 0..sectors {
                pattern::fill(seed, sector + i, &mut expected);
                if data.part(i * SECTOR_BYTES, SECTOR_BYTES).bytes() != expected {
                    tally.mismatches += 1;
                }
            }
        }
        done += sectors;
    }
    tally
}

/// Cuts `data` into at most `pieces` pieces of whole bytes, uneven on purpose.
fn split(data: Dma, pieces: u16, writable: bool, list: &mut [Piece; PIECES_MAX]) -> usize {
    let even = data.len() / u64::from(pieces);
    let (mut at, mut count) = (0, 0);
    for i in 0..pieces {
        let rest = data.len() - at;
        // Odd pieces are one byte longer, so that boundaries are unaligned.
        let len = if i + 1 == pieces { rest } else { (even + u64::from(i % 2 == 1)).min(rest) };
        if len != 0 {
            list[count] = Piece { writable, ..Piece::readable(data.part(at, len)) };
            count += 1;
            at += len;
        }
    }
    count
}

fn single(machine: &mut Machine, block: &mut Block, kind: u32, data: &[Piece]) -> Tally {
    let mut tally = Tally::EMPTY;
    tally.count(block.run(machine.clock, kind, 0, data));
    tally
}

/// DISCARD or WRITE_ZEROES of `sectors` from `sector` on, as one segment
/// (virtio 1.3 §5.2.6: sector, count, flags).
fn range(machine: &mut Machine, block: &mut Block, kind: u32) -> Tally {
    let line = machine.command_line;
    let segment = machine.arena.take(16, 16);
    segment.write64(0, line.number("sector", 0));
    segment.write32(8, line.number("sectors", 8) as u32);
    segment.write32(12, line.number("unmap", 0) as u32);
    single(machine, block, kind, &[Piece::readable(segment)])
}

/// GET_ID: prints the id, non-graphic characters as `?`.
fn identify(machine: &mut Machine, block: &mut Block) -> Tally {
    let id = machine.arena.take(20, 16);
    let tally = single(machine, block, request::GET_ID, &[Piece::writable(id)]);
    let mut text = [b'?'; 20];
    let len = id.bytes().iter().position(|b| *b == 0).unwrap_or(20);
    for (to, from) in text.iter_mut().zip(&id.bytes()[..len]) {
        if from.is_ascii_graphic() {
            *to = *from;
        }
    }
    say!("id={}", str::from_utf8(&text[..len]).unwrap_or(""));
    tally
}
