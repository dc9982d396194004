use std::fmt::Display;
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use vmm::config::{self, Bitmap, Capability, CustomTemplate, Register, Template};

/// Body of `PUT /cpu-config` on x86_64. The members for arm are unknown here, as the contract has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CpuConfig {
    kvm_capabilities: Option<Vec<Text<Capability>>>,
    cpuid_modifiers: Option<Vec<CpuidModifier>>,
    msr_modifiers: Option<Vec<MsrModifier>>,
}

/// Changes to a leaf of CPUID; unknown fields are ignored, as the contract has it.
#[derive(Debug, Deserialize)]
struct CpuidModifier {
    #[serde(deserialize_with = "number")]
    leaf: u32,
    #[serde(deserialize_with = "number")]
    subleaf: u32,
    flags: u32,
    modifiers: Vec<RegisterModifier>,
}

/// Changes to a register of a leaf; unknown fields are ignored too.
#[derive(Debug, Deserialize)]
struct RegisterModifier {
    #[serde(deserialize_with = "register")]
    register: Register,
    bitmap: Text<Bitmap<u32>>,
}

/// Changes to a model-specific register; unknown fields are ignored too.
#[derive(Debug, Deserialize)]
struct MsrModifier {
    #[serde(deserialize_with = "number")]
    addr: u32,
    bitmap: Text<Bitmap<u64>>,
}

/// What is written as a string but is something else.
#[derive(Debug)]
struct Text<T>(T);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(Error::custom)
    }
}

/// A number in a string: `0x7`, `0b111` or `7`.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    let (digits, radix) = match (text.strip_prefix("0x"), text.strip_prefix("0b")) {
        (Some(digits), _) => (digits, 16),
        (_, Some(digits)) => (digits, 2),
        _ if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => (&*text, 10),
        _ => {
            return Err(Error::custom(format!(
                "No supported number system prefix found in value [{text}]. Make sure to prefix the number with '0x' for hexadecimal numbers or '0b' for binary numbers."
            )));
        }
    };
    // Rust's parser takes a sign.
    let parsed = u32::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with('+'));
    parsed.ok_or_else(|| {
        Error::custom(format!(
            "Failed to parse string [{text}] as a number for CPU template - it is no number of 32 bits in base {radix}"
        ))
    })
}

fn register<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Register, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "eax" => Ok(Register::Eax),
        "ebx" => Ok(Register::Ebx),
        "ecx" => Ok(Register::Ecx),
        "edx" => Ok(Register::Edx),
        _ => Err(Error::custom("Invalid CPUID register. Must be one of [eax, ebx, ecx, edx]")),
    }
}

impl From<CpuConfig> for CustomTemplate {
    fn from(wire: CpuConfig) -> Self {
        let cpuid = wire.cpuid_modifiers.into_iter().flatten().map(|leaf| config::CpuidModifier {
            leaf: leaf.leaf,
            subleaf: leaf.subleaf,
            flags: leaf.flags,
            registers: leaf.modifiers.into_iter().map(|change| (change.register, change.bitmap.0)).collect(),
        });
        let msrs = wire
            .msr_modifiers
            .into_iter()
            .flatten()
            .map(|msr| config::MsrModifier { address: msr.addr, bits: msr.bitmap.0 });
        Self {
            capabilities: wire.kvm_capabilities.into_iter().flatten().map(|capability| capability.0).collect(),
            registers: Template { cpuid: cpuid.collect(), msrs: msrs.collect() },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{from_value, json};

    use super::*;

    fn template(body: serde_json::Value) -> CustomTemplate {
        from_value::<CpuConfig>(body).unwrap().into()
    }

    fn error(body: serde_json::Value) -> String {
        from_value::<CpuConfig>(body).unwrap_err().to_string()
    }

    fn leaf(leaf: &str, register: &str, bitmap: &str) -> serde_json::Value {
        let modifiers = json!([{"register": register, "bitmap": bitmap, "ignored": 1}]);
        json!({"cpuid_modifiers": [{"leaf": leaf, "subleaf": "0", "flags": 0, "modifiers": modifiers, "ignored": 1}]})
    }

    #[test]
    fn everything_may_be_left_out() {
        assert_eq!(template(json!({})), CustomTemplate::default());
        let nulls = json!({"kvm_capabilities": null, "cpuid_modifiers": null, "msr_modifiers": null});
        assert_eq!(template(nulls), CustomTemplate::default());
    }

    #[test]
    fn the_contracts_example_is_understood() {
        let read = template(json!({
            "kvm_capabilities": ["121", "!56"],
            "cpuid_modifiers": [{
                "leaf": "0x7", "subleaf": "0b1", "flags": 1,
                "modifiers": [
                    {"register": "eax", "bitmap": "0bxxxx000000000011xx00011011110010"},
                    {"register": "edx", "bitmap": "0b1111_0000_xxxx"},
                ],
            }],
            "msr_modifiers": [{"addr": "266", "bitmap": "0b1", "ignored": null}],
        }));
        assert_eq!(read.capabilities, [Capability::Required(121), Capability::Unchecked(56)]);
        let [change] = &read.registers.cpuid[..] else { panic!("{read:?}") };
        assert_eq!((change.leaf, change.subleaf, change.flags), (7, 1, 1));
        let eax = (Register::Eax, Bitmap::new(0x0fff_3fff, 0x0003_06f2));
        assert_eq!(change.registers, [eax, (Register::Edx, Bitmap::new(0xff0, 0xf00))]);
        assert_eq!(read.registers.msrs, [config::MsrModifier { address: 0x10a, bits: Bitmap::new(1, 1) }]);
    }

    #[test]
    fn what_is_malformed_is_named() {
        for (body, said) in [
            (leaf("0x1", "ekx", "0b1"), "Invalid CPUID register. Must be one of [eax, ebx, ecx, edx]"),
            (leaf("0jj0", "eax", "0b1"), "No supported number system prefix found in value [0jj0]"),
            (leaf("", "eax", "0b1"), "No supported number system prefix found in value []"),
            (leaf("+1", "eax", "0b1"), "No supported number system prefix found in value [+1]"),
            (leaf("0x+1", "eax", "0b1"), "Failed to parse string [0x+1] as a number for CPU template"),
            (leaf("0x", "eax", "0b1"), "Failed to parse string [0x] as a number for CPU template"),
            (leaf("0x100000000", "eax", "0b1"), "Failed to parse string [0x100000000] as a number for CPU template"),
            (leaf("0b12", "eax", "0b1"), "Failed to parse string [0b12] as a number for CPU template"),
            (leaf("0x1", "eax", "0b2"), "Failed to parse string [0b2] as a bitmap - unknown character: '2'"),
            (leaf("0x1", "eax", &"1".repeat(33)), "as a bitmap - string is too long"),
            (json!({"kvm_capabilities": ["x"]}), "Failed to parse string [x] as a kvm capability"),
            (json!({"kvm_capabilities": [121]}), "invalid type: integer `121`, expected a string"),
            (json!({"msr_modifiers": [{"addr": "0x1"}]}), "missing field `bitmap`"),
            (json!({"msr_modifiers": [{"addr": 1, "bitmap": "0b1"}]}), "invalid type: integer `1`, expected a string"),
            (json!({"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "modifiers": []}]}), "missing field `flags`"),
        ] {
            let error = error(body);
            assert!(error.starts_with(said) || error.contains(said), "{error}");
        }
        let expected =
            "unknown field `reg_modifiers`, expected one of `kvm_capabilities`, `cpuid_modifiers`, `msr_modifiers`";
        assert_eq!(error(json!({"reg_modifiers": []})), expected);
        assert!(error(json!({"vcpu_features": []})).starts_with("unknown field `vcpu_features`"));
    }

    proptest! {
        /// A number is the same however it is written.
        #[test]
        fn numbers_are_read_in_all_bases(value: u32) {
            for text in [format!("{value:#x}"), format!("{value:#b}"), value.to_string()] {
                let read = template(json!({"msr_modifiers": [{"addr": text, "bitmap": "x"}]}));
                prop_assert_eq!(read.registers.msrs[0].address, value);
            }
        }
    }
}
