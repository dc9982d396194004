//! Memory as planned, on this machine's KVM.

use std::os::unix::fs::FileExt;

use vm_memory::Bytes;

use super::*;
use crate::config::{MachineConfig, MemoryHotplugConfig, PmemConfig, RateLimits, ResourceId};
use crate::kvm;

const MIB: u64 = 1 << 20;

fn map(plan: &Plan) -> Result<Memory, MemoryError> {
    let kvm = kvm::open(&[]).expect("this test needs /dev/kvm");
    let vm = Arc::new(kvm::create_vm(&kvm).unwrap());
    Memory::new(&kvm, &vm, plan, None, false, &|_| None)
}

fn plan() -> Plan {
    let mut plan = Plan::default();
    plan.machine = MachineConfig::new(1, 64).unwrap();
    plan
}

fn hotplug(total_mib: u32, slot_mib: u32) -> Plan {
    let mut plan = plan();
    plan.memory_hotplug = Some(MemoryHotplugConfig::new(total_mib, 2, slot_mib).unwrap());
    plan
}

fn regions(memory: &GuestRam) -> Vec<(u64, u64)> {
    memory.iter().map(|region| (region.start_addr().0, region.len())).collect()
}

fn pmem(path: &std::path::Path, read_only: bool) -> PmemConfig {
    PmemConfig {
        id: ResourceId::try_from("p").unwrap(),
        path_on_host: path.to_owned(),
        root_device: false,
        read_only,
        rate_limiter: RateLimits::default(),
    }
}

#[test]
fn the_guest_boots_in_ram_and_devices_reach_all_of_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(5000).unwrap();
    let mut plan = hotplug(256, 128);
    plan.put_pmem(pmem(file.path(), false)).unwrap();
    let memory = map(&plan).unwrap();
    assert_eq!(regions(&memory.ram), [(0, 64 * MIB)]);
    let (file_at, hotplug_at) = (256 << 30, 512 << 30);
    assert_eq!(regions(&memory.everything), [(0, 64 * MIB), (file_at, 2 * MIB), (hotplug_at, 256 * MIB)]);
    assert_eq!(memory.hotplug.as_ref().unwrap().shape.start, hotplug_at);
    memory.everything.write_obj(0x77u8, GuestAddress(file_at + 4999)).unwrap();
    let mut byte = [0];
    file.as_file().read_exact_at(&mut byte, 4999).unwrap();
    assert_eq!(byte, [0x77]);
    assert!(memory.slots.set(GuestAddress(file_at), 2 * MIB, Access::ReadWrite).is_err(), "it is a slot already");
    assert!(memory.slots.set(GuestAddress(hotplug_at), 128 * MIB, Access::ReadWrite).is_ok(), "nothing is plugged");
}

#[test]
fn a_read_only_file_is_opened_and_mapped_as_such() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(3 * MIB).unwrap();
    let mut plan = plan();
    plan.put_pmem(pmem(file.path(), true)).unwrap();
    let memory = map(&plan).unwrap();
    let region = memory.everything.find_region(GuestAddress(256 << 30)).unwrap();
    assert_eq!((region.prot(), memory.pmems[0].len), (libc::PROT_READ, 4 * MIB));
    assert!(memory.pmems[0].file.write_at(&[1], 0).is_err(), "the descriptor cannot write either");
}

#[test]
fn what_cannot_be_is_named() {
    let why = |plan: &Plan| map(plan).err().expect("a refusal").to_string();
    let slots = why(&hotplug(16 << 20, 128));
    assert!(slots.contains("takes 131072 of KVM's memory slots") && slots.contains("use a larger slot_size_mib"));
    // Two petabytes do not fit into an address space of ours, or not into the guest's.
    assert!(why(&hotplug(1 << 31, 1 << 30)).contains("emory"));
    assert!(judge_reach(1 << 40, 40).is_ok());
    let reach = judge_reach((1 << 40) + 1, 40).unwrap_err().to_string();
    assert!(reach.contains("40 address bits") && reach.contains("0x10000000000"), "{reach}");
    assert!(judge_reach(u64::MAX, 64).is_ok());
}

#[test]
fn slots_come_and_go_and_their_pages_with_them() {
    use devices::virtio::mem::Backing;

    let memory = map(&hotplug(256, 128)).unwrap();
    let shape = memory.hotplug.as_ref().unwrap().shape;
    let room = memory.slots.room();
    let mut region = HotplugMemory::new(shape, memory.everything.clone(), memory.slots.clone());
    region.open(1).unwrap();
    assert_eq!(memory.slots.room(), room - 1);
    let word = GuestAddress(shape.start + 130 * MIB);
    memory.everything.write_obj(7u64, word).unwrap();
    region.discard(130 * MIB, 2 * MIB).unwrap();
    assert_eq!(memory.everything.read_obj::<u64>(word).unwrap(), 0);
    region.close(1).unwrap();
    assert_eq!(memory.slots.room(), room);
    for (offset, len) in [(256 * MIB, 2 * MIB), (254 * MIB, 4 * MIB), (u64::MAX, 2 * MIB)] {
        assert!(region.discard(offset, len).is_err());
    }
    assert!(region.open(2).is_err() && region.close(2).is_err());
}
