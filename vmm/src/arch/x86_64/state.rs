//! The registers of a vCPU, as they outlive the process: read from a vCPU that stands still, and written to one that was just made.
//!
//! The one room here that knows KVM's descriptors. The order of calls matters, see the comments.

use std::io;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::msr::MSR_IA32_TSC;

const MSR_IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Hyper-V's registers, which KVM lists always and which are all zero in guests that do not know that they have them.
const HYPERV: std::ops::Range<u32> = 0x4000_0000..0x4000_0200;
/// Most MSRs that a saved state may have; KVM lists about a hundred.
const MAX_MSRS: usize = 1024;
/// What every processor's XSAVE area has in KVM, in bytes.
const XSAVE_LEN: usize = size_of::<kvm_xsave>();
/// Largest XSAVE area in bytes: with AMX tiles it has 11 KiB.
const MAX_XSAVE_LEN: usize = 64 << 10;
/// How far two TSC frequencies may be apart and still pass for one, in parts per million: what NTP corrects, and what the reference bears.
const TSC_TOLERANCE_PPM: u64 = 250;
/// Offset of the timer's entry in the local vector table of the local APIC's registers (Intel SDM 3A, 11.5.1).
const LVT_TIMER: usize = 0x320;
const LVT_MASKED: u32 = 1 << 16;
const LVT_TSC_DEADLINE: u32 = 0b10 << 17;

/// Everything KVM knows of a vCPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VcpuState {
    /// What CPUID says.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Frequency of its TSC in kHz; 0 if KVM did not say.
    pub tsc_khz: u32,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Vec<u8>,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

/// Why a vCPU's registers cannot be saved or taken up.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A call failed.
    #[error("{0} failed: {1}")]
    Call(&'static str, io::Error),
    /// Something about the saved registers that no processor could have.
    #[error("{0}")]
    Impossible(String),
    /// The host's processor is another one.
    #[error(
        "the guest's TSC runs at {saved} kHz, and this host's processor at {here} kHz and cannot scale it: restore it on a host with the same frequency"
    )]
    Tsc {
        /// Of the guest.
        saved: u32,
        /// Of this host.
        here: u32,
    },
    /// A register that this host does not have, or not with that value.
    #[error("MSR {0:#x} cannot have the value {1:#x} on this host")]
    Msr(u32, u64),
}

fn call(name: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> StateError {
    move |error| StateError::Call(name, error.into())
}

/// The MSRs among `listed` (`KVM_GET_MSR_INDEX_LIST`) that make up a guest's state.
pub fn saved_msrs(listed: &[u32]) -> Vec<u32> {
    let mut indices: Vec<u32> = listed.iter().copied().filter(|index| !HYPERV.contains(index)).collect();
    // A deadline is in ticks of the TSC: it means something only when that is set.
    indices.sort_by_key(|index| *index == MSR_IA32_TSC_DEADLINE);
    indices
}

/// Reads a vCPU that is not in `KVM_RUN`. `msrs` are those to read, and lose those that cannot be read; `xsave_len` is what
/// `KVM_CAP_XSAVE2` says.
pub fn save(vcpu: &VcpuFd, msrs: &mut Vec<u32>, xsave_len: usize) -> Result<VcpuState, StateError> {
    // First: it makes KVM take in events that change registers.
    let mp_state = vcpu.get_mp_state().map_err(call("KVM_GET_MP_STATE"))?;
    let regs = vcpu.get_regs().map_err(call("KVM_GET_REGS"))?;
    let sregs = vcpu.get_sregs().map_err(call("KVM_GET_SREGS"))?;
    let xsave = read_xsave(vcpu, xsave_len)?;
    let xcrs = vcpu.get_xcrs().map_err(call("KVM_GET_XCRS"))?;
    let debug_regs = vcpu.get_debug_regs().map_err(call("KVM_GET_DEBUGREGS"))?;
    let lapic = vcpu.get_lapic().map_err(call("KVM_GET_LAPIC"))?;
    let mut values = read_msrs(vcpu, msrs)?;
    let events = vcpu.get_vcpu_events().map_err(call("KVM_GET_VCPU_EVENTS"))?;
    let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(call("KVM_GET_CPUID2"))?;
    keep_due_deadline(&lapic, &mut values);
    Ok(VcpuState {
        cpuid: cpuid.as_slice().to_vec(),
        tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debug_regs,
        lapic,
        msrs: values,
        events,
    })
}

fn read_xsave(vcpu: &VcpuFd, len: usize) -> Result<Vec<u8>, StateError> {
    if len == 0 {
        // Before Linux 5.17, where no area is longer.
        let xsave = vcpu.get_xsave().map_err(call("KVM_GET_XSAVE"))?;
        return Ok(xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect());
    }
    let mut xsave = new_xsave(len)?;
    // SAFETY: the area is at least as long as KVM_CAP_XSAVE2 says.
    unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(call("KVM_GET_XSAVE2"))?;
    let words = xsave.as_fam_struct_ref().xsave.region.iter().chain(xsave.as_slice());
    Ok(words.flat_map(|word| word.to_le_bytes()).collect())
}

/// An empty area of this length in bytes, or of the least there is.
fn new_xsave(len: usize) -> Result<Xsave, StateError> {
    let extra = len.saturating_sub(XSAVE_LEN).div_ceil(4);
    Xsave::new(extra).map_err(|e| StateError::Impossible(format!("an XSAVE area of {len} bytes: {e:?}")))
}

/// Reads these MSRs. Those that cannot be read are dropped from the list.
fn read_msrs(vcpu: &VcpuFd, indices: &mut Vec<u32>) -> Result<Vec<kvm_msr_entry>, StateError> {
    let mut values: Vec<kvm_msr_entry> = Vec::with_capacity(indices.len());
    loop {
        let rest = indices.get(values.len()..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(values);
        }
        let asked: Vec<_> = rest.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&asked)
            .map_err(|_| StateError::Impossible(format!("{} MSRs are more than KVM takes", asked.len())))?;
        let count = vcpu.get_msrs(&mut msrs).map_err(call("KVM_GET_MSRS"))?;
        values.extend(msrs.as_slice().iter().take(count));
        if values.len() < indices.len() {
            // KVM stops at the first that cannot be read.
            indices.remove(values.len());
        }
    }
}

/// A timer that is due and whose interrupt KVM has not delivered yet reads as if it were not armed. Armed for a time that is over, it is
/// delivered after all; if it was not armed, that is an interrupt too many, which a guest bears.
fn keep_due_deadline(lapic: &kvm_lapic_state, msrs: &mut [kvm_msr_entry]) {
    let timer: [u8; 4] =
        std::array::from_fn(|at| lapic.regs.get(LVT_TIMER + at).map_or(0, |byte| byte.cast_unsigned()));
    let timer = u32::from_le_bytes(timer);
    let armed = timer & LVT_MASKED == 0 && timer & LVT_TSC_DEADLINE != 0;
    let Some(tsc) = msrs.iter().find(|msr| msr.index == MSR_IA32_TSC).map(|msr| msr.data) else { return };
    for msr in msrs.iter_mut().filter(|msr| armed && msr.index == MSR_IA32_TSC_DEADLINE && msr.data == 0) {
        msr.data = tsc;
    }
}

impl VcpuState {
    /// Whether some processor could be so, as far as KVM does not find out by itself.
    pub fn check(&self) -> Result<(), StateError> {
        let impossible = |what: String| Err(StateError::Impossible(what));
        if self.cpuid.is_empty() || self.cpuid.len() > KVM_MAX_CPUID_ENTRIES {
            return impossible(format!(
                "{} entries of CPUID, 1 to {KVM_MAX_CPUID_ENTRIES} are possible",
                self.cpuid.len()
            ));
        }
        if self.msrs.len() > MAX_MSRS {
            return impossible(format!("{} MSRs, {MAX_MSRS} are possible", self.msrs.len()));
        }
        if !(XSAVE_LEN..=MAX_XSAVE_LEN).contains(&self.xsave.len()) || !self.xsave.len().is_multiple_of(4) {
            return impossible(format!("an XSAVE area of {} bytes", self.xsave.len()));
        }
        // Sign-extended from bit 56 at the latest (Intel SDM 1, 3.3.7.1): KVM takes any, and entering the guest fails.
        let top = self.regs.rip.cast_signed() >> 56;
        if top != 0 && top != -1 {
            return impossible(format!("an instruction pointer of {:#x}, which is not canonical", self.regs.rip));
        }
        Ok(())
    }

    /// Makes a vCPU that was just created what the saved one was. `xsave_len` is what `KVM_CAP_XSAVE2` says here.
    pub fn restore(&self, vcpu: &VcpuFd, xsave_len: usize) -> Result<(), StateError> {
        self.check()?;
        let table = CpuId::from_entries(&self.cpuid)
            .map_err(|_| StateError::Impossible(format!("{} entries of CPUID", self.cpuid.len())))?;
        // Before everything that depends on it: MSRs, XSAVE components, bits of CR4.
        vcpu.set_cpuid2(&table).map_err(call("KVM_SET_CPUID2"))?;
        self.restore_tsc_frequency(vcpu)?;
        vcpu.set_mp_state(self.mp_state).map_err(call("KVM_SET_MP_STATE"))?;
        vcpu.set_regs(&self.regs).map_err(call("KVM_SET_REGS"))?;
        vcpu.set_sregs(&self.sregs).map_err(call("KVM_SET_SREGS (control registers or segments)"))?;
        self.restore_xsave(vcpu, xsave_len)?;
        vcpu.set_xcrs(&self.xcrs).map_err(call("KVM_SET_XCRS"))?;
        vcpu.set_debug_regs(&self.debug_regs).map_err(call("KVM_SET_DEBUGREGS"))?;
        // Before the MSRs: the deadline of its timer is one.
        vcpu.set_lapic(&self.lapic).map_err(call("KVM_SET_LAPIC"))?;
        self.restore_msrs(vcpu)?;
        vcpu.set_vcpu_events(&self.events).map_err(call("KVM_SET_VCPU_EVENTS"))?;
        // Tells the guest's watchdogs that it was stopped; a guest without kvm-clock cannot be told.
        let _ = vcpu.kvmclock_ctrl();
        Ok(())
    }

    fn restore_tsc_frequency(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let here = vcpu.get_tsc_khz().unwrap_or(0);
        if self.tsc_khz == 0 || here == 0 {
            return Ok(());
        }
        let apart = u64::from(self.tsc_khz.abs_diff(here)) * 1_000_000;
        if apart <= u64::from(here) * TSC_TOLERANCE_PPM {
            return Ok(());
        }
        vcpu.set_tsc_khz(self.tsc_khz).map_err(|_| StateError::Tsc { saved: self.tsc_khz, here })
    }

    fn restore_xsave(&self, vcpu: &VcpuFd, len: usize) -> Result<(), StateError> {
        if self.xsave.len() > len.max(XSAVE_LEN) {
            let (saved, here) = (self.xsave.len(), len.max(XSAVE_LEN));
            let what = format!("the saved extended state has {saved} bytes, and this host's processor keeps {here}");
            return Err(StateError::Impossible(what));
        }
        let mut xsave = new_xsave(len)?;
        let mut words = self.xsave.chunks_exact(4).map(|word| word.try_into().map_or(0, u32::from_le_bytes));
        // SAFETY: the length of the array behind the struct is not changed.
        let region = unsafe { &mut xsave.as_mut_fam_struct().xsave.region };
        region.fill_with(|| words.next().unwrap_or(0));
        xsave.as_mut_slice().fill_with(|| words.next().unwrap_or(0));
        // SAFETY: the area is at least as long as KVM_CAP_XSAVE2 says, which is as much as KVM reads.
        unsafe { vcpu.set_xsave2(&xsave) }.map_err(call("KVM_SET_XSAVE"))
    }

    /// A register that KVM refuses is an error only if it does not have that value already.
    fn restore_msrs(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let mut rest = self.msrs.as_slice();
        while !rest.is_empty() {
            let msrs = Msrs::from_entries(rest)
                .map_err(|_| StateError::Impossible(format!("{} MSRs are more than KVM takes", rest.len())))?;
            let taken = vcpu.set_msrs(&msrs).map_err(call("KVM_SET_MSRS"))?;
            rest = rest.get(taken..).unwrap_or_default();
            if let Some((refused, after)) = rest.split_first() {
                let has = read_msrs(vcpu, &mut vec![refused.index])?.first().map(|msr| msr.data);
                if has != Some(refused.data) {
                    return Err(StateError::Msr(refused.index, refused.data));
                }
                rest = after;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl VcpuState {
    /// One that was just made.
    pub fn blank() -> Self {
        Self {
            cpuid: vec![kvm_cpuid_entry2::default()],
            tsc_khz: 0,
            mp_state: kvm_mp_state::default(),
            regs: kvm_regs::default(),
            sregs: kvm_sregs::default(),
            xsave: vec![0; XSAVE_LEN],
            xcrs: kvm_xcrs::default(),
            debug_regs: kvm_debugregs::default(),
            lapic: kvm_lapic_state::default(),
            msrs: Vec::new(),
            events: kvm_vcpu_events::default(),
        }
    }

    /// With another instruction pointer.
    pub fn spoil_rip(&mut self, rip: u64) {
        self.regs.rip = rip;
    }
}
