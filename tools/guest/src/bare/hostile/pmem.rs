//! G24: persistent memory. Device 0 can be written, device 1 cannot, and a drive
//! serves as the one who could write in the guest's stead.

use super::{Case, Lab, Outcome, refused_start};
use crate::block::{Block, Options, request};
use crate::bring_up::PATIENCE_MS;
use crate::cpu;
use crate::dma::Dma;
use crate::mmio::{kind, reg};
use crate::pmem::{FLUSH, Pmem, UNTOUCHED};
use crate::virtqueue::Piece;

pub const CASES: &[Case] = &[
    ("g24-write-read-only", write_read_only),
    ("g24-device-writes-read-only", device_writes_read_only),
    ("g24-rings-in-pmem", |lab| rings_in(lab, 0)),
    ("g24-rings-in-read-only", |lab| rings_in(lab, 1)),
    ("g24-flush-storm", flush_storm),
    ("g24-unknown-request", unknown_request),
    ("g24-no-answer", no_answer),
    ("g24-answer-read-only", answer_read_only),
];

impl Lab<'_> {
    /// The `index`-th device, freshly started.
    fn pmem(&mut self, index: u64) -> Result<Pmem, Outcome> {
        let window = self.machine.bus.find(kind::PMEM, index).ok_or("skipped-no-pmem")?;
        Pmem::start(self.machine, window).map_err(super::refusal)
    }

    /// The first page of a device's memory.
    fn pmem_page(&mut self, index: u64) -> Result<Dma, Outcome> {
        self.pmem(index)?.memory(0, 4096).ok_or("skipped-no-pmem")
    }
}

/// Whether a flush still works.
pub fn works(lab: &mut Lab<'_>) -> bool {
    lab.pmem(0).is_ok_and(|mut pmem| flush(lab, &mut pmem) == Some(0))
}

/// One flush request; `None` if it does not come back.
fn flush(lab: &Lab<'_>, pmem: &mut Pmem) -> Option<u32> {
    pmem.submit(0, FLUSH);
    pmem.wait(lab.machine.clock, 1).then(|| pmem.answer(0).read32(0))
}

/// Stores of every width to memory that may only be read.
fn write_read_only(lab: &mut Lab<'_>) -> Outcome {
    let page = match lab.pmem_page(1) {
        Ok(page) => page,
        Err(outcome) => return outcome,
    };
    let before = page.read64(0);
    page.write8(0, 0x66);
    page.write16(2, 0x6666);
    page.write32(4, 0x6666_6666);
    page.write64(0, 0x6666_6666_6666_6666);
    page.write64(4088, 0x6666_6666_6666_6666);
    if page.read64(0) == before { "ignored" } else { "written" }
}

/// A drive is asked to read its first sector into memory that may only be read.
fn device_writes_read_only(lab: &mut Lab<'_>) -> Outcome {
    let page = match lab.pmem_page(1) {
        Ok(page) => page,
        Err(outcome) => return outcome,
    };
    let mut block = match lab.block() {
        Ok(block) => block,
        Err(outcome) => return outcome,
    };
    let before = page.read64(0);
    block.submit(0, request::IN, 0, &[Piece::writable(page.part(0, 512))]);
    block.queue.kick();
    let status = block.status_byte(0);
    let outcome = lab.observe(&mut block, status);
    if page.read64(0) == before { outcome } else { "written" }
}

/// A drive's rings in persistent memory: a file is no place for rings.
fn rings_in(lab: &mut Lab<'_>, index: u64) -> Outcome {
    let page = match lab.pmem_page(index) {
        Ok(page) => page,
        Err(outcome) => return outcome,
    };
    let Some(window) = lab.drive() else {
        return "skipped-no-drive";
    };
    let block = match Block::lay_out(lab.machine, window, Options::PLAIN) {
        Ok(block) => block,
        Err(refusal) => return super::refusal(refusal),
    };
    window.write(reg::QUEUE_SEL, 0);
    window.write(reg::QUEUE_NUM, block.queue.size.into());
    window.write_address(reg::QUEUE_DESC, block.queue.descriptors.address());
    window.write_address(reg::QUEUE_DRIVER, block.queue.avail.address());
    window.write_address(reg::QUEUE_DEVICE, page.address());
    window.write(reg::QUEUE_READY, 1);
    let _ = crate::bring_up::start(window);
    refused_start(window).unwrap_or("accepted")
}

/// Flush requests as fast as they come back, as many at a time as fit.
fn flush_storm(lab: &mut Lab<'_>) -> Outcome {
    let mut pmem = match lab.pmem(0) {
        Ok(pmem) => pmem,
        Err(outcome) => return outcome,
    };
    let batch = pmem.queue.size / 2;
    let rounds = lab.machine.command_line.number("rounds", 100);
    for _ in 0..rounds {
        for slot in 0..batch {
            pmem.submit(slot, FLUSH);
        }
        if !pmem.wait(lab.machine.clock, batch) {
            return "silent";
        }
    }
    lab.facts[0] = ("flushes", rounds * u64::from(batch));
    if flush(lab, &mut pmem) == Some(0) { "alive" } else { "flush-failed" }
}

/// A request that does not exist.
fn unknown_request(lab: &mut Lab<'_>) -> Outcome {
    let mut pmem = match lab.pmem(0) {
        Ok(pmem) => pmem,
        Err(outcome) => return outcome,
    };
    pmem.submit(0, 7);
    match (pmem.wait(lab.machine.clock, 1), pmem.answer(0).read32(0)) {
        (false, _) => "silent",
        (true, 0) => "ok",
        (true, UNTOUCHED) => "untouched",
        (true, _) => "ioerr",
    }
}

/// A flush without room for an answer.
fn no_answer(lab: &mut Lab<'_>) -> Outcome {
    let mut pmem = match lab.pmem(0) {
        Ok(pmem) => pmem,
        Err(outcome) => return outcome,
    };
    let request = lab.buffer(4);
    shaped(lab, &mut pmem, &[Piece::readable(request)])
}

/// A flush whose answer should go where nothing can be written.
fn answer_read_only(lab: &mut Lab<'_>) -> Outcome {
    let page = match lab.pmem_page(1) {
        Ok(page) => page,
        Err(outcome) => return outcome,
    };
    let mut pmem = match lab.pmem(0) {
        Ok(pmem) => pmem,
        Err(outcome) => return outcome,
    };
    let request = lab.buffer(4);
    shaped(lab, &mut pmem, &[Piece::readable(request), Piece::writable(page.part(0, 4))])
}

/// Offers a chain and says what its length came back as.
fn shaped(lab: &Lab<'_>, pmem: &mut Pmem, pieces: &[Piece]) -> Outcome {
    pmem.queue.chain(0, pieces);
    pmem.queue.offer(0);
    pmem.queue.kick();
    let deadline = lab.machine.clock.deadline_ms(PATIENCE_MS);
    loop {
        match pmem.queue.poll() {
            Some(used) if used.len == 0 => return "len0",
            Some(_) => return "odd-status",
            None if deadline.passed() => return "silent",
            None => cpu::pause(),
        }
    }
}
