//! What a guest's processor can do is what its host's can. A machine that is saved remembers the host, so that another one that lacks
//! something can be told apart before a guest finds out by an undefined instruction.

use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

/// Leaves and subleaves with feature bits (Intel SDM 2A, CPUID; AMD APM 3, appendix E).
const LEAVES: [(u32, u32); 6] = [(1, 0), (7, 0), (7, 1), (0xd, 1), (0x8000_0001, 0), (0x8000_0008, 0)];

/// Registers in the order of CPUID's results.
const REGISTERS: [&str; 4] = ["EAX", "EBX", "ECX", "EDX"];

/// Feature bits among these leaves: those of leaf 1 and 0x8000_0001 that are in EAX and EBX are no features.
const NUMBERS: [(u32, usize); 4] = [(1, 0), (1, 1), (0x8000_0001, 0), (0x8000_0001, 1)];
/// Nor are these of leaf 0x8000_0008, but for EBX.
const ADDRESS_SIZES: u32 = 0x8000_0008;
/// The maximum subleaf, in EAX of leaf 7.
const SUBLEAVES: (u32, u32, usize) = (7, 0, 0);
/// EBX of leaf 0xd, subleaf 1 is a size, ECX and EDX name states that only the host uses.
const XSAVE: (u32, u32) = (0xd, 1);
/// APIC ids and the like in leaf 1 are EBX, left out above; OSXSAVE and OSPKE tell of an operating system, and HYPERVISOR of where it runs.
const NO_FEATURES: [(u32, u32, usize, u32); 3] = [(1, 0, 2, 1 << 27), (7, 0, 2, 1 << 4), (1, 0, 2, 1 << 31)];

/// Names of features that guests are known to use.
const NAMES: [(u32, u32, usize, u32, &str); 24] = [
    (1, 0, 2, 0, "sse3"),
    (1, 0, 2, 1, "pclmulqdq"),
    (1, 0, 2, 9, "ssse3"),
    (1, 0, 2, 12, "fma"),
    (1, 0, 2, 13, "cx16"),
    (1, 0, 2, 19, "sse4.1"),
    (1, 0, 2, 20, "sse4.2"),
    (1, 0, 2, 23, "popcnt"),
    (1, 0, 2, 25, "aes"),
    (1, 0, 2, 26, "xsave"),
    (1, 0, 2, 28, "avx"),
    (1, 0, 2, 30, "rdrand"),
    (7, 0, 1, 3, "bmi1"),
    (7, 0, 1, 5, "avx2"),
    (7, 0, 1, 8, "bmi2"),
    (7, 0, 1, 9, "erms"),
    (7, 0, 1, 16, "avx512f"),
    (7, 0, 1, 17, "avx512dq"),
    (7, 0, 1, 18, "rdseed"),
    (7, 0, 1, 29, "sha"),
    (7, 0, 1, 30, "avx512bw"),
    (7, 0, 1, 31, "avx512vl"),
    (7, 0, 3, 24, "amx-tile"),
    (7, 0, 2, 1, "avx512vbmi"),
];

/// A host's processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCpu {
    /// As CPUID leaf 0 spells it.
    pub vendor: String,
    /// Family, model and stepping (leaf 1 EAX).
    pub signature: u32,
    /// Results of CPUID for leaves with feature bits.
    leaves: Vec<(u32, u32, [u32; 4])>,
}

/// A feature by its place, as the manuals write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    leaf: u32,
    subleaf: u32,
    register: usize,
    bit: u32,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { leaf, subleaf, register, bit } = *self;
        let place =
            format_args!("CPUID.{leaf:X}H.{subleaf}:{}[{bit}]", REGISTERS.get(register).unwrap_or(&"?")).to_string();
        match NAMES.iter().find(|name| (name.0, name.1, name.2, name.3) == (leaf, subleaf, register, bit)) {
            Some((.., name)) => write!(f, "{name} ({place})"),
            None => f.write_str(&place),
        }
    }
}

/// Why a guest cannot go on here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The processor is of another maker.
    #[error("the snapshot was taken on a processor of {saved}, and this host's is of {here}")]
    Vendor {
        /// Where it was saved.
        saved: String,
        /// Here.
        here: String,
    },
    /// The guest has been told of features that are not here.
    #[error(
        "this host's processor lacks what the guest has been told of: {}; load it on a host that has it, or take it of a machine with a CPU template that hides it",
        list(.0)
    )]
    Features(Vec<Feature>),
}

fn list(features: &[Feature]) -> String {
    const MOST: usize = 12;
    let mut names: Vec<String> = features.iter().take(MOST).map(Feature::to_string).collect();
    if features.len() > MOST {
        names.push(format!("and {} more", features.len() - MOST));
    }
    names.join(", ")
}

impl HostCpu {
    /// This host's.
    pub fn here() -> Self {
        let ask = |leaf, subleaf| {
            let told = core::arch::x86_64::__cpuid_count(leaf, subleaf);
            [told.eax, told.ebx, told.ecx, told.edx]
        };
        let [most, b, c, d] = ask(0, 0);
        let vendor: Vec<u8> = [b, d, c].into_iter().flat_map(u32::to_le_bytes).collect();
        let [most_extended, ..] = ask(0x8000_0000, 0);
        let there = |leaf: u32| if leaf < 0x8000_0000 { leaf <= most } else { leaf <= most_extended };
        let leaves = LEAVES.into_iter().filter(|(leaf, _)| there(*leaf));
        Self {
            vendor: String::from_utf8_lossy(&vendor).into_owned(),
            signature: ask(1, 0)[0],
            leaves: leaves.map(|(leaf, subleaf)| (leaf, subleaf, ask(leaf, subleaf))).collect(),
        }
    }

    fn leaf(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let found = self.leaves.iter().find(|(l, s, _)| (*l, *s) == (leaf, subleaf));
        found.map_or([0; 4], |(.., registers)| *registers)
    }

    /// Whether a guest with this table that was saved on this host can go on on `here`.
    ///
    /// Only what the guest has been told of counts, and only as far as the old host had it: the rest KVM makes up, here as there.
    pub fn fits(&self, guest: &[kvm_cpuid_entry2], here: &Self) -> Result<(), Misfit> {
        if self.vendor != here.vendor {
            let shown = |vendor: &str| vendor.chars().take(40).collect();
            return Err(Misfit::Vendor { saved: shown(&self.vendor), here: shown(&here.vendor) });
        }
        let mut missing = Vec::new();
        for (leaf, subleaf) in LEAVES {
            let Some(told) = guest.iter().find(|entry| (entry.function, entry.index) == (leaf, subleaf)) else {
                continue;
            };
            let told = [told.eax, told.ebx, told.ecx, told.edx];
            let (saved, here) = (self.leaf(leaf, subleaf), here.leaf(leaf, subleaf));
            for (register, ((told, saved), here)) in told.into_iter().zip(saved).zip(here).enumerate() {
                let gone = told & saved & !here & features(leaf, subleaf, register);
                let bits = (0..32).filter(|bit| gone & (1 << bit) != 0);
                missing.extend(bits.map(|bit| Feature { leaf, subleaf, register, bit }));
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(Misfit::Features(missing)) }
    }
}

/// Which bits of a register are features.
fn features(leaf: u32, subleaf: u32, register: usize) -> u32 {
    let number = NUMBERS.contains(&(leaf, register))
        || (leaf == ADDRESS_SIZES && register != 1)
        || (leaf, subleaf, register) == SUBLEAVES
        || ((leaf, subleaf) == XSAVE && register != 0);
    if number {
        return 0;
    }
    let not = NO_FEATURES.iter().filter(|no| (no.0, no.1, no.2) == (leaf, subleaf, register));
    !not.fold(0, |bits, no| bits | no.3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(here: &HostCpu) -> Vec<kvm_cpuid_entry2> {
        let entry = |(function, index, [eax, ebx, ecx, edx]): &(u32, u32, [u32; 4])| kvm_cpuid_entry2 {
            function: *function,
            index: *index,
            eax: *eax,
            ebx: *ebx,
            ecx: *ecx,
            edx: *edx,
            ..Default::default()
        };
        here.leaves.iter().map(entry).collect()
    }

    #[test]
    fn a_host_fits_itself() {
        let here = HostCpu::here();
        assert!(["GenuineIntel", "AuthenticAMD"].contains(&here.vendor.as_str()) || !here.vendor.is_empty());
        assert_eq!(here.fits(&guest(&here), &HostCpu::here()), Ok(()));
    }

    #[test]
    fn what_is_missing_is_named() {
        let here = HostCpu::here();
        let mut richer = here.clone();
        let at = richer.leaves.iter_mut().find(|(leaf, subleaf, _)| (*leaf, *subleaf) == (7, 0)).unwrap();
        let had = at.2[1];
        at.2[1] |= 1 << 16;
        let mut poorer = here.clone();
        poorer.leaves.iter_mut().for_each(|(leaf, subleaf, registers)| {
            if (*leaf, *subleaf) == (7, 0) {
                registers[1] &= !(1 << 16);
            }
        });
        let _ = had;
        let told = guest(&richer);
        let misfit = richer.fits(&told, &poorer).unwrap_err();
        assert!(misfit.to_string().contains("avx512f (CPUID.7H.0:EBX[16])"), "{misfit}");
        // A guest that was not told of it does not miss it, nor one to which KVM alone gave it.
        assert_eq!(richer.fits(&guest(&poorer), &poorer), Ok(()));
        assert_eq!(poorer.fits(&told, &poorer), Ok(()));
        let other = HostCpu { vendor: "CentaurHauls".to_owned(), ..here.clone() };
        assert!(other.fits(&guest(&here), &here).unwrap_err().to_string().contains("of CentaurHauls"));
    }

    #[test]
    fn numbers_are_no_features() {
        for (leaf, subleaf, register) in [(1, 0, 0), (1, 0, 1), (7, 0, 0), (0xd, 1, 1), (0x8000_0008, 0, 0)] {
            assert_eq!(features(leaf, subleaf, register), 0);
        }
        assert_eq!(features(1, 0, 2), !(1 << 27 | 1 << 31));
        assert_eq!(features(7, 0, 1), u32::MAX);
    }
}
