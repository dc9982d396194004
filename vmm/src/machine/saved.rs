//! What of a machine outlives the process, besides its memory and configuration.

use devices::legacy::i8042::I8042State;
use devices::legacy::ioapic::IoApicState;
use devices::legacy::serial::Com1State;
use devices::virtio::state::{CellState, DeviceState};
use kvm_bindings::kvm_clock_data;
use kvm_ioctls::{Cap, Kvm, VmFd};
use serde::{Deserialize, Serialize};

use super::cpus::Cpus;
use super::{DeviceName, HotplugCpus, Machine, SavedPci};
use crate::arch::state::{self, VcpuState};
use crate::config::{MAX_VCPUS, ResourceId};
use crate::error::{Error, Subject};
use crate::kvm::KvmError;
use crate::memory::SavedMemory;
use crate::snapshot::{Section, WorkingSet};

/// The chips that every machine has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Platform {
    /// The guest's kvm-clock.
    pub clock: kvm_clock_data,
    /// The I/O APIC.
    pub ioapic: IoApicState,
    /// The serial port.
    pub com1: Com1State,
    /// The keyboard controller.
    pub i8042: I8042State,
}

impl Section for Platform {
    const NAME: &'static str = "platform";
    const VERSION: u16 = 1;
}

/// All vCPUs, by index.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Vcpus(pub Vec<VcpuState>);

impl Section for Vcpus {
    const NAME: &'static str = "vcpus";
    const VERSION: u16 = 1;
}

/// The virtio devices in the order in which they are attached, each with its name as log lines have it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Devices(pub Vec<(String, CellState)>);

impl Section for Devices {
    const NAME: &'static str = "devices";
    const VERSION: u16 = 1;
}

/// A machine that was saved.
#[derive(Debug, Clone)]
pub struct State {
    /// Its chips.
    pub platform: Platform,
    /// Its vCPUs.
    pub vcpus: Vcpus,
    /// Its devices.
    pub devices: Devices,
    /// Which vCPUs are plugged, if some come and go.
    pub cpus: Option<HotplugCpus>,
    /// Its PCI bus, if it has one.
    pub pci: Option<SavedPci>,
}

/// What a machine is made of that was saved.
#[derive(Debug)]
pub struct Saved {
    /// Its state.
    pub state: State,
    /// Its memory.
    pub memory: SavedMemory,
    /// The guest's clock goes on from the time of day rather than from where it stood.
    pub clock_realtime: bool,
    /// What of its memory it will want.
    pub working_set: Option<WorkingSet>,
}

/// KVM's clock tells the time of day in which it was read (include/uapi/linux/kvm.h).
const CLOCK_REALTIME: u32 = 1 << 2;

fn refuse(what: impl std::fmt::Display) -> Error {
    Error::host(Subject::SaveSnapshot, format!("Cannot save the microVM state: {what}"))
}

impl Machine {
    /// What outlives the process. The machine stands still.
    pub fn save(&self) -> Result<State, Error> {
        self.settle_vcpus();
        let devices = self.seats.iter().map(|seat| {
            let name = seat.name.to_string();
            let state = seat.cell.save().ok_or_else(|| refuse(format!("{name} is at work")))?;
            Ok((name, state))
        });
        let devices = Devices(devices.collect::<Result<_, Error>>()?);
        let listed = self.kvm.get_msr_index_list().map_err(KvmError::call("KVM_GET_MSR_INDEX_LIST")).map_err(refuse)?;
        let mut msrs = state::saved_msrs(listed.as_slice());
        let xsave_len = xsave_len(&self.vm);
        let vcpus = self.crew.seen().iter().enumerate().map(|(index, vcpu)| {
            state::save(vcpu, &mut msrs, xsave_len).map_err(|e| refuse(format!("vCPU {index}: {e}")))
        });
        let vcpus = Vcpus(vcpus.collect::<Result<_, Error>>()?);
        let platform = Platform {
            clock: self.vm.get_clock().map_err(KvmError::call("KVM_GET_CLOCK")).map_err(refuse)?,
            ioapic: self.ioapic.save(),
            com1: self.serial.save(),
            i8042: self.keyboard.save(),
        };
        Ok(State {
            platform,
            vcpus,
            devices,
            cpus: self.cpus.as_ref().map(Cpus::save),
            pci: self.pci.as_ref().map(|pci| pci.save(&self.seats)),
        })
    }
}

/// Length in bytes of the extended state of a vCPU; 0 on kernels that do not say, where it is as short as it can be.
pub(super) fn xsave_len(vm: &VmFd) -> usize {
    usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0)
}

/// Sets the guest's clock.
pub(super) fn restore_clock(kvm: &Kvm, vm: &VmFd, saved: &kvm_clock_data, realtime: bool) -> Result<(), String> {
    let mut clock = kvm_clock_data { clock: saved.clock, ..Default::default() };
    if realtime {
        let knows =
            saved.flags & CLOCK_REALTIME != 0 && kvm.check_extension_int(Cap::AdjustClock) as u32 & CLOCK_REALTIME != 0;
        if !knows {
            return Err(
                "clock_realtime: the clock cannot follow the time of day, which needs Linux 5.16 or newer both where the snapshot was taken and here"
                    .to_owned(),
            );
        }
        clock.flags = CLOCK_REALTIME;
        clock.realtime = saved.realtime;
    }
    vm.set_clock(&clock).map_err(|e| format!("KVM_SET_CLOCK failed: {e}"))
}

impl State {
    /// Where the persistent memory called `id` is.
    pub fn pmem_start(&self, id: &ResourceId) -> Option<u64> {
        let name = DeviceName::Pmem(id.clone()).to_string();
        let (_, cell) = self.devices.0.iter().find(|(known, _)| *known == name)?;
        match cell.device {
            DeviceState::Pmem { start, .. } => Some(start),
            _ => None,
        }
    }

    /// Whether it belongs to a machine with so many vCPUs, those that are not plugged included.
    pub fn check(&self, vcpu_count: u8) -> Result<(), String> {
        let found = self.vcpus.0.len();
        if found != usize::from(vcpu_count) || vcpu_count > MAX_VCPUS {
            return Err(format!("it has the state of {found} vCPUs, and the machine has {vcpu_count}"));
        }
        if let Some(cpus) = &self.cpus {
            cpus.registers.check(vcpu_count).map_err(|e| format!("vCPU hotplug: {e}"))?;
        }
        if let Some(pci) = &self.pci {
            pci.check()?;
        }
        for (index, vcpu) in self.vcpus.0.iter().enumerate() {
            vcpu.check().map_err(|e| format!("vCPU {index}: {e}"))?;
        }
        Ok(())
    }
}
