//! Feature bits that are set or taken out for every guest, whoever made the processor.

use super::{Error, Table, Vendor};

/// Paravirtual features passed on (Documentation/virt/kvm/x86/cpuid.rst): clock source (0), no I/O delay
/// (1), new clock source (3), asynchronous page faults (4, 10, 14), steal time (5), paravirtual end of
/// interrupt (6), unhalt (7), TLB flush (9), IPI (11), poll control (12), yield (13), stable clock (24).
/// All of them are served by the in-kernel local APIC alone, so a userspace I/O APIC does not hurt them.
///
/// Left out are those that would need the VMM's help: extended MSI destinations (15, for APIC ids above
/// 255), memory encryption (16, 17), and bits we have never heard of.
pub(super) const KVM_KNOWN: u32 = bits(&[0, 1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 24]);

/// Leaf 1 ECX.
mod leaf1_ecx {
    pub(super) const DTES64: u32 = 1 << 2;
    pub(super) const MONITOR: u32 = 1 << 3;
    pub(super) const VMX: u32 = 1 << 5;
    pub(super) const PDCM: u32 = 1 << 15;
    pub(super) const TSC_DEADLINE: u32 = 1 << 24;
    pub(super) const HYPERVISOR: u32 = 1 << 31;
}
/// Leaf 1 EDX: debug store.
const LEAF1_EDX_DS: u32 = 1 << 21;

/// Leaf 7 EBX: SGX and processor trace.
const LEAF7_EBX_SGX: u32 = 1 << 2;
const LEAF7_EBX_INTEL_PT: u32 = 1 << 25;
/// Leaf 7 ECX: WAITPKG and SGX launch control.
const LEAF7_ECX_WAITPKG: u32 = 1 << 5;
const LEAF7_ECX_SGX_LC: u32 = 1 << 30;
/// Leaf 7 EDX: last branch records and the ARCH_CAPABILITIES register.
const LEAF7_EDX_ARCH_LBR: u32 = 1 << 19;
const LEAF7_EDX_ARCH_CAPABILITIES: u32 = 1 << 29;

/// Leaves about things guests do not get: the performance counters (0xa, AMD 0x8000_0022), SGX (0x12),
/// processor trace (0x14), last branch records (0x1c).
const EMPTY_LEAVES: [u32; 5] = [0xa, 0x12, 0x14, 0x1c, 0x8000_0022];

pub(super) fn apply(table: &mut Table, vendor: Vendor) -> Result<(), Error> {
    let leaf1 = table.get_mut(1, 0).ok_or(Error::MissingLeaf(1))?;
    // The deadline timer belongs to the in-kernel local APIC, which we always have, so older kernels
    // leave it for userspace to announce (Documentation/virt/kvm/api.rst, KVM_GET_SUPPORTED_CPUID).
    leaf1.ecx |= leaf1_ecx::TSC_DEADLINE | leaf1_ecx::HYPERVISOR;
    // No performance monitoring, no debug store. No nested virtualisation either: its state is not in
    // our snapshots, and it is the largest piece of KVM a guest could poke at.
    leaf1.ecx &= !(leaf1_ecx::PDCM | leaf1_ecx::DTES64 | leaf1_ecx::MONITOR | leaf1_ecx::VMX);
    leaf1.edx &= !LEAF1_EDX_DS;

    if let Some(leaf7) = table.get_mut(7, 0) {
        leaf7.ebx &= !(LEAF7_EBX_SGX | LEAF7_EBX_INTEL_PT);
        // WAITPKG would let a guest keep a core asleep for as long as it likes.
        leaf7.ecx &= !(LEAF7_ECX_WAITPKG | LEAF7_ECX_SGX_LC);
        leaf7.edx &= !LEAF7_EDX_ARCH_LBR;
        if vendor == Vendor::Amd {
            // KVM emulates this Intel register everywhere; no AMD processor has it.
            leaf7.edx &= !LEAF7_EDX_ARCH_CAPABILITIES;
        }
    }
    for function in EMPTY_LEAVES {
        for leaf in table.all_mut(function) {
            (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
        }
    }
    Ok(())
}

const fn bits(numbers: &[u32]) -> u32 {
    let mut mask = 0;
    let mut i = 0;
    while i < numbers.len() {
        mask |= 1 << numbers[i];
        i += 1;
    }
    mask
}
