//! One package, its cores and their threads, in the leaves that all vendors share.

use super::{Error, Table};
use crate::arch::layout;

/// Extended topology (Intel SDM 2A, CPUID leaf 0BH; AMD APM 3, E.3.11).
const EXTENDED_TOPOLOGY: u32 = 0xb;
/// Extended topology, version 2 (Intel).
const EXTENDED_TOPOLOGY_V2: u32 = 0x1f;
/// Level types of both.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

const EDX_HTT: u32 = 1 << 28;

/// Where a vCPU sits in its machine.
pub(super) struct Topology {
    /// Index, APIC id and x2APIC id of this vCPU.
    pub(super) apic_id: u32,
    /// vCPUs of the machine.
    pub(super) count: u32,
    /// Threads per core: 1 or 2.
    pub(super) threads: u32,
}

impl Topology {
    pub(super) fn new(vcpu: u8, count: u8, smt: bool) -> Result<Self, Error> {
        if vcpu >= count || count > layout::MAX_VCPUS {
            return Err(Error::VcpuOutOfRange { index: vcpu, count });
        }
        // A single vCPU with SMT is one core with one thread.
        let threads = if smt && count > 1 { 2 } else { 1 };
        if !count.is_multiple_of(threads) {
            return Err(Error::OddWithSmt(count));
        }
        Ok(Self { apic_id: u32::from(vcpu), count: u32::from(count), threads: u32::from(threads) })
    }

    /// Cores in the package.
    pub(super) fn cores(&self) -> u32 {
        self.count / self.threads
    }

    /// Core this vCPU belongs to.
    pub(super) fn core_id(&self) -> u32 {
        self.apic_id / self.threads
    }

    /// Low bits of the APIC id that tell the threads of a core apart.
    fn thread_bits(&self) -> u32 {
        bits_for(self.threads)
    }

    /// Low bits of the APIC id that tell the vCPUs of the package apart.
    pub(super) fn package_bits(&self) -> u32 {
        self.thread_bits() + bits_for(self.cores())
    }

    pub(super) fn apply(&self, table: &mut Table) -> Result<(), Error> {
        let max_basic = table.max_basic();
        let leaf1 = table.get_mut(1, 0).ok_or(Error::MissingLeaf(1))?;
        // EBX: 31–24 initial APIC id, 23–16 number of APIC ids of the package; 15–0 stay the host's.
        leaf1.ebx = (leaf1.ebx & 0xffff) | (self.apic_id << 24) | ((1 << self.package_bits()) << 16);
        if self.count > 1 {
            leaf1.edx |= EDX_HTT;
        } else {
            leaf1.edx &= !EDX_HTT;
        }
        for leaf in [EXTENDED_TOPOLOGY, EXTENDED_TOPOLOGY_V2] {
            // KVM may report all-zero entries; ours replace whatever there is.
            table.remove(leaf);
            if max_basic < leaf {
                continue;
            }
            let levels = [
                [self.thread_bits(), self.threads, LEVEL_THREAD << 8, self.apic_id],
                [self.package_bits(), self.count, 1 | (LEVEL_CORE << 8), self.apic_id],
                // The end of the list still tells the x2APIC id.
                [0, 0, 2, self.apic_id],
            ];
            for (index, level) in (0..).zip(levels) {
                table.push_subleaf(leaf, index, level);
            }
        }
        Ok(())
    }
}

/// Bits needed to number `n` things, `n` at least 1.
fn bits_for(n: u32) -> u32 {
    n.next_power_of_two().trailing_zeros()
}
