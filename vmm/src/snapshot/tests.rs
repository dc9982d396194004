//! State files that are not what a machine of ours wrote.

use devices::legacy::cpu_hotplug::{CpuHotplug, CpuSet};
use devices::legacy::i8042::I8042;
use devices::legacy::ioapic::IoApicState;
use devices::legacy::power::{PowerEvent, PowerSink};
use devices::legacy::serial::Com1State;
use devices::mmds::Document;
use devices::virtio::state::{CellState, DeviceState, Progress, RegistersState};
use proptest::prelude::*;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::arch::state::VcpuState;
use crate::blueprint::Disk;
use crate::config::{BucketSpec, InstanceId, MachineConfig, SerialConfig};
use crate::memory::Run;

struct Nobody;

impl PowerSink for Nobody {
    fn request(&self, _event: PowerEvent) {}
}

/// The state file of a machine with so many vCPUs that has an entropy device.
fn file(vcpus: usize) -> Vec<u8> {
    let config = FullConfig { machine: MachineConfig::new(vcpus as u8, 128).unwrap(), ..FullConfig::default() };
    let registers = RegistersState {
        accepted: 1 << 32,
        device_features_page: 0,
        driver_features_page: 1,
        queue_select: 0,
        queues: vec![Default::default()],
        status: 15,
        generation: 0,
    };
    let cell = CellState {
        registers,
        progress: Progress::Live,
        positions: vec![Default::default()],
        interrupts: 0,
        config: vec![0; 64],
        device: DeviceState::Rng(Default::default()),
    };
    let chip = I8042::new(EventFd::new(0).unwrap(), std::sync::Arc::new(Nobody));
    let platform = Platform {
        clock: Default::default(),
        ioapic: IoApicState::default(),
        com1: Com1State::default(),
        i8042: chip.save(),
    };
    let layout = Layout::new([(GuestAddress(0), 128 << 20)].into_iter());
    let sections = Sections {
        host: HostSection::here(),
        config: Configuration::from(&config),
        memory: MemorySection { layout, marks: vec![Mark { offset: 0, crc: 1 }] },
        platform,
        vcpus: Vcpus(vec![VcpuState::blank(); vcpus]),
        devices: Devices(vec![("entropy device".to_owned(), cell)]),
    };
    sections.write()
}

/// All that is in a state file.
struct Sections {
    host: HostSection,
    config: Configuration,
    memory: MemorySection,
    platform: Platform,
    vcpus: Vcpus,
    devices: Devices,
}

impl Sections {
    fn read(bytes: &[u8]) -> Self {
        let mut reader = Reader::new(bytes).unwrap();
        let sections = Self {
            host: reader.take().unwrap(),
            config: reader.take().unwrap(),
            memory: reader.take().unwrap(),
            platform: reader.take().unwrap(),
            vcpus: reader.take().unwrap(),
            devices: reader.take().unwrap(),
        };
        reader.finish().unwrap();
        sections
    }

    fn write(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.add(&self.host).unwrap();
        writer.add(&self.config).unwrap();
        writer.add(&self.memory).unwrap();
        writer.add(&self.platform).unwrap();
        writer.add(&self.vcpus).unwrap();
        writer.add(&self.devices).unwrap();
        writer.finish()
    }
}

/// The state of a machine with at most so many vCPUs, two of which it booted with.
fn growing(vcpus: usize, max: u8) -> Vec<u8> {
    let loaded = load(&file(2), false).unwrap();
    let registers = CpuHotplug::new(2, 4, EventFd::new(0).unwrap());
    registers.insert(registers.want(3).wanted);
    let cpus = Some(HotplugCpus { max_vcpus: max, registers: registers.save() });
    let state = State { vcpus: Vcpus(vec![VcpuState::blank(); vcpus]), cpus, ..loaded.state };
    write(&loaded.config, &loaded.memory, &state).unwrap().finish()
}

#[test]
fn which_vcpus_are_plugged_is_saved() {
    let loaded = load(&growing(4, 4), false).unwrap();
    assert_eq!((loaded.config.machine.vcpu_count(), loaded.config.machine.max_vcpus()), (2, Some(4)));
    let cpus = loaded.state.cpus.unwrap();
    assert_eq!((cpus.max_vcpus, cpus.registers.present()), (4, CpuSet::first(3)));
    // A clone is told, too.
    let letter = Letters::new(loaded.layout(), &loaded.state).unwrap().to(&loaded.config, &CloneOrder::default());
    let (clone, _) = load_clone(&letter.unwrap()).unwrap();
    assert_eq!((clone.config.machine.max_vcpus(), clone.state.cpus), (Some(4), Some(cpus)));
    assert_eq!(load(&file(2), false).unwrap().config.machine.max_vcpus(), None);
}

#[test]
fn plugged_vcpus_that_a_machine_cannot_have_are_refused() {
    let refused = |bytes: &[u8]| load(bytes, false).unwrap_err().to_string();
    let text = refused(&growing(2, 4));
    assert!(text.contains("the state of 2 vCPUs, and the machine has 4"), "{text}");
    // Three are plugged.
    let text = refused(&growing(2, 2));
    assert!(text.contains("vCPU hotplug: 3 vCPUs are wanted, and 1 to 2 are possible"), "{text}");
    let text = refused(&growing(40, 40));
    assert!(text.contains("max_vcpus is 40"), "{text}");
}

#[test]
fn what_is_written_can_be_read() {
    let loaded = load(&file(2), false).unwrap();
    assert_eq!((loaded.config.machine.vcpu_count(), loaded.state.vcpus.0.len()), (2, 2));
    assert_eq!(loaded.state.devices.0[0].0, "entropy device");
}

/// A machine with every device, as this version of the format has it. If this fails, the format has changed: that is a decision. Then sections
/// that changed get other versions, the format gets one ([`VERSION`]), and a file of it is added here: save a machine with every device.
#[test]
fn files_of_this_version_are_read_and_written_as_ever() {
    assert_eq!(VERSION.to_string(), "v1.0.0", "a file of the new version belongs here, too");
    let bytes = include_bytes!("golden/v1.0.0.state");
    let said = Description::of(bytes).unwrap();
    assert_eq!((said.version, said.config.machine.vcpu_count()), (VERSION, 2));
    assert_eq!((said.kernel.as_str(), said.memory_len), ("6.18.44-generic", 320 << 20));
    let devices: Vec<&str> = said.devices.iter().map(|(name, _)| name.as_str()).collect();
    let all = ["balloon", "drive d", "network interface eth0", "pmem p", "vsock", "entropy device", "hotplug memory"];
    assert!(all.iter().all(|name| devices.contains(name)) && devices.len() == all.len(), "{devices:?}");
    let mut sections = Sections::read(bytes);
    sections.config = Configuration::from(&sections.config.check().unwrap());
    assert!(sections.write() == bytes, "what is read is written otherwise");
}

#[test]
fn another_makers_processor_is_refused_unless_it_is_by_force() {
    let mut sections = Sections::read(&file(1));
    sections.host.cpu.vendor = "Somebody".to_owned();
    let bytes = sections.write();
    let error = load(&bytes, false).unwrap_err().to_string();
    assert!(error.starts_with("The host does not fit: the snapshot was taken on a processor of Somebody"), "{error}");
    load(&bytes, true).unwrap();
    assert!(Description::of(&bytes).unwrap().misfit.is_some());
}

/// S2.
#[test]
fn counts_that_do_not_fit_are_refused() {
    for (section, value) in [("vcpus", 0), ("vcpus", 33)] {
        let sections = Sections {
            config: Configuration::from(&FullConfig::default()),
            vcpus: Vcpus(vec![VcpuState::blank(); value]),
            ..Sections::read(&file(1))
        };
        let error = load(&sections.write(), false).unwrap_err().to_string();
        assert!(error.contains(&format!("the state of {value} {section}").replace("vcpus", "vCPUs")), "{error}");
    }
}

/// S5.
#[test]
fn registers_that_no_processor_has_are_named() {
    let mut state = VcpuState::blank();
    state.spoil_rip(0x1234_5678_9abc_def0);
    assert!(state.check().unwrap_err().to_string().contains("0x123456789abcdef0"));
}

/// A machine as it is handed over, with everything that a clone can be told.
fn handed_over() -> (Vec<u8>, CloneOrder) {
    let loaded = load(&file(1), false).unwrap();
    let limiter = BucketSpec { size: 1000, one_time_burst: 0, refill_ms: 100 };
    let order = CloneOrder {
        id: Some(InstanceId::try_from("clone-1").unwrap()),
        resume: true,
        clock_realtime: true,
        track_dirty_pages: true,
        serial: Some(SerialConfig { serial_out_path: Some("/console".into()), rate_limiter: Some(limiter) }),
        mmds: Document::of_text(r#"{"who": {"am": ["i", 1, null]}}"#),
        runs: vec![Run { offset: 4096, len: 8192 }],
        taken: vec![Disk::File(1, 2), Disk::Device(3)],
    };
    (Letters::new(loaded.layout(), &loaded.state).unwrap().to(&loaded.config, &order).unwrap(), order)
}

#[test]
fn what_is_handed_over_can_be_read() {
    let (bytes, order) = handed_over();
    let (loaded, found) = load_clone(&bytes).unwrap();
    assert_eq!(format!("{found:?}"), format!("{order:?}"));
    assert_eq!(loaded.state.devices.0[0].0, "entropy device");
    // Neither is taken for the other.
    let error = load(&bytes, false).unwrap_err().to_string();
    assert!(error.contains("clone"), "{error}");
    let error = load_clone(&file(1)).unwrap_err().to_string();
    assert!(error.contains("clone"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// S1, S2: whatever is in the file, it is read or refused. (That nothing large is allocated for it, postcard sees to.)
    #[test]
    fn any_bytes_do_no_harm(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = file(1);
        bytes.truncate(bytes.len() - 4);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fuzz(&bytes);
    }

    /// The same for what is handed over, by a process that a guest may have taken over.
    #[test]
    fn any_offer_does_no_harm(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let (mut bytes, _) = handed_over();
        bytes.truncate(bytes.len() - 4);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        fuzz(&bytes);
    }
}
