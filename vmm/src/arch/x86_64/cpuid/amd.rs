//! Leaves that only AMD (and Hygon) processors fill: topology and caches (AMD APM 3, E.4).

use super::Table;
use super::topology::Topology;

const FEATURES: u32 = 0x8000_0001;
const SIZES: u32 = 0x8000_0008;
const CACHES: u32 = 0x8000_001d;
const TOPOLOGY: u32 = 0x8000_001e;
/// Extended topology of newer parts. The host's would contradict ours, and leaf 0xb says the same.
const TOPOLOGY_V2: u32 = 0x8000_0026;

const ECX_CMP_LEGACY: u32 = 1 << 1;
const ECX_SVM: u32 = 1 << 2;
const ECX_TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// Performance counters: core, north bridge, last-level cache.
const ECX_PERF_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

pub(super) fn apply(table: &mut Table, topology: &Topology) {
    let has_caches = table.all_mut(CACHES).any(|cache| cache.eax & 0x1f != 0);
    if let Some(features) = table.get_mut(FEATURES, 0) {
        // As with VMX: nested virtualisation is not offered. As with leaf 0xa: no counters.
        features.ecx &= !(ECX_SVM | ECX_PERF_COUNTERS | ECX_CMP_LEGACY);
        if topology.count > 1 {
            features.ecx |= ECX_CMP_LEGACY;
        }
        // The extension promises both leaves, so it goes with them.
        if has_caches {
            features.ecx |= ECX_TOPOLOGY_EXTENSIONS;
        } else {
            features.ecx &= !ECX_TOPOLOGY_EXTENSIONS;
        }
    }
    if let Some(sizes) = table.get_mut(SIZES, 0) {
        // ECX: 7–0 threads minus one, 15–12 size of the APIC id within the package.
        sizes.ecx = (sizes.ecx & !0xf0ff) | (topology.count - 1) | topology.package_bits() << 12;
    }
    for cache in table.all_mut(CACHES) {
        if cache.eax & 0x1f == 0 {
            continue;
        }
        let level = cache.eax >> 5 & 0x7;
        let sharing = if level >= 3 { topology.count } else { topology.threads };
        // EAX: 25–14 logical processors sharing this cache, minus one.
        cache.eax = (cache.eax & !(0xfff << 14)) | (sharing - 1) << 14;
    }
    if has_caches {
        let leaf = table.leaf(TOPOLOGY);
        leaf.eax = topology.apic_id;
        leaf.ebx = topology.core_id() | (topology.threads - 1) << 8;
        // One node per processor, and this is node 0.
        leaf.ecx = 0;
        leaf.edx = 0;
    }
    table.remove(TOPOLOGY_V2);
}
