//! MSI-X as a guest and a device see it.

use std::sync::atomic::AtomicU64;

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Sink {
    routes: Mutex<Vec<(u16, Msi)>>,
    raised: AtomicU64,
}

impl Vectors for Sink {
    fn route(&self, vector: u16, msi: Msi) {
        self.routes.lock().unwrap().push((vector, msi));
    }
    fn raise(&self, _vector: u16) {
        self.raised.fetch_add(1, Ordering::SeqCst);
    }
    fn release(&self) {}
}

fn msix() -> (Msix, Arc<Sink>) {
    let sink = Arc::new(Sink::default());
    (Msix::new(3, sink.clone()), sink)
}

fn word(msix: &Msix, offset: u64, value: u32) {
    assert!(msix.write_table(offset, &value.to_le_bytes()));
}

fn open(msix: &Msix, vector: u64, data: u32) {
    word(msix, vector * 16, 0xfee0_1000);
    word(msix, vector * 16 + 4, 0);
    word(msix, vector * 16 + 8, data);
    word(msix, vector * 16 + 12, 0);
}

#[test]
fn a_vector_is_routed_once_it_is_open() {
    let (msix, sink) = msix();
    open(&msix, 1, 0x41);
    msix.trigger(1);
    assert_eq!((sink.routes.lock().unwrap().len(), sink.raised.load(Ordering::SeqCst)), (0, 0), "not enabled yet");
    msix.set_control(CONTROL_ENABLE);
    assert_eq!(*sink.routes.lock().unwrap(), [(1, Msi { address: 0xfee0_1000, data: 0x41 })]);
    assert_eq!(sink.raised.load(Ordering::SeqCst), 1, "what waited");
    msix.trigger(1);
    msix.trigger(7);
    assert_eq!(sink.raised.load(Ordering::SeqCst), 2);
    // Masking and unmasking costs no route.
    for masked in [1, 0, 1, 0] {
        word(&msix, 28, masked);
    }
    assert_eq!(sink.routes.lock().unwrap().len(), 1);
}

/// A vCPU that found a function before it was taken away writes to its table: the vectors are another function's by now.
#[test]
fn nothing_is_routed_once_the_vectors_are_given_back() {
    let (msix, sink) = msix();
    msix.set_control(CONTROL_ENABLE);
    msix.release();
    open(&msix, 0, 0x40);
    msix.set_control(0);
    msix.set_control(CONTROL_ENABLE);
    msix.trigger(0);
    assert_eq!((sink.routes.lock().unwrap().len(), sink.raised.load(Ordering::SeqCst)), (0, 0));
}

#[test]
fn what_is_masked_is_pending() {
    let (msix, sink) = msix();
    open(&msix, 2, 0x42);
    msix.set_control(CONTROL_ENABLE | CONTROL_MASK);
    msix.trigger(2);
    msix.trigger(2);
    let mut pending = [0xee; 8];
    msix.read_pending(0, &mut pending);
    assert_eq!(pending, [0b100, 0, 0, 0, 0, 0, 0, 0]);
    msix.set_control(CONTROL_ENABLE);
    assert_eq!(sink.raised.load(Ordering::SeqCst), 1, "once");
    msix.read_pending(0, &mut pending);
    assert_eq!(pending, [0; 8]);
    msix.set_control(CONTROL_ENABLE | CONTROL_MASK);
    msix.trigger(2);
    msix.clear_pending();
    msix.set_control(CONTROL_ENABLE);
    assert_eq!(sink.raised.load(Ordering::SeqCst), 1, "the device was reset meanwhile");
}

/// G28: a message to anything but a local APIC is never sent.
#[test]
fn messages_go_to_local_apics_only() {
    let (msix, sink) = msix();
    msix.set_control(CONTROL_ENABLE);
    for address in [0u64, 0x1000, 0xfed0_0000, 0xfef0_0000, 0x1_fee0_0000, 0xffff_ffff_fee0_0000] {
        word(&msix, 12, 1);
        word(&msix, 0, address as u32);
        word(&msix, 4, (address >> 32) as u32);
        word(&msix, 12, 0);
        msix.trigger(0);
    }
    assert_eq!((sink.routes.lock().unwrap().len(), sink.raised.load(Ordering::SeqCst)), (0, 0));
    word(&msix, 4, 0);
    word(&msix, 0, 0xfee0_0000);
    assert_eq!((sink.routes.lock().unwrap().len(), sink.raised.load(Ordering::SeqCst)), (1, 1));
}

/// A device that interrupts while the guest masks and unmasks: everything arrives, some of it together.
#[test]
fn nothing_is_lost_between_mask_and_unmask() {
    let (msix, sink) = msix();
    open(&msix, 0, 0x40);
    msix.set_control(CONTROL_ENABLE);
    std::thread::scope(|scope| {
        let masks = scope.spawn(|| {
            for n in 0..20_000u32 {
                word(&msix, 12, n & 1);
            }
            word(&msix, 12, 0);
        });
        for _ in 0..2_000 {
            let before = sink.raised.load(Ordering::SeqCst);
            msix.trigger(0);
            // The guest opens the vector again and again, so it arrives.
            while sink.raised.load(Ordering::SeqCst) == before {
                std::hint::spin_loop();
            }
        }
        masks.join().unwrap();
    });
}

#[test]
fn what_was_saved_comes_back() {
    let (msix, _) = msix();
    open(&msix, 0, 0x40);
    open(&msix, 2, 0x42);
    word(&msix, 44, 1);
    msix.set_control(CONTROL_ENABLE);
    msix.trigger(2);
    let (again, sink) = self::msix();
    assert!(again.restore(&msix.save()));
    assert_eq!(again.save(), msix.save());
    assert_eq!(*sink.routes.lock().unwrap(), [(0, Msi { address: 0xfee0_1000, data: 0x40 })]);
    word(&again, 44, 0);
    assert_eq!(sink.raised.load(Ordering::SeqCst), 1);
    let few = Msix::new(2, sink);
    assert!(!few.restore(&msix.save()));
}

proptest! {
    /// Any access: no panic, and an interrupt is raised only on a route that a guest could have written.
    #[test]
    fn any_access(script in proptest::collection::vec((0u64..80, 0usize..=8, any::<u64>(), 0u8..5), 0..100)) {
        let (msix, sink) = msix();
        for (offset, len, value, kind) in script {
            let mut data = value.to_le_bytes();
            match kind {
                0 => msix.read_table(offset, &mut data[..len]),
                1 => msix.read_pending(offset, &mut data[..len]),
                2 => msix.set_control(value as u16),
                3 => msix.trigger(value as u16 & 3),
                _ => { msix.write_table(offset, &data[..len]); }
            }
        }
        for (vector, msi) in sink.routes.lock().unwrap().iter() {
            prop_assert!(*vector < 3 && msi.address >> 20 == 0xfee);
        }
        let (again, _) = self::msix();
        prop_assert!(again.restore(&msix.save()));
        prop_assert_eq!(again.save().entries, msix.save().entries);
    }
}
