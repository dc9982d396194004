//! What the guest is told to do: a typed kernel command line.

use std::fmt;
use std::net::Ipv4Addr;

/// One run of the guest. `to_string()` (or [`Job::command_line`]) is the kernel
/// command line; it should come first in `boot_args`, whatever else follows.
///
/// ```
/// use guest::{End, Job, Mode};
/// let job = Job::new(Mode::Hello).end(End::S5);
/// assert_eq!(job.command_line(), "mayfly.cpuid=1 mayfly.mode=hello mayfly.end=s5");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    mode: Mode,
    end: End,
    boot_timer: bool,
    tsc_khz: Option<u64>,
    more: Vec<(String, String)>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Greet a person: processor, memory, devices, the first drive's first bytes.
    Hello,
    /// The same for programs. Keys: `boot` (`linux` or `pvh`), `ram_bytes`,
    /// `tsc_khz`, `vendor`; a line per memory range (`range_start`, `range_len`,
    /// `range_ram`); a line per device (`device`, `id`, `address`, `vendor_id`,
    /// `queues`, `queue_max`, `features`); a line per CPUID leaf as the VMM
    /// presents it (`cpuid`, `sub`, `eax`, `ebx`, `ecx`, `edx`); `command_line_len`;
    /// `generation_id` (in two halves, `high`), `clock_magic`, `clock_flags`,
    /// `panic_events` (what the pvpanic port knows).
    Probe,
    /// Print [`crate::READY`] and then poll for ever, touching no device.
    Spin,
    /// The same without any output.
    SpinQuiet,
    /// Functional block requests. Keys: `capacity` (sectors), `features`; then
    /// `op`, `requests`, `errors`, `status` (the first that was not OK; 170 for a
    /// request without an answer), `checksum` (of the data, [`crate::pattern`]),
    /// `mismatches` (sectors), `kicks`; `id` for [`BlockOp::GetId`].
    Block(Block),
    /// Two queues of drive 0, each with every second request of `sectors`, 8 at a time: `mq` (it was negotiated) and `queues` (the
    /// device's number) first; then, for each queue, a line with `queue`, `requests`, `errors`, `mismatches` (sectors), `kicks`.
    BlockQueues {
        /// Write the pattern, else read and compare with it.
        write: bool,
        /// Sectors in all, in requests of 8.
        sectors: u64,
        /// Seed of the pattern.
        seed: u64,
        /// Processors that do it: with two, each has a queue.
        cpus: u8,
    },
    /// Block benchmark. With `mayfly.queues=2` a second processor does half of it, on a queue of its own. Keys: `rw`, `bs`, `qd`, `completed`, `errors`, `kicks`,
    /// `stalled`, `elapsed_cycles`, `elapsed_ns`, `tsc_khz`, `iops`, `bytes_per_s`,
    /// `p50_cycles`, `p99_cycles`, `min_ns`, `p50_ns`, `p99_ns`. Without a known
    /// TSC frequency everything but cycles is zero.
    BenchBlock(Workload),
    /// Answer ARP, ping and UDP echo (port 7). Keys: `mac`, `features`;
    /// `net=listening` when it is ready; at the end `arp`, `echo`, `udp`, `other`,
    /// `stopped`.
    Net(Net),
    /// Network benchmark. `net=listening` when ready to receive; then `dir`,
    /// `size`, `packets`, `bytes`, `kicks`, `stalled`, `elapsed_cycles`,
    /// `elapsed_ns`, `tsc_khz`, `pps`, `bytes_per_s`.
    BenchNet {
        /// Sending or receiving, as the guest sees it. It counts frames of
        /// ethertype 0x88B5 only.
        direction: Direction,
        /// Bytes per frame without the virtio header, 14 to 1514.
        size: u16,
        /// Frames.
        packets: u64,
    },
    /// Wait until drive 0 announces a changed configuration. `watch=started` and
    /// `capacity` (sectors) first; then `changed`, `signalled` (the interrupt
    /// status says so), `acknowledged` (and can be cleared), `new_capacity`, and
    /// the status of reading the `last` sector and one `beyond`.
    Watch,
    /// Persistent memory. Keys: `start`, `len` of the device; then `op`, `errors`,
    /// `status` (the first answer that was not 0), `checksum` (of the data read),
    /// `mismatches` (sectors that do not hold the pattern), `flushes`, `kicks`.
    Pmem(Pmem),
    /// Hot-pluggable memory: `mem=started` with `start`, `len`, `usable` and `block`
    /// of the device; then, for each of so many changes of the requested size, plug
    /// or unplug to get there, `mayfly.blocks=` (8) blocks at a time, from the
    /// region's start, with a word stored in each page: a line with `step`, `requested`, `plugged`,
    /// `refused` (requests), `stale` (fresh pages that were not zero), `lost` (plugged
    /// pages that forgot), and of a sample of unplugged pages how many read `zero`, `ones`
    /// and something `old`.
    Mem {
        /// Changes to follow.
        steps: u64,
    },
    /// A second processor that comes and goes. First it is sent a start-up interrupt, if it is not there; then `cpus=started` with what the
    /// registers say of vCPUs 0 to 3 (`s0` …) and how far the second one got (`early`). For each of so many changes a line with `step`:
    /// when it came, `came` (1 if it could be started) and `stale` (how far it got before that); when it was asked for, it is given back,
    /// and `gone` (1 if it stopped) and `moved` (how far it got when it was sent another start-up interrupt). With `mayfly.fast=1` nothing is
    /// watched.
    Cpus {
        /// Changes to follow.
        steps: u64,
    },
    /// A memory balloon with a pool of `mayfly.pool_mib=` (32) MiB, each page of which holds a word. `balloon=started` with `features`
    /// and `pages`; with `mayfly.report=1` all of it is reported as free: `report` (1 if it was answered) and how many pages then read
    /// `zero`, what was stored (`old`), or something `odd`. Then, for so many changes, a line with `step`: pages handed over or
    /// taken back to have as many as the host asks for (`actual`, `answered`, the same three for those that came back, and how many of
    /// those that never left are `lost`); or, when the host asked for hints, `hint` with the command, and after it `hint=over`.
    /// Statistics are told whenever they are asked for: each number is its tag, times 2^32, plus how often it was asked; at
    /// the end `told`.
    Balloon {
        /// Changes to follow: targets, and runs of hinting.
        steps: u64,
    },
    /// Random bytes from the entropy device, as many requests at a time as it takes.
    /// `rng=started` with `queue_max`; then `requests` answered, `bytes`, `longest`
    /// and `empty` ones, `suspicious` (words of eight bytes that are zero or as the one
    /// before), `ones` (bits), `kicks`, `stalled`.
    Rng {
        /// Requests in all.
        requests: u64,
        /// Bytes each asks for, a multiple of 8.
        len: u64,
    },
    /// A file in the root directory of the first file system device, read to its end. `fs=started` with `tag` and `queues`; then `read`
    /// (bytes), `checksum` ([`crate::pattern`]) and `asked` (requests), or `error` (the step) with `errno`.
    Fs {
        /// The file's name.
        name: String,
    },
    /// Services behind the socket device: port 1 sends back what it gets, 2 compares it with [`crate::pattern::stream`], 3 sends `bytes` of
    /// that and closes, 4 accepts and reads nothing, 5 counts what it gets, 6 sends so many of whatever bytes, 9 ends the mode, others are refused. With `connect`, a program of the guest also
    /// sends `bytes` to that port of the host. `vsock=started` with `cid`; `connected` (the host's port); `sunk` and `bad` (bytes) at the
    /// end of a connection to port 2, `sourced` and `open` (0 if it was refused) at that of one that sends; at the end `accepted`,
    /// `refused`, `resets`, `open`, `most_open`, `packets`, `rx_kicks`, `tx_kicks`, `stopped`. With `mayfly.withhold_ms=`, the guest takes
    /// nothing and posts no buffer for so long after the first connection (`vsock=withholding`, `vsock=taking`); ports 2 and 5 have
    /// `mayfly.sink_room=` (1 MiB) bytes of credit.
    Vsock {
        /// Bytes to send, a multiple of 8.
        bytes: u64,
        /// A port of the host to connect to.
        connect: Option<u32>,
    },
    /// A client of the metadata service at 169.254.169.254. `service` (its MAC address) first. With `mayfly.ttl=` it asks for a token for so
    /// long (`token_status`, `token`) and uses it; with `mayfly.token=` it uses that one. Each of the `requests`, on one connection
    /// or with `mayfly.fresh=1` on one each, carries `mayfly.header=`, uses `mayfly.method=` (GET), and is followed by `mayfly.idle_ms=`
    /// (0) of nothing: `status`, `len` and the beginning of the `body` (with `_` for what is no ASCII letter or sign), unless
    /// `mayfly.quiet=1`, or `trouble`. At the end `requests`, `good` (status 200), `failed`, `elapsed_ns`.
    Mmds {
        /// Requests.
        requests: u64,
        /// Path of all of them.
        path: String,
    },
    /// Devices that come and go on a PCI bus. `hotplug=started`; then, for so many of them, `plugged` (the slot) with what was read of the
    /// `drive` or `pmem` (eight bytes), the MAC address of the `net`, or `refused`, `silent`, `nothing`; and `leaving` (the slot) for one that the
    /// guest is asked for, which it lets go of unless `mayfly.keep=1`; at the end `hotplug=over` with `steps`. Nothing of that with
    /// `mayfly.quiet=1`.
    Hotplug {
        /// Comings and goings to follow.
        steps: u64,
    },
    /// Keep drive, network interface and entropy device busy without a pause, each
    /// with 64 requests waiting, until the drive has answered so many. With
    /// `mayfly.kicks=1` also ring the drive's doorbell all the time. `busy=started`;
    /// then `busy=ended` with `reads`, `errors`, `frames`, `draws`, `kicks`.
    Busy {
        /// Reads of the drive.
        ops: u64,
    },
    /// Keep drive, network interface, entropy device and `mayfly.pool_mib=` (4) MiB of memory at work for ever, checking all of it.
    /// `life=started` with `generation` (id) and `pages`; every `mayfly.pace_ms=` (10) a line with `tick`, `answers`, `frames`, `draws`,
    /// `rounds`, and what was wrong: `doubled`, `failed`, `changed`, `memory`, `random`. When the generation id changes: `restored` with
    /// the new one. So many ticks later `life=over`. `life=stuck` if the drive does not answer any more.
    Life {
        /// Ticks after the restore.
        after: u64,
    },
    /// Malicious behaviour: a case name of [`crate::hostile::CASES`], `all`, or a
    /// prefix that ends in a dash (`g9-`). One line per case: `case`, `outcome`,
    /// `status`, `recovered`, and facts.
    Hostile(String),
}

/// How the machine ends after the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// Keyboard controller reset.
    #[default]
    Reset,
    /// ACPI S5 by the sleep control register.
    S5,
    /// Triple fault.
    TripleFault,
    /// Not at all: poll for ever.
    Spin,
}

/// Functional block requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// What to do.
    pub op: BlockOp,
    /// Which drive, counting block devices from 0 in address order.
    pub drive: u32,
    /// First sector (512 bytes each).
    pub sector: u64,
    /// Number of sectors.
    pub sectors: u64,
    /// Seed of the pattern written or verified.
    pub seed: u64,
    /// How requests look.
    pub transfer: Transfer,
}

/// A block operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOp {
    /// Read and checksum.
    Read,
    /// Write the pattern.
    Write,
    /// Read and compare with the pattern.
    Verify,
    /// VIRTIO_BLK_T_FLUSH.
    Flush,
    /// VIRTIO_BLK_T_DISCARD of the range.
    Discard,
    /// VIRTIO_BLK_T_WRITE_ZEROES of the range.
    WriteZeroes,
    /// VIRTIO_BLK_T_GET_ID.
    GetId,
}

/// Operations on persistent memory, the device with the index `mayfly.pmem=`
/// (0). Flush requests come last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pmem {
    /// What to do.
    pub op: PmemOp,
    /// First byte, a multiple of 512.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
    /// Seed of the pattern written or verified; sector 0 is the device's first.
    pub seed: u64,
    /// Flush requests afterwards.
    pub flushes: u64,
}

/// An operation on persistent memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmemOp {
    /// Read, checksum, and compare with the pattern, `mayfly.rounds=` (1) times.
    Read,
    /// Write the pattern.
    Write,
    /// Store one word in each page.
    Poke,
    /// Nothing: flush requests only.
    Flush,
    /// Let drive 0 read its sector `mayfly.sector=` (0) into the range.
    DmaIn,
    /// Let drive 0 write the range to its sector `mayfly.sector=` (0).
    DmaOut,
}

/// How block requests look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Sectors per functional request, at most 2048.
    pub request_sectors: u64,
    /// Data descriptors per request, 1 to 32; functional requests cut them unevenly.
    pub chain: u16,
    /// Negotiate and use indirect descriptors.
    pub indirect: bool,
    /// Negotiate event indices.
    pub event_idx: bool,
}

/// A block benchmark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Write instead of read.
    pub write: bool,
    /// Random instead of sequential.
    pub random: bool,
    /// Bytes per request, a multiple of 512.
    pub block_bytes: u64,
    /// Requests in flight, at most 256 and what fits in the queue.
    pub depth: u16,
    /// Requests in all.
    pub ops: u64,
    /// Which drive.
    pub drive: u32,
    /// How requests look (`request_sectors` does not apply).
    pub transfer: Transfer,
}

/// The network responder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    /// The address it answers for.
    pub ip: Ipv4Addr,
    /// End after this many answers.
    pub packets: Option<u64>,
    /// End after this many milliseconds. A UDP datagram to port 9 that begins
    /// with `stop` ends it earlier.
    pub limit_ms: u64,
}

/// A direction of network traffic, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Guest to host.
    Tx,
    /// Host to guest.
    Rx,
}

impl Default for Transfer {
    /// One 4 KiB descriptor, direct, no event indices.
    fn default() -> Self {
        Self { request_sectors: 8, chain: 1, indirect: false, event_idx: false }
    }
}

impl Block {
    /// `op` on the first 8 sectors of the first drive, seed 1.
    pub fn new(op: BlockOp) -> Self {
        Self { op, drive: 0, sector: 0, sectors: 8, seed: 1, transfer: Transfer::default() }
    }
}

impl Pmem {
    /// `op` on the first page, no flush, seed 1.
    pub fn new(op: PmemOp) -> Self {
        Self { op, offset: 0, len: 4096, seed: 1, flushes: 0 }
    }
}

impl Job {
    /// A job that ends with a keyboard controller reset.
    pub fn new(mode: Mode) -> Self {
        Self { mode, end: End::default(), boot_timer: false, tsc_khz: None, more: Vec::new() }
    }

    /// Ends the machine another way.
    pub fn end(mut self, end: End) -> Self {
        self.end = end;
        self
    }

    /// Writes the boot-timer byte before anything else.
    pub fn boot_timer(mut self) -> Self {
        self.boot_timer = true;
        self
    }

    /// Tells the TSC's frequency, for hosts whose CPUID does not.
    pub fn tsc_khz(mut self, khz: u64) -> Self {
        self.tsc_khz = Some(khz);
        self
    }

    /// Adds another `mayfly.key=value` word; the last one with a key wins.
    /// Useful ones: `net`/`drive` (which device), `queue` (which of a drive's), `batch` (frames per doorbell),
    /// `reading` (the network responder has a read in flight),
    /// `panic` (events told to the pvpanic port before the end),
    /// `idle_ms`, `ms`, `bytes`, `kicks`, `rounds`, `patience_ms`, `withhold_ms`
    /// (a network driver is up for so long before it posts receive buffers).
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.more.push((key.to_owned(), value.to_string()));
        self
    }

    /// The kernel command line.
    pub fn command_line(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The entry stub looks for this at the very start of the line only.
        if matches!(self.mode, Mode::Hello | Mode::Probe | Mode::BenchBlock(_) | Mode::BenchNet { .. }) {
            write!(f, "mayfly.cpuid=1 ")?;
        }
        self.mode.fmt(f)?;
        let end = match self.end {
            End::Reset => None,
            End::S5 => Some("s5"),
            End::TripleFault => Some("triple-fault"),
            End::Spin => Some("spin"),
        };
        if let Some(end) = end {
            write!(f, " mayfly.end={end}")?;
        }
        if self.boot_timer {
            write!(f, " mayfly.boot_timer=1")?;
        }
        if let Some(khz) = self.tsc_khz {
            write!(f, " mayfly.tsc_khz={khz}")?;
        }
        for (key, value) in &self.more {
            write!(f, " mayfly.{key}={value}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello => write!(f, "mayfly.mode=hello"),
            Self::Probe => write!(f, "mayfly.mode=probe"),
            Self::Spin => write!(f, "mayfly.mode=spin"),
            Self::SpinQuiet => write!(f, "mayfly.mode=spin-quiet"),
            Self::Block(block) => {
                write!(f, "mayfly.mode=block mayfly.op={} mayfly.drive={}", block.op.word(), block.drive)?;
                write!(f, " mayfly.sector={} mayfly.sectors={}", block.sector, block.sectors)?;
                write!(f, " mayfly.seed={} mayfly.request={}", block.seed, block.transfer.request_sectors)?;
                block.transfer.fmt(f)
            }
            Self::BlockQueues { write, sectors, seed, cpus } => {
                let op = if *write { "write" } else { "verify" };
                write!(f, "mayfly.mode=block-queues mayfly.op={op} mayfly.sectors={sectors}")?;
                write!(f, " mayfly.seed={seed} mayfly.cpus={cpus}")
            }
            Self::BenchBlock(load) => {
                let order = if load.random { "rand" } else { "seq" };
                let what = if load.write { "write" } else { "read" };
                write!(f, "mayfly.mode=bench-block mayfly.rw={order}{what} mayfly.bs={}", load.block_bytes)?;
                write!(f, " mayfly.qd={} mayfly.ops={} mayfly.drive={}", load.depth, load.ops, load.drive)?;
                load.transfer.fmt(f)
            }
            Self::Net(net) => {
                write!(f, "mayfly.mode=net mayfly.ip={} mayfly.ms={}", net.ip, net.limit_ms)?;
                match net.packets {
                    Some(packets) => write!(f, " mayfly.packets={packets}"),
                    None => Ok(()),
                }
            }
            Self::BenchNet { direction, size, packets } => {
                let dir = match direction {
                    Direction::Tx => "tx",
                    Direction::Rx => "rx",
                };
                write!(f, "mayfly.mode=bench-net mayfly.dir={dir} mayfly.size={size} mayfly.packets={packets}")
            }
            Self::Watch => write!(f, "mayfly.mode=watch"),
            Self::Pmem(pmem) => {
                write!(f, "mayfly.mode=pmem mayfly.op={} mayfly.offset={}", pmem.op.word(), pmem.offset)?;
                write!(f, " mayfly.len={} mayfly.seed={} mayfly.flushes={}", pmem.len, pmem.seed, pmem.flushes)
            }
            Self::Mem { steps } => write!(f, "mayfly.mode=mem mayfly.steps={steps}"),
            Self::Cpus { steps } => write!(f, "mayfly.mode=cpus mayfly.steps={steps}"),
            Self::Balloon { steps } => write!(f, "mayfly.mode=balloon mayfly.steps={steps}"),
            Self::Rng { requests, len } => write!(f, "mayfly.mode=rng mayfly.requests={requests} mayfly.len={len}"),
            Self::Fs { name } => write!(f, "mayfly.mode=fs mayfly.name={name}"),
            Self::Vsock { bytes, connect } => {
                let port = connect.unwrap_or(0);
                write!(f, "mayfly.mode=vsock mayfly.bytes={bytes} mayfly.connect={port}")
            }
            Self::Mmds { requests, path } => {
                write!(f, "mayfly.mode=mmds mayfly.requests={requests} mayfly.path={path}")
            }
            Self::Hotplug { steps } => write!(f, "mayfly.mode=hotplug mayfly.steps={steps}"),
            Self::Busy { ops } => write!(f, "mayfly.mode=busy mayfly.ops={ops}"),
            Self::Life { after } => write!(f, "mayfly.mode=life mayfly.after={after}"),
            Self::Hostile(case) => write!(f, "mayfly.mode=hostile mayfly.case={case}"),
        }
    }
}

impl PmemOp {
    fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Poke => "poke",
            Self::Flush => "flush",
            Self::DmaIn => "dma-in",
            Self::DmaOut => "dma-out",
        }
    }
}

impl BlockOp {
    fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Verify => "verify",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "zeroes",
            Self::GetId => "getid",
        }
    }
}

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (indirect, event_idx) = (u8::from(self.indirect), u8::from(self.event_idx));
        write!(f, " mayfly.chain={} mayfly.indirect={indirect} mayfly.event_idx={event_idx}", self.chain)
    }
}

#[cfg(test)]
mod tests {
    use super::{Block, BlockOp, Direction, Job, Mode, Transfer, Workload};

    #[test]
    fn every_option_reaches_the_line() {
        let block = Block { drive: 1, sector: 7, seed: 9, ..Block::new(BlockOp::Verify) };
        assert_eq!(
            Job::new(Mode::Block(block)).boot_timer().with("patience_ms", 20).command_line(),
            "mayfly.mode=block mayfly.op=verify mayfly.drive=1 mayfly.sector=7 mayfly.sectors=8 \
             mayfly.seed=9 mayfly.request=8 mayfly.chain=1 mayfly.indirect=0 mayfly.event_idx=0 \
             mayfly.boot_timer=1 mayfly.patience_ms=20"
        );
    }

    #[test]
    fn benchmarks_ask_for_cpuid_first() {
        let load = Workload {
            write: true,
            random: true,
            block_bytes: 4096,
            depth: 32,
            ops: 10,
            drive: 0,
            transfer: Transfer::default(),
        };
        let line = Job::new(Mode::BenchBlock(load)).tsc_khz(5).command_line();
        assert!(line.starts_with("mayfly.cpuid=1 mayfly.mode=bench-block mayfly.rw=randwrite "), "{line}");
        assert!(line.ends_with(" mayfly.tsc_khz=5"), "{line}");
        let net = Mode::BenchNet { direction: Direction::Rx, size: 64, packets: 3 };
        assert!(Job::new(net).command_line().starts_with("mayfly.cpuid=1 "));
    }

    #[test]
    fn a_long_job_fits_the_kernel_command_line() {
        let block = Block { sector: u64::MAX, sectors: u64::MAX, seed: u64::MAX, ..Block::new(BlockOp::Write) };
        assert!(Job::new(Mode::Block(block)).command_line().len() < 1024);
    }
}
