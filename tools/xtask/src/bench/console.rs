//! What the guest prints, with the moment each piece arrived.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::process::ChildStdout;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::sys;

/// The reading end of a VMM's standard output.
#[derive(Debug)]
pub(crate) struct Console {
    pipe: ChildStdout,
    bytes: Vec<u8>,
    /// How many bytes had arrived by when, in order.
    arrivals: Vec<(usize, Instant)>,
    ended: bool,
}

impl Console {
    pub(crate) fn new(pipe: ChildStdout) -> Self {
        Self { pipe, bytes: Vec::new(), arrivals: Vec::new(), ended: false }
    }

    /// To wait for with others; `None` when the other side has closed it.
    pub(crate) fn descriptor(&self) -> Option<RawFd> {
        (!self.ended).then(|| self.pipe.as_raw_fd())
    }

    /// Takes what is there; blocks unless the descriptor is readable.
    pub(crate) fn take(&mut self) -> io::Result<()> {
        let mut chunk = [0; 4096];
        let n = self.pipe.read(&mut chunk)?;
        self.ended = n == 0;
        self.bytes.extend(chunk.iter().take(n));
        self.arrivals.push((self.bytes.len(), Instant::now()));
        Ok(())
    }

    /// Everything so far.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// When the first byte of the first `pattern` arrived, if it has.
    pub(crate) fn seen(&self, pattern: &str) -> Option<Instant> {
        let found = self.bytes.windows(pattern.len()).position(|window| window == pattern.as_bytes())?;
        let arrival = self.arrivals.iter().find(|(len, _)| *len > found)?;
        Some(arrival.1)
    }

    /// Waits for `pattern`, at most `patience`, and says when it arrived.
    ///
    /// # Errors
    /// When it does not come; the message holds the end of what was printed.
    pub(crate) fn wait_for(&mut self, pattern: &str, patience: Duration) -> Result<Instant> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(at) = self.seen(pattern) {
                return Ok(at);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.ended || left.is_zero() {
                let why = if self.ended { "the VMM ended" } else { "no" };
                bail!("{why}: {pattern:?} not on the console{}", tail(&self.text()));
            }
            if sys::readable([self.descriptor(), None], left)?[0] {
                self.take()?;
            }
        }
    }

    /// The `key=value` words of all lines between the guest's "ready" and its "done".
    pub(crate) fn results(&self) -> BTreeMap<String, String> {
        results(&self.text())
    }
}

/// The last lines of a text, indented, for an error message.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.iter().skip(lines.len().saturating_sub(6));
    last.map(|line| format!("\n    {line}")).collect()
}

fn results(text: &str) -> BTreeMap<String, String> {
    // A VMM may log on the same stream, so the words outside are not the guest's.
    let ours = text.split("mayfly-guest ready").nth(1).unwrap_or_default();
    let ours = ours.split("mayfly-guest done").next().unwrap_or_default();
    ours.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn results_are_the_guests_own_words() {
        let text = "log a=0\r\nmayfly-guest ready\r\na=1 b=x=y\r\nmayfly-guest done\r\na=2";
        let results = results(text);
        assert_eq!(results.get("a").map(String::as_str), Some("1"));
        assert_eq!(results.get("b").map(String::as_str), Some("x=y"));
        assert_eq!(results.len(), 2);
    }

    #[test]
    fn a_pattern_is_dated_by_its_first_byte() {
        let mut child = Command::new("sh")
            .args(["-c", "printf 'xxre'; read line; printf ady"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut console = Console::new(child.stdout.take().unwrap());
        let patience = Duration::from_secs(10);
        let first = console.wait_for("re", patience).unwrap();
        drop(child.stdin.take());
        let whole = console.wait_for("ready", patience).unwrap();
        assert_eq!(first, whole);
        let error = console.wait_for("never", patience).unwrap_err();
        assert!(error.to_string().contains("the VMM ended"), "{error}");
        child.wait().unwrap();
    }
}
