//! vCPUs that come and go while the machine runs: the registers, the guest's interrupt, and who may run.
//!
//! What the guest has (its side, in the registers) and what may run (ours, on the crew's board) are changed here only, on the VMM thread. A vCPU
//! is admitted before the guest hears of it; one that the guest gave back cannot run from the moment on that its bell was answered.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use devices::bus::BusBuilder;
use devices::legacy::cpu_hotplug::{CpuChange, CpuHotplug, CpuHotplugMetrics, CpuHotplugState, CpuSet};
use devices::legacy::ioapic::IoApic;
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::Machine;
use super::assemble::{irq_line, start_error};
use super::identity::Notice;
use crate::arch::layout::{CPU_HOTPLUG_PORT, CPU_HOTPLUG_PORTS, HOTPLUG_GSI};
use crate::config::{MAX_VCPUS, MachineConfig};
use crate::error::Error;
use crate::kvm::KvmError;
use crate::snapshot::Section;

const _: () = assert!(MAX_VCPUS <= CpuSet::MAX && CPU_HOTPLUG_PORTS == CpuHotplug::<EventFd>::PORTS);

/// What of it outlives the process. Machines whose vCPUs stay have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotplugCpus {
    /// Most vCPUs.
    pub max_vcpus: u8,
    /// What the guest has, and what it was not told yet.
    pub registers: CpuHotplugState,
}

impl Section for HotplugCpus {
    const NAME: &'static str = "hotplug vcpus";
    const VERSION: u16 = 1;
}

/// The registers and the interrupt.
pub(super) struct Cpus {
    registers: Arc<CpuHotplug<EventFd>>,
    max: u8,
    notice: Arc<Notice<EventFd>>,
}

impl Cpus {
    /// Those of a machine to which vCPUs can be added; they answer on the bus.
    pub(super) fn new(
        machine: &MachineConfig,
        saved: Option<&HotplugCpus>,
        notice: Arc<Notice<EventFd>>,
        pio: &mut BusBuilder,
    ) -> Result<Self, Error> {
        let max = machine.most_vcpus();
        let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(start_error)?;
        let registers = Arc::new(match saved {
            Some(saved) => CpuHotplug::restored(saved.registers, max, bell),
            None => CpuHotplug::new(machine.vcpu_count(), max, bell),
        });
        pio.insert(CPU_HOTPLUG_PORT.into(), CPU_HOTPLUG_PORTS.into(), registers.clone()).map_err(start_error)?;
        Ok(Self { registers, max, notice })
    }

    /// Counts what happened.
    pub(super) fn metrics(&self) -> Arc<CpuHotplugMetrics> {
        self.registers.metrics()
    }

    /// The vCPUs that the guest has.
    pub(super) fn present(&self) -> CpuSet {
        self.registers.save().present()
    }

    pub(super) fn save(&self) -> HotplugCpus {
        HotplugCpus { max_vcpus: self.max, registers: self.registers.save() }
    }

    /// The guest hears that there is something, if there is.
    pub(super) fn remind(&self) {
        if self.registers.is_untold() {
            self.notice.give();
        }
    }
}

impl Machine {
    /// From now on the guest should have so many vCPUs. New ones may run at once; those that it should not have any more it is asked for.
    pub fn plug_vcpus(&self, count: u8) -> Result<(), KvmError> {
        let Some(cpus) = &self.cpus else { return Ok(()) };
        let change = cpus.registers.want(count);
        self.change_vcpus(cpus, change)
    }

    /// How many vCPUs the guest should have, and how many may run; `None` if their number stays.
    pub fn vcpu_levels(&self) -> Option<(u8, u8)> {
        self.cpus.as_ref().map(|cpus| (cpus.registers.wanted(), self.crew.admitted().count()))
    }

    /// Readable as long as there may be something to [settle](Self::settle_vcpus).
    pub fn eject_bell(&self) -> Option<RawFd> {
        self.cpus.as_ref().map(|cpus| cpus.registers.bell().as_raw_fd())
    }

    /// vCPUs that the guest has given back do not run any more.
    pub fn settle_vcpus(&self) {
        let Some(cpus) = &self.cpus else { return };
        // Silenced first: one that is ejected later rings again.
        let _ = cpus.registers.bell().read();
        let change = cpus.registers.settle();
        if let Err(error) = self.change_vcpus(cpus, change) {
            log::error!("A vCPU that the guest gave back, or should have again, is not as it should be: {error}");
        }
    }

    fn change_vcpus(&self, cpus: &Cpus, change: CpuChange) -> Result<(), KvmError> {
        let CpuChange { gone, wanted } = change;
        let parked = self.crew.expel(gone);
        self.crew.admit(wanted)?;
        cpus.registers.insert(wanted);
        cpus.remind();
        parked
    }
}

/// The interrupt by which the guest hears of what comes and goes, whatever it is.
pub(super) fn notice(vm: &VmFd, ioapic: &IoApic) -> Result<Arc<Notice<EventFd>>, Error> {
    let notice = Notice::new(irq_line(vm, HOTPLUG_GSI)?);
    let again = notice.clone();
    ioapic.connect(HOTPLUG_GSI, move || again.repeat());
    Ok(notice)
}
