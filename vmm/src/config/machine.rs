use super::CpuTemplate;

/// Most vCPUs one machine may have.
pub const MAX_VCPUS: u8 = 32;

/// Page size behind guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HugePages {
    /// 4 KiB pages.
    #[default]
    None,
    /// 4 KiB mapping with `MADV_HUGEPAGE`.
    Transparent,
    /// 2 MiB hugetlbfs pages.
    Hugetlbfs2M,
}

/// Why a machine configuration was refused; the texts are the v1 contract's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMachine {
    /// vCPU count out of range, or odd with SMT.
    #[error(
        "The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled."
    )]
    VcpuCount,
    /// The most vCPUs are fewer than there are at boot, too many, or odd with SMT.
    #[error(
        "max_vcpus is {max}, and vcpu_count {count}: it must be at least vcpu_count, at most 32, and 1 or an even number if SMT is enabled. Leave it out if no vCPU is to be plugged."
    )]
    MaxVcpus {
        /// Most vCPUs.
        max: u8,
        /// vCPUs at boot.
        count: u8,
    },
    /// Memory size zero, too large to count in bytes, or not a multiple of the page size.
    #[error("The memory size (MiB) is either 0, or not a multiple of the configured page size.")]
    MemSize,
}

/// Why so many vCPUs cannot be plugged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadVcpuRequest {
    /// None can.
    #[error(
        "No vCPU can be plugged: the machine was started without max_vcpus. Give it one in PUT /machine-config before the start."
    )]
    None,
    /// Too few or too many.
    #[error("vcpu_count is {asked}: it must be at least 1 and at most {max}, which is the machine's max_vcpus.")]
    Range {
        /// vCPUs asked for.
        asked: u8,
        /// Most vCPUs.
        max: u8,
    },
    /// Odd with SMT.
    #[error("vcpu_count is {0}: it must be 1 or an even number, because SMT is enabled.")]
    Odd(u8),
}

/// vCPUs and memory (`PUT /machine-config`). Always consistent: made only by [`MachineConfig::new`] and [`MachineConfig::patched`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineConfig {
    vcpu_count: u8,
    mem_size_mib: u64,
    smt: bool,
    cpu_template: CpuTemplate,
    track_dirty_pages: bool,
    huge_pages: HugePages,
    max_vcpus: Option<u8>,
}

/// Fields of `PATCH /machine-config`; `None` leaves a field as it is.
#[derive(Debug, Clone, Default)]
pub struct MachinePatch {
    /// Number of vCPUs.
    pub vcpu_count: Option<u8>,
    /// Guest memory in MiB.
    pub mem_size_mib: Option<u64>,
    /// Two threads per core.
    pub smt: Option<bool>,
    /// CPU template.
    pub cpu_template: Option<CpuTemplate>,
    /// Log written pages.
    pub track_dirty_pages: Option<bool>,
    /// Page size behind guest memory.
    pub huge_pages: Option<HugePages>,
    /// Most vCPUs while the machine runs; `Some(None)` if their number stays what it is.
    pub max_vcpus: Option<Option<u8>>,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: CpuTemplate::None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
            max_vcpus: None,
        }
    }
}

impl MachineConfig {
    /// `vcpu_count` 1 to 32 (1 or even with `smt`), `mem_size_mib` not 0 and a multiple of 2 with huge pages.
    pub fn new(vcpu_count: u8, mem_size_mib: u64) -> Result<Self, BadMachine> {
        Self { vcpu_count, mem_size_mib, ..Self::default() }.checked()
    }

    /// This configuration with the given fields changed.
    pub fn patched(&self, patch: &MachinePatch) -> Result<Self, BadMachine> {
        Self {
            vcpu_count: patch.vcpu_count.unwrap_or(self.vcpu_count),
            mem_size_mib: patch.mem_size_mib.unwrap_or(self.mem_size_mib),
            smt: patch.smt.unwrap_or(self.smt),
            cpu_template: patch.cpu_template.as_ref().unwrap_or(&self.cpu_template).clone(),
            track_dirty_pages: patch.track_dirty_pages.unwrap_or(self.track_dirty_pages),
            huge_pages: patch.huge_pages.unwrap_or(self.huge_pages),
            max_vcpus: patch.max_vcpus.unwrap_or(self.max_vcpus),
        }
        .checked()
    }

    fn checked(self) -> Result<Self, BadMachine> {
        if self.vcpu_count == 0 || self.vcpu_count > MAX_VCPUS || self.is_odd_with_smt(self.vcpu_count) {
            return Err(BadMachine::VcpuCount);
        }
        if let Some(max) = self.max_vcpus
            && (max < self.vcpu_count || max > MAX_VCPUS || self.is_odd_with_smt(max))
        {
            return Err(BadMachine::MaxVcpus { max, count: self.vcpu_count });
        }
        let page_mib = match self.huge_pages {
            HugePages::None => 1,
            HugePages::Transparent | HugePages::Hugetlbfs2M => 2,
        };
        let countable = self.mem_size_mib.checked_mul(1 << 20).is_some();
        if self.mem_size_mib == 0 || !countable || !self.mem_size_mib.is_multiple_of(page_mib) {
            return Err(BadMachine::MemSize);
        }
        Ok(self)
    }

    /// Half a core is no core, but for a machine with one vCPU.
    fn is_odd_with_smt(&self, vcpus: u8) -> bool {
        self.smt && vcpus != 1 && !vcpus.is_multiple_of(2)
    }

    /// Most vCPUs there can be while the machine runs: those it boots with, unless some may be plugged.
    pub fn most_vcpus(&self) -> u8 {
        self.max_vcpus.unwrap_or(self.vcpu_count)
    }

    /// The same, if vCPUs may be plugged and unplugged while the machine runs.
    pub fn max_vcpus(&self) -> Option<u8> {
        self.max_vcpus
    }

    /// Whether so many vCPUs may be plugged.
    pub fn check_vcpu_request(&self, vcpus: u8) -> Result<(), BadVcpuRequest> {
        let max = self.max_vcpus.ok_or(BadVcpuRequest::None)?;
        if vcpus == 0 || vcpus > max {
            return Err(BadVcpuRequest::Range { asked: vcpus, max });
        }
        if self.is_odd_with_smt(vcpus) {
            return Err(BadVcpuRequest::Odd(vcpus));
        }
        Ok(())
    }

    /// Number of vCPUs, 1 to 32.
    pub fn vcpu_count(&self) -> u8 {
        self.vcpu_count
    }

    /// Guest memory in MiB.
    pub fn mem_size_mib(&self) -> u64 {
        self.mem_size_mib
    }

    /// Guest memory in bytes.
    pub fn mem_size_bytes(&self) -> u64 {
        self.mem_size_mib << 20
    }

    /// Two threads per core.
    pub fn smt(&self) -> bool {
        self.smt
    }

    /// CPU template.
    pub fn cpu_template(&self) -> &CpuTemplate {
        &self.cpu_template
    }

    /// This configuration with another CPU template, which any configuration may have.
    #[must_use]
    pub fn with_cpu_template(self, cpu_template: CpuTemplate) -> Self {
        Self { cpu_template, ..self }
    }

    /// Log written pages.
    pub fn track_dirty_pages(&self) -> bool {
        self.track_dirty_pages
    }

    /// Page size behind guest memory.
    pub fn huge_pages(&self) -> HugePages {
        self.huge_pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        assert_eq!(MachineConfig::new(0, 128), Err(BadMachine::VcpuCount));
        assert_eq!(MachineConfig::new(33, 128), Err(BadMachine::VcpuCount));
        assert!(MachineConfig::new(32, 128).is_ok());
        assert_eq!(MachineConfig::new(1, 0), Err(BadMachine::MemSize));
        assert_eq!(MachineConfig::new(1, 1 << 44), Err(BadMachine::MemSize));
    }

    #[test]
    fn smt_wants_one_or_even() {
        let smt = MachinePatch { smt: Some(true), ..Default::default() };
        let of = |n| MachineConfig::new(n, 128).and_then(|m| m.patched(&smt));
        assert!(of(1).is_ok());
        assert!(of(2).is_ok());
        assert_eq!(of(3), Err(BadMachine::VcpuCount));
    }

    #[test]
    fn at_most_as_many_vcpus_as_there_are_at_boot_or_more() {
        let of = |count, smt, max| {
            let patch = MachinePatch { smt: Some(smt), max_vcpus: Some(max), ..Default::default() };
            MachineConfig::new(count, 128).and_then(|machine| machine.patched(&patch))
        };
        let machine = of(2, false, None).unwrap();
        assert_eq!((machine.most_vcpus(), machine.max_vcpus()), (2, None));
        assert_eq!(machine.check_vcpu_request(1), Err(BadVcpuRequest::None));
        for (count, smt, max) in [(2, false, 2), (1, false, 32), (2, true, 4), (1, true, 2)] {
            assert_eq!(of(count, smt, Some(max)).unwrap().most_vcpus(), max);
        }
        for (count, smt, max) in [(2, false, 1), (1, false, 33), (1, false, 0), (2, true, 3)] {
            assert_eq!(of(count, smt, Some(max)), Err(BadMachine::MaxVcpus { max, count }));
        }
        let machine = of(2, true, Some(4)).unwrap();
        let asked = [0, 1, 2, 3, 4, 5].map(|count| machine.check_vcpu_request(count).is_ok());
        assert_eq!(asked, [false, true, true, false, true, false]);
        // Later changes are judged by it, too.
        let more = MachinePatch { vcpu_count: Some(6), ..Default::default() };
        assert_eq!(machine.patched(&more), Err(BadMachine::MaxVcpus { max: 4, count: 6 }));
        let without = MachinePatch { max_vcpus: Some(None), ..more };
        assert_eq!(machine.patched(&without).unwrap().max_vcpus(), None);
    }

    #[test]
    fn huge_pages_want_even_mib() {
        let huge = MachinePatch { huge_pages: Some(HugePages::Hugetlbfs2M), ..Default::default() };
        assert_eq!(MachineConfig::new(1, 129).and_then(|m| m.patched(&huge)), Err(BadMachine::MemSize));
        assert!(MachineConfig::new(1, 130).and_then(|m| m.patched(&huge)).is_ok());
    }
}
