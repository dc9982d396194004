//! `--describe-snapshot`, `mayfly snapshot describe` and `mayfly snapshot verify`.

use std::fmt::Display;
use std::path::Path;

use serde_json::{Value, json};
use vmm::snapshot::container::version_of;
use vmm::snapshot::{Description, read_file};

use crate::wire::FullConfig;

/// What `judge` makes of a state file, and the file's length in bytes.
fn read<T, E: Display>(path: &Path, judge: impl FnOnce(&[u8]) -> Result<T, E>) -> Result<(usize, T), String> {
    let wrong = |why: &dyn Display| format!("{}: {why}", path.display());
    let bytes = read_file(path).map_err(|e| wrong(&e))?;
    Ok((bytes.len(), judge(&bytes).map_err(|e| wrong(&e))?))
}

/// The version of a state file, whether or not it can be loaded.
pub(crate) fn version(path: &Path) -> Result<String, String> {
    read(path, version_of).map(|(_, version)| format!("{version}\n"))
}

/// What a state file says, as JSON.
pub(crate) fn describe(path: &Path) -> Result<String, String> {
    let (len, description) = read(path, Description::of)?;
    let device = |(name, driver): &(String, &str)| json!({"name": name, "driver": driver});
    let section = |(name, version, len): &(String, u16, usize)| json!({"name": name, "version": version, "bytes": len});
    let said = json!({
        "version": description.version.to_string(),
        "bytes": len,
        "sections": description.sections.iter().map(section).collect::<Value>(),
        "host": {
            "cpu_vendor": description.vendor,
            "cpu_signature": format!("{:#x}", description.signature),
            "kernel": description.kernel,
        },
        "fits_this_host": description.misfit.is_none(),
        "misfit": description.misfit.as_ref().map(ToString::to_string),
        "memory_file_bytes": description.memory_len,
        "devices": description.devices.iter().map(device).collect::<Value>(),
        "config": FullConfig::from(description.config),
    });
    Ok(format!("{said:#}\n"))
}

/// Judges a state file, and a memory file if there is one, as a load does.
pub(crate) fn verify(path: &Path, memory: Option<&Path>) -> Result<String, String> {
    let (len, description) = read(path, Description::of)?;
    if let Some(misfit) = &description.misfit {
        return Err(format!("{}: {misfit}", path.display()));
    }
    let mut said =
        format!("{}: {len} bytes of format {} are whole, and fit this host\n", path.display(), description.version);
    if let Some(memory) = memory {
        let pages = description.judge_memory(memory, path).map_err(|e| format!("{}: {e}", memory.display()))?;
        said.push_str(&format!(
            "{}: its length is right, and so are {pages} pages that were compared\n",
            memory.display()
        ));
    }
    Ok(said)
}
