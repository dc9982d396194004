//! Names and places of a jail: `<base>/<exec name>/<id>/root`. No system calls.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Longest name of a machine.
const MAX_ID: usize = 64;

/// Name of a machine: 1 to 64 letters, digits or `-`. It is part of paths, so it is nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Id(String);

impl Id {
    pub(crate) fn new(text: &str) -> Result<Self, Error> {
        let bad = |what: String| Err(Error::new(format!("Invalid instance ID: {what}")));
        let length = text.len();
        if length == 0 || length > MAX_ID {
            return bad(format!("Invalid len ({length});  the length must be between 1 and {MAX_ID}"));
        }
        match text.char_indices().find(|(_, c)| !c.is_ascii_alphanumeric() && *c != '-') {
            Some((at, c)) => bad(format!("Invalid char ({c}) at position {at}")),
            None => Ok(Self(text.to_owned())),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a jail is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The directory of all jails, without links.
    pub(crate) base: PathBuf,
    /// File name of the program.
    pub(crate) name: String,
    pub(crate) id: Id,
}

impl Layout {
    /// The jail's directory from the base: it holds `root` and nothing else of ours.
    pub(crate) fn jail(&self) -> PathBuf {
        Path::new(&self.name).join(self.id.as_str())
    }

    /// What becomes `/`, from the base.
    pub(crate) fn root(&self) -> PathBuf {
        self.jail().join("root")
    }

    /// The same for people.
    pub(crate) fn shown(&self) -> PathBuf {
        self.base.join(self.root())
    }

    /// The file that says which process it is, from the root.
    pub(crate) fn pid_file(&self) -> String {
        format!("{}.pid", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names_and_nothing_else() {
        for good in ["a", "vm-1", &"x".repeat(64)] {
            assert_eq!(Id::new(good).unwrap().as_str(), good);
        }
        let why = |text: &str| Id::new(text).unwrap_err().to_string();
        // As clients compare it, with its two spaces.
        assert_eq!(why(""), "Invalid instance ID: Invalid len (0);  the length must be between 1 and 64");
        assert!(why(&"x".repeat(65)).contains("Invalid len (65)"));
        for bad in ["..", "a/b", "a b", "ä", "a\0", "a\n"] {
            assert!(why(bad).contains("Invalid char"), "{bad:?}");
        }
    }

    #[test]
    fn a_jail_has_its_place() {
        let layout = Layout { base: "/srv/jailer".into(), name: "mayfly".into(), id: Id::new("vm-1").unwrap() };
        assert_eq!(layout.shown(), Path::new("/srv/jailer/mayfly/vm-1/root"));
        assert_eq!(layout.pid_file(), "mayfly.pid");
    }
}
