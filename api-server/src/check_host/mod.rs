//! `mayfly check-host`: what an operator should set on a host for machines of strangers, looked at item by item.
//!
//! Reading ([`items`] says from where, below a root that tests can choose) is apart from judging, which is pure.

mod items;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use items::ITEMS;

/// Exit code when something must be changed.
const PROBLEMS: u8 = 1;

/// How things are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// Could be better.
    Advice,
    /// Must be changed before strangers' machines run here.
    Problem,
    /// Cannot be told.
    Unknown,
}

/// What there is to know about a host.
pub(crate) struct Host {
    root: PathBuf,
    landlock: Option<u32>,
}

/// Something to look at.
pub(crate) struct Item {
    /// Its name here and in `docs/production-host.md`.
    pub(crate) name: &'static str,
    /// Where it is read from.
    pub(crate) source: &'static str,
    /// What is read: a text, or nothing if there is none to read.
    pub(crate) read: fn(&Host, &str) -> Option<String>,
    /// What it means. Gets what was read, without blanks around it.
    pub(crate) judge: fn(&str) -> Verdict,
    /// What it means that there is nothing to read.
    pub(crate) missing: Verdict,
    /// Why it matters, and what to do.
    pub(crate) why: &'static str,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Finding {
    item: &'static str,
    verdict: Verdict,
    found: Option<String>,
    source: &'static str,
    why: &'static str,
}

impl Host {
    fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), landlock: vmm::confine::landlock::state().abi }
    }

    /// The text of a file, without blanks around it.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_owned())
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub(crate) fn landlock(&self) -> Option<u32> {
        self.landlock
    }
}

fn look(host: &Host) -> Vec<Finding> {
    let look = |item: &Item| {
        let found = (item.read)(host, item.source);
        let verdict = found.as_deref().map_or(item.missing, item.judge);
        Finding { item: item.name, verdict, found, source: item.source, why: item.why }
    };
    ITEMS.iter().map(look).collect()
}

fn shown(findings: &[Finding]) -> String {
    let mut text = String::new();
    for Finding { item, verdict, found, source, why } in findings {
        let word = match verdict {
            Verdict::Ok => "ok",
            Verdict::Advice => "advice",
            Verdict::Problem => "PROBLEM",
            Verdict::Unknown => "unknown",
        };
        let found = found.as_deref().unwrap_or("nothing");
        text.push_str(&format!("{word:<8} {item}: {} ({source})\n", found.lines().collect::<Vec<_>>().join("; ")));
        if *verdict != Verdict::Ok {
            text.push_str(&format!("         {why}\n"));
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let [ok, advice, problems, unknown] = [Verdict::Ok, Verdict::Advice, Verdict::Problem, Verdict::Unknown].map(count);
    text.push_str(&format!("{ok} ok, {advice} advice, {problems} problems, {unknown} unknown\n"));
    text
}

/// The command. Returns the exit code.
pub(crate) fn run(json: bool) -> u8 {
    let findings = look(&Host::at(Path::new("/")));
    let text = if json { serde_json::to_string_pretty(&findings).unwrap_or_default() + "\n" } else { shown(&findings) };
    // A reader that has gone away does not make the host better.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if findings.iter().any(|finding| finding.verdict == Verdict::Problem) { PROBLEMS } else { 0 }
}

#[cfg(test)]
mod tests;
