//! `/dev/kvm`: what it offers, the VM behind it, and its interrupt routes.

mod routes;
mod vectors;

pub use routes::{Doorbell, PciDoorbell, Routes};
pub use vectors::{Gsis, Lines};

use std::io;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VmFd};

use crate::arch::layout::IOAPIC_PINS;
use crate::config::Capability;

/// How often `KVM_CREATE_VM` is tried while signals interrupt it.
const CREATE_TRIES: u32 = 8;

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no device node.
    #[error(
        "/dev/kvm does not exist: this host offers no hardware virtualisation, or the kvm module is not loaded (modprobe kvm-intel or kvm-amd; in a VM, ask for nested virtualisation)"
    )]
    Missing,
    /// There is one but not for us.
    #[error("/dev/kvm may not be opened by this user: add it to the group that owns /dev/kvm, or chmod the node")]
    Denied,
    /// Some other refusal.
    #[error("/dev/kvm cannot be opened: {0}")]
    Open(io::Error),
    /// Something else is mounted or linked there.
    #[error("/dev/kvm is not the KVM device: make sure that the node is character device 10:232")]
    NotKvm,
    /// Not the API of the last fifteen years.
    #[error("/dev/kvm speaks API version {0}, this program speaks 12")]
    Version(i32),
    /// Something we cannot do without.
    #[error("this host's KVM lacks {0}; use a kernel that has it")]
    Lacks(&'static str),
    /// Something that a CPU template asks for.
    #[error(
        "Missing KVM capabilities: {0:#x} (number {0}), which kvm_capabilities of the CPU template asks for. Take it out of the template, or use a kernel that has it."
    )]
    LacksAsked(u32),
    /// A call failed.
    #[error("{0} failed: {1}")]
    Call(&'static str, io::Error),
}

impl KvmError {
    /// Wraps the failure of a named KVM call.
    pub fn call(name: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
        move |error| KvmError::Call(name, error.into())
    }
}

/// Opens `/dev/kvm` and checks that it can do what every machine needs. `changes` adds to the list of what is checked and takes away from
/// it; the last change that names a capability counts. What is not checked and not there is missed later, by the call that needs it.
pub fn open(changes: &[Capability]) -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => KvmError::Missing,
        libc::EACCES | libc::EPERM => KvmError::Denied,
        _ => KvmError::Open(error.into()),
    })?;
    match kvm.get_api_version() {
        12 => {}
        ..0 => return Err(KvmError::NotKvm),
        other => return Err(KvmError::Version(other)),
    }
    let needed = [
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP (in Linux since 4.4)"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT (in Linux since 4.12)"),
    ];
    for (cap, name) in needed {
        let change = changes.iter().rfind(|change| change.number() == cap as u32);
        if !matches!(change, Some(Capability::Unchecked(_))) && !kvm.check_extension(cap) {
            return Err(KvmError::Lacks(name));
        }
    }
    for (at, change) in changes.iter().enumerate() {
        let overruled = changes.iter().skip(at + 1).any(|later| later.number() == change.number());
        if let Capability::Required(number) = *change
            && !overruled
            && kvm.check_extension_raw(number.into()) <= 0
        {
            return Err(KvmError::LacksAsked(number));
        }
    }
    Ok(kvm)
}

/// Creates a VM. The call may be interrupted by signals, and is then tried again.
pub fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    let mut tries = 0;
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR && tries < CREATE_TRIES => tries += 1,
            other => return other.map_err(KvmError::call("KVM_CREATE_VM")),
        }
    }
}

/// Splits the interrupt chips: local APICs stay in KVM, the IOAPIC is ours, PIC and PIT do not exist. Besides being smaller, a VM without
/// the in-kernel chips ends 10 to 20 ms sooner.
pub fn split_irqchip(vm: &VmFd) -> Result<(), KvmError> {
    let cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [IOAPIC_PINS.into(), 0, 0, 0], ..Default::default() };
    vm.enable_cap(&cap).map_err(KvmError::call("KVM_CAP_SPLIT_IRQCHIP"))
}
