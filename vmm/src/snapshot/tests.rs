//! State files that are not what a machine of ours wrote.

use devices::legacy::i8042::I8042;
use devices::legacy::ioapic::IoApicState;
use devices::legacy::power::{PowerEvent, PowerSink};
use devices::legacy::serial::Com1State;
use devices::virtio::state::{CellState, DeviceState, Progress, RegistersState};
use proptest::prelude::*;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::arch::state::VcpuState;
use crate::config::MachineConfig;

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
    let mut writer = Writer::default();
    writer.add(&HostSection::here()).unwrap();
    writer.add(&Configuration::from(&config)).unwrap();
    writer.add(&MemorySection { layout, marks: vec![Mark { offset: 0, crc: 1 }] }).unwrap();
    writer.add(&platform).unwrap();
    writer.add(&Vcpus(vec![VcpuState::blank(); vcpus])).unwrap();
    writer.add(&Devices(vec![("entropy device".to_owned(), cell)])).unwrap();
    writer.finish()
}

#[test]
fn what_is_written_can_be_read() {
    let loaded = load(&file(2)).unwrap();
    assert_eq!((loaded.config.machine.vcpu_count(), loaded.state.vcpus.0.len()), (2, 2));
    assert_eq!(loaded.state.devices.0[0].0, "entropy device");
}

/// S2.
#[test]
fn counts_that_do_not_fit_are_refused() {
    let whole = file(1);
    for (section, value) in [("vcpus", 0), ("vcpus", 33)] {
        let config = FullConfig::default();
        let mut writer = Writer::default();
        let mut reader = Reader::new(&whole).unwrap();
        writer.add(&reader.take::<HostSection>().unwrap()).unwrap();
        writer.add(&Configuration::from(&config)).unwrap();
        writer.add(&reader.take::<MemorySection>().unwrap()).unwrap();
        writer.add(&reader.take::<Platform>().unwrap()).unwrap();
        writer.add(&Vcpus(vec![VcpuState::blank(); value])).unwrap();
        writer.add(&reader.take::<Devices>().unwrap()).unwrap();
        let error = load(&writer.finish()).unwrap_err().to_string();
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
}
