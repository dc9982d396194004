//! What tells a guest who it is, and the host that a guest panicked.

use guest::{End, Job, Mode};
use mayfly_tests::PATIENCE;

use super::{configured, finish, number, run, text};

/// Written by pvpanic's specification: bit 0, the kernel panicked; bit 1, and its crash kernel takes over.
const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 2;

#[test]
fn every_machine_has_a_generation_id_of_its_own_and_a_clock_page() {
    let ids: Vec<_> = (0..3)
        .map(|_| {
            let report = run(&configured(&Job::new(Mode::Probe)));
            assert_eq!(number(&report, "clock_magic"), u64::from(u32::from_le_bytes(*b"VCLK")));
            assert_eq!(number(&report, "clock_flags"), 0x300, "a generation counter, and notifications");
            let line = report.with_key("generation_id").next().expect("the id's line");
            let half = |key| line.number::<u64>(key).expect("half an id");
            (half("generation_id"), half("high"))
        })
        .collect();
    for (n, id) in ids.iter().enumerate() {
        assert!(id.0 != 0 && id.1 != 0, "{ids:x?}");
        assert!(!ids[..n].contains(id), "{ids:x?}");
    }
}

#[test]
fn a_panic_is_logged_when_it_happens_and_told_at_the_end() {
    let vmm = configured(&Job::new(Mode::Probe).with("panic", PANICKED));
    let report = run(&vmm);
    assert_eq!(text(&report, "panic_events"), "0x3");
    let log = vmm.log();
    assert_eq!(log.matches("the guest's kernel panicked").count(), 1, "{log}");
    assert!(log.contains("The microVM ended: the guest panicked and then rebooted."), "{log}");
    assert!(log.trim_end().ends_with("exit_code=0"), "a panic changes no exit code: {log}");
}

#[test]
fn a_panicked_guest_goes_on_until_it_ends_in_its_own_way() {
    for (end, code, said) in [
        (End::S5, 0, "the guest panicked and then powered off"),
        (End::TripleFault, 1, "the guest panicked and then died of a triple fault"),
    ] {
        let vmm = configured(&Job::new(Mode::Probe).end(end).with("panic", CRASH_LOADED));
        vmm.instance_start();
        assert_eq!(vmm.wait_exit(PATIENCE), code, "{}", vmm.said());
        assert!(vmm.log().contains("the guest's kernel panicked; its crash kernel takes over"), "{}", vmm.log());
        assert!(vmm.log().contains(said), "{}", vmm.log());
    }
}

/// 4096 panics are ten lines and one flag.
#[test]
fn a_flood_of_panics_is_counted_not_written_down() {
    let vmm = configured(&Job::new(Mode::Hostile("g27-panic-garbage".to_owned())));
    vmm.instance_start();
    finish(&vmm);
    let lines = vmm.log().matches("the guest's kernel panicked").count();
    assert!((1..=20).contains(&lines), "{lines}");
    assert!(vmm.log().contains("The microVM ended: the guest panicked and then rebooted."), "{}", vmm.log());
}

#[test]
fn a_guest_that_does_not_panic_is_not_said_to() {
    let vmm = configured(&Job::new(Mode::Probe));
    run(&vmm);
    assert!(vmm.log().contains("The microVM ended: the guest rebooted."), "{}", vmm.log());
    assert!(!vmm.log().contains("panicked"), "{}", vmm.log());
}
