//! The tiers of `design/testing.md` in the order they run, and what each needs of the machine.

use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, bail};
use clap::ValueEnum;

use super::tally::Tally;
use super::targets::Target;
use crate::shell;

/// One group of tests with the same needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Unit and property tests of every crate, and the examples in the docs.
    Unit,
    /// The real binary over its real socket, no guest.
    Api,
    /// The bare-metal guest on this machine's /dev/kvm.
    Guest,
    /// The same with its devices on a PCI bus.
    GuestPci,
    /// A bounded run of every fuzz target.
    Fuzz,
    /// Stock Linux guests in a VM on an emulated CPU.
    Linux,
}

impl Tier {
    pub(crate) const ALL: [Self; 6] = [Self::Unit, Self::Api, Self::Guest, Self::GuestPci, Self::Fuzz, Self::Linux];

    /// The tier of one integration test of `tests/tests`, by the start of its name.
    /// A name nobody claims still runs, with the API tests.
    pub(crate) fn of_integration_test(name: &str) -> Self {
        [(Self::Guest, "guest"), (Self::Fuzz, "fuzz"), (Self::Linux, "linux")]
            .into_iter()
            .find_map(|(tier, prefix)| name.starts_with(prefix).then_some(tier))
            .unwrap_or(Self::Api)
    }

    /// Says in one sentence what this machine lacks for the tier.
    pub(crate) fn require(&self) -> Result<()> {
        // A process's own directory in /proc belongs to its effective user.
        let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        match self {
            Self::Unit if !root => {
                bail!("some unit tests make taps and need root: run it as root (sudo)")
            }
            Self::Api | Self::Guest | Self::GuestPci => {
                if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
                    bail!("/dev/kvm is needed and cannot be opened: {error}");
                }
                if !root {
                    bail!("the tests make taps and need root: run it as root (sudo)");
                }
            }
            Self::Linux if !root => {
                bail!("the Linux tier installs packages and needs root: run it as root (sudo)")
            }
            Self::Unit | Self::Fuzz | Self::Linux => {}
        }
        Ok(())
    }

    /// Runs every test binary of the tier.
    pub(crate) fn run(self, targets: &[Target], mayfly: &Path, tally: &mut Tally) {
        let (whose, env) = match self {
            Self::GuestPci => (Self::Guest, &[("MAYFLY_TEST_PCI", "1")][..]),
            other => (other, &[][..]),
        };
        for target in targets.iter().filter(|target| target.tier == whose) {
            println!("\n--- {}", target.name);
            target.run(mayfly, env, tally);
        }
        if self == Self::Unit {
            println!("\n--- examples in the docs");
            let mut doc = shell::cargo();
            doc.args(["test", "--quiet", "--workspace", "--doc"]);
            tally.run("examples in the docs", &mut doc);
        }
        if tally.is_empty() {
            println!("no tests in this tier");
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unit => "unit: unit and property tests",
            Self::Api => "api: the binary over its socket",
            Self::Guest => "guest: bare-metal guest on /dev/kvm",
            Self::GuestPci => "guest-pci: the same on a PCI bus",
            Self::Fuzz => "fuzz: bounded smoke run",
            Self::Linux => "linux: stock Linux guests, nested",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_integration_test_has_a_tier() {
        assert_eq!(Tier::of_integration_test("linux"), Tier::Linux);
        assert_eq!(Tier::of_integration_test("guest_block"), Tier::Guest);
        assert_eq!(Tier::of_integration_test("fuzz"), Tier::Fuzz);
        assert_eq!(Tier::of_integration_test("api_contract"), Tier::Api);
        assert_eq!(Tier::of_integration_test("regressions"), Tier::Api);
    }
}
