//! Which processor a guest sees: the host's, a named one, or one described bit by bit. One slot: whoever writes last wins.

use std::str::FromStr;
use std::sync::Arc;

pub use crate::arch::template::{Bitmap, CpuidModifier, MsrModifier, Named, Register, Template};

/// The CPU template of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum CpuTemplate {
    /// The host's CPU, normalised.
    #[default]
    None,
    /// A named template (`cpu_template` of `/machine-config`).
    Named(Named),
    /// A described one (`/cpu-config`).
    Custom(Arc<CustomTemplate>),
}

/// A template that a user described.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CustomTemplate {
    /// Changes to what is asked of KVM before a machine is built.
    pub capabilities: Vec<Capability>,
    /// Changes to the registers.
    pub registers: Template,
}

/// A capability of KVM, by the number of its `KVM_CAP_…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// KVM must have it.
    Required(u32),
    /// KVM need not have it, even if it is usually asked for.
    Unchecked(u32),
}

impl Capability {
    /// The number of the `KVM_CAP_…`.
    pub fn number(self) -> u32 {
        match self {
            Self::Required(number) | Self::Unchecked(number) => number,
        }
    }
}

/// Not a capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Failed to parse string [{0}] as a kvm capability - can not convert to numeric. Write its decimal number, with ! before it to leave out its check."
)]
pub struct BadCapability(String);

impl FromStr for Capability {
    type Err = BadCapability;

    /// `121` asks for a capability, `!121` leaves out its check.
    fn from_str(text: &str) -> Result<Self, BadCapability> {
        let (number, kind): (_, fn(u32) -> Self) = match text.strip_prefix('!') {
            Some(number) => (number, Self::Unchecked),
            None => (text, Self::Required),
        };
        // Rust's parser takes a sign.
        let parsed = number.parse().ok().filter(|_| !number.starts_with('+'));
        parsed.map(kind).ok_or_else(|| BadCapability(text.to_owned()))
    }
}

impl CpuTemplate {
    /// What the user changed about the capabilities asked of KVM.
    pub fn capabilities(&self) -> &[Capability] {
        match self {
            Self::None | Self::Named(_) => &[],
            Self::Custom(custom) => &custom.capabilities,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_decimal_and_may_be_struck_out() {
        assert_eq!("121".parse(), Ok(Capability::Required(121)));
        assert_eq!("!56".parse(), Ok(Capability::Unchecked(56)));
        for bad in ["", "!", "0x79", "-1", "+1", "!!5", "4294967296"] {
            let error = bad.parse::<Capability>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("Failed to parse string [{bad}] as a kvm capability")), "{error}");
        }
    }
}
