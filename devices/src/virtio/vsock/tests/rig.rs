//! A device on a real loop and real sockets, with a driver that is written by hand.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use zerocopy::{FromBytes, IntoBytes};

use super::super::packet::{HEADER_LEN, HOST_CID, Header, Ports, STREAM, op};
use super::super::{Vsock, VsockMetrics, VsockSpec};
use crate::virtio::device::{Rings, VirtioDevice};
use crate::virtio::queue::Visit;
use crate::virtio::test_driver::{Buffer, TestDriver};

pub const CID: u32 = 42;
pub const RX: u16 = 0;
pub const TX: u16 = 1;
pub const EVENT: u16 = 2;
/// How long to wait for what has to come.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Room that the guest claims to have, unless a test says otherwise.
pub const ROOM: u32 = 1 << 30;

const SIZE: u16 = 128;
const RX_AREA: u64 = TestDriver::FREE;
const TX_AREA: u64 = TestDriver::FREE + (8 << 20);

/// A packet that the guest received.
#[derive(Debug, Clone)]
pub struct Packet {
    pub header: Header,
    pub data: Vec<u8>,
}

impl Packet {
    pub fn op(&self) -> u16 {
        self.header.op.get()
    }

    /// As the guest names its connection.
    pub fn ports(&self) -> Ports {
        Ports { host: self.header.src_port.get(), guest: self.header.dst_port.get() }
    }
}

pub struct Rig {
    _dir: TempDir,
    pub path: PathBuf,
    pub device: Vsock,
    pub driver: TestDriver,
    pub rings: Rings,
    /// Bytes of a receive buffer.
    pub buffer_len: u32,
    /// The room that the guest claims.
    pub room: u32,
    /// How often the loop woke up.
    pub wakes: u64,
    outer: Epoll,
    rx_heads: Vec<(u16, u64)>,
    rx_slot: u64,
    tx_slot: u64,
    tx_heads: Vec<u16>,
}

impl Rig {
    /// A device whose driver is up and has posted no receive buffers.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut device = Vsock::new(VsockSpec { guest_cid: CID, uds_path: path.clone(), listener }).unwrap();
        let driver = TestDriver::new(3, SIZE);
        let mut rings = driver.rings(false, false);
        device.activate(device.features(), &mut rings).unwrap();
        let outer = Epoll::new().unwrap();
        for source in device.sources() {
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, source.token.into());
            outer.ctl(ControlOperation::Add, source.fd, event).unwrap();
        }
        Self {
            _dir: dir,
            path,
            device,
            driver,
            rings,
            buffer_len: 4096,
            room: ROOM,
            wakes: 0,
            outer,
            rx_heads: Vec::new(),
            rx_slot: 0,
            tx_slot: 0,
            tx_heads: Vec::new(),
        }
    }

    /// The same with plenty of receive buffers.
    pub fn ready() -> Self {
        let mut rig = Self::new();
        rig.post(64);
        rig
    }

    pub fn metrics(&self) -> std::sync::Arc<VsockMetrics> {
        self.device.metrics()
    }

    /// A reset and another driver.
    pub fn restart(&mut self) {
        self.device.reset();
        self.driver = TestDriver::new(3, SIZE);
        self.rings = self.driver.rings(false, false);
        self.rx_heads.clear();
        self.tx_heads.clear();
        self.device.activate(self.device.features(), &mut self.rings).unwrap();
        self.visit_all();
    }

    /// What the device's cell does after activation and after a pause.
    pub fn visit_all(&mut self) {
        for queue in [RX, TX, EVENT] {
            self.visit(queue);
        }
        for source in self.device.sources() {
            self.device.on_source(source.token, &mut self.rings).unwrap();
        }
    }

    fn visit(&mut self, queue: u16) {
        for _ in 0..10_000 {
            if self.device.on_doorbell(queue, &mut self.rings).unwrap() == Visit::Idle {
                return;
            }
        }
        panic!("queue {queue} is never done");
    }

    /// Rings the doorbell, if the device wants to hear it.
    pub fn ring(&mut self, queue: u16) {
        let used = self.driver.queues[usize::from(queue)].geometry.used;
        let flags: u16 = self.driver.ram.read_obj(GuestAddress(used)).unwrap();
        if flags & 1 == 0 {
            self.visit(queue);
        }
    }

    /// Waits for an event at most so long and hands it to the device. `false` if there was none.
    pub fn turn(&mut self, patience: Duration) -> bool {
        let mut events = [EpollEvent::default(); 4];
        let count = self.outer.wait(patience.as_millis() as i32, &mut events).unwrap();
        for event in &events[..count] {
            self.wakes += 1;
            self.device.on_source(event.data() as u32, &mut self.rings).unwrap();
        }
        count > 0
    }

    /// Handles events until none comes for a moment.
    pub fn settle(&mut self) {
        while self.turn(Duration::from_millis(20)) {}
    }

    /// Handles events until `done` holds.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "{what} did not happen");
            self.turn(Duration::from_millis(10));
        }
    }

    /// Posts receive buffers.
    pub fn post(&mut self, count: u16) {
        for _ in 0..count {
            let addr = RX_AREA + (self.rx_slot % u64::from(SIZE)) * (48 << 10);
            self.rx_slot += 1;
            let head = self.driver.offer(RX.into(), &[Buffer { addr, len: self.buffer_len, writable: true }]);
            self.rx_heads.push((head, addr));
        }
        self.ring(RX);
    }

    /// The next packet the guest has received, without posting its buffer again.
    pub fn take(&mut self) -> Option<Packet> {
        let (head, len) = self.driver.take_used(RX.into())?;
        let (expected, addr) = self.rx_heads.remove(0);
        assert_eq!(head, expected, "buffers come back in order");
        let mut bytes = vec![0; len as usize];
        self.driver.ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        let (header, data) = Header::read_from_prefix(&bytes).expect("a whole header");
        assert_eq!(header.len.get() as usize, data.len(), "{header:?}");
        assert_eq!(header.dst_cid.get(), u64::from(CID));
        Some(Packet { header, data: data.to_vec() })
    }

    /// Waits for the next packet to the guest and posts its buffer again.
    #[track_caller]
    pub fn receive(&mut self) -> Packet {
        let mut got = None;
        self.until("a packet to the guest", |rig| {
            got = rig.take();
            got.is_some()
        });
        self.post(1);
        got.unwrap()
    }

    /// Waits for the next packet and checks what it is.
    #[track_caller]
    pub fn expect(&mut self, op: u16, ports: Ports) -> Packet {
        let packet = self.receive();
        assert_eq!((packet.op(), packet.ports()), (op, ports), "{packet:?}");
        assert_eq!((packet.header.src_cid.get(), packet.header.kind.get()), (HOST_CID, STREAM));
        packet
    }

    /// The same behind any number of credit updates.
    #[track_caller]
    pub fn expect_after_updates(&mut self, op: u16, ports: Ports) -> Packet {
        loop {
            let packet = self.receive();
            if packet.op() != op::CREDIT_UPDATE {
                assert_eq!((packet.op(), packet.ports()), (op, ports), "{packet:?}");
                return packet;
            }
        }
    }

    #[track_caller]
    pub fn expect_nothing(&mut self) {
        self.settle();
        if let Some(packet) = self.take() {
            panic!("{packet:?}");
        }
    }

    pub fn header(&self, op: u16, ports: Ports) -> Header {
        Header {
            src_cid: u64::from(CID).into(),
            dst_cid: HOST_CID.into(),
            src_port: ports.guest.into(),
            dst_port: ports.host.into(),
            len: 0.into(),
            kind: STREAM.into(),
            op: op.into(),
            flags: 0.into(),
            buf_alloc: self.room.into(),
            fwd_cnt: 0.into(),
        }
    }

    /// Puts a packet on the transmit ring: the header in one descriptor, the data in another.
    pub fn put(&mut self, header: Header, data: &[u8]) {
        while self.driver.take_used(TX.into()).is_some_and(|(head, _)| {
            assert_eq!(head, self.tx_heads.remove(0), "packets come back in order");
            true
        }) {}
        assert!(self.tx_heads.len() < usize::from(SIZE) / 2, "the ring is full");
        let addr = TX_AREA + (self.tx_slot % 64) * (64 << 10);
        self.tx_slot += 1;
        self.driver.ram.write_slice(header.as_bytes(), GuestAddress(addr)).unwrap();
        self.driver.ram.write_slice(data, GuestAddress(addr + 64)).unwrap();
        let whole = Buffer { addr, len: HEADER_LEN as u32, writable: false };
        let rest = Buffer { addr: addr + 64, len: data.len() as u32, writable: false };
        let pieces = [whole, rest];
        let head = self.driver.offer(TX.into(), &pieces[..if data.is_empty() { 1 } else { 2 }]);
        self.tx_heads.push(head);
    }

    /// Packets on the transmit ring that did not come back.
    pub fn unsent(&mut self) -> usize {
        while self.driver.take_used(TX.into()).is_some() {
            self.tx_heads.remove(0);
        }
        self.tx_heads.len()
    }

    pub fn send_header(&mut self, header: Header, data: &[u8]) {
        self.put(header, data);
        self.ring(TX);
    }

    pub fn send(&mut self, op: u16, ports: Ports) {
        self.send_header(self.header(op, ports), &[]);
    }

    pub fn send_data(&mut self, ports: Ports, data: &[u8]) {
        let header = Header { len: (data.len() as u32).into(), ..self.header(op::RW, ports) };
        self.send_header(header, data);
    }

    pub fn shut(&mut self, ports: Ports, flags: u32) {
        self.send_header(Header { flags: flags.into(), ..self.header(op::SHUTDOWN, ports) }, &[]);
    }

    /// A host program that asks for a port.
    pub fn connect(&self, line: &str) -> UnixStream {
        use std::io::Write;
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream
    }

    /// A connection of a host program that the guest accepted.
    #[track_caller]
    pub fn host_connects(&mut self, guest: u32) -> (UnixStream, Ports) {
        let mut stream = self.connect(&format!("CONNECT {guest}\n"));
        let request = self.receive();
        assert_eq!((request.op(), request.ports().guest), (op::REQUEST, guest), "{request:?}");
        self.send(op::RESPONSE, request.ports());
        self.settle();
        let line = read_line(&mut stream);
        assert_eq!(line, format!("OK {}\n", request.ports().host));
        (stream, request.ports())
    }

    /// A listener for a port of the host.
    pub fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path.display())).unwrap()
    }

    /// A connection of the guest that a host program accepted.
    #[track_caller]
    pub fn guest_connects(&mut self, listener: &UnixListener, ports: Ports) -> UnixStream {
        self.send(op::REQUEST, ports);
        self.expect(op::RESPONSE, ports);
        let stream = listener.accept().unwrap().0;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

/// Reads up to a newline.
pub fn read_line(stream: &mut UnixStream) -> String {
    use std::io::Read;
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        match stream.read(&mut byte) {
            Ok(1) => line.push(byte[0]),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&line)),
        }
    }
    String::from_utf8(line).unwrap()
}

/// Bytes that no shift or gap leaves alike.
pub fn pattern(seed: u64, from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 ^ seed as u8).collect()
}
