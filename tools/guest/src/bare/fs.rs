//! `mode=fs`: reads a file of the host through the file system device (virtio 1.3 §5.11), which carries FUSE requests
//! (include/uapi/linux/fuse.h).

use crate::block_mode::word;
use crate::bring_up::{self, PATIENCE_MS, Refusal};
use crate::dma::Dma;
use crate::mmio::{Window, kind};
use crate::pattern::{self, CHECKSUM_START};
use crate::virtqueue::{Piece, Queue};
use crate::{Machine, cpu, say};

const LOOKUP: u32 = 1;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;
const ROOT: u64 = 1;

/// `struct fuse_in_header`, `struct fuse_out_header`.
const HEADER: u64 = 40;
const REPLY: u64 = 16;
/// Bytes of a request and of an answer, without headers.
const BODY: u64 = 256;
const CHUNK: u64 = 64 << 10;
/// Of a tag.
const TAG_LEN: u64 = 36;

/// A session on the first ring for requests. The one for urgent requests is announced, too, and never used.
struct Session {
    queue: Queue,
    request: Dma,
    answer: Dma,
    asked: u64,
}

/// Runs the mode.
pub fn run(machine: &mut Machine) {
    let Some(window) = machine.bus.find(kind::FS, 0) else {
        say!("error=no-file-system");
        return;
    };
    let mut session = match Session::start(machine, window) {
        Ok(session) => session,
        Err(refusal) => {
            say!("error={}", word(refusal));
            return;
        }
    };
    say!("fs=started tag={} queues={}", tag(machine, window), window.config64(TAG_LEN) as u32);
    match session.read_file(machine) {
        Ok((len, checksum)) => say!("read={len} checksum={checksum:#x} asked={}", session.asked),
        Err((what, errno)) => say!("error={what} errno={errno}"),
    }
}

fn tag(machine: &mut Machine, window: Window) -> &'static str {
    let text = machine.arena.take(TAG_LEN + 4, 8);
    for at in (0..TAG_LEN).step_by(4) {
        text.write32(at, window.config64(at) as u32);
    }
    let bytes = text.bytes();
    let len = bytes[..TAG_LEN as usize].iter().position(|b| *b == 0).unwrap_or(TAG_LEN as usize);
    str::from_utf8(&bytes[..len]).unwrap_or("?")
}

impl Session {
    fn start(machine: &mut Machine, window: Window) -> Result<Self, Refusal> {
        bring_up::negotiate(window, 0, machine.clock)?;
        let mut queue = |index| {
            let size = window.queue_max(index).min(256) as u16;
            let queue = Queue::allocate(window, index, size, false, &mut machine.arena);
            queue.announce();
            queue
        };
        queue(0);
        let queue = queue(1);
        let request = machine.arena.take(HEADER + BODY, 64);
        let answer = machine.arena.take(REPLY + CHUNK, 4096);
        bring_up::start(window)?;
        Ok(Self { queue, request, answer, asked: 0 })
    }

    /// Makes a request, whose body is there already; the answer's body and its length, or `errno` (0 for no answer at all).
    fn ask(&mut self, machine: &Machine, opcode: u32, node: u64, body: u64, room: u64) -> Result<Dma, u32> {
        let len = HEADER + body;
        self.request.write32(0, len as u32);
        self.request.write32(4, opcode);
        self.asked += 1;
        self.request.write64(8, self.asked);
        self.request.write64(16, node);
        for at in (24..HEADER).step_by(4) {
            self.request.write32(at, 0);
        }
        self.answer.part(0, REPLY).fill(0xff);
        let pieces = [Piece::readable(self.request.part(0, len)), Piece::writable(self.answer.part(0, REPLY + room))];
        self.queue.chain(0, &pieces);
        self.queue.offer(0);
        self.queue.kick();
        let deadline = machine.clock.deadline_ms(PATIENCE_MS);
        while self.queue.poll().is_none() {
            if deadline.passed() {
                return Err(0);
            }
            cpu::pause();
        }
        let errno = (self.answer.read32(4) as i32).unsigned_abs();
        let written = u64::from(self.answer.read32(0));
        match errno == 0 && written >= REPLY && self.answer.read64(8) == self.asked {
            true => Ok(self.answer.part(REPLY, (written - REPLY).min(room))),
            false => Err(errno),
        }
    }

    /// Begins, looks for the file `name=` in the root directory, and reads it to its end.
    fn read_file(&mut self, machine: &Machine) -> Result<(u64, u64), (&'static str, u32)> {
        let body = self.request.part(HEADER, BODY);
        // Version 7.31, no read-ahead, no wishes.
        for (at, value) in [(0, 7), (4, 31), (8, 0), (12, 0)] {
            body.write32(at, value);
        }
        self.ask(machine, INIT, 0, 16, BODY).map_err(|errno| ("init", errno))?;
        let name = machine.command_line.text("name").unwrap_or("file");
        body.put(0, name.as_bytes());
        body.write8(name.len() as u64, 0);
        let found = self.ask(machine, LOOKUP, ROOT, name.len() as u64 + 1, BODY).map_err(|errno| ("lookup", errno))?;
        let node = found.read64(0);
        body.write64(0, 0);
        let opened = self.ask(machine, OPEN, node, 8, BODY).map_err(|errno| ("open", errno))?;
        let handle = opened.read64(0);
        let (mut len, mut checksum) = (0, CHECKSUM_START);
        loop {
            body.part(0, 40).fill(0);
            body.write64(0, handle);
            body.write64(8, len);
            body.write32(16, CHUNK as u32);
            let data = self.ask(machine, READ, node, 40, CHUNK).map_err(|errno| ("read", errno))?;
            if data.len() == 0 {
                return Ok((len, checksum));
            }
            checksum = pattern::checksum(checksum, data.bytes());
            len += data.len();
        }
    }
}
