//! Leaves that only Intel processors fill: cache sharing and power management.

use super::Table;
use super::topology::Topology;

/// Deterministic cache parameters (Intel SDM 2A, CPUID leaf 04H).
const CACHES: u32 = 0x4;
/// Thermal and power management.
const POWER: u32 = 0x6;
const POWER_EAX_TURBO: u32 = 1 << 1;
const POWER_EAX_TURBO_3: u32 = 1 << 14;
const POWER_ECX_ENERGY_BIAS: u32 = 1 << 3;

pub(super) fn apply(table: &mut Table, topology: &Topology) {
    for cache in table.all_mut(CACHES) {
        // Type 0 ends the list.
        if cache.eax & 0x1f == 0 {
            continue;
        }
        let level = cache.eax >> 5 & 0x7;
        let ids_per_package = 1 << topology.package_bits();
        let sharing = if level >= 3 { ids_per_package } else { topology.threads };
        let cores = topology.cores().next_power_of_two();
        // EAX: 25–14 APIC ids sharing this cache, 31–26 core ids of the package, both minus one.
        cache.eax = (cache.eax & 0x3fff) | (sharing - 1) << 14 | (cores - 1) << 26;
    }
    if let Some(power) = table.get_mut(POWER, 0) {
        // A guest controls neither turbo nor the energy bias.
        power.eax &= !(POWER_EAX_TURBO | POWER_EAX_TURBO_3);
        power.ecx &= !POWER_ECX_ENERGY_BIAS;
    }
}
