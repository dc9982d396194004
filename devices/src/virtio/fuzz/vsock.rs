//! A socket device: packets of the guest, programs of the host, and both ends of their connections.

use std::cell::RefCell;
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use vmm_sys_util::tempdir::TempDir;

use super::queues::{BUFFERS, Queues, ring};
use super::*;
use crate::virtio::vsock::{Vsock, VsockSpec};

const CID: u32 = 3;
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// Ports of the host where somebody listens; there is nobody at the next ones.
const LISTENERS: u32 = 2;
/// What the device calls its own first connections.
const FIRST_OWN_PORT: u32 = 1 << 30;
const HEADER_LEN: u32 = 44;
/// Host programs at a time.
const PROGRAMS: usize = 24;

/// Sockets of the host, made once: to make them costs more than a run.
struct Sockets {
    path: PathBuf,
    listener: UnixListener,
    listeners: Vec<UnixListener>,
    /// Stays as long as the sockets in it.
    _dir: TempDir,
}

thread_local! {
    static SOCKETS: RefCell<Option<Sockets>> = const { RefCell::new(None) };
}

fn sockets() -> Sockets {
    SOCKETS.take().unwrap_or_else(|| {
        let dir = TempDir::new_with_prefix("/tmp/fuzz").expect("a temporary directory");
        let path = dir.as_path().join("v");
        let bind = |path: PathBuf| {
            let listener = UnixListener::bind(path).expect("a listener");
            listener.set_nonblocking(true).expect("a socket");
            listener
        };
        let numbered = |port| dir.as_path().join(format!("v_{port}"));
        let listeners = (0..LISTENERS).map(|port| bind(numbered(port))).collect();
        let listener = bind(path.clone());
        Sockets { path, listener, listeners, _dir: dir }
    })
}

struct World {
    guest: Queues<3>,
    sockets: Sockets,
    programs: Vec<UnixStream>,
    posted: u16,
}

impl World {
    fn port(input: &mut Input<'_>) -> u32 {
        match input.byte() {
            0..=3 => input.u32(),
            4..=130 => FIRST_OWN_PORT + u32::from(input.byte() % 6),
            _ => u32::from(input.byte()) % (LISTENERS + 2),
        }
    }

    /// A packet with a header that makes sense, more often than not.
    fn packet(&mut self, input: &mut Input<'_>) {
        let first = u16::from(input.byte() % 128) * 2;
        let at = BUFFERS + u64::from(first) * 1024;
        let op = if input.byte() < 8 { input.u16() } else { u16::from(input.byte() % 8) };
        let len = match (op, input.byte()) {
            (5, 0..=200) => u32::from(input.u16() % 2048),
            (_, 0..=240) => 0,
            _ => input.u32(),
        };
        let cid = |input: &mut Input<'_>, usual: u64| if input.byte() < 5 { input.u64() } else { usual };
        let (from, to) = (cid(input, CID.into()), cid(input, 2));
        let (guest_port, host_port) = (u32::from(input.byte() % 6), Self::port(input));
        let kind = if input.byte() < 4 { input.u16() } else { 1 };
        let flags = if input.byte() < 4 { input.u32() } else { u32::from(input.byte() % 4) };
        let room = if input.byte() < 30 { input.u32() } else { 1 << 20 };
        let forwarded = if input.byte() < 30 { input.u32() } else { 0 };
        let mut header = Vec::with_capacity(HEADER_LEN as usize);
        header.extend(from.to_le_bytes());
        header.extend(to.to_le_bytes());
        for word in [guest_port, host_port, len, u32::from(op) << 16 | u32::from(kind), flags, room, forwarded] {
            header.extend(word.to_le_bytes());
        }
        let machine = &self.guest.machine;
        let _ = machine.ram.write_slice(&header, GuestAddress(at));
        let there = if input.byte() < 8 { input.u16().into() } else { HEADER_LEN + len.min(1900) };
        let slot = ring(TX) + 16 * u64::from(first);
        if input.byte() < 128 && there > HEADER_LEN {
            machine.descriptor(slot, at, HEADER_LEN, 1, first + 1);
            machine.descriptor(slot + 16, at + u64::from(HEADER_LEN), there - HEADER_LEN, 0, 0);
        } else {
            machine.descriptor(slot, at, there, 0, 0);
        }
        self.guest.offer(TX, first);
    }

    /// Receive buffers as a driver posts them.
    fn post(&mut self, count: u16) {
        for _ in 0..count {
            let slot = self.posted % 256;
            self.posted = self.posted.wrapping_add(1);
            let at = BUFFERS + 0x4_0000 + u64::from(slot) * 512;
            self.guest.machine.descriptor(ring(RX) + 16 * u64::from(slot), at, 512, 2, 0);
            self.guest.offer(RX, slot);
        }
        self.guest.machine.write(0x50, RX as u32);
    }

    fn program(&mut self, input: &mut Input<'_>) {
        let Some(index) = usize::from(input.byte()).checked_rem(self.programs.len()) else { return };
        match input.byte() % 6 {
            0 => drop(self.programs.swap_remove(index)),
            1 => {
                let how = if input.byte() & 1 == 0 { std::net::Shutdown::Write } else { std::net::Shutdown::Read };
                let _ = self.programs[index].shutdown(how);
            }
            2..=3 => {
                let _ = self.programs[index].write(&vec![0x33; usize::from(input.u16() % 4000)]);
            }
            _ => {
                let _ = self.programs[index].read(&mut vec![0; usize::from(input.u16())]);
            }
        }
    }

    fn connect(&mut self, line: &[u8]) {
        if self.programs.len() < PROGRAMS
            && let Ok(mut stream) = UnixStream::connect(&self.sockets.path)
        {
            stream.set_nonblocking(true).expect("a socket");
            let _ = stream.write(line);
            self.programs.push(stream);
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0 => self.guest.machine.step(input),
            1 => {
                let features = if input.byte() < 200 { u64::MAX } else { input.u64() };
                self.guest.bring_up(features);
            }
            2 => self.guest.chain(RX, input, true),
            3 => self.guest.chain(TX, input, false),
            4 => self.guest.chain(EVENT, input, true),
            5 => self.post(u16::from(input.byte() % 32)),
            6 => {
                let line = match input.byte() {
                    0..=40 => (0..input.byte() % 64).map(|_| input.byte()).collect(),
                    41..=60 => b"CONNECT 7".to_vec(),
                    _ => format!("connect {}\n", input.byte() % 4).into_bytes(),
                };
                self.connect(&line);
            }
            7..=9 => self.program(input),
            _ => self.packet(input),
        }
        if input.byte() > 60 {
            self.guest.machine.write(0x50, u32::from(input.byte() % 4));
        }
        self.guest.machine.turn();
        for listener in &self.sockets.listeners {
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).expect("a socket");
                if self.programs.len() < PROGRAMS {
                    self.programs.push(stream);
                }
            }
        }
    }
}

/// Registers, rings, packets and host programs at a socket device, as `data` says. Returns how many connections there were and how many
/// bytes went either way.
pub fn vsock(data: &[u8]) -> (u64, u64) {
    let mut input = Input(data);
    let sockets = sockets();
    let listener = sockets.listener.try_clone().expect("a spare descriptor");
    let device = Vsock::new(VsockSpec { guest_cid: CID, uds_path: sockets.path.clone(), listener }).expect("a device");
    let metrics = device.metrics();
    let guest = Queues::new(Machine::new("fuzzed sockets", AnyDevice::Vsock(Box::new(device)), ram()));
    let mut world = World { guest, sockets, programs: Vec::new(), posted: 0 };
    world.guest.bring_up(u64::MAX);
    world.post(32);
    while !input.0.is_empty() {
        world.step(&mut input);
    }
    let machine = &world.guest.machine;
    machine.reset();
    machine.cell.resume();
    assert_eq!(metrics.conns_added.get(), metrics.conns_removed.get(), "connections outlive their driver");
    // Whatever happened before, a reset makes a working device of it: a host program's wish reaches the guest.
    world.programs.clear();
    world.guest.bring_up(u64::MAX);
    world.post(200);
    let before = metrics.conns_added.get();
    world.connect(b"CONNECT 99\n");
    // Programs that came before and were not let in yet come first.
    for _ in 0..PROGRAMS {
        world.guest.machine.turn();
    }
    assert!(metrics.conns_added.get() > before, "the device did not recover");
    let done = (metrics.conns_added.get(), metrics.rx_bytes_count.get() + metrics.tx_bytes_count.get());
    world.guest.machine.write(0x70, 0);
    let World { sockets, .. } = world;
    SOCKETS.set(Some(sockets));
    done
}
