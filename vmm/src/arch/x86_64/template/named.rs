//! The named templates of the v1 API: which processors each is for, and what it hides.
//!
//! They make processors of one maker look alike. What each of them hides is public (it is what the templates of the same names are
//! documented to hide); the bits are named after the Intel SDM 2A, CPUID, and AMD's APM 3, E.3 and E.4.

use std::fmt;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX};

use serde::{Deserialize, Serialize};

use super::Register::{Eax, Ebx, Ecx, Edx};
use super::{Bitmap, CpuidModifier, Misfit, MsrModifier, Register, Template};

/// A named template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Named {
    /// An Ivy Bridge, as in EC2's C3.
    C3,
    /// A Haswell, as in EC2's T2.
    T2,
    /// T2, and the same side-channel mitigations on Skylake and Cascade Lake.
    T2S,
    /// T2 on Cascade Lake and Ice Lake, with the instructions that T2A has too.
    T2CL,
    /// Milan with the instructions that T2CL has too.
    T2A,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::C3 => "C3",
            Self::T2 => "T2",
            Self::T2S => "T2S",
            Self::T2CL => "T2CL",
            Self::T2A => "T2A",
        })
    }
}

/// Which processor it is, by leaf 1 EAX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    family: u32,
    model: u32,
    stepping: u32,
}

impl Model {
    /// Decodes leaf 1 EAX: families from 15 on and models from 16 on have their upper part elsewhere.
    fn of(signature: u32) -> Self {
        let field = |low: u32, bits: u32| signature >> low & ((1 << bits) - 1);
        let (base, extended) = (field(8, 4), field(20, 8));
        let family = if base == 0xf { base + extended } else { base };
        let model = if family >= 6 { field(4, 4) | field(16, 4) << 4 } else { field(4, 4) };
        Self { family, model, stepping: field(0, 4) }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "family {:#x} model {:#x} stepping {:#x}", self.family, self.model, self.stepping)
    }
}

/// A generation of processors.
struct Generation {
    name: &'static str,
    is: fn(Model) -> bool,
}

const SKYLAKE: Generation = Generation { name: "Skylake", is: |m| (m.family, m.model) == (6, 0x55) && m.stepping <= 4 };
const CASCADE_LAKE: Generation =
    Generation { name: "Cascade Lake", is: |m| (m.family, m.model) == (6, 0x55) && (5..=7).contains(&m.stepping) };
const ICE_LAKE: Generation = Generation { name: "Ice Lake", is: |m| (m.family, m.model) == (6, 0x6a) };
const MILAN: Generation = Generation { name: "Milan", is: |m| (m.family, m.model) == (0x19, 1) };

const INTEL: &str = "GenuineIntel";
const AMD: &str = "AuthenticAMD";

impl Named {
    /// The template, if it is made for the processor whose `KVM_GET_SUPPORTED_CPUID` is given.
    pub fn for_host(self, supported: &CpuId) -> Result<Template, Misfit> {
        let leaf = |function| supported.as_slice().iter().find(|e| e.function == function).ok_or(Misfit::OddTable);
        let (vendor, signature) = (leaf(0)?, leaf(1)?.eax);
        let found: Vec<u8> = [vendor.ebx, vendor.edx, vendor.ecx].iter().flat_map(|r| r.to_le_bytes()).collect();
        let wanted = if self == Self::T2A { AMD } else { INTEL };
        if found != wanted.as_bytes() {
            let found = String::from_utf8_lossy(&found).into_owned();
            return Err(Misfit::Vendor { template: self, wanted, found });
        }
        let model = Model::of(signature);
        let generations = self.generations();
        if !generations.iter().any(|generation| (generation.is)(model)) {
            let wanted = generations.iter().map(|generation| generation.name).collect::<Vec<_>>().join(" and ");
            return Err(Misfit::Model { template: self, wanted, found: model });
        }
        Ok(self.template())
    }

    fn generations(self) -> &'static [Generation] {
        match self {
            Self::C3 | Self::T2 => &[SKYLAKE, CASCADE_LAKE, ICE_LAKE],
            Self::T2S => &[SKYLAKE, CASCADE_LAKE],
            Self::T2CL => &[CASCADE_LAKE, ICE_LAKE],
            Self::T2A => &[MILAN],
        }
    }

    /// What it changes, whatever the host is.
    pub(super) fn template(self) -> Template {
        let rows: &[&[Row]] = match self {
            Self::C3 => &[C3],
            Self::T2 | Self::T2S => &[HASWELL, HASWELL_EXTENDED],
            Self::T2CL => &[HASWELL, T2CL_EXTENDED],
            Self::T2A => &[HASWELL, T2A_EXTENDED],
        };
        let mut cpuid: Vec<CpuidModifier> = Vec::new();
        for row in rows.iter().copied().flatten() {
            let change = (row.register, Bitmap::new(row.hide | row.show, row.show));
            match cpuid.last_mut().filter(|last| (last.leaf, last.subleaf) == (row.leaf, row.subleaf)) {
                Some(last) => last.registers.push(change),
                None => cpuid.push(CpuidModifier {
                    leaf: row.leaf,
                    subleaf: row.subleaf,
                    flags: if matches!(row.leaf, 7 | 0xd) { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
                    registers: vec![change],
                }),
            }
        }
        let arch_capabilities = |bits| vec![MsrModifier { address: MSR_IA32_ARCH_CAPABILITIES, bits }];
        let msrs = match self {
            // The same on both, so it says what the weaker one needs.
            Self::T2S => arch_capabilities(Bitmap::new(u64::MAX, T2S_CAPABILITIES)),
            // Mitigations pass, whatever they are; controls and what is not about mitigations do not.
            Self::T2CL => arch_capabilities(Bitmap::new(!T2CL_CAPABILITIES, 0)),
            Self::C3 | Self::T2 | Self::T2A => Vec::new(),
        };
        Template { cpuid, msrs }
    }
}

/// What happens to one register of a leaf.
struct Row {
    leaf: u32,
    subleaf: u32,
    register: Register,
    /// Bits that are cleared.
    hide: u32,
    /// Bits that are set, whatever the host has.
    show: u32,
}

const fn row(leaf: u32, subleaf: u32, register: Register, hide: &[u32], show: &[u32]) -> Row {
    Row { leaf, subleaf, register, hide: bits(hide), show: bits(show) }
}

/// Leaf 1 EAX says this stepping, model and family; reserved bits stay.
const fn signature(value: u32) -> Row {
    const DEFINED: u32 = 0x0fff_3fff;
    Row { leaf: 1, subleaf: 0, register: Eax, hide: DEFINED & !value, show: value }
}

const fn bits(numbers: &[u32]) -> u32 {
    let mut mask = 0;
    let mut i = 0;
    while i < numbers.len() {
        mask |= 1 << numbers[i];
        i += 1;
    }
    mask
}

const IVY_BRIDGE_SIGNATURE: u32 = 0x0003_06e4;
const HASWELL_SIGNATURE: u32 = 0x0003_06f2;

/// XSAVE components (leaf 0xd EAX) of MPX, AVX-512 and protection keys.
const XSAVE_LATER: &[u32] = &[3, 4, 5, 6, 7, 9];
/// XSAVEC, XGETBV with ECX = 1, XSAVES (leaf 0xd, subleaf 1, EAX).
const XSAVE_WAYS: &[u32] = &[1, 2, 3];
/// Leaf 1 EDX: MCE and MTRR, which every machine has.
const SHOWN: &[u32] = &[7, 12];

const C3: &[Row] = &[
    signature(IVY_BRIDGE_SIGNATURE),
    // DTES64, MONITOR, DS_CPL, VMX, TM2, CNXT_ID, SDBG, FMA, xTPR, PDCM, MOVBE.
    row(1, 0, Ecx, &[2, 3, 4, 5, 8, 10, 11, 12, 14, 15, 22], &[]),
    // PSN, DS, ACPI, SS, TM, PBE.
    row(1, 0, Edx, &[18, 21, 22, 27, 29, 31], SHOWN),
    // SGX, BMI1, HLE, AVX2, BMI2, INVPCID, RTM, RDT-M, MPX, RDT-A, AVX512F, AVX512DQ, RDSEED, ADX, AVX512_IFMA, CLFLUSHOPT, CLWB,
    // processor trace, AVX512PF, AVX512ER, AVX512CD, SHA, AVX512BW, AVX512VL.
    row(7, 0, Ebx, &[2, 3, 4, 5, 8, 10, 11, 12, 14, 15, 16, 17, 18, 19, 21, 23, 24, 25, 26, 27, 28, 29, 30, 31], &[]),
    // AVX512_VBMI, UMIP, PKU, OSPKE, AVX512_VNNI, AVX512_VPOPCNTDQ, LA57, RDPID, SGX_LC.
    row(7, 0, Ecx, &[1, 2, 3, 4, 11, 14, 16, 22, 30], &[]),
    // AVX512_4VNNIW, AVX512_4FMAPS.
    row(7, 0, Edx, &[2, 3], &[]),
    row(0xd, 0, Eax, XSAVE_LATER, &[]),
    row(0xd, 1, Eax, XSAVE_WAYS, &[]),
    // LZCNT, PREFETCHW.
    row(0x8000_0001, 0, Ecx, &[5, 8], &[]),
    // 1 GiB pages.
    row(0x8000_0001, 0, Edx, &[26], &[]),
];

/// What the four T2 have in common.
const HASWELL: &[Row] = &[
    signature(HASWELL_SIGNATURE),
    // DTES64, MONITOR, DS_CPL, VMX, SMX, EIST, TM2, CNXT_ID, SDBG, xTPR, PDCM, DCA.
    row(1, 0, Ecx, &[2, 3, 4, 5, 6, 7, 8, 10, 11, 14, 15, 18], &[]),
    // PSN, DS, ACPI, SS, TM, IA-64, PBE.
    row(1, 0, Edx, &[18, 21, 22, 27, 29, 30, 31], SHOWN),
    // SGX, HLE, RTM, RDT-M, MPX, RDT-A, AVX512F, AVX512DQ, RDSEED, ADX, AVX512_IFMA, PCOMMIT (AMD: RDPID), CLFLUSHOPT, CLWB,
    // processor trace, AVX512PF, AVX512ER, AVX512CD, SHA, AVX512BW, AVX512VL. Fast REP MOVSB (9) is shown.
    row(7, 0, Ebx, &[2, 4, 11, 12, 14, 15, 16, 17, 18, 19, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31], &[9]),
    // AVX512_VBMI, UMIP, PKU, OSPKE, AVX512_VBMI2, GFNI, VAES, VPCLMULQDQ, AVX512_VNNI, AVX512_BITALG, AVX512_VPOPCNTDQ, LA57,
    // RDPID, SGX_LC.
    row(7, 0, Ecx, &[1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 14, 16, 22, 30], &[]),
    // AVX512_4VNNIW, AVX512_4FMAPS, fast short REP MOV, AVX512_VP2INTERSECT.
    row(7, 0, Edx, &[2, 3, 4, 8], &[]),
    row(0xd, 0, Eax, XSAVE_LATER, &[]),
    row(0xd, 1, Eax, XSAVE_WAYS, &[]),
];

/// The extended leaves of T2 and T2S: PREFETCHW, MONITORX; 1 GiB pages; WBNOINVD.
const HASWELL_EXTENDED: &[Row] = &[
    row(0x8000_0001, 0, Ecx, &[8, 29], &[]),
    row(0x8000_0001, 0, Edx, &[26], &[]),
    row(0x8000_0008, 0, Ebx, &[9], &[]),
];

/// As above, and what only AMD has: SSE4A, misaligned SSE; the MMX extensions, AMD's copies of MMX and FXSR, fast FXSR.
const T2CL_EXTENDED: &[Row] = &[
    row(0x8000_0001, 0, Ecx, &[6, 7, 8, 29], &[]),
    row(0x8000_0001, 0, Edx, &[22, 23, 24, 25, 26], &[]),
    row(0x8000_0008, 0, Ebx, &[9], &[]),
];

/// SVM goes too. CLZERO and WBNOINVD are hidden; shown, because they are promises and no instructions: error pointers are always saved,
/// IBRS is preferred and covers the same mode, EFER.LMSLE does not exist.
const T2A_EXTENDED: &[Row] = &[
    row(0x8000_0001, 0, Ecx, &[2, 6, 7, 8, 29], &[]),
    row(0x8000_0001, 0, Edx, &[22, 25, 26], &[]),
    row(0x8000_0008, 0, Ebx, &[0, 9], &[2, 18, 19, 20]),
];

/// `IA32_ARCH_CAPABILITIES`.
const MSR_IA32_ARCH_CAPABILITIES: u32 = 0x10a;

/// RSBA, SKIP_L1DFL_VMENTRY, IF_PSCHANGE_MC_NO, MISC_PACKAGE_CTLS, ENERGY_FILTERING_CTL, FB_CLEAR, RRSBA, GDS_NO, RFDS_NO.
const T2S_CAPABILITIES: u64 = bits(&[2, 3, 6, 10, 11, 17, 19, 26, 27]) as u64;

/// RDCL_NO, IBRS_ALL, RSBA, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TSX_CTRL, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO,
/// FB_CLEAR, RRSBA, PBRSB_NO, GDS_NO, RFDS_NO, RFDS_CLEAR.
const T2CL_CAPABILITIES: u64 = bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15, 17, 19, 24, 26, 27, 28]) as u64;
