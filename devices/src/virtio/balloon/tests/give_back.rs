//! Which memory goes back, and that no visit is long.

use vm_memory::{Bytes, GuestAddress};

use super::rig::*;
use crate::virtio::balloon::BalloonSpec;
use crate::virtio::device::VirtioDevice;
use crate::virtio::queue::Visit;
use crate::virtio::test_driver::{Buffer, TestDriver};

#[test]
fn inflated_pages_go_back_and_others_stay() {
    let mut rig = Rig::new(BalloonSpec::default());
    let pages = [0x500, 0x502, 0x501, 0x7ff, 0x600, 0x403];
    rig.send_pages(INFLATE, &pages);
    assert_eq!(rig.gone(), [0x403, 0x500, 0x501, 0x502, 0x600, 0x7ff]);
    assert_eq!(rig.metrics.inflate_bytes.get(), 6 * 4096);
    assert_eq!((rig.metrics.inflate_count.get(), rig.metrics.inflate_ignored_pages.get()), (1, 0));
    assert_eq!(rig.driver.interrupts(), 1);
    // Deflating is a courtesy: pages come back by being used.
    rig.fill();
    rig.send_pages(DEFLATE, &pages);
    assert_eq!((rig.gone(), rig.metrics.deflate_count.get()), (vec![], 1));
}

/// G20: pages named twice, that are no RAM, and half a number.
#[test]
fn nonsense_is_ignored_and_counted() {
    let mut rig = Rig::new(BalloonSpec::default());
    rig.send_pages(INFLATE, &[0x500, END, 0x500, u32::MAX, END + 1, 0x500, 0xd_0000]);
    assert_eq!(rig.gone(), [0x500]);
    assert_eq!(rig.metrics.inflate_ignored_pages.get(), 6);
    let head = rig.offer_bytes(INFLATE, &[0x01, 0x05, 0, 0, 0x02, 0x05]);
    rig.serve(INFLATE);
    assert_eq!(rig.driver.take_used(INFLATE), Some((head, 0)));
    assert_eq!((rig.gone(), rig.metrics.inflate_ignored_pages.get()), (vec![0x500, 0x501], 7));
    rig.send_pages(INFLATE, &[]);
    // Numbers where the device may only write are none.
    let head = rig.driver.offer(INFLATE, &[Buffer { addr: REQUEST, len: 64, writable: true }]);
    rig.serve(INFLATE);
    assert_eq!(rig.driver.take_used(INFLATE), Some((head, 0)));
    assert_eq!(rig.gone().len(), 2);
    assert_eq!(rig.metrics.inflate_fails.get(), 0);
}

/// G20: however much a request asks for, a visit does one step of it when it is in a hurry, and all of it is done in the end.
#[test]
fn long_requests_take_many_short_visits() {
    let mut rig = Rig::new(BalloonSpec { reporting: true, ..BalloonSpec::default() });
    rig.balloon.hurry();
    // An array as long as RAM below it, twice in one chain: every page of the test's, several times.
    let numbers: Vec<u32> = (0..16).flat_map(|_| FIRST..END).collect();
    let head = rig.offer_pages(INFLATE, &numbers);
    assert_eq!(rig.ring(INFLATE), Visit::More);
    assert_eq!((rig.gone(), rig.driver.take_used(INFLATE)), (vec![], None), "no more than reading a batch");
    assert_eq!(rig.ring(INFLATE), Visit::More);
    assert!((1..=512).contains(&rig.gone().len()), "{} pages in one visit", rig.gone().len());
    let visits = rig.serve(INFLATE);
    assert!(visits > numbers.len() / 1024, "{visits} visits");
    assert_eq!(rig.gone().len(), (END - FIRST) as usize);
    assert_eq!((rig.driver.take_used(INFLATE), rig.driver.take_used(INFLATE)), (Some((head, 0)), None));

    rig.fill();
    let head = rig.offer_ranges(2, &[(FIRST, END - FIRST)]);
    assert_eq!(rig.ring(2), Visit::More);
    assert_eq!(rig.gone().len(), 512);
    assert!(rig.serve(2) > 4);
    assert_eq!((rig.gone().len(), rig.driver.take_used(2)), ((END - FIRST) as usize, Some((head, 0))));
}

/// A pause in the middle puts the request back; afterwards it is done from the start.
#[test]
fn a_pause_in_the_middle_loses_nothing() {
    let mut rig = Rig::new(BalloonSpec { reporting: true, ..BalloonSpec::default() });
    rig.balloon.hurry();
    let all: Vec<u32> = (FIRST..END).collect();
    let head = rig.offer_pages(INFLATE, &all);
    let reported = rig.offer_ranges(2, &[(FIRST, 1024)]);
    for _ in 0..2 {
        rig.ring(INFLATE);
        rig.ring(2);
    }
    rig.balloon.quiesce(&mut rig.rings).unwrap();
    rig.balloon.quiesce(&mut rig.rings).unwrap();
    assert_eq!((rig.driver.take_used(INFLATE), rig.driver.take_used(2)), (None, None));
    rig.fill();
    rig.serve(INFLATE);
    rig.serve(2);
    assert_eq!(rig.gone(), all);
    assert_eq!((rig.driver.take_used(INFLATE), rig.driver.take_used(2)), (Some((head, 0)), Some((reported, 0))));
}

#[test]
fn reported_ranges_go_back() {
    let mut rig = Rig::new(BalloonSpec { reporting: true, ..BalloonSpec::default() });
    rig.send_ranges(2, &[(0x500, 0x100), (0x480, 1), (0xf00, 0x100)]);
    let expected: Vec<u32> = [0x480].into_iter().chain(0x500..0x600).chain(0xf00..0x1000).collect();
    assert_eq!(rig.gone(), expected);
    assert_eq!(rig.metrics.free_page_report_count.get(), 3);
    assert_eq!(rig.metrics.free_page_report_freed.get(), expected.len() as u64 * 4096);
    assert_eq!(rig.metrics.free_page_report_fails.get(), 0);
    // Parts of pages stay.
    let at = 0x700 * 4096;
    rig.driver.offer(2, &[Buffer { addr: at + 100, len: 3 * 4096, writable: true }]);
    rig.driver.offer(2, &[Buffer { addr: at, len: 4095, writable: true }]);
    rig.driver.offer(2, &[Buffer { addr: at, len: 4096, writable: false }]);
    rig.serve(2);
    assert!(rig.keeps(0x700) && !rig.keeps(0x701) && !rig.keeps(0x702) && rig.keeps(0x703));
    assert_eq!((rig.metrics.free_page_report_count.get(), rig.metrics.free_page_report_fails.get()), (5, 2));
}

/// Pages of the rings themselves: the driver's own loss, and no more than a reset.
#[test]
fn a_driver_may_give_its_own_rings_away() {
    let mut rig = Rig::new(BalloonSpec::default());
    let rings: Vec<u32> = (0x10..0x30).collect();
    rig.offer_pages(INFLATE, &rings);
    let _ = rig.balloon.on_doorbell(0, &mut rig.rings);
    let _ = rig.balloon.on_doorbell(0, &mut rig.rings);
    rig.balloon.reset();
    rig.driver = TestDriver::new(2, 256);
    rig.rings = rig.driver.rings(true, true);
    rig.balloon.activate(with(0), &mut rig.rings).unwrap();
    rig.driver.ram.write_obj(1u8, GuestAddress(0x50_0000)).unwrap();
    rig.send_pages(INFLATE, &[0x500]);
    assert_eq!(rig.driver.ram.read_obj::<u8>(GuestAddress(0x50_0000)).unwrap(), 0);
}
