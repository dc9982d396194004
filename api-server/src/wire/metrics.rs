use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// Body of `PUT /metrics`. Unknown fields are ignored, as the contract has it. The command line makes one too.
#[derive(Debug, Deserialize)]
pub(crate) struct Metrics {
    pub(crate) metrics_path: PathBuf,
    /// Whether lines carry the machine's name.
    #[serde(default)]
    pub(crate) emit_id: bool,
    /// Carried by every line as they are.
    pub(crate) properties: Option<BTreeMap<String, String>>,
}
