/// Hot-pluggable memory (`PUT /hotplug/memory`). Sizes are in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryHotplugConfig {
    /// Most memory that can be plugged.
    pub total_size_mib: u32,
    /// What the guest plugs and unplugs at a time.
    pub block_size_mib: u32,
    /// What KVM maps and unmaps at a time.
    pub slot_size_mib: u32,
}
