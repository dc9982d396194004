//! Output captured line by line while the process runs, and waits on it with a deadline.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct Captured {
    lines: Vec<String>,
    /// Set once the writer closed its end.
    ended: bool,
}

/// The lines one stream has produced so far. Clones share the capture.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    shared: Arc<(Mutex<Captured>, Condvar)>,
}

impl Lines {
    /// Starts a thread that reads `source` until it ends. Bytes that are not UTF-8 are
    /// replaced, carriage returns at line ends dropped.
    pub fn capture(source: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let ours = lines.clone();
        std::thread::spawn(move || ours.read_all(source));
        lines
    }

    fn read_all(&self, source: impl Read) {
        let mut source = BufReader::new(source);
        let mut line = Vec::new();
        while matches!(source.read_until(b'\n', &mut line), Ok(n) if n > 0) {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\n', '\r']).to_owned();
            line.clear();
            self.locked().lines.push(text);
            self.shared.1.notify_all();
        }
        self.locked().ended = true;
        self.shared.1.notify_all();
    }

    fn locked(&self) -> MutexGuard<'_, Captured> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every whole line so far.
    pub fn all(&self) -> Vec<String> {
        self.locked().lines.clone()
    }

    /// Everything so far as one text.
    pub fn text(&self) -> String {
        self.locked().lines.join("\n")
    }

    /// The first line, old or new, that contains `pattern`; `None` when `patience` is over or
    /// the stream ended without one.
    pub fn find(&self, pattern: &str, patience: Duration) -> Option<String> {
        self.find_from(0, pattern, patience).map(|(_, line)| line)
    }

    /// Like [`find`](Self::find), looking from line index `from` on; also returns the index just
    /// after the hit, to continue from.
    pub fn find_from(&self, from: usize, pattern: &str, patience: Duration) -> Option<(usize, String)> {
        let deadline = Instant::now() + patience;
        let mut next = from;
        let mut captured = self.locked();
        loop {
            while let Some(line) = captured.lines.get(next) {
                next += 1;
                if line.contains(pattern) {
                    return Some((next, line.clone()));
                }
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            if captured.ended {
                return None;
            }
            captured = self.shared.1.wait_timeout(captured, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the stream ends; `false` when `patience` was over first.
    pub fn wait_end(&self, patience: Duration) -> bool {
        let (captured, _) = self
            .shared
            .1
            .wait_timeout_while(self.locked(), patience, |captured| !captured.ended)
            .unwrap_or_else(PoisonError::into_inner);
        captured.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_old_and_new_lines_and_stops_at_the_end() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let lines = Lines::capture(reader);
        let patience = Duration::from_secs(10);
        std::io::Write::write_all(&mut writer, b"one\r\ntwo words\n").unwrap();
        assert_eq!(lines.find("words", patience).as_deref(), Some("two words"));
        assert_eq!(lines.find("one", patience).as_deref(), Some("one"));
        assert_eq!(lines.find_from(1, "o", patience).unwrap().0, 2);
        std::io::Write::write_all(&mut writer, b"no newline").unwrap();
        drop(writer);
        assert_eq!(lines.find("no newline", patience).as_deref(), Some("no newline"));
        assert!(lines.wait_end(patience));
        assert_eq!(lines.find("three", patience), None, "an ended stream must not wait");
    }

    #[test]
    fn a_missing_line_is_given_up_at_the_deadline() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let lines = Lines::capture(reader);
        assert_eq!(lines.find("never", Duration::from_millis(5)), None);
        assert!(!lines.wait_end(Duration::from_millis(1)));
    }
}
