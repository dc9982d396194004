//! Everything at once, at random: connections from both sides, data both ways, half-closes, stalls of the guest and of the host.
//! Whatever is written before a clean end arrives, byte for byte; nobody's room overflows; in the end nothing is left.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::packet::{Header, Ports, op};
use super::rig::{Rig, TX, pattern};

const LISTENER: u32 = 500;
/// Small, so that it is used up all the time.
const ROOM: u32 = 9000;

/// One connection as a guest and a host program see it, and what each of them did.
struct Talk {
    ports: Ports,
    seed: u64,
    stream: UnixStream,
    // The guest's side.
    guest_sent: u64,
    guest_got: u64,
    /// Of what it got, what its program has read, and what the device knows of that.
    guest_read: u64,
    guest_told: u64,
    heard: (u32, u32),
    guest_shut: u32,
    host_shut: u32,
    // The host's side.
    host_sent: u64,
    host_got: u64,
    host_wrote_all: bool,
    host_saw_end: bool,
    over: bool,
}

impl Talk {
    fn header(&self, rig: &Rig, op: u16) -> Header {
        Header { fwd_cnt: (self.guest_read as u32).into(), buf_alloc: ROOM.into(), ..rig.header(op, self.ports) }
    }

    fn guest_sends(&mut self, rig: &mut Rig, most: usize) {
        let (alloc, forwarded) = self.heard;
        let credit = alloc - (self.guest_sent as u32).wrapping_sub(forwarded);
        let len = most.min(credit as usize).min(30_000);
        if self.guest_shut & 2 == 0 && self.host_shut & 1 == 0 && !self.over && len > 0 && rig.unsent() < 40 {
            let data = pattern(self.seed, self.guest_sent, len);
            let header = Header { len: (len as u32).into(), ..self.header(rig, op::RW) };
            self.guest_told = self.guest_read;
            rig.put(header, &data);
            self.guest_sent += len as u64;
        }
    }

    fn guest_reads(&mut self, rig: &mut Rig, most: u64) {
        self.guest_read += most.min(self.guest_got - self.guest_read);
        let seen = u64::from(ROOM).saturating_sub(self.guest_got - self.guest_told);
        if !self.over && seen < u64::from(ROOM / 2) && self.guest_read > self.guest_told && rig.unsent() < 40 {
            self.guest_told = self.guest_read;
            rig.put(self.header(rig, op::CREDIT_UPDATE), &[]);
        }
    }

    fn guest_shuts(&mut self, rig: &mut Rig, flags: u32) {
        if !self.over && self.guest_shut | flags != self.guest_shut && rig.unsent() < 40 {
            self.guest_shut |= flags;
            rig.put(Header { flags: self.guest_shut.into(), ..self.header(rig, op::SHUTDOWN) }, &[]);
        }
    }

    fn host_writes(&mut self, most: usize) {
        if !self.host_wrote_all {
            match self.stream.write(&pattern(!self.seed, self.host_sent, most)) {
                Ok(count) => self.host_sent += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => {
                    assert!(self.guest_shut & 1 != 0 || self.over, "{error}");
                    self.host_wrote_all = true;
                }
            }
        }
    }

    fn host_reads(&mut self, most: usize) {
        let mut bytes = vec![0; most];
        match self.stream.read(&mut bytes) {
            Ok(0) => {
                assert!(self.guest_shut & 2 != 0 || self.over, "an end that nobody made");
                self.host_saw_end = true;
            }
            Ok(count) => {
                assert!(bytes[..count] == pattern(self.seed, self.host_got, count), "the host got something else");
                self.host_got += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // The guest closed while something of ours was on its way.
            Err(error) => {
                assert!(self.guest_shut & 1 != 0, "{error}");
                self.host_saw_end = true;
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    HostConnects,
    GuestConnects,
    GuestSends(usize, usize),
    GuestReads(usize, u64),
    GuestShuts(usize, u32),
    HostWrites(usize, usize),
    HostReads(usize, usize),
    HostShuts(usize),
    Ring,
    Turn,
    GuestReceives(u16),
    Post(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = 0usize..6;
    let amount = prop_oneof![1usize..100, 1usize..50_000];
    let step = prop_oneof![
        1 => Just(Step::HostConnects),
        1 => Just(Step::GuestConnects),
        8 => (who.clone(), amount.clone()).prop_map(|(w, n)| Step::GuestSends(w, n)),
        6 => (who.clone(), amount.clone()).prop_map(|(w, n)| Step::GuestReads(w, n as u64)),
        1 => (who.clone(), 1u32..4).prop_map(|(w, flags)| Step::GuestShuts(w, flags)),
        8 => (who.clone(), amount.clone()).prop_map(|(w, n)| Step::HostWrites(w, n)),
        6 => (who.clone(), amount).prop_map(|(w, n)| Step::HostReads(w, n)),
        1 => who.prop_map(Step::HostShuts),
        6 => Just(Step::Ring),
        6 => Just(Step::Turn),
        6 => (1u16..20).prop_map(Step::GuestReceives),
        6 => (1u16..8).prop_map(Step::Post),
    ];
    prop::collection::vec(step, 1..250)
}

struct World {
    rig: Rig,
    listener: std::os::unix::net::UnixListener,
    talks: Vec<Talk>,
    by_ports: HashMap<Ports, usize>,
    /// Packets of connections that are yet to be made.
    news: Vec<(u16, Ports, Header)>,
    posted: u16,
}

impl World {
    fn new() -> Self {
        let mut rig = Rig::new();
        rig.buffer_len = 1500;
        rig.room = ROOM;
        let listener = rig.listen(LISTENER);
        Self { rig, listener, talks: Vec::new(), by_ports: HashMap::new(), news: Vec::new(), posted: 0 }
    }

    fn post(&mut self, count: u16) {
        let count = count.min(100 - self.posted);
        self.posted += count;
        self.rig.post(count);
    }

    fn add(&mut self, stream: UnixStream, ports: Ports, header: Header) {
        stream.set_nonblocking(true).unwrap();
        self.by_ports.insert(ports, self.talks.len());
        self.talks.push(Talk {
            ports,
            seed: self.talks.len() as u64 * 41,
            stream,
            guest_sent: 0,
            guest_got: 0,
            guest_read: 0,
            guest_told: 0,
            heard: (header.buf_alloc.get(), header.fwd_cnt.get()),
            guest_shut: 0,
            host_shut: 0,
            host_sent: 0,
            host_got: 0,
            host_wrote_all: false,
            host_saw_end: false,
            over: false,
        });
    }

    /// The guest looks at a packet. `false` if there is none.
    fn receive(&mut self) -> bool {
        let Some(packet) = self.rig.take() else { return false };
        self.posted -= 1;
        let (op, header) = (packet.op(), packet.header);
        if let Some(talk) = self.by_ports.get(&packet.ports()).and_then(|index| self.talks.get_mut(*index)) {
            if op != op::RST {
                talk.heard = (header.buf_alloc.get(), header.fwd_cnt.get());
            }
            match op {
                op::RW => {
                    assert!(
                        packet.data == pattern(!talk.seed, talk.guest_got, packet.data.len()),
                        "the guest got something else"
                    );
                    assert_eq!(talk.host_shut & 2, 0, "data after the end");
                    talk.guest_got += packet.data.len() as u64;
                    assert!(talk.guest_got - talk.guest_read <= ROOM.into(), "more than its credit");
                }
                op::CREDIT_REQUEST => {
                    talk.guest_told = talk.guest_read;
                    let update = talk.header(&self.rig, op::CREDIT_UPDATE);
                    self.rig.put(update, &[]);
                }
                op::CREDIT_UPDATE => {}
                op::SHUTDOWN => {
                    talk.host_shut |= header.flags.get();
                    if talk.host_shut == 3 {
                        // As Linux does once its program has read everything.
                        talk.over = true;
                        let rst = talk.header(&self.rig, op::RST);
                        self.rig.put(rst, &[]);
                    }
                }
                op::RST => talk.over = true,
                op::RESPONSE => {}
                other => panic!("{other}"),
            }
            self.rig.ring(TX);
        } else {
            self.news.push((op, packet.ports(), header));
        }
        true
    }

    /// Lets everything flow until `done`.
    fn flow(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}");
            self.post(50);
            while self.receive() {}
            for talk in &mut self.talks {
                talk.guest_reads(&mut self.rig, u64::MAX);
                if !talk.host_saw_end {
                    talk.host_reads(50_000);
                }
            }
            self.rig.ring(TX);
            self.rig.turn(Duration::from_millis(1));
        }
    }

    fn hear_news(&mut self, what: &str) -> (u16, Ports, Header) {
        self.flow(what, |world| !world.news.is_empty());
        assert_eq!(self.news.len(), 1, "{:?}", self.news);
        self.news.remove(0)
    }

    fn host_connects(&mut self) {
        let stream = self.rig.connect("CONNECT 9\n");
        let (op, ports, header) = self.hear_news("a request");
        assert_eq!(op, op::REQUEST);
        self.rig.send(op::RESPONSE, ports);
        let mut stream = stream;
        let line = super::rig::read_line(&mut stream);
        assert_eq!(line, format!("OK {}\n", ports.host));
        self.add(stream, ports, header);
    }

    fn guest_connects(&mut self) {
        let ports = Ports { host: LISTENER, guest: self.talks.len() as u32 };
        self.rig.send(op::REQUEST, ports);
        let (op, at, answer) = self.hear_news("an answer");
        assert_eq!((op, at), (op::RESPONSE, ports));
        let stream = self.listener.accept().unwrap().0;
        self.add(stream, ports, answer);
    }

    fn step(&mut self, step: Step) {
        let Self { rig, talks, .. } = self;
        match step {
            Step::HostConnects if talks.len() < 6 => self.host_connects(),
            Step::GuestConnects if talks.len() < 6 => self.guest_connects(),
            Step::HostConnects | Step::GuestConnects => {}
            Step::Ring => rig.ring(TX),
            Step::Turn => drop(rig.turn(Duration::ZERO)),
            Step::GuestReceives(count) => {
                for _ in 0..count {
                    self.receive();
                }
            }
            Step::Post(count) => self.post(count),
            Step::GuestSends(who, n) => talks.get_mut(who).into_iter().for_each(|t| t.guest_sends(rig, n)),
            Step::GuestReads(who, n) => talks.get_mut(who).into_iter().for_each(|t| t.guest_reads(rig, n)),
            Step::GuestShuts(who, flags) => talks.get_mut(who).into_iter().for_each(|t| t.guest_shuts(rig, flags)),
            Step::HostWrites(who, n) => talks.get_mut(who).into_iter().for_each(|t| t.host_writes(n)),
            Step::HostReads(who, n) => talks.get_mut(who).into_iter().for_each(|t| t.host_reads(n)),
            Step::HostShuts(who) => {
                if let Some(talk) = talks.get_mut(who)
                    && !std::mem::replace(&mut talk.host_wrote_all, true)
                {
                    let _ = talk.stream.shutdown(Shutdown::Write);
                }
            }
        }
    }

    /// Everybody stops, and everything that was written arrives.
    fn finish(&mut self) {
        for talk in &mut self.talks {
            if !std::mem::replace(&mut talk.host_wrote_all, true) {
                let _ = talk.stream.shutdown(Shutdown::Write);
            }
        }
        self.flow("not all data arrives", |world| {
            world.talks.iter().all(|talk| {
                let to_host = talk.host_got == talk.guest_sent;
                // A guest that receives no more does without the rest.
                let to_guest = talk.guest_got == talk.host_sent || talk.guest_shut & 1 != 0;
                to_host && to_guest
            })
        });
        self.flow("not all ends arrive", |world| {
            let World { rig, talks, .. } = world;
            for talk in &mut *talks {
                talk.guest_shuts(rig, 3);
            }
            talks.iter().all(|talk| talk.over && talk.host_saw_end)
        });
        self.flow("seats stay taken", |world| world.rig.device.taken() == 0);
        assert!(!self.rig.turn(Duration::from_millis(20)), "something still happens");
        let metrics = self.rig.metrics();
        assert_eq!(metrics.conns_killed.get(), 0);
        assert_eq!(metrics.conns_removed.get(), self.talks.len() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 300, ..ProptestConfig::default() })]
    #[test]
    fn everything_written_arrives(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.finish();
    }
}
