//! The state file: named sections, each with a version and a length, behind a header and before a checksum.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic, `MAYFLYSN` |
//! | 2, 2, 2 | version of the format: major, minor, patch |
//! | 2 | number of sections |
//! | for each: 1, n, 2, 8, m | length of its name, its name, its version, length of its contents, its contents |
//! | 4 | CRC-32C of everything before |
//!
//! Numbers are little-endian. A file is read whole, and its checksum is judged before anything in it is believed; that protects from
//! accidents. From malice protects that every length is checked against what is there, and every value by whoever takes it up.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest state file that is read. One of 32 vCPUs and all devices has less than 1 MiB.
pub const MAX_LEN: u64 = 16 << 20;

const MAGIC: &[u8; 8] = b"MAYFLYSN";
const CRC_LEN: usize = 4;

/// Version of the container and of what is in it.
///
/// A new major version cannot be read by older programs, and reads none of theirs; a new minor version can read files with older ones. A
/// patch changes nothing that could be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Changes when older files cannot be read any more.
    pub major: u16,
    /// Changes when something is added.
    pub minor: u16,
    /// Changes when nothing is.
    pub patch: u16,
}

/// What this program writes.
pub const VERSION: Version = Version { major: 1, minor: 0, patch: 0 };

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "v{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A part of the machine's state, owned by the room that knows it.
pub trait Section: Serialize + DeserializeOwned {
    /// Its name, at most 255 bytes.
    const NAME: &'static str;
    /// Changes whenever its contents do.
    const VERSION: u16;
}

/// Why a state file cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadFile {
    /// Not even the checksum is there. The text is the v1 contract's.
    #[error("IO Error: File too short to contain CRC")]
    TooShort,
    /// Larger than any machine's.
    #[error("it has {0} bytes, and {MAX_LEN} are the most")]
    TooLong(u64),
    /// Something else.
    #[error(
        "it is not a Mayfly state file (it does not begin with MAYFLYSN); snapshots of other monitors cannot be loaded"
    )]
    NotOurs,
    /// Of another program version.
    #[error("its format is {0}, and this version of Mayfly reads {here}: take the snapshot anew, or load it with the version that took it", here = VERSION)]
    Version(Version),
    /// Damaged.
    #[error("CRC does not match: the file is damaged or incomplete (found {found:#010x}, computed {computed:#010x})")]
    Crc {
        /// The file's.
        found: u32,
        /// That of its contents.
        computed: u32,
    },
    /// Its structure makes no sense, though the checksum fits.
    #[error("it is malformed: {0}")]
    Malformed(&'static str),
    /// A section that is needed and not there, or there twice.
    #[error("section {0} is missing")]
    Missing(&'static str),
    /// A section of a version that is not known.
    #[error("section {0} has version {1}, and this version of Mayfly reads {2}")]
    SectionVersion(&'static str, u16, u16),
    /// What is in a section is not what should be.
    #[error("section {0} cannot be read: {1}")]
    Section(&'static str, String),
    /// A section that nobody knows.
    #[error("section {0:?} is not known to this version of Mayfly")]
    Unknown(String),
}

/// Puts a state file together.
#[derive(Debug, Clone)]
pub struct Writer {
    bytes: Vec<u8>,
    sections: u16,
}

/// Offset of the number of sections.
const COUNT_AT: usize = 14;

impl Default for Writer {
    fn default() -> Self {
        let mut bytes = Vec::with_capacity(64 << 10);
        bytes.extend_from_slice(MAGIC);
        for number in [VERSION.major, VERSION.minor, VERSION.patch, 0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        Self { bytes, sections: 0 }
    }
}

impl Writer {
    /// Adds a section.
    ///
    /// # Errors
    /// A value that cannot be encoded, which is a mistake of ours.
    pub fn add<S: Section>(&mut self, section: &S) -> Result<(), BadFile> {
        let contents = postcard::to_stdvec(section).map_err(|e| BadFile::Section(S::NAME, e.to_string()))?;
        self.bytes.push(S::NAME.len() as u8);
        self.bytes.extend_from_slice(S::NAME.as_bytes());
        self.bytes.extend_from_slice(&S::VERSION.to_le_bytes());
        self.bytes.extend_from_slice(&(contents.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(&contents);
        self.sections += 1;
        Ok(())
    }

    /// The whole file.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes[COUNT_AT..COUNT_AT + 2].copy_from_slice(&self.sections.to_le_bytes());
        let crc = crc32c::crc32c(&self.bytes);
        self.bytes.extend_from_slice(&crc.to_le_bytes());
        self.bytes
    }
}

/// A state file whose checksum fits. Sections are taken out of it, each once.
#[derive(Debug)]
pub struct Reader<'a> {
    version: Version,
    sections: Vec<(&'a str, u16, &'a [u8])>,
}

/// The rest of a file that is read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], BadFile> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(BadFile::Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadFile> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| BadFile::Malformed("it ends too early"))
    }

    fn u16(&mut self) -> Result<u16, BadFile> {
        self.array().map(u16::from_le_bytes)
    }
}

/// The checksum that a file has at its end. (That of all of its bytes would be the same for every file.)
pub fn checksum(bytes: &[u8]) -> u32 {
    bytes.last_chunk().map_or(0, |last| u32::from_le_bytes(*last))
}

/// The version of a file of ours, whether or not this program can read it.
pub fn version_of(bytes: &[u8]) -> Result<Version, BadFile> {
    if bytes.len() < CRC_LEN {
        return Err(BadFile::TooShort);
    }
    let mut rest = Rest(bytes);
    if rest.take(MAGIC.len()).is_ok_and(|magic| magic == MAGIC) {
        Ok(Version { major: rest.u16()?, minor: rest.u16()?, patch: rest.u16()? })
    } else {
        Err(BadFile::NotOurs)
    }
}

impl<'a> Reader<'a> {
    /// Looks at a whole file.
    pub fn new(bytes: &'a [u8]) -> Result<Self, BadFile> {
        let (contents, crc) = bytes.split_last_chunk::<CRC_LEN>().ok_or(BadFile::TooShort)?;
        let version = version_of(bytes)?;
        if version.major != VERSION.major || version.minor > VERSION.minor {
            return Err(BadFile::Version(version));
        }
        let (found, computed) = (u32::from_le_bytes(*crc), crc32c::crc32c(contents));
        if found != computed {
            return Err(BadFile::Crc { found, computed });
        }
        let mut rest = Rest(contents);
        rest.take(COUNT_AT)?;
        let count = rest.u16()?;
        let mut sections: Vec<(&str, u16, &[u8])> = Vec::new();
        for _ in 0..count {
            let [name_len] = rest.array()?;
            let name = std::str::from_utf8(rest.take(name_len.into())?);
            let name = name.map_err(|_| BadFile::Malformed("the name of a section is no text"))?;
            let version = rest.u16()?;
            let len = u64::from_le_bytes(rest.array()?);
            let len = usize::try_from(len).map_err(|_| BadFile::Malformed("a section is longer than all memory"))?;
            let contents = rest.take(len)?;
            if sections.iter().any(|(known, ..)| *known == name) {
                return Err(BadFile::Malformed("a section is there twice"));
            }
            sections.push((name, version, contents));
        }
        if !rest.0.is_empty() {
            return Err(BadFile::Malformed("something follows the last section"));
        }
        Ok(Self { version, sections })
    }

    /// Version of the file.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Names, versions and lengths in bytes of the sections that were not taken yet.
    pub fn sections(&self) -> impl Iterator<Item = (&'a str, u16, usize)> + '_ {
        self.sections.iter().map(|(name, version, contents)| (*name, *version, contents.len()))
    }

    /// Whether there is such a section that was not taken yet.
    pub fn has<S: Section>(&self) -> bool {
        self.sections.iter().any(|(name, ..)| *name == S::NAME)
    }

    /// Takes a section out.
    pub fn take<S: Section>(&mut self) -> Result<S, BadFile> {
        let at = self.sections.iter().position(|(name, ..)| *name == S::NAME).ok_or(BadFile::Missing(S::NAME))?;
        let (_, version, contents) = self.sections.swap_remove(at);
        if version != S::VERSION {
            return Err(BadFile::SectionVersion(S::NAME, version, S::VERSION));
        }
        match postcard::take_from_bytes(contents) {
            Ok((section, [])) => Ok(section),
            Ok(_) => Err(BadFile::Section(S::NAME, "something follows its contents".to_owned())),
            Err(error) => Err(BadFile::Section(S::NAME, error.to_string())),
        }
    }

    /// Takes a section out that not every machine has.
    pub fn take_if_there<S: Section>(&mut self) -> Result<Option<S>, BadFile> {
        match self.take() {
            Err(BadFile::Missing(_)) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Says that all sections should have been taken: one that is left is something that this program would lose.
    pub fn finish(self) -> Result<(), BadFile> {
        match self.sections.first() {
            None => Ok(()),
            Some((name, ..)) => Err(BadFile::Unknown(name.chars().take(40).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct One(Vec<u64>);
    impl Section for One {
        const NAME: &'static str = "one";
        const VERSION: u16 = 3;
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Two {
        text: String,
    }
    impl Section for Two {
        const NAME: &'static str = "two";
        const VERSION: u16 = 1;
    }

    fn file() -> Vec<u8> {
        let mut writer = Writer::default();
        writer.add(&One(vec![1, 2, u64::MAX])).unwrap();
        writer.add(&Two { text: "words".to_owned() }).unwrap();
        writer.finish()
    }

    fn read(bytes: &[u8]) -> Result<(One, Two), BadFile> {
        let mut reader = Reader::new(bytes)?;
        let two = reader.take()?;
        let one = reader.take()?;
        reader.finish()?;
        Ok((one, two))
    }

    fn with_crc(bytes: &[u8]) -> Vec<u8> {
        let contents = &bytes[..bytes.len() - CRC_LEN];
        [contents, &crc32c::crc32c(contents).to_le_bytes()].concat()
    }

    #[test]
    fn sections_come_back_in_any_order() {
        let (one, two) = read(&file()).unwrap();
        assert_eq!((one, two), (One(vec![1, 2, u64::MAX]), Two { text: "words".to_owned() }));
        assert_eq!(version_of(&file()).unwrap(), VERSION);
    }

    /// S1: any end, and any bit, without and with a checksum that fits.
    #[test]
    fn no_damage_goes_unnoticed_and_none_does_harm() {
        let whole = file();
        for len in 0..whole.len() {
            assert!(read(&whole[..len]).is_err(), "cut after {len}");
            if len >= CRC_LEN {
                assert!(read(&with_crc(&whole[..len])).is_err(), "cut after {len}, with a checksum");
            }
        }
        assert_eq!(read(&whole[..3]).unwrap_err().to_string(), "IO Error: File too short to contain CRC");
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bytes).is_err(), "bit {bit}");
            // With a checksum that fits some changes are other values; the point is that nothing else happens.
            let _ = read(&with_crc(&bytes));
        }
    }

    /// S2.
    #[test]
    fn lengths_are_those_of_what_is_there() {
        let mut bytes = file();
        // Length of the first section: behind header, name length, name and version.
        let at = COUNT_AT + 2 + 1 + 3 + 2;
        for len in [u64::MAX, 1 << 40, 1 << 20, 1000] {
            bytes[at..at + 8].copy_from_slice(&len.to_le_bytes());
            assert!(matches!(read(&with_crc(&bytes)), Err(BadFile::Malformed(_))), "{len}");
        }
        let mut many = file();
        many[COUNT_AT..COUNT_AT + 2].copy_from_slice(&u16::MAX.to_le_bytes());
        assert!(matches!(read(&with_crc(&many)), Err(BadFile::Malformed(_))));
        // A list that claims more entries than there are bytes.
        let mut writer = Writer::default();
        writer.add(&One(Vec::new())).unwrap();
        writer.add(&Two { text: String::new() }).unwrap();
        let mut bytes = writer.finish();
        bytes[at + 8] = 0x7f;
        assert!(matches!(read(&with_crc(&bytes)), Err(BadFile::Section("one", _))));
    }

    #[test]
    fn other_versions_and_other_files_are_named() {
        let mut bytes = file();
        bytes[8] = 2;
        assert_eq!(read(&with_crc(&bytes)).unwrap_err(), BadFile::Version(Version { major: 2, minor: 0, patch: 0 }));
        let mut bytes = file();
        bytes[10] = 1;
        assert!(matches!(read(&with_crc(&bytes)), Err(BadFile::Version(_))), "a newer minor version");
        assert_eq!(read(&[0; 100]).unwrap_err(), BadFile::NotOurs);
        let mut writer = Writer::default();
        writer.add(&One(Vec::new())).unwrap();
        assert_eq!(read(&writer.finish()).unwrap_err(), BadFile::Missing("two"));
        let bytes = file();
        let reader = Reader::new(&bytes).unwrap();
        assert_eq!(reader.finish().unwrap_err(), BadFile::Unknown("one".to_owned()));
    }
}
