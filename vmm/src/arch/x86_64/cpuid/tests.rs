use super::*;
use kvm_bindings::kvm_cpuid_entry2 as Entry;
use proptest::prelude::*;

fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> Entry {
    let subleaves = [4, 7, 0xb, 0xd, 0x1f, 0x8000_001d];
    let flags = if subleaves.contains(&function) { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
    Entry { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
}

fn vendor(max: u32, name: &[u8; 12]) -> Entry {
    let word = |i: usize| u32::from_le_bytes(name[i..i + 4].try_into().unwrap());
    entry(0, 0, [max, word(0), word(8), word(4)])
}

/// A host with everything switched on, so that what must go can be seen going.
fn host(maker: &[u8; 12]) -> CpuId {
    let ones = u32::MAX;
    let mut entries = vec![
        vendor(0x20, maker),
        entry(1, 0, [0x806f8, 0x1122_0800, ones & !(1 << 24), ones]),
        entry(6, 0, [ones, 0, ones, 0]),
        entry(7, 0, [0, ones, ones, ones]),
        entry(0xa, 0, [ones; 4]),
        entry(0xb, 0, [9, 9, 9, 9]),
        entry(0x12, 0, [ones; 4]),
        entry(0x1f, 0, [9, 9, 9, 9]),
        entry(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        entry(0x4000_0001, 0, [ones, 0, 0, 1]),
        entry(0x8000_0001, 0, [0, 0, ones, ones]),
        entry(0x8000_0008, 0, [0x3030, 0, 0xffff, 0]),
        entry(0x8000_001e, 0, [0; 4]),
        entry(0x8000_0022, 0, [ones; 4]),
        entry(0x8000_0026, 0, [ones; 4]),
    ];
    // L1 data, L1 code, L2, L3, end.
    for (leaf, maker_has_it) in [(4, maker == b"GenuineIntel"), (0x8000_001d, maker == b"AuthenticAMD")] {
        for (index, kind_and_level) in (0..).zip([0x21, 0x22, 0x43, 0x63, 0]) {
            let high = if maker_has_it && kind_and_level != 0 { 0xffff_c000 } else { 0 };
            let low = if maker_has_it { kind_and_level } else { 0 };
            entries.push(entry(leaf, index, [high | low, 1, 2, 3]));
        }
    }
    CpuId::from_entries(&entries).unwrap()
}

fn get(table: &CpuId, function: u32, index: u32) -> Entry {
    let mut found = table.as_slice().iter().filter(|e| e.function == function && e.index == index);
    let entry = *found.next().unwrap_or_else(|| panic!("no leaf {function:#x}.{index}"));
    assert!(found.next().is_none(), "leaf {function:#x}.{index} is there twice");
    entry
}

const INTEL: &[u8; 12] = b"GenuineIntel";
const AMD: &[u8; 12] = b"AuthenticAMD";

#[test]
fn leaf_1_is_that_of_this_vcpu() {
    let table = guest_table(&host(INTEL), 5, 6, false, 0).unwrap();
    let leaf = get(&table, 1, 0);
    assert_eq!(leaf.ebx, 0x0508_0800, "APIC id 5, 8 ids for 6 vCPUs, CLFLUSH line kept");
    assert_ne!(leaf.edx & 1 << 28, 0, "HTT");
    assert_ne!(leaf.ecx & 1 << 24, 0, "TSC deadline timer");
    assert_ne!(leaf.ecx & 1 << 31, 0, "hypervisor");
    for bit in [2, 3, 5, 15] {
        assert_eq!(leaf.ecx & 1 << bit, 0, "leaf 1 ECX bit {bit}");
    }
    let single = get(&guest_table(&host(INTEL), 0, 1, true, 0).unwrap(), 1, 0);
    assert_eq!((single.ebx, single.edx & 1 << 28), (0x0001_0800, 0));
}

#[test]
fn extended_topology_lists_threads_then_cores() {
    let table = guest_table(&host(INTEL), 3, 6, true, 0).unwrap();
    for leaf in [0xb, 0x1f] {
        let levels = [0, 1, 2].map(|i| {
            let e = get(&table, leaf, i);
            assert_eq!(e.flags, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
            [e.eax, e.ebx, e.ecx, e.edx]
        });
        // 6 vCPUs: 3 cores (2 bits) of 2 threads (1 bit).
        assert_eq!(levels, [[1, 2, 0x100, 3], [3, 6, 0x201, 3], [0, 0, 2, 3]]);
    }
}

#[test]
fn extended_topology_is_not_invented() {
    let mut entries = host(INTEL).as_slice().to_vec();
    entries[0].eax = 0xd;
    let table = guest_table(&CpuId::from_entries(&entries).unwrap(), 0, 2, false, 0).unwrap();
    assert!(table.as_slice().iter().all(|e| e.function != 0x1f));
    assert_eq!(get(&table, 0xb, 1).ebx, 2);
}

#[test]
fn intel_caches_are_shared_by_our_threads_and_package() {
    let table = guest_table(&host(INTEL), 0, 6, true, 0).unwrap();
    let sharing = |i| (get(&table, 4, i).eax >> 14 & 0xfff) + 1;
    assert_eq!([sharing(0), sharing(1), sharing(2), sharing(3)], [2, 2, 2, 8]);
    assert_eq!((get(&table, 4, 0).eax >> 26) + 1, 4, "core ids: 3 rounded up");
    assert_eq!(get(&table, 4, 2).eax & 0x3fff, 0x43, "type and level stay");
    assert_eq!(get(&table, 4, 4).eax, 0, "the end marker stays");
    let power = get(&table, 6, 0);
    assert_eq!((power.eax & 0x4002, power.ecx & 8), (0, 0));
}

#[test]
fn amd_topology_agrees_with_itself() {
    let table = guest_table(&host(AMD), 3, 6, true, 0).unwrap();
    let topology = get(&table, 0x8000_001e, 0);
    assert_eq!([topology.eax, topology.ebx, topology.ecx], [3, 0x0101, 0]);
    assert_eq!(get(&table, 0x8000_0008, 0).ecx & 0xf0ff, 0x3005);
    assert_eq!(get(&table, 0x8000_0008, 0).eax, 0x3030, "address sizes stay");
    let sharing = |i| (get(&table, 0x8000_001d, i).eax >> 14 & 0xfff) + 1;
    assert_eq!([sharing(0), sharing(2), sharing(3)], [2, 2, 6]);
    let features = get(&table, 0x8000_0001, 0).ecx;
    assert_eq!(features & (1 << 1 | 1 << 22), 1 << 1 | 1 << 22);
    assert_eq!(features & (1 << 2 | 1 << 23 | 1 << 24 | 1 << 28), 0);
    assert!(table.as_slice().iter().all(|e| e.function != 0x8000_0026));
    assert_eq!(get(&table, 7, 0).edx & 1 << 29, 0, "ARCH_CAPABILITIES is Intel's");
}

#[test]
fn amd_without_cache_leaves_does_not_promise_them() {
    let table = guest_table(&host(b"HygonGenuine"), 0, 2, false, 0).unwrap();
    assert_eq!(get(&table, 0x8000_0001, 0).ecx & 1 << 22, 0);
    assert_eq!(get(&table, 0x8000_001e, 0).eax, 0);
}

#[test]
fn what_guests_do_not_get_is_gone() {
    let table = guest_table(&host(INTEL), 0, 1, false, 0).unwrap();
    for leaf in [0xa, 0x12, 0x8000_0022] {
        let e = get(&table, leaf, 0);
        assert_eq!([e.eax, e.ebx, e.ecx, e.edx], [0; 4], "leaf {leaf:#x}");
    }
    let leaf7 = get(&table, 7, 0);
    assert_eq!(leaf7.ebx & (1 << 2 | 1 << 25), 0);
    assert_eq!(leaf7.ecx & (1 << 5 | 1 << 30), 0);
    assert_ne!(leaf7.edx & 1 << 29, 0, "ARCH_CAPABILITIES stays on Intel");
}

#[test]
fn guests_learn_the_clock_frequencies() {
    let table = guest_table(&host(INTEL), 0, 1, false, 2_596_100).unwrap();
    let timing = get(&table, 0x4000_0010, 0);
    assert_eq!([timing.eax, timing.ebx, timing.ecx, timing.edx], [2_596_100, 1_000_000, 0, 0]);
    let signature = get(&table, 0x4000_0000, 0);
    assert_eq!((signature.eax, signature.ebx), (0x4000_0010, 0x4b4d_564b));
    let features = get(&table, 0x4000_0001, 0);
    assert_eq!(features.eax & (1 | 1 << 3 | 1 << 24), 1 | 1 << 3 | 1 << 24, "kvm-clock, stable");
    assert_eq!(features.eax & (1 << 15 | 1 << 16 | 1 << 17 | 1 << 31), 0);
    assert_eq!(features.edx, 1, "hints stay");

    let unknown = guest_table(&host(INTEL), 0, 1, false, 0).unwrap();
    assert!(unknown.as_slice().iter().all(|e| e.function != 0x4000_0010));
    assert_eq!(get(&unknown, 0x4000_0000, 0).eax, 0x4000_0001);
}

#[test]
fn impossible_machines_are_refused() {
    let host = host(INTEL);
    let refuse = |vcpu, count, smt| guest_table(&host, vcpu, count, smt, 0).err();
    assert_eq!(refuse(0, 0, false), Some(Error::VcpuOutOfRange { index: 0, count: 0 }));
    assert_eq!(refuse(2, 2, false), Some(Error::VcpuOutOfRange { index: 2, count: 2 }));
    assert_eq!(refuse(0, 33, false), Some(Error::VcpuOutOfRange { index: 0, count: 33 }));
    assert_eq!(refuse(0, 3, true), Some(Error::OddWithSmt(3)));
    let empty = CpuId::new(0).unwrap();
    assert_eq!(guest_table(&empty, 0, 1, false, 0).err(), Some(Error::MissingLeaf(0)));
}

#[test]
fn a_full_host_table_is_an_error_not_a_panic() {
    let mut entries = host(INTEL).as_slice().to_vec();
    entries.extend((0..).map(|i| entry(0x5000_0000 + i, 0, [0; 4])).take(256 - entries.len()));
    let full = CpuId::from_entries(&entries).unwrap();
    assert!(matches!(guest_table(&full, 0, 1, false, 1), Err(Error::TooManyEntries(_))));
}

proptest! {
    /// Every vCPU of a machine must be told the same sizes, and must decode to a different place.
    #[test]
    fn all_vcpus_agree(count in 1u8..=32, smt: bool, amd: bool) {
        let host = host(if amd { AMD } else { INTEL });
        let smt = smt && count % 2 == 0;
        let mut places = std::collections::BTreeSet::new();
        for vcpu in 0..count {
            let table = guest_table(&host, vcpu, count, smt, 1).unwrap();
            let (thread, core) = (get(&table, 0xb, 0), get(&table, 0xb, 1));
            prop_assert_eq!(core.ebx, u32::from(count));
            prop_assert_eq!(core.edx >> core.eax, 0, "one package");
            prop_assert!(1 << core.eax >= count);
            prop_assert_eq!(thread.ebx, if smt { 2 } else { 1 });
            places.insert((core.edx >> thread.eax, core.edx & ((1 << thread.eax) - 1)));
            prop_assert_eq!(get(&table, 1, 0).ebx >> 24, u32::from(vcpu));
        }
        prop_assert_eq!(places.len(), usize::from(count));
    }
}
