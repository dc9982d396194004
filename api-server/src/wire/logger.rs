use std::path::PathBuf;
use std::str::FromStr;

use log::LevelFilter;
use serde::Deserialize;

/// Body of `PUT /logger`; what is missing stays as it is. The command line makes one too.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Logger {
    pub(crate) log_path: Option<PathBuf>,
    pub(crate) level: Option<Level>,
    pub(crate) show_level: Option<bool>,
    pub(crate) show_log_origin: Option<bool>,
    pub(crate) module: Option<String>,
}

/// How much is logged, in any mix of cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Level(pub(crate) LevelFilter);

/// Why a level was refused.
#[derive(Debug, thiserror::Error)]
#[error("unknown log level `{0}`, expected one of Off, Trace, Debug, Info, Warn, Warning, Error")]
pub(crate) struct BadLevel(String);

impl FromStr for Level {
    type Err = BadLevel;

    fn from_str(text: &str) -> Result<Self, BadLevel> {
        Ok(Self(match text.to_ascii_lowercase().as_str() {
            "off" => LevelFilter::Off,
            "trace" => LevelFilter::Trace,
            "debug" => LevelFilter::Debug,
            "info" => LevelFilter::Info,
            "warn" | "warning" => LevelFilter::Warn,
            "error" => LevelFilter::Error,
            _ => return Err(BadLevel(text.chars().take(40).collect())),
        }))
    }
}

impl TryFrom<String> for Level {
    type Error = BadLevel;

    fn try_from(text: String) -> Result<Self, BadLevel> {
        text.parse()
    }
}
