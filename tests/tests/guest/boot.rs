//! Both boot protocols, what a guest finds, and every way it can end.

use guest::{End, Job, Mode};
use mayfly_tests::{PATIENCE, VmmBuilder, on_pci};
use serde_json::json;

use super::{configured, configured_with, number, run, text};

const PVH_LINE: &str = "Kernel loaded using PVH boot protocol";

#[test]
fn elf_boots_by_the_linux_64_bit_protocol() {
    let vmm = configured(&Job::new(Mode::Probe));
    let report = run(&vmm);
    assert_eq!(text(&report, "boot"), "linux");
    assert!(!vmm.log().contains(PVH_LINE));
    // 64 MiB, less what the map of the contract keeps below 1 MiB.
    let ram = number(&report, "ram_bytes");
    assert!((63 << 20..=64 << 20).contains(&ram), "{ram}");
}

#[test]
fn elf_with_a_note_boots_by_pvh() {
    let vmm = configured_with(VmmBuilder::new(), guest::ELF_PVH, &Job::new(Mode::Probe));
    let report = run(&vmm);
    assert_eq!(text(&report, "boot"), "pvh");
    assert!(vmm.log().contains(PVH_LINE));
}

#[test]
fn the_greeting_tells_a_person_what_there_is() {
    let vmm = configured(&Job::new(Mode::Hello));
    let disk = vmm.file("disk", &[b"mayfly\0\x01".as_slice(), &[0; 1016]].concat());
    vmm.drive("d", &disk, "Sync");
    run(&vmm);
    let console = vmm.console().text();
    for line in [
        "Hello from inside a Mayfly microVM.",
        "memory     63 MiB",
        if on_pci() {
            "device     block at 0x7fc0080000: 1 x 256 descriptors"
        } else {
            "device     block at 0xc0001000: 1 x 256 descriptors"
        },
        "disk       1 KiB, begins with [6d, 61, 79, 66, 6c, 79, 00, 01]",
    ] {
        assert!(console.contains(line), "{line:?} is not in\n{console}");
    }
}

/// RAM beyond 3 GiB goes on at 4 GiB, above the devices' hole.
#[test]
fn memory_goes_around_the_devices_hole() {
    for image in [guest::ELF, guest::ELF_PVH] {
        let vmm = configured_with(VmmBuilder::new(), image, &Job::new(Mode::Probe));
        vmm.machine(1, 5 << 10);
        let report = run(&vmm);
        let ram: Vec<(u64, u64)> = report
            .with_key("range_start")
            .filter(|line| line.number("range_ram") == Some(1u64))
            .map(|line| (line.number("range_start").unwrap(), line.number("range_len").unwrap()))
            .collect();
        let end = |n: usize| ram[n].0 + ram[n].1;
        assert_eq!(ram.len(), 3, "{report:?}");
        assert_eq!((ram[0].0, end(0)), (0, 0x9_fc00));
        assert_eq!((ram[1].0, end(1)), (1 << 20, 3 << 30));
        assert_eq!((ram[2].0, end(2)), (4 << 30, 6 << 30));
    }
}

/// CPUID as presented: hypervisor bit, TSC deadline timer, KVM's signature, the TSC frequency.
#[test]
fn cpuid_is_what_a_guest_relies_on() {
    let vmm = configured(&Job::new(Mode::Probe));
    let report = run(&vmm);
    let leaf = |leaf: &str| {
        let line = report.with_key("cpuid").find(|line| line.get("cpuid") == Some(leaf));
        line.unwrap_or_else(|| panic!("no leaf {leaf}: {report:?}")).clone()
    };
    let ecx = leaf("0x1").number::<u64>("ecx").unwrap();
    assert_eq!(ecx >> 31 & 1, 1, "hypervisor bit");
    assert_eq!(ecx >> 24 & 1, 1, "TSC deadline timer");
    let signature = leaf("0x40000000");
    assert_eq!(signature.number::<u64>("ebx"), Some(u64::from(u32::from_le_bytes(*b"KVMK"))));
    assert!(number(&report, "tsc_khz") > 100_000, "the TSC frequency is announced");
}

#[test]
fn seventeen_devices_are_found_in_the_order_of_configuration() {
    let vmm = configured(&Job::new(Mode::Probe));
    for n in 0..17 {
        let path = vmm.file(&format!("disk{n}"), &[0; 512]);
        vmm.drive(&format!("d{n}"), &path, "Sync");
    }
    let report = run(&vmm);
    let addresses: Vec<u64> = report.with_key("device").filter_map(|line| line.number("address")).collect();
    let (first, step) = if on_pci() { (0x7f_c008_0000, 0x8_0000) } else { (0xc000_1000, 0x1000) };
    let expected: Vec<u64> = (0..17).map(|n| first + n * step).collect();
    assert_eq!(addresses, expected);
}

#[test]
fn a_device_too_many_is_refused_and_the_machine_still_starts_without_it() {
    let (most, text) = match on_pci() {
        false => (17, "Could not allocate GSI: The requested resource is not available."),
        true => (31, "Could not find an available device slot on the PCI bus."),
    };
    let vmm = configured(&Job::new(Mode::Probe));
    for n in 0..=most {
        let path = vmm.file(&format!("disk{n}"), &[0; 512]);
        vmm.drive(&format!("d{n}"), &path, "Sync");
    }
    let start = json!({"action_type": "InstanceStart"});
    vmm.put("/actions", &start).expect_fault(text);
    assert_eq!(vmm.get("/").json()["state"], "Not started");
}

#[test]
fn a_reset_ends_with_0() {
    let vmm = configured(&Job::new(Mode::Probe).end(End::Reset));
    run(&vmm);
    assert!(vmm.log().contains("the guest rebooted"), "{}", vmm.log());
    assert!(vmm.log().trim_end().ends_with("Mayfly exiting successfully. exit_code=0"), "{}", vmm.log());
    assert!(!vmm.socket().exists(), "the socket is removed");
}

#[test]
fn acpi_power_off_ends_with_0() {
    let vmm = configured(&Job::new(Mode::Probe).end(End::S5));
    run(&vmm);
    assert!(vmm.log().contains("the guest powered off"), "{}", vmm.log());
    assert!(vmm.log().trim_end().ends_with("Mayfly exiting successfully. exit_code=0"), "{}", vmm.log());
}

#[test]
fn a_triple_fault_ends_with_1() {
    let vmm = configured(&Job::new(Mode::Probe).end(End::TripleFault));
    vmm.instance_start();
    assert_eq!(vmm.wait_exit(PATIENCE), 1, "{}", vmm.said());
    assert!(vmm.log().contains("triple fault"), "{}", vmm.log());
    assert!(vmm.log().trim_end().ends_with("Mayfly exiting with error. exit_code=1"), "{}", vmm.log());
    assert!(!vmm.socket().exists(), "the socket is removed");
}

#[test]
fn sigterm_ends_with_143_whether_there_is_a_machine_or_not() {
    let idle = VmmBuilder::new().start();
    idle.signal(libc::SIGTERM);
    assert_eq!(idle.wait_exit(PATIENCE), 143, "{}", idle.said());

    let vmm = configured(&Job::new(Mode::Spin));
    vmm.instance_start();
    vmm.wait_for_line(guest::READY, PATIENCE);
    vmm.signal(libc::SIGTERM);
    assert_eq!(vmm.wait_exit(PATIENCE), 143, "{}", vmm.said());
    assert!(!vmm.socket().exists(), "the socket is removed");
    assert!(vmm.log().contains("signal 15"), "{}", vmm.log());
}

#[test]
fn the_boot_timer_is_logged_once_and_only_if_asked_for() {
    let job = Job::new(Mode::Probe).boot_timer();
    let vmm = configured_with(VmmBuilder::new().arg("--boot-timer"), guest::ELF, &job);
    run(&vmm);
    assert_eq!(vmm.log().matches("Guest-boot-time =").count(), 1, "{}", vmm.log());

    let vmm = configured(&job);
    run(&vmm);
    assert!(!vmm.log().contains("Guest-boot-time ="));
}

#[test]
fn a_configuration_file_boots_without_an_api() {
    let builder = VmmBuilder::new();
    let kernel = builder.file("guest.elf", guest::ELF);
    let config = json!({
        "boot-source": {"kernel_image_path": kernel, "boot_args": Job::new(Mode::Probe).command_line()},
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 64},
        "drives": [],
    });
    let vmm = builder.no_api().config_file(&config).spawn();
    super::finish(&vmm);
    assert!(vmm.log().contains("Successfully started microvm that was configured from one single json"));
}
