//! What the guest said: its console, parsed.

use std::str::FromStr;

use crate::{DONE, READY};

/// A run's console output. Tolerates what a VMM may print around it: only lines
/// between [`READY`] and [`DONE`] count, and carriage returns are dropped.
///
/// ```
/// let report = guest::Report::parse("log\nmayfly-guest ready\nop=read errors=0\nmayfly-guest done\n");
/// assert!(report.is_complete());
/// assert_eq!(report.number::<u64>("errors"), Some(0));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    lines: Vec<Line>,
    ready: bool,
    done: bool,
}

/// One line of `key=value` words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    text: String,
}

impl Report {
    /// Parses console output, complete or not.
    pub fn parse(console: &str) -> Self {
        let mut report = Self::default();
        for text in console.lines().map(str::trim_end) {
            match text {
                READY => report.ready = true,
                DONE if report.ready => {
                    report.done = true;
                    break;
                }
                _ if report.ready => report.lines.push(Line { text: text.to_owned() }),
                _ => {}
            }
        }
        report
    }

    /// Whether the guest's code started at all.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Whether the guest came to its end, and did so without giving up.
    pub fn is_complete(&self) -> bool {
        self.done && self.failure().is_none()
    }

    /// The guest's own complaint: a line with `panic=` or `error=`.
    pub fn failure(&self) -> Option<&str> {
        self.lines.iter().map(Line::text).find(|t| t.starts_with("panic=") || t.starts_with("error="))
    }

    /// All result lines in order.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// The lines that have this key.
    pub fn with_key<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Line> {
        self.lines.iter().filter(move |line| line.get(key).is_some())
    }

    /// The first value with this key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| line.get(key))
    }

    /// The first value with this key as a number; see [`Line::number`].
    pub fn number<T: TryFrom<u64>>(&self, key: &str) -> Option<T> {
        self.lines.iter().find_map(|line| line.number(key))
    }

    /// The line of a malicious-guest case.
    pub fn case(&self, name: &str) -> Option<&Line> {
        // An "ending" case that survived has a second line; that one counts.
        self.lines.iter().rev().find(|line| line.get("case") == Some(name))
    }
}

impl Line {
    /// The line as it was printed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The value of `key=`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.text.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// The value as a number, decimal or `0x` hexadecimal.
    pub fn number<T: TryFrom<u64>>(&self, key: &str) -> Option<T> {
        let text = self.get(key)?;
        let value = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => u64::from_str(text),
        };
        value.ok()?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::Report;

    const CONSOLE: &str = "noise case=x\r\nmayfly-guest ready\r\ncase=a outcome=ok status=0x4f n=7\r\n\
                           case=b outcome=ending\r\ncase=b outcome=survived\r\nmayfly-guest done\r\nafter=1\r\n";

    #[test]
    fn only_lines_between_ready_and_done_count() {
        let report = Report::parse(CONSOLE);
        assert!(report.is_complete());
        assert_eq!(report.lines().len(), 3);
        assert!(report.case("x").is_none());
        assert_eq!(report.get("after"), None);
    }

    #[test]
    fn values_are_words_and_numbers() {
        let report = Report::parse(CONSOLE);
        let line = report.case("a").expect("case a is there");
        assert_eq!(line.get("outcome"), Some("ok"));
        assert_eq!(line.number::<u8>("status"), Some(0x4f));
        assert_eq!(line.number::<u8>("outcome"), None);
        // `us` is not a key although `status` ends with it.
        assert_eq!(line.get("us"), None);
        assert_eq!(report.case("b").and_then(|l| l.get("outcome")), Some("survived"));
    }

    #[test]
    fn unfinished_and_failed_runs_are_not_complete() {
        assert!(!Report::parse("mayfly-guest ready\na=1\n").is_complete());
        assert!(!Report::parse("").is_ready());
        let failed = Report::parse("mayfly-guest ready\npanic=no\nmayfly-guest done\n");
        assert!(!failed.is_complete());
        assert_eq!(failed.failure(), Some("panic=no"));
    }
}
