//! The model-specific registers a vCPU starts with.
//!
//! A fresh KVM vCPU already has nearly the boot values; they are written so that the start state does not
//! depend on the host. The same list goes to every vCPU. What a CPU template changes is written before
//! them, so that the boot protocol wins. Called by the vCPU room with closures over `KVM_GET_MSRS` and
//! `KVM_SET_MSRS`.

use kvm_bindings::{Msrs, kvm_msr_entry};

use super::template::MsrModifier;

pub(super) const MSR_IA32_TSC: u32 = 0x0000_0010;
const MSR_IA32_SYSENTER_CS: u32 = 0x0000_0174;
const MSR_IA32_SYSENTER_ESP: u32 = 0x0000_0175;
const MSR_IA32_SYSENTER_EIP: u32 = 0x0000_0176;
const MSR_IA32_MISC_ENABLE: u32 = 0x0000_01a0;
const MSR_MTRR_DEF_TYPE: u32 = 0x0000_02ff;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_CSTAR: u32 = 0xc000_0083;
const MSR_SYSCALL_MASK: u32 = 0xc000_0084;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// `IA32_MISC_ENABLE` bit 0: fast string operations.
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
/// `IA32_MTRR_DEF_TYPE`: MTRRs enabled (bit 11), default type write-back (6). Without it a guest that
/// trusts the MTRRs would treat all its RAM as uncached.
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

/// Register numbers and values, in the order they are written.
const BOOT_MSRS: [(u32, u64); 11] = [
    (MSR_IA32_SYSENTER_CS, 0),
    (MSR_IA32_SYSENTER_ESP, 0),
    (MSR_IA32_SYSENTER_EIP, 0),
    (MSR_STAR, 0),
    (MSR_CSTAR, 0),
    (MSR_KERNEL_GS_BASE, 0),
    (MSR_SYSCALL_MASK, 0),
    (MSR_LSTAR, 0),
    // Writing the same value to every vCPU is what makes KVM keep their TSCs in step.
    (MSR_IA32_TSC, 0),
    (MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS),
    (MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
];

/// The boot MSRs as `KVM_SET_MSRS` takes them.
#[must_use]
pub fn boot_msrs() -> Vec<kvm_msr_entry> {
    BOOT_MSRS.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() }).to_vec()
}

/// Why MSRs cannot be as they should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error<E> {
    /// The system call failed.
    #[error("setting MSRs failed: {0}")]
    Set(E),
    /// The system call failed.
    #[error("reading MSR {0:#x} failed: {1}")]
    Get(u32, E),
    /// A template changes a register that KVM does not have here.
    #[error(
        "Template changes an MSR entry not supported by KVM: Register Address: {0:#x}. Take it out of the CPU template."
    )]
    NoSuchMsr(u32),
    /// A template asks for a value that KVM does not allow.
    #[error(
        "KVM refuses the value {value:#x} for MSR {address:#x} on this host: change its bitmap in the CPU template."
    )]
    Refused {
        /// Number of the register.
        address: u32,
        /// What it was to become.
        value: u64,
    },
    /// KVM's list type refused the entries; too many of them.
    #[error("{0} MSRs are more than one KVM_SET_MSRS takes")]
    TooMany(usize),
}

/// Writes `entries` through `set` (which does `KVM_SET_MSRS` and returns how many were taken) and returns
/// the numbers of the registers the host does not have.
///
/// `KVM_SET_MSRS` stops at the first register it refuses. Some hosts lack one or another of ours (a
/// nested or page-table-based KVM, an AMD host without `IA32_MISC_ENABLE`), and none of them is worth
/// failing a boot for: the value asked for is the reset value or a hint. So a refused register is
/// skipped and reported, and the rest is still written. The caller logs the report once. The work is
/// bounded: each call takes or skips at least one entry.
pub fn write<E>(
    entries: &[kvm_msr_entry],
    mut set: impl FnMut(&Msrs) -> Result<usize, E>,
) -> Result<Vec<u32>, Error<E>> {
    let mut skipped = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let msrs = Msrs::from_entries(rest).map_err(|_| Error::TooMany(rest.len()))?;
        let taken = set(&msrs).map_err(Error::Set)?;
        rest = rest.get(taken..).unwrap_or_default();
        if let Some((refused, after)) = rest.split_first() {
            skipped.push(refused.index);
            rest = after;
        }
    }
    Ok(skipped)
}

/// The registers that a template changes, with their new values; `get` does `KVM_GET_MSRS` and returns how many were read.
pub fn template_msrs<E>(
    modifiers: &[MsrModifier],
    mut get: impl FnMut(&mut Msrs) -> Result<usize, E>,
) -> Result<Vec<kvm_msr_entry>, Error<E>> {
    let mut changed: Vec<kvm_msr_entry> = Vec::new();
    for &MsrModifier { address, bits } in modifiers {
        let at = match changed.iter().position(|msr| msr.index == address) {
            Some(at) => at,
            None => {
                // One at a time: a call for many stops at the first it cannot read without saying why.
                let asked = kvm_msr_entry { index: address, ..Default::default() };
                let mut msrs = Msrs::from_entries(&[asked]).map_err(|_| Error::TooMany(1))?;
                let read = get(&mut msrs).map_err(|error| Error::Get(address, error))?;
                let found = msrs.as_slice().first().filter(|_| read == 1).ok_or(Error::NoSuchMsr(address))?;
                changed.push(*found);
                changed.len() - 1
            }
        };
        changed[at].data = bits.apply(changed[at].data);
    }
    Ok(changed)
}

/// Writes `entries` through `set` like [`write()`], except that a register refused is an error.
pub fn write_template<E>(
    entries: &[kvm_msr_entry],
    mut set: impl FnMut(&Msrs) -> Result<usize, E>,
) -> Result<(), Error<E>> {
    for entry in entries {
        let msrs = Msrs::from_entries(&[*entry]).map_err(|_| Error::TooMany(1))?;
        if set(&msrs).map_err(Error::Set)? != 1 {
            return Err(Error::Refused { address: entry.index, value: entry.data });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A vCPU with these registers; 0x10a takes no bit above 31.
    #[derive(Clone)]
    struct Registers(BTreeMap<u32, u64>);

    impl Registers {
        fn get(&self, msrs: &mut Msrs) -> Result<usize, String> {
            let [msr] = msrs.as_mut_slice() else { return Err("one at a time".to_owned()) };
            Ok(self.0.get(&msr.index).map(|value| msr.data = *value).map_or(0, |()| 1))
        }

        fn set(&mut self, msrs: &Msrs) -> Result<usize, String> {
            let [msr] = msrs.as_slice() else { return Err("one at a time".to_owned()) };
            let taken = msr.index != 0x10a || msr.data >> 32 == 0;
            if taken {
                self.0.insert(msr.index, msr.data);
            }
            Ok(taken.into())
        }
    }

    fn modifier(address: u32, bits: &str) -> MsrModifier {
        MsrModifier { address, bits: bits.parse().unwrap() }
    }

    #[test]
    fn templates_read_mask_and_write() {
        let mut cpu = Registers([(0x10a, 0b1100), (0x122, 7)].into());
        // The second change of a register builds on the first.
        let modifiers = [modifier(0x10a, "0b0x1x"), modifier(0x122, "0b000"), modifier(0x10a, "0b1xxxx")];
        for _ in 0..2 {
            let changed = template_msrs(&modifiers, |msrs| cpu.get(msrs)).unwrap();
            assert_eq!(changed.iter().map(|m| (m.index, m.data)).collect::<Vec<_>>(), [(0x10a, 0b1_0110), (0x122, 0)]);
            write_template(&changed, |msrs| cpu.set(msrs)).unwrap();
            assert_eq!(cpu.0, [(0x10a, 0b1_0110), (0x122, 0)].into());
        }
    }

    #[test]
    fn a_register_that_kvm_does_not_have_is_named() {
        let cpu = Registers([(0x10a, 0)].into());
        let error = template_msrs(&[modifier(0x10a, "x"), modifier(0xabc, "x")], |msrs| cpu.get(msrs)).unwrap_err();
        assert!(error.to_string().contains("not supported by KVM: Register Address: 0xabc"), "{error}");
    }

    #[test]
    fn a_refused_value_is_named() {
        let mut cpu = Registers([(0x10a, 0)].into());
        let bits = format!("1{}", "x".repeat(63));
        let changed = template_msrs(&[modifier(0x10a, &bits)], |msrs| cpu.get(msrs)).unwrap();
        let error = write_template(&changed, |msrs| cpu.set(msrs)).unwrap_err();
        assert!(error.to_string().contains("the value 0x8000000000000000 for MSR 0x10a"), "{error}");
    }

    /// A host that lacks `missing`, and what was written to it.
    fn host(missing: &[u32]) -> (Vec<u32>, Vec<(u32, u64)>) {
        let mut written = Vec::new();
        let skipped = write::<()>(&boot_msrs(), |msrs| {
            let taken: Vec<_> = msrs.as_slice().iter().take_while(|m| !missing.contains(&m.index)).collect();
            written.extend(taken.iter().map(|m| (m.index, m.data)));
            Ok(taken.len())
        })
        .unwrap();
        (skipped, written)
    }

    #[test]
    fn a_complete_host_takes_all_in_one_call() {
        let (skipped, written) = host(&[]);
        assert!(skipped.is_empty());
        assert_eq!(written, BOOT_MSRS);
        assert!(written.contains(&(0x2ff, 0x806)));
        assert!(written.contains(&(0x1a0, 1)));
    }

    #[test]
    fn missing_registers_are_skipped_and_named() {
        for missing in [&[0x174][..], &[0x2ff], &[0x1a0, 0x2ff], &[0xc000_0083, 0x10]] {
            let (mut skipped, written) = host(missing);
            assert_eq!(written.len() + missing.len(), BOOT_MSRS.len());
            skipped.sort_unstable();
            let mut missing = missing.to_vec();
            missing.sort_unstable();
            assert_eq!(skipped, missing);
        }
    }

    #[test]
    fn a_host_that_takes_nothing_ends_too() {
        let all: Vec<u32> = BOOT_MSRS.iter().map(|(index, _)| *index).collect();
        assert_eq!(host(&all), (all, Vec::new()));
    }

    #[test]
    fn a_failing_call_is_an_error() {
        assert!(matches!(write(&boot_msrs(), |_| Err("EFAULT")), Err(Error::Set("EFAULT"))));
    }
}
