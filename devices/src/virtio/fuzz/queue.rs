//! A queue alone: any geometry, any memory, any order of calls.

use super::*;
use crate::irq::VirtioIrq;
use crate::virtio::chain::Chain;
use crate::virtio::queue::{Geometry, Served, VirtQueue};

const MAX_SIZE: u16 = 256;

struct Deaf;

impl VirtioIrq for Deaf {
    fn queue(&self, _index: u16) {}
    fn config(&self) {}
}

/// Geometry and memory of a queue, and calls of a device, as `data` says. Returns how many chains were taken.
pub fn queue(data: &[u8]) -> u64 {
    let mut input = Input(data);
    let how = input.byte();
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM_LEN as usize)]).expect("memory");
    let geometry = if how & 1 == 0 {
        Geometry { size: 16, ready: true, descriptors: DESCRIPTORS, available: AVAILABLE, used: USED }
    } else {
        let size = if input.byte() < 128 { 1 << (input.byte() % 10) } else { input.u16() };
        Geometry {
            size,
            ready: how & 8 == 0,
            descriptors: input.address(),
            available: input.address(),
            used: input.address(),
        }
    };
    let fresh = || VirtQueue::new(0, MAX_SIZE, geometry, how & 2 != 0, how & 4 != 0, &ram);
    let Ok(mut queue) = fresh() else { return 0 };
    let Geometry { descriptors, available, .. } = geometry;
    let size = geometry.size.clamp(1, MAX_SIZE);
    let mut taken = 0;
    let mut offered = 0u16;
    let mut chain = Chain::new();
    let mut open = Vec::new();
    while !input.0.is_empty() {
        let outcome = match input.byte() % 14 {
            // Nearly a chain, offered properly.
            10.. => {
                let head = u16::from(input.byte()) % size;
                let pieces = u16::from(input.byte() % 3) + 1;
                for n in 0..pieces {
                    let (addr, len) = (u64::from(input.u16()) * 8, u64::from(input.byte()));
                    let more = u64::from(n + 1 < pieces);
                    let writable = u64::from(n + 1 == pieces) * u64::from(input.byte() & 1);
                    let flags = more | writable << 1;
                    let next = u64::from((head + n + 1) % size);
                    let at = descriptors.wrapping_add(16 * u64::from((head + n) % size));
                    let _ = ram.write_obj(addr, GuestAddress(at));
                    let _ = ram.write_obj(len | flags << 32 | next << 48, GuestAddress(at.wrapping_add(8)));
                }
                let slot = u64::from(offered % size);
                let _ = ram.write_obj(head, GuestAddress(available.wrapping_add(4 + 2 * slot)));
                offered = offered.wrapping_add(1);
                let _ = ram.write_obj(offered, GuestAddress(available.wrapping_add(2)));
                Ok(())
            }
            0 => {
                let bytes: [u8; 16] = input.take();
                let slot = u64::from(input.u16() % (2 * size));
                let _ = ram.write_slice(&bytes, GuestAddress(descriptors.wrapping_add(16 * slot)));
                Ok(())
            }
            1..=2 => {
                let at = input.address();
                let _ = ram.write_obj(input.u64(), GuestAddress(at));
                Ok(())
            }
            3 => {
                let slot = u64::from(input.u16() % (2 * size));
                let _ = ram.write_obj(input.u16() % 40, GuestAddress(available.wrapping_add(2 * slot)));
                Ok(())
            }
            4..=5 => queue.pop(&ram, &mut chain).map(|there| {
                if there {
                    taken += 1;
                    assert!(chain.head() < size, "a head outside the table");
                    let writable: usize = chain.writable().iter().map(|piece| piece.len()).sum();
                    assert_eq!(writable, chain.writable_len() as usize);
                    assert!(chain.readable().len() + chain.writable().len() <= usize::from(MAX_SIZE));
                    open.push(chain.head());
                }
            }),
            6 => match open.pop() {
                Some(head) => queue.complete(&ram, head, input.u32()),
                None => Ok(()),
            },
            7 => queue.notify(&ram, &Deaf),
            8 => queue.arm(&ram).and_then(|_| queue.disarm(&ram)),
            _ => {
                let mut served = 0u32;
                let kind = input.byte();
                let outcome = queue.serve(&ram, &Deaf, |chain| {
                    served += 1;
                    match kind % 3 {
                        0 => Served::Done { written: chain.writable_len() },
                        1 => Served::Later,
                        _ => Served::PutBack,
                    }
                });
                assert!(served <= u32::from(size), "a visit without an end");
                taken += u64::from(served);
                outcome.map(|_| ())
            }
        };
        // A broken ring stays broken until the driver resets the device.
        if outcome.is_err() {
            for ring in [available, geometry.used] {
                let _ = ram.write_slice(&[0; 0x800], GuestAddress(ring));
            }
            offered = 0;
            open.clear();
            match fresh() {
                Ok(again) => queue = again,
                Err(_) => break,
            }
        }
    }
    taken
}
