//! Rings that are served, halted, lost and found again.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::super::connection::send;
use super::super::message::{CONFIG_CHANGED, F_PROTOCOL_FEATURES, Header, protocol};
use super::*;
use crate::sys::fd_stream::FdStream;

fn eventfd(fd: OwnedFd) -> EventFd {
    // SAFETY: an eventfd that nobody else has.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn a_driver_that_is_ready_has_its_rings_served() {
    let rig = Rig::at_work(Traits::default());
    let heard = rig.backend.until(Request::SetVringEnable);
    let order: Vec<u32> = heard.iter().map(|heard| heard.request).collect();
    let expected = [
        Request::SetFeatures,
        Request::SetMemTable,
        Request::SetVringNum,
        Request::SetVringBase,
        Request::SetVringAddr,
        Request::SetVringCall,
        Request::SetVringKick,
        Request::SetVringEnable,
    ];
    assert_eq!(order, expected.map(|request| request as u32));
    assert_eq!(heard[0].number(), FEATURES | F_PROTOCOL_FEATURES);
    assert_eq!(words(&heard[1].body), [1, 0, TestDriver::RAM_LEN as u64, 0, 0x1000]);
    assert_eq!(heard[1].fds.len(), 1);
    assert_eq!(heard[2].body, [0, 0, 0, 0, 128, 0, 0, 0]);
    let at = &rig.driver.queues[0].geometry;
    assert_eq!(words(&heard[4].body), [0, at.descriptors, at.used, at.available, 0]);
}

/// Bells go to the backend directly, interrupts come by way of us.
#[test]
fn bells_and_interrupts_are_passed_on() {
    let mut rig = Rig::at_work(Traits::default());
    let mut heard = rig.backend.until(Request::SetVringEnable);
    let kick = eventfd(heard[6].fds.remove(0));
    assert_eq!(kick.read().unwrap(), 1, "it is rung once at the start");
    rig.bell.write(3).unwrap();
    assert_eq!(kick.read().unwrap(), 3);
    let call = eventfd(heard[5].fds.remove(0));
    for n in 1..4 {
        call.write(1).unwrap();
        let irq = rig.driver.irq.clone();
        rig.turn_until(|_| irq.queue.load(Ordering::Relaxed) == n).unwrap();
    }
}

#[test]
fn a_pause_stops_the_ring_and_it_goes_on_where_it_was() {
    let mut rig = Rig::at_work(Traits::default());
    rig.backend.until(Request::SetVringEnable);
    rig.device.quiesce(&mut rig.rings).unwrap();
    rig.backend.until(Request::GetVringBase);
    rig.device.on_doorbell(0, &mut rig.rings).unwrap();
    let heard = rig.backend.until(Request::SetVringEnable);
    let base = heard.iter().find(|heard| heard.request == Request::SetVringBase as u32).unwrap();
    assert_eq!(base.body, [0, 0, 0, 0, 5, 0, 0, 0]);
    let again = heard.iter().any(|heard| heard.request == Request::SetMemTable as u32);
    assert!(!again, "memory that the backend has must not move under requests in flight");
    // The backend may have finished what it had without telling anybody.
    assert_eq!(rig.driver.interrupts(), 1);
    assert_eq!(rig.losses(), 0);
}

/// QEMU's storage daemon before 8.0 breaks if it is stopped with requests in flight.
#[test]
fn a_pause_lets_the_backend_finish_first() {
    let mut rig = Rig::at_work(Traits::default());
    rig.backend.until(Request::SetVringEnable);
    let at = rig.driver.queues[0].geometry;
    rig.driver.ram.write_obj(1u16, GuestAddress(at.available + 2)).unwrap();
    rig.bell.read().unwrap();
    let heard = std::mem::replace(&mut rig.backend.heard, std::sync::mpsc::channel().1);
    let (ram, bell) = (rig.driver.ram.clone(), rig.bell.try_clone().unwrap());
    let backend = std::thread::spawn(move || {
        // The driver may not have rung.
        while bell.read().is_err() {
            std::thread::yield_now();
        }
        assert!(heard.try_recv().is_err(), "it is not stopped yet");
        ram.write_obj(1u16, GuestAddress(at.used + 2)).unwrap();
        heard
    });
    rig.device.quiesce(&mut rig.rings).unwrap();
    rig.backend.heard = backend.join().unwrap();
    rig.backend.until(Request::GetVringBase);
    assert_eq!(rig.losses(), 0);
}

#[test]
fn a_reset_stops_the_ring_and_a_new_driver_begins_at_the_start() {
    let mut rig = Rig::at_work(Traits::default());
    rig.backend.until(Request::SetVringEnable);
    rig.device.reset();
    rig.backend.until(Request::GetVringBase);
    rig.device.activate(FEATURES, &mut rig.rings).unwrap();
    let heard = rig.backend.until(Request::SetVringEnable);
    let base = heard.iter().find(|heard| heard.request == Request::SetVringBase as u32).unwrap();
    assert_eq!(base.body, [0; 8]);
}

#[test]
fn a_backend_that_does_not_stop_keeps_nobody_waiting_for_long() {
    let mut rig = Rig::at_work(Traits::with((Request::GetVringBase, Quirk::Silence)));
    rig.backend.until(Request::SetVringEnable);
    rig.device.reset();
    assert_eq!(rig.losses(), 1, "it has no connection any more");
    // Nor does one that goes meanwhile.
    let mut rig = Rig::at_work(Traits::with((Request::GetVringBase, Quirk::Close)));
    rig.backend.until(Request::SetVringEnable);
    rig.device.quiesce(&mut rig.rings).unwrap();
    assert_eq!(rig.losses(), 1);
}

/// Whatever its limit is, a wait ends when the machine does.
#[test]
fn the_end_of_the_machine_ends_waits() {
    let mut rig = Rig::at_work(Traits::default());
    rig.backend.until(Request::SetVringEnable);
    rig.backend.traits.lock().unwrap().quirks.insert(Request::GetConfig as u32, Quirk::Silence);
    rig.end.write(1).unwrap();
    assert_eq!(rig.device.refresh(), Err("its backend is of no use: the machine ends.".to_owned()));
}

/// The ring tells where the backend was: behind the last request that was answered.
#[test]
fn a_backend_that_is_back_goes_on() {
    let mut rig = Rig::at_work(Traits::default());
    rig.backend.until(Request::SetVringEnable);
    let at = rig.driver.queues[0].geometry;
    rig.driver.ram.write_obj(7u16, GuestAddress(at.used + 2)).unwrap();
    rig.driver.ram.write_obj(8u16, GuestAddress(at.available + 2)).unwrap();
    for times in 1..4 {
        rig.backend.kill();
        rig.until_back(times);
        let heard = rig.backend.until(Request::SetVringEnable);
        let base = heard.iter().find(|heard| heard.request == Request::SetVringBase as u32).unwrap();
        assert_eq!(base.body[4], 7);
        assert_eq!((rig.losses(), u64::from(rig.driver.interrupts())), (times, times));
    }
}

#[test]
fn requests_in_flight_are_handed_to_the_next_backend() {
    let tracked = Traits { protocol: Traits::default().protocol | protocol::INFLIGHT_SHMFD, ..Traits::default() };
    let mut rig = Rig::at_work(tracked);
    let given = |heard: &[backend::Heard]| {
        let set = heard.iter().find(|heard| heard.request == Request::SetInflightFd as u32).unwrap();
        assert_eq!(words(&set.body)[..2], [4096, 0]);
        inode(&set.fds[0])
    };
    rig.turn_until(|device| device.metrics().activate_time_us.get() > 0).unwrap();
    let first = given(&rig.backend.until(Request::SetVringEnable));
    rig.backend.kill();
    rig.until_back(1);
    assert_eq!(given(&rig.backend.until(Request::SetVringEnable)), first);
    // Another driver has none of them.
    rig.device.reset();
    rig.backend.until(Request::GetVringBase);
    rig.device.activate(FEATURES, &mut rig.rings).unwrap();
    rig.turn_until(|_| true).unwrap();
    rig.backend.until(Request::GetInflightFd);
    let backend = &rig.backend.connection;
    assert!(backend.lock().unwrap().is_some());
}

/// Requests 0 and 1 were made, and only 1 was answered: which is open only the backend knows, and it is gone. To guess would be to tell the
/// driver that another request is done.
#[test]
fn what_nobody_knows_is_not_guessed() {
    let lose = |first, second| {
        let mut rig = Rig::at_work(first);
        rig.turn_until(|device| device.metrics().activate_time_us.get() > 0).unwrap();
        rig.backend.until(Request::SetVringEnable);
        let at = rig.driver.queues[0].geometry;
        rig.driver.ram.write_obj(1u16, GuestAddress(at.available + 6)).unwrap();
        rig.driver.ram.write_obj(2u16, GuestAddress(at.available + 2)).unwrap();
        rig.driver.ram.write_obj(1u32, GuestAddress(at.used + 4)).unwrap();
        rig.driver.ram.write_obj(1u16, GuestAddress(at.used + 2)).unwrap();
        *rig.backend.traits.lock().unwrap() = second;
        rig.backend.kill();
        rig.turn_until(|device| device.metrics().reconnect_count.get() > 0)
    };
    let broken = lose(Traits::default(), Traits::default()).unwrap_err();
    assert!(broken.to_string().contains("ring 0 in flight"), "{broken}");
    let tracked = Traits { protocol: Traits::default().protocol | protocol::INFLIGHT_SHMFD, ..Traits::default() };
    lose(tracked.clone(), tracked.clone()).unwrap();
    // What one noted, another one may not be able to read.
    lose(tracked, Traits::default()).unwrap_err();
}

#[test]
fn a_backend_that_is_back_as_another_one_makes_the_driver_begin_anew() {
    let mut rig = Rig::at_work(Traits::default());
    rig.backend.until(Request::SetVringEnable);
    rig.backend.traits.lock().unwrap().features &= !F_EVENT_IDX;
    rig.backend.kill();
    let broken = rig.turn_until(|device| device.metrics().reconnect_count.get() > 1).unwrap_err();
    assert!(broken.to_string().contains("without features 0x20000000"), "{broken}");
}

/// It has heard of some rings and not of others.
#[test]
fn a_backend_that_is_lost_while_it_gets_its_rings_is_replaced() {
    let mut rig = Rig::new(Traits::with((Request::SetVringAddr, Quirk::Close)));
    rig.device.activate(FEATURES, &mut rig.rings).unwrap();
    rig.turn_until(|device| device.metrics().connection_losses.get() == 1).unwrap();
    rig.backend.traits.lock().unwrap().quirks.clear();
    rig.turn_until(|device| device.metrics().reconnect_count.get() >= 1).unwrap();
    rig.backend.until(Request::SetVringEnable);
}

#[test]
fn a_backend_that_refuses_is_asked_again_later() {
    let mut rig = Rig::new(Traits::with((Request::SetMemTable, Quirk::Body(1u64.to_le_bytes().to_vec()))));
    rig.device.activate(FEATURES, &mut rig.rings).unwrap();
    rig.turn_until(|device| device.metrics().connection_losses.get() == 1).unwrap();
    rig.backend.traits.lock().unwrap().quirks.clear();
    rig.until_back(1);
    rig.backend.until(Request::SetVringEnable);
}

/// Of greetings that fail nobody learns anything but the log.
#[test]
fn backends_that_are_of_no_use_are_asked_again_until_one_is() {
    let mut rig = Rig::at_work(Traits::default());
    rig.backend.until(Request::SetVringEnable);
    rig.backend.traits.lock().unwrap().queues = 0;
    rig.backend.kill();
    rig.turn_until(|device| device.metrics().connection_losses.get() == 1).unwrap();
    let mut asked = 0;
    while asked < 3 {
        rig.turn_until(|_| true).unwrap();
        asked += rig.backend.heard.try_iter().filter(|heard| heard.request == Request::GetQueueNum as u32).count();
    }
    rig.backend.traits.lock().unwrap().queues = 1;
    rig.until_back(1);
    rig.backend.until(Request::SetVringEnable);
    assert_eq!(rig.losses(), 1);
}

/// A rig, and the backend's end of its channel.
fn with_channel() -> (Rig, FdStream) {
    let mut rig = Rig::at_work(Traits::default());
    rig.backend.until(Request::SetVringEnable);
    // It is made again with each connection.
    rig.backend.kill();
    rig.until_back(1);
    let mut heard = rig.backend.until(Request::SetBackendReqFd);
    let channel = FdStream::from(heard.pop().unwrap().fds.remove(0));
    rig.backend.until(Request::SetVringEnable);
    (rig, channel)
}

#[test]
fn a_change_of_the_configuration_space_is_heard_of() {
    let (mut rig, channel) = with_channel();
    assert!(!rig.device.take_config_change());
    rig.backend.traits.lock().unwrap().config[0] = 99;
    send(&channel, Header::of(CONFIG_CHANGED, false, true, 0), &[], &[]).unwrap();
    let read = |device: &VhostUser| {
        let mut byte = [0];
        device.read_config(0, &mut byte);
        byte[0]
    };
    rig.turn_until(|device| read(device) == 99).unwrap();
    assert!(rig.device.take_config_change() && !rig.device.take_config_change());
    let mut answer = [0; 20];
    assert_eq!(channel.receive(&mut answer, &mut Vec::new()).unwrap(), 20);
    assert_eq!(answer[12..], [0; 8], "it was acknowledged");
    // The same by hand.
    rig.backend.traits.lock().unwrap().config[0] = 98;
    assert_eq!(rig.device.refresh(), Ok(true));
    assert_eq!(rig.device.refresh(), Ok(false));
    assert_eq!(read(&rig.device), 98);
    rig.backend.traits.lock().unwrap().quirks.insert(Request::GetConfig as u32, Quirk::Close);
    assert_eq!(rig.device.refresh(), Err("its backend is of no use: it closed the connection.".to_owned()));
}

#[test]
fn a_backend_that_talks_too_much_is_not_listened_to() {
    let (mut rig, channel) = with_channel();
    for _ in 0..200 {
        send(&channel, Header::of(77, false, false, 0), &[], &[]).unwrap();
    }
    rig.turn_until(|device| device.metrics().connection_losses.get() == 2).unwrap();
    rig.until_back(2);
}

#[test]
fn what_nobody_asked_for_ends_the_connection() {
    let mut rig = Rig::at_work(Traits::with((
        Request::SetVringKick,
        Quirk::Bytes(Header::of(1, true, false, 0).as_bytes().to_vec()),
    )));
    rig.turn_until(|device| device.metrics().connection_losses.get() >= 1).unwrap();
}
