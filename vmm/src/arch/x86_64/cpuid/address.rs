use kvm_bindings::CpuId;

/// Address sizes (Intel SDM 2A, AMD APM 3 E.4.7).
const ADDRESS_SIZES: u32 = 0x8000_0008;
/// What a processor has that does not say.
const USUAL_BITS: u32 = 36;

/// How many bits of a physical address a guest can use on this host, by what `KVM_GET_SUPPORTED_CPUID` returned.
pub fn physical_address_bits(supported: &CpuId) -> u32 {
    let leaf = supported.as_slice().iter().find(|entry| entry.function == ADDRESS_SIZES);
    let Some(leaf) = leaf else { return USUAL_BITS };
    // Since Linux 6.10 KVM says separately what it can map, where that is less than what the processor can address.
    match ((leaf.eax >> 16) & 0xff, leaf.eax & 0xff) {
        (0, 0) => USUAL_BITS,
        (0, bits) => bits,
        (mappable, bits) => mappable.min(bits),
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    #[test]
    fn the_smaller_of_what_is_said_counts() {
        let bits = |eax| {
            let leaf = kvm_cpuid_entry2 { function: ADDRESS_SIZES, eax, ..Default::default() };
            physical_address_bits(&CpuId::from_entries(&[leaf]).unwrap())
        };
        assert_eq!([bits(0x3030), bits(0x0030_3934), bits(0x0000_392e), bits(0)], [48, 48, 46, 36]);
        assert_eq!(physical_address_bits(&CpuId::from_entries(&[]).unwrap()), 36);
    }
}
