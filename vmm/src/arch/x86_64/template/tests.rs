use kvm_bindings::kvm_cpuid_entry2 as Entry;
use proptest::prelude::*;

use super::*;

fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> Entry {
    Entry { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

/// A processor by `maker` that says it is `signature` and has everything.
fn host(maker: &[u8; 12], signature: u32) -> CpuId {
    let word = |i: usize| u32::from_le_bytes(maker[i..i + 4].try_into().unwrap());
    let ones = u32::MAX;
    CpuId::from_entries(&[
        entry(0, 0, [0x20, word(0), word(8), word(4)]),
        entry(1, 0, [signature, 0x1122_0800, ones, ones]),
        entry(7, 0, [1, ones, ones, ones]),
        entry(7, 1, [ones; 4]),
        entry(0xd, 0, [ones, 0, 0, 0]),
        entry(0xd, 1, [ones, 0, 0, 0]),
        entry(0x8000_0001, 0, [0, 0, ones, ones]),
        entry(0x8000_0008, 0, [0x3030, ones, 0, 0]),
    ])
    .unwrap()
}

const INTEL: &[u8; 12] = b"GenuineIntel";
const AMD: &[u8; 12] = b"AuthenticAMD";
const SKYLAKE: u32 = 0x0005_0654;
const CASCADE_LAKE: u32 = 0x0005_0657;
const ICE_LAKE: u32 = 0x0006_06a6;
const SAPPHIRE_RAPIDS: u32 = 0x0008_06f8;
const MILAN: u32 = 0x00a0_0f11;
const GENOA: u32 = 0x00a1_0f11;

fn get(table: &CpuId, leaf: u32, subleaf: u32) -> Entry {
    *table.as_slice().iter().find(|e| (e.function, e.index) == (leaf, subleaf)).unwrap()
}

/// The numbers of the bits that are not set.
fn holes(value: u32) -> Vec<u32> {
    (0..32).filter(|bit| value >> bit & 1 == 0).collect()
}

#[test]
fn registers_of_the_named_leaf_change_and_nothing_else() {
    let bits = |text: &str| text.parse().unwrap();
    let template = Template {
        cpuid: vec![CpuidModifier {
            leaf: 7,
            subleaf: 1,
            flags: 1,
            registers: vec![(Register::Eax, bits("0b0x")), (Register::Edx, bits(&"0".repeat(32)))],
        }],
        msrs: Vec::new(),
    };
    let before = host(INTEL, SKYLAKE);
    let after = apply_cpuid(&before, &template).unwrap();
    let changed = get(&after, 7, 1);
    assert_eq!([changed.eax, changed.ebx, changed.ecx, changed.edx], [u32::MAX - 2, u32::MAX, u32::MAX, 0]);
    assert_eq!(changed.flags, 1);
    let others = |table: &CpuId| {
        table.as_slice().iter().filter(|e| (e.function, e.index) != (7, 1)).copied().collect::<Vec<_>>()
    };
    assert_eq!(others(&after), others(&before));
}

#[test]
fn a_leaf_that_kvm_does_not_have_is_named() {
    for (leaf, subleaf) in [(7, 2), (0x1234, 0)] {
        let modifier = CpuidModifier { leaf, subleaf, flags: 0, registers: Vec::new() };
        let error = apply_cpuid(&host(INTEL, SKYLAKE), &Template { cpuid: vec![modifier], msrs: Vec::new() });
        assert_eq!(error.err(), Some(Misfit::NoSuchLeaf { leaf, subleaf }));
    }
}

#[test]
fn named_templates_are_for_certain_processors() {
    use Named::{C3, T2, T2A, T2CL, T2S};
    for (maker, signature, fit) in [
        (INTEL, SKYLAKE, &[C3, T2, T2S][..]),
        (INTEL, CASCADE_LAKE, &[C3, T2, T2S, T2CL]),
        (INTEL, ICE_LAKE, &[C3, T2, T2CL]),
        (INTEL, SAPPHIRE_RAPIDS, &[]),
        // Cooper Lake shares Skylake's model number.
        (INTEL, 0x0005_065b, &[]),
        (AMD, MILAN, &[T2A]),
        (AMD, GENOA, &[]),
        (b"HygonGenuine", MILAN, &[]),
    ] {
        let host = host(maker, signature);
        for name in [C3, T2, T2S, T2CL, T2A] {
            assert_eq!(name.for_host(&host).is_ok(), fit.contains(&name), "{name} on {signature:#x}");
        }
    }
}

#[test]
fn what_does_not_fit_says_so() {
    let said = |name: Named, maker, signature| name.for_host(&host(maker, signature)).unwrap_err().to_string();
    let vendor = said(Named::T2, AMD, MILAN);
    assert!(vendor.starts_with("CPU vendor mismatched between actual CPU and CPU template. T2 is for "), "{vendor}");
    assert!(vendor.contains("by GenuineIntel, this one says \"AuthenticAMD\""), "{vendor}");
    let model = said(Named::T2A, AMD, GENOA);
    assert!(model.starts_with("The current CPU model is not permitted to apply the CPU template. T2A "), "{model}");
    assert!(model.contains("is for Milan, this is family 0x19 model 0x11 stepping 0x1"), "{model}");
    assert_eq!(Named::T2.for_host(&CpuId::new(0).unwrap()), Err(Misfit::OddTable));
}

#[test]
fn t2_is_a_haswell_without_what_came_later() {
    let host = host(INTEL, ICE_LAKE);
    let table = apply_cpuid(&host, &Named::T2.for_host(&host).unwrap()).unwrap();
    assert_eq!(get(&table, 1, 0).eax, 0x0003_06f2);
    assert_eq!(get(&table, 1, 0).ebx, 0x1122_0800, "only the bits of the template change");
    assert_eq!(holes(get(&table, 1, 0).ecx), [2, 3, 4, 5, 6, 7, 8, 10, 11, 14, 15, 18]);
    let features = get(&table, 7, 0);
    assert_eq!(features.ebx, 1 | 1 << 1 | 1 << 3 | 0xf << 5 | 1 << 9 | 1 << 10 | 1 << 13 | 1 << 20);
    assert_eq!(holes(get(&table, 0xd, 0).eax), [3, 4, 5, 6, 7, 9]);
    assert_eq!(holes(get(&table, 0x8000_0008, 0).ebx), [9]);
    assert!(Named::T2.template().msrs.is_empty());
}

#[test]
fn bits_that_are_shown_are_set_on_hosts_without_them() {
    let mut entries = host(AMD, MILAN).as_slice().to_vec();
    for entry in entries.iter_mut().filter(|e| e.function != 0 && e.function != 1) {
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
    }
    let host = CpuId::from_entries(&entries).unwrap();
    let table = apply_cpuid(&host, &Named::T2A.for_host(&host).unwrap()).unwrap();
    assert_eq!(get(&table, 7, 0).ebx, 1 << 9);
    assert_eq!(get(&table, 0x8000_0008, 0).ebx, 1 << 2 | 7 << 18);
    assert_eq!(get(&table, 0x8000_0001, 0).ecx, 0);
}

/// T2CL and T2A are made to show programs the same instructions.
#[test]
fn t2cl_and_t2a_agree_on_instructions() {
    let instructions = |name: Named, host: &CpuId| {
        let table = apply_cpuid(host, &name.for_host(host).unwrap()).unwrap();
        let (one, seven) = (get(&table, 1, 0), get(&table, 7, 0));
        [one.eax, one.ecx, one.edx, seven.ebx, seven.ecx, seven.edx, get(&table, 0xd, 0).eax, get(&table, 0xd, 1).eax]
    };
    let (intel, amd) = (host(INTEL, CASCADE_LAKE), host(AMD, MILAN));
    assert_eq!(instructions(Named::T2CL, &intel), instructions(Named::T2A, &amd));
}

#[test]
fn arch_capabilities_are_fixed_by_t2s_and_thinned_by_t2cl() {
    let [t2s, t2cl] = [Named::T2S, Named::T2CL].map(|name| name.template().msrs);
    assert_eq!((t2s[0].address, t2cl[0].address), (0x10a, 0x10a));
    assert_eq!(t2s[0].bits.apply(u64::MAX), 0x0c0a_0c4c);
    assert_eq!(t2s[0].bits.apply(0), 0x0c0a_0c4c);
    assert_eq!(t2cl[0].bits.apply(u64::MAX), 0x1d0a_e1ff);
    assert_eq!(t2cl[0].bits.apply(0), 0);
}

#[test]
fn bitmaps_are_written_in_many_ways() {
    for (text, of_zeroes, of_ones) in [
        ("0b1x0", 4, u32::MAX - 1),
        ("1x0", 4, u32::MAX - 1),
        ("0b_1_x0_", 4, u32::MAX - 1),
        ("0b", 0, u32::MAX),
        ("", 0, u32::MAX),
    ] {
        let bits: Bitmap<u32> = text.parse().unwrap();
        assert_eq!((bits.apply(0), bits.apply(u32::MAX)), (of_zeroes, of_ones), "{text:?}");
    }
    let say = |text: &str| text.parse::<Bitmap<u32>>().unwrap_err().to_string();
    assert!(say("0b102").contains("unknown character: '2'"));
    assert!(say("0bX").contains("unknown character: 'X'"));
    assert!(say("0b0_xϽ1").contains("unknown character: 'Ͻ'"));
    assert!(say("0x1f").contains("unknown character"), "hexadecimal is no bitmap");
    assert!(say(&"x".repeat(33)).contains("string is too long"));
    assert!("x".repeat(33).parse::<Bitmap<u64>>().is_ok());
    assert!("x".repeat(65).parse::<Bitmap<u64>>().is_err());
}

fn registers() -> impl Strategy<Value = Vec<(Register, Bitmap<u32>)>> {
    let register = prop_oneof![Just(Register::Eax), Just(Register::Ebx), Just(Register::Ecx), Just(Register::Edx)];
    proptest::collection::vec((register, any::<(u32, u32)>().prop_map(|(mask, value)| Bitmap::new(mask, value))), 0..4)
}

proptest! {
    #[test]
    fn bitmaps_are_read_as_printed(mask: u32, value: u32, wide_mask: u64, wide_value: u64) {
        let (narrow, wide) = (Bitmap::new(mask, value), Bitmap::new(wide_mask, wide_value));
        prop_assert_eq!(narrow.to_string().len(), 34);
        prop_assert_eq!(narrow.to_string().parse::<Bitmap<u32>>().unwrap(), narrow);
        prop_assert_eq!(wide.to_string().parse::<Bitmap<u64>>().unwrap(), wide);
    }

    #[test]
    fn a_bitmap_changes_its_bits_only(mask: u64, value: u64, old: u64) {
        let new = Bitmap::new(mask, value).apply(old);
        prop_assert_eq!(new & mask, value & mask);
        prop_assert_eq!(new & !mask, old & !mask);
    }

    /// Applying a template twice is applying it once, also if it changes a register more than once.
    #[test]
    fn once_is_enough(
        changes in proptest::collection::vec((prop_oneof![Just((1, 0)), Just((7, 0)), Just((7, 1))], registers()), 0..6),
    ) {
        let cpuid = changes
            .into_iter()
            .map(|((leaf, subleaf), registers)| CpuidModifier { leaf, subleaf, flags: 1, registers })
            .collect();
        let template = Template { cpuid, msrs: Vec::new() };
        let once = apply_cpuid(&host(INTEL, SKYLAKE), &template).unwrap();
        prop_assert_eq!(&apply_cpuid(&once, &template).unwrap(), &once);
    }

    /// No text makes the parser do anything but answer.
    #[test]
    fn any_text_is_answered(text in ".{0,80}") {
        let _ = text.parse::<Bitmap<u32>>();
    }
}
