//! CPUID as a guest should see it: the host's table as KVM supports it, with the host's topology
//! replaced by the machine's and with what we do not virtualise taken out.
//!
//! Called by the vCPU room once per vCPU with the result of `KVM_GET_SUPPORTED_CPUID`; its result goes to
//! `KVM_SET_CPUID2`. A restored machine does not come through here: its table is in the snapshot. Some
//! hosts (page-table-based KVM) override feature bits with their own whatever we set.

mod address;
mod amd;
mod features;
mod intel;
mod topology;

#[cfg(test)]
mod tests;

pub use address::physical_address_bits;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::layout;
use topology::Topology;

/// Frequency of the local APIC's timer as KVM emulates it, in kHz: one tick is a nanosecond.
const LOCAL_APIC_BUS_KHZ: u32 = 1_000_000;

/// Leaf 0x4000_0000 of KVM: signature and highest hypervisor leaf.
const KVM_SIGNATURE: u32 = 0x4000_0000;
/// Leaf 0x4000_0001 of KVM: paravirtual features.
const KVM_FEATURES: u32 = 0x4000_0001;
/// Hypervisor leaf with the TSC and APIC bus frequencies. VMware's invention, read by several guests
/// under any hypervisor that announces it.
const TIMING: u32 = 0x4000_0010;

/// Why no guest table can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// KVM reports no leaf 0 or no leaf 1.
    #[error("the host's KVM reports no CPUID leaf {0:#x}: it cannot run x86_64 guests")]
    MissingLeaf(u32),
    /// More vCPUs than APIC ids, or none.
    #[error("a machine with {count} vCPUs cannot have a vCPU {index}: 1 to {max} vCPUs are possible", max = layout::MAX_VCPUS)]
    VcpuOutOfRange {
        /// Index of the vCPU asked for.
        index: u8,
        /// vCPUs of the machine.
        count: u8,
    },
    /// Two threads per core need an even number of vCPUs.
    #[error("{0} vCPUs cannot be two threads per core: use an even number or turn smt off")]
    OddWithSmt(u8),
    /// The table outgrew what `KVM_SET_CPUID2` takes.
    #[error("the guest CPUID table has {0} entries, more than KVM takes")]
    TooManyEntries(usize),
}

/// Processor maker, as far as tables differ by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    /// AMD and Hygon, which shares AMD's leaves.
    Amd,
    Other,
}

/// The CPUID table of vCPU `vcpu` (which is also its APIC id) in a machine of `count` vCPUs, two to a
/// core if `smt`.
///
/// `supported` is what `KVM_GET_SUPPORTED_CPUID` returned; `tsc_khz` is the guest's TSC frequency
/// (`KVM_GET_TSC_KHZ`), or 0 if the host does not know it, in which case it is not announced.
pub fn guest_table(supported: &CpuId, vcpu: u8, count: u8, smt: bool, tsc_khz: u32) -> Result<CpuId, Error> {
    let topology = Topology::new(vcpu, count, smt)?;
    let mut table = Table { entries: supported.as_slice().to_vec() };
    let vendor = table.vendor()?;

    features::apply(&mut table, vendor)?;
    topology.apply(&mut table)?;
    match vendor {
        Vendor::Intel => intel::apply(&mut table, &topology),
        Vendor::Amd => amd::apply(&mut table, &topology),
        Vendor::Other => {}
    }
    hypervisor_leaves(&mut table, tsc_khz);
    CpuId::from_entries(&table.entries).map_err(|_| Error::TooManyEntries(table.entries.len()))
}

/// Announces what the paravirtual side offers, and the clock frequencies, so that no guest has to
/// calibrate against a timer chip we do not have.
fn hypervisor_leaves(table: &mut Table, tsc_khz: u32) {
    if let Some(features) = table.get_mut(KVM_FEATURES, 0) {
        features.eax &= features::KVM_KNOWN;
    }
    if tsc_khz == 0 {
        return;
    }
    if let Some(signature) = table.get_mut(KVM_SIGNATURE, 0) {
        // Very old hosts report 0, which means KVM_FEATURES (Documentation/virt/kvm/x86/cpuid.rst).
        signature.eax = signature.eax.max(TIMING);
        *table.leaf(TIMING) =
            kvm_cpuid_entry2 { function: TIMING, eax: tsc_khz, ebx: LOCAL_APIC_BUS_KHZ, ..Default::default() };
    }
}

/// CPUID entries by leaf and subleaf.
struct Table {
    entries: Vec<kvm_cpuid_entry2>,
}

impl Table {
    fn get(&self, function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
        self.entries.iter().find(|e| e.function == function && e.index == index)
    }

    fn get_mut(&mut self, function: u32, index: u32) -> Option<&mut kvm_cpuid_entry2> {
        self.entries.iter_mut().find(|e| e.function == function && e.index == index)
    }

    /// The leaf without subleaves, made if it is not there.
    fn leaf(&mut self, function: u32) -> &mut kvm_cpuid_entry2 {
        let at = self.entries.iter().position(|e| e.function == function).unwrap_or_else(|| {
            self.entries.push(kvm_cpuid_entry2 { function, ..Default::default() });
            self.entries.len() - 1
        });
        &mut self.entries[at]
    }

    fn remove(&mut self, function: u32) {
        self.entries.retain(|e| e.function != function);
    }

    /// Adds a subleaf; the caller has removed the old ones.
    fn push_subleaf(&mut self, function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        self.entries.push(kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() });
    }

    fn all_mut(&mut self, function: u32) -> impl Iterator<Item = &mut kvm_cpuid_entry2> {
        self.entries.iter_mut().filter(move |e| e.function == function)
    }

    /// Highest basic leaf.
    fn max_basic(&self) -> u32 {
        self.get(0, 0).map_or(0, |e| e.eax)
    }

    fn vendor(&self) -> Result<Vendor, Error> {
        let leaf = self.get(0, 0).ok_or(Error::MissingLeaf(0))?;
        let mut id = [0; 12];
        for (bytes, register) in id.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
            bytes.copy_from_slice(&register.to_le_bytes());
        }
        Ok(match &id {
            b"GenuineIntel" => Vendor::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Other,
        })
    }
}
