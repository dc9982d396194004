//! A network card on a tap of the fuzzer's own: what the guest puts on its rings, and what the host sends it.

use std::cell::RefCell;
use std::time::Instant;

use super::queues::{BUFFERS, Queues, ring};
use super::*;
use crate::mmds::{DEFAULT_ADDRESS, Manner, Mmds, Protocol, Stack};
use crate::sys::tap::Tap;
use crate::sys::test_net::{PEER_HEADER_LEN, Peer, own_network, set_link};
use crate::virtio::net::{Net, NetSpec};

const TAP: &str = "mffuzz";

thread_local! {
    /// Made once: a tap costs milliseconds.
    static NETWORK: RefCell<Option<(Tap, Peer)>> = const { RefCell::new(None) };
}

fn network() -> (Tap, Peer) {
    NETWORK.take().unwrap_or_else(|| {
        own_network();
        let tap = Tap::open(TAP).expect("a tap in a network of our own");
        set_link(TAP, true);
        (tap, Peer::new(TAP))
    })
}

/// Registers, rings, frames and headers at a network card, as `data` says. Returns how many frames were sent and received.
pub fn net(data: &[u8]) -> (u64, u64) {
    let mut input = Input(data);
    let how = input.byte();
    let (tap, peer) = network();
    let spec = NetSpec {
        tap: tap.try_clone().expect("a spare descriptor"),
        more_taps: Vec::new(),
        mac: (how & 1 != 0).then_some([2, 0, 0, 0, 0, 1]),
        mtu: (how & 2 != 0).then_some(1500),
        rx_limits: RateLimits::default(),
        tx_limits: RateLimits::default(),
        mmds: (how & 8 != 0).then(|| {
            let (manner, now) = (Manner { protocol: Protocol::V2, imds_compat: false }, Instant::now());
            Stack::new(Arc::new(Mmds::new([9; 32], 51_200, now)), manner, DEFAULT_ADDRESS, 5, now)
        }),
    };
    let device = Net::new(spec).expect("a card");
    let metrics = device.metrics();
    let mut card = Queues::<2>::new(Machine::new("fuzzed card", AnyDevice::Net(Box::new(device)), ram()));
    card.bring_up(if how & 4 == 0 { u64::MAX } else { 0 });
    while !input.0.is_empty() {
        match input.byte() % 10 {
            0 => card.machine.step(&mut input),
            1 => card.bring_up(input.u64()),
            2..=4 => card.chain(0, &mut input, true),
            5..=6 => card.chain(1, &mut input, false),
            7 => {
                // A header where the next frame may begin.
                let bytes: [u8; 12] = input.take();
                let at = BUFFERS + u64::from(input.u16()) * 4;
                let _ = card.machine.ram.write_slice(&bytes, GuestAddress(at));
            }
            8 => {
                let len = usize::from(input.u16() % 3000).max(14);
                let mut header = [0; PEER_HEADER_LEN];
                if input.byte() < 60 {
                    header = input.take();
                }
                // The kernel refuses headers that make no sense.
                let _ = peer.send(header, &vec![0x5a; len]);
            }
            _ => card.machine.write(0x50, u32::from(input.byte() % 3)),
        }
        card.machine.turn();
        while peer.receive().is_some() {}
    }
    card.machine.reset();
    // Whatever happened before, a reset makes a working device of it: a frame comes out of the tap.
    card.machine.cell.resume();
    card.bring_up(0);
    let before = metrics.tx_packets_count.get();
    let _ = card.machine.ram.write_slice(&[0; 12 + 60], GuestAddress(BUFFERS));
    card.machine.descriptor(ring(1), BUFFERS, 12 + 60, 0, 0);
    card.offer(1, 0);
    card.machine.write(0x50, 1);
    card.machine.turn();
    assert_eq!(metrics.tx_packets_count.get(), before + 1, "the device did not recover");
    let done = (metrics.tx_packets_count.get(), metrics.rx_packets_count.get());
    drop(card);
    while peer.receive().is_some() {}
    NETWORK.set(Some((tap, peer)));
    done
}
