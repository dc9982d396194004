//! Counting: what the test binaries said, line by line, while it streams past.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use crate::shell;

/// Counts of tests, with the reasons for everything that did not pass.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
    pub(crate) failures: Vec<String>,
    pub(crate) skips: Vec<String>,
}

impl Tally {
    pub(crate) fn is_empty(&self) -> bool {
        self.passed + self.failed + self.skipped == 0
    }

    pub(crate) fn fail(&mut self, what: String) {
        self.failed += 1;
        self.failures.push(what);
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
    }

    /// Runs one test binary (or cargo), shows its output as it comes and counts its results.
    /// One that fails without saying which test counts as one failure.
    pub(crate) fn run(&mut self, name: &str, command: &mut Command) {
        let mut own = Self::default();
        match command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn() {
            Err(error) => own.fail(format!("{name}: cannot run {}: {error}", shell::typed(command))),
            Ok(mut child) => {
                if let Some(stdout) = child.stdout.take() {
                    own.read(name, stdout, &mut std::io::stdout());
                }
                match child.wait() {
                    Ok(status) if !status.success() && own.failed == 0 => {
                        own.fail(format!("{name}: ended with {status}"));
                    }
                    Ok(_) => {}
                    Err(error) => own.fail(format!("{name}: {error}")),
                }
            }
        }
        self.add(own);
    }

    fn read(&mut self, name: &str, output: impl Read, show: &mut impl Write) {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while matches!(output.read_until(b'\n', &mut line), Ok(n) if n > 0) {
            // A closed stdout of ours must not stop the tests.
            let _ = show.write_all(&line);
            self.count(name, String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
    }

    /// Totals come from the `test result:` lines; names and reasons from the `test` lines.
    fn count(&mut self, name: &str, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += number_before(counts, " passed");
            self.failed += number_before(counts, " failed");
            self.skipped += number_before(counts, " ignored");
        } else if let Some((test, result)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            if result.starts_with("FAILED") {
                self.failures.push(format!("{name}: {test}"));
            } else if result.starts_with("ok") {
                // A scenario of the Linux tier that was tried again: what it came to in the end counts here as in the totals.
                let mended = format!("{name}: {test}");
                self.failures.retain(|failure| *failure != mended);
            } else if let Some(reason) = result.strip_prefix("ignored") {
                self.skips.push(format!("{name}: {test}{reason}"));
            }
        }
    }
}

fn number_before(counts: &str, word: &str) -> usize {
    let number = counts.split_once(word).and_then(|(before, _)| before.rsplit(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_names_and_reasons_are_read_from_the_output() {
        let output = "running 4 tests\n\
            test a ... ok\n\
            test b ... FAILED\n\
            test c ... ignored, needs a moon\n\
            test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out\n\
            test result: ok. 20 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out\n";
        let mut tally = Tally::default();
        let mut shown = Vec::new();
        tally.read("t", output.as_bytes(), &mut shown);
        assert_eq!(shown, output.as_bytes());
        assert_eq!(tally.to_string(), "21 passed, 1 failed, 1 skipped");
        assert_eq!(tally.failures, ["t: b"]);
        assert_eq!(tally.skips, ["t: c, needs a moon"]);
    }

    #[test]
    fn a_case_that_passes_in_the_end_is_no_failure() {
        let mut tally = Tally::default();
        for line in ["test a ... FAILED: first try", "test b ... FAILED: for good", "test a ... ok second try"] {
            tally.count("t", line);
        }
        assert_eq!(tally.failures, ["t: b"]);
    }

    #[test]
    fn a_binary_that_dies_silently_is_a_failure() {
        let mut tally = Tally::default();
        tally.run("t", Command::new("sh").args(["-c", "kill -9 $$"]));
        assert_eq!((tally.passed, tally.failed), (0, 1));
        tally.run("t", &mut Command::new("/nonexistent/binary"));
        assert_eq!((tally.passed, tally.failed), (0, 2));
    }
}
