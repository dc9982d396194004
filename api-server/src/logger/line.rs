//! What one log line looks like.

use std::fmt::{Arguments, Write};
use std::time::SystemTime;

use log::Level;

use vmm::sys::clock::local_time;

/// Everything before the message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) at: SystemTime,
    pub(super) id: &'a str,
    pub(super) thread: &'a str,
    pub(super) level: Option<Level>,
    pub(super) origin: Option<(&'a str, u32)>,
}

impl Line<'_> {
    /// `YYYY-MM-DDTHH:MM:SS.NNNNNNNNN [id:thread[:LEVEL][:file:line]] message`, with a line end.
    pub(super) fn render(&self, message: &Arguments<'_>) -> String {
        let t = local_time(self.at);
        let mut text = format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09} [{}:{}",
            t.year, t.month, t.day, t.hour, t.minute, t.second, t.nanosecond, self.id, self.thread
        );
        // Writing to a String cannot fail.
        if let Some(level) = self.level {
            let _ = write!(text, ":{level}");
        }
        if let Some((file, line)) = self.origin {
            let _ = write!(text, ":{file}:{line}");
        }
        text.push_str("] ");
        let _ = write!(OneLine(&mut text), "{message}");
        text.push('\n');
        text
    }
}

/// Keeps a message on one line: what a client or guest wrote must not look like another line, nor drive a terminal.
struct OneLine<'a>(&'a mut String);

impl Write for OneLine<'_> {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        for c in part.chars() {
            if c.is_control() {
                self.0.extend(c.escape_default());
            } else {
                self.0.push(c);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn tail(line: Line<'_>, message: &Arguments<'_>) -> String {
        let text = line.render(message);
        let (stamp, rest) = text.split_at(30);
        assert_eq!(stamp.len(), "2026-11-23T09:42:35.000000007 ".len());
        assert!(stamp.ends_with(".000000007 "), "{stamp}");
        rest.to_owned()
    }

    #[test]
    fn levels_and_origins_are_shown_when_asked_for() {
        let plain = Line {
            at: UNIX_EPOCH + Duration::new(1_000_000_000, 7),
            id: "vm-1",
            thread: "api",
            level: None,
            origin: None,
        };
        assert_eq!(tail(plain, &format_args!("hello")), "[vm-1:api] hello\n");
        let level = Line { level: Some(Level::Warn), ..plain };
        assert_eq!(tail(level, &format_args!("hello")), "[vm-1:api:WARN] hello\n");
        let both = Line { origin: Some(("a.rs", 7)), ..level };
        assert_eq!(tail(both, &format_args!("hello")), "[vm-1:api:WARN:a.rs:7] hello\n");
    }

    #[test]
    fn a_message_cannot_forge_a_line() {
        let line = Line { at: UNIX_EPOCH + Duration::new(0, 7), id: "a", thread: "b", level: None, origin: None };
        assert_eq!(tail(line, &format_args!("x\r\ny\u{1b}[2J é")), "[a:b] x\\r\\ny\\u{1b}[2J é\n");
    }
}
