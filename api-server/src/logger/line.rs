//! What one log line looks like.

use std::fmt::{Arguments, Result, Write};

use log::Level;
use vmm::sys::clock::LocalTime;

/// Everything before the message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) at: LocalTime,
    pub(super) id: &'a str,
    pub(super) thread: &'a str,
    pub(super) level: Option<Level>,
    pub(super) origin: Option<(&'a str, u32)>,
}

impl Line<'_> {
    /// `YYYY-MM-DDTHH:MM:SS.NNNNNNNNN [id:thread[:LEVEL][:file:line]] message`, with a line end.
    pub(super) fn write(&self, to: &mut impl Write, message: &Arguments<'_>) -> Result {
        let t = self.at;
        write!(
            to,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09} [{}:{}",
            t.year, t.month, t.day, t.hour, t.minute, t.second, t.nanosecond, self.id, self.thread
        )?;
        if let Some(level) = self.level {
            write!(to, ":{level}")?;
        }
        if let Some((file, line)) = self.origin {
            write!(to, ":{file}:{line}")?;
        }
        to.write_str("] ")?;
        write!(OneLine(to), "{message}")?;
        to.write_char('\n')
    }

    /// The line as a text of its own.
    pub(super) fn render(&self, message: &Arguments<'_>) -> String {
        let mut text = String::new();
        // Fails only if the message itself does; what there is of it is shown.
        let _ = self.write(&mut text, message);
        text
    }
}

/// Keeps a message on one line: what a client or guest wrote must not look like another line, nor drive a terminal.
struct OneLine<'a, W>(&'a mut W);

impl<W: Write> Write for OneLine<'_, W> {
    fn write_str(&mut self, part: &str) -> Result {
        let mut rest = part;
        while let Some((at, control)) = rest.char_indices().find(|(_, c)| c.is_control()) {
            let (harmless, from_control) = rest.split_at(at);
            self.0.write_str(harmless)?;
            write!(self.0, "{}", control.escape_default())?;
            rest = from_control.get(control.len_utf8()..).unwrap_or_default();
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};
    use vmm::sys::clock::local_time;

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
            at: local_time(UNIX_EPOCH + Duration::new(1_000_000_000, 7)),
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
        let at = local_time(UNIX_EPOCH + Duration::new(0, 7));
        let line = Line { at, id: "a", thread: "b", level: None, origin: None };
        assert_eq!(tail(line, &format_args!("x\r\ny\u{1b}[2J é")), "[a:b] x\\r\\ny\\u{1b}[2J é\n");
    }
}
