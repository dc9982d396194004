//! What a vCPU is when the guest gets it, and what it must not go on doing when the guest has given it back.
//!
//! Both are done from outside, by the VMM thread, while the vCPU's own thread stands on the board.

use kvm_bindings::{KVM_MP_STATE_UNINITIALIZED, kvm_mp_state};
use kvm_ioctls::VcpuFd;

use crate::kvm::KvmError;

/// Offsets of the timer's initial count and of its entry in the local vector table (Intel SDM 3A, 11.4.1).
const TIMER_INITIAL_COUNT: usize = 0x380;
const LVT_TIMER: usize = 0x320;
/// Byte and bit of the mask in that entry.
const LVT_MASK: (usize, u8) = (2, 1);

/// It waits for an INIT and a start-up interrupt that come from now on, as a processor does that was just switched on.
///
/// KVM keeps those that came before until somebody looks at the state: a guest may have sent them to a vCPU that it did not have.
pub(super) fn reset(vcpu: &VcpuFd) -> Result<(), KvmError> {
    // Asking makes KVM take in what came (`kvm_apic_accept_events`, arch/x86/kvm/lapic.c) ...
    vcpu.get_mp_state().map_err(KvmError::call("KVM_GET_MP_STATE"))?;
    // ... and this undoes what came of it: registers are those of a reset, or become so with the next INIT.
    let waiting = kvm_mp_state { mp_state: KVM_MP_STATE_UNINITIALIZED };
    vcpu.set_mp_state(waiting).map_err(KvmError::call("KVM_SET_MP_STATE"))
}

/// Stops its timer. That is one of the host's, which would go off again and again for a vCPU that cannot run.
pub(super) fn quiesce(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let mut lapic = vcpu.get_lapic().map_err(KvmError::call("KVM_GET_LAPIC"))?;
    if let Some(count) = lapic.regs.get_mut(TIMER_INITIAL_COUNT..TIMER_INITIAL_COUNT + 4) {
        count.fill(0);
    }
    let (byte, bit) = LVT_MASK;
    if let Some(entry) = lapic.regs.get_mut(LVT_TIMER + byte) {
        *entry |= bit.cast_signed();
    }
    vcpu.set_lapic(&lapic).map_err(KvmError::call("KVM_SET_LAPIC"))
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED};
    use kvm_ioctls::VmFd;

    use super::*;
    use crate::kvm;

    const TIMER_CURRENT_COUNT: usize = 0x390;

    /// The second vCPU of a machine, and the machine.
    fn second() -> (VmFd, VcpuFd) {
        let kvm = kvm::open(&[]).expect("this test needs /dev/kvm");
        let vm = kvm::create_vm(&kvm).unwrap();
        kvm::split_irqchip(&vm).unwrap();
        let _first = vm.create_vcpu(0).unwrap();
        let second = vm.create_vcpu(1).unwrap();
        (vm, second)
    }

    #[test]
    fn what_came_before_is_forgotten() {
        let (_vm, vcpu) = second();
        // The latter is a start-up interrupt that nobody has looked at yet.
        for mp_state in [KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED] {
            vcpu.set_mp_state(kvm_mp_state { mp_state }).unwrap();
            reset(&vcpu).unwrap();
            for _ in 0..2 {
                assert_eq!(vcpu.get_mp_state().unwrap().mp_state, KVM_MP_STATE_UNINITIALIZED, "after {mp_state}");
            }
        }
    }

    #[test]
    fn its_timer_stops() {
        let (_vm, vcpu) = second();
        let mut lapic = vcpu.get_lapic().unwrap();
        let mut put = |offset: usize, value: u32| {
            for (byte, value) in lapic.regs[offset..].iter_mut().zip(value.to_le_bytes()) {
                *byte = value.cast_signed();
            }
        };
        // Enabled, and periodic with vector 0x40; the whole count is left.
        put(0xf0, 0x1ff);
        put(LVT_TIMER, 1 << 17 | 0x40);
        put(TIMER_INITIAL_COUNT, 1_000_000_000);
        put(TIMER_CURRENT_COUNT, 1_000_000_000);
        vcpu.set_lapic(&lapic).unwrap();
        let read = |offset: usize| {
            let regs = vcpu.get_lapic().unwrap().regs;
            u32::from_le_bytes(std::array::from_fn(|at| regs[offset + at].cast_unsigned()))
        };
        assert_ne!(read(TIMER_CURRENT_COUNT), 0, "the timer runs");
        quiesce(&vcpu).unwrap();
        assert_eq!((read(TIMER_INITIAL_COUNT), read(TIMER_CURRENT_COUNT)), (0, 0));
        assert_eq!(read(LVT_TIMER), 1 << 17 | 1 << 16 | 0x40, "the rest is as it was");
    }
}
