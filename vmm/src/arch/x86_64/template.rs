//! CPU templates: bits of CPUID and of model-specific registers that a guest sees otherwise than the host's KVM offers them.
//!
//! A template is plain data: custom ones come from `/cpu-config`, the named ones of `/machine-config` are the table in `named`. It is
//! applied before [`super::cpuid`] normalises the table and before the boot MSRs are written, so that what a machine cannot do without
//! (topology, APIC ids, the boot protocol) wins over a template. A template hides features from guests that look them up; it is no
//! protection against guests that use an instruction without asking.

mod bitmap;
mod named;

#[cfg(test)]
mod tests;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

pub use bitmap::{BadBitmap, Bitmap};
pub use named::{Model, Named};

/// What a guest sees otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    /// Changes to CPUID, applied in this order.
    pub cpuid: Vec<CpuidModifier>,
    /// Changes to model-specific registers, applied in this order.
    pub msrs: Vec<MsrModifier>,
}

/// A register of a CPUID leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// Changes to one leaf and subleaf of CPUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuidModifier {
    /// Leaf (EAX of the instruction).
    pub leaf: u32,
    /// Subleaf (ECX of the instruction); 0 for leaves that have none.
    pub subleaf: u32,
    /// `KVM_CPUID_FLAG_…` of the entry; replaces what the host's KVM has there.
    pub flags: u32,
    /// The changes, applied in this order.
    pub registers: Vec<(Register, Bitmap<u32>)>,
}

/// Changes to one model-specific register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrModifier {
    /// Number of the register.
    pub address: u32,
    /// The changes.
    pub bits: Bitmap<u64>,
}

/// Why a template does not fit a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misfit {
    /// KVM has no such leaf, so there is nothing to change.
    #[error(
        "Template changes a CPUID entry not supported by KVM: Leaf: {leaf:#x}, Subleaf: {subleaf:#x}. Take it out of the CPU template."
    )]
    NoSuchLeaf {
        /// Leaf of the modifier.
        leaf: u32,
        /// Subleaf of the modifier.
        subleaf: u32,
    },
    /// A named template is made for another maker's processors.
    #[error(
        "CPU vendor mismatched between actual CPU and CPU template. {template} is for processors by {wanted}, this one says {found:?}: set cpu_template to None or use a custom CPU template."
    )]
    Vendor {
        /// The template asked for.
        template: Named,
        /// Whose processors it is for.
        wanted: &'static str,
        /// CPUID's vendor string.
        found: String,
    },
    /// A named template is made for other processors.
    #[error(
        "The current CPU model is not permitted to apply the CPU template. {template} is for {wanted}, this is {found}: set cpu_template to None or use a custom CPU template."
    )]
    Model {
        /// The template asked for.
        template: Named,
        /// Which processors it is for.
        wanted: String,
        /// What this one is.
        found: Model,
    },
    /// KVM reports no leaf 0 or 1, or more entries than it takes.
    #[error("the host's KVM reports a CPUID table that cannot be changed")]
    OddTable,
}

/// `supported` (what `KVM_GET_SUPPORTED_CPUID` returned) with the CPUID part of `template` applied.
pub fn apply_cpuid(supported: &CpuId, template: &Template) -> Result<CpuId, Misfit> {
    let mut table = supported.clone();
    for modifier in &template.cpuid {
        let CpuidModifier { leaf, subleaf, flags, ref registers } = *modifier;
        let entry = table
            .as_mut_slice()
            .iter_mut()
            .find(|entry| (entry.function, entry.index) == (leaf, subleaf))
            .ok_or(Misfit::NoSuchLeaf { leaf, subleaf })?;
        entry.flags = flags;
        for (register, bits) in registers {
            let value = register.of(entry);
            *value = bits.apply(*value);
        }
    }
    Ok(table)
}

impl Register {
    fn of(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Self::Eax => &mut entry.eax,
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }
}
