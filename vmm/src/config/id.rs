use std::fmt;

/// Why an id was refused; the texts are the v1 contract's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadId {
    /// Empty resource id.
    #[error("The ID cannot be empty.")]
    Empty,
    /// A character that is neither alphanumeric nor `_`.
    #[error("API Resource IDs can only contain alphanumeric characters and underscores.")]
    Characters,
    /// An instance id of the wrong length.
    #[error("Invalid instance ID: Invalid len ({0});  the length must be between 1 and 64")]
    InstanceLength(usize),
    /// An instance id with a character that is neither alphanumeric nor `-`.
    #[error("Invalid instance ID: Invalid char ({0}) at position {1}")]
    InstanceCharacter(char, usize),
}

/// Name of a drive or network interface: alphanumeric or `_`, not empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ResourceId(String);

impl ResourceId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for ResourceId {
    type Error = BadId;

    fn try_from(text: &str) -> Result<Self, BadId> {
        if text.is_empty() {
            Err(BadId::Empty)
        } else if !text.chars().all(|c| c.is_alphanumeric() || c == '_') {
            Err(BadId::Characters)
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of the microVM: 1 to 64 alphanumeric characters or `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceId(String);

impl InstanceId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for InstanceId {
    fn default() -> Self {
        Self("anonymous-instance".to_owned())
    }
}

impl TryFrom<&str> for InstanceId {
    type Error = BadId;

    fn try_from(text: &str) -> Result<Self, BadId> {
        if !(1..=64).contains(&text.len()) {
            return Err(BadId::InstanceLength(text.len()));
        }
        match text.chars().enumerate().find(|(_, c)| !c.is_alphanumeric() && *c != '-') {
            Some((at, c)) => Err(BadId::InstanceCharacter(c, at)),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_ids() {
        assert!(ResourceId::try_from("root_fs2").is_ok());
        assert_eq!(ResourceId::try_from(""), Err(BadId::Empty));
        for bad in ["a/b", "..", "a-b", "a b", "a\0"] {
            assert_eq!(ResourceId::try_from(bad), Err(BadId::Characters), "{bad:?}");
        }
    }

    #[test]
    fn instance_ids() {
        assert!(InstanceId::try_from("vm-1").is_ok());
        assert!(InstanceId::try_from("a".repeat(64).as_str()).is_ok());
        assert_eq!(InstanceId::try_from(""), Err(BadId::InstanceLength(0)));
        assert_eq!(InstanceId::try_from("a".repeat(65).as_str()), Err(BadId::InstanceLength(65)));
        assert_eq!(InstanceId::try_from("a/b"), Err(BadId::InstanceCharacter('/', 1)));
    }
}
