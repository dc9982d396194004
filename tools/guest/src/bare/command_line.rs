//! `mayfly.key=value` words on the kernel command line.
//!
//! Everything else on the line (what a VMM adds for Linux) is ignored. The
//! last word with a key wins.

/// The command line.
#[derive(Clone, Copy)]
pub struct CommandLine(pub &'static str);

impl CommandLine {
    /// The value of `mayfly.<key>=`.
    pub fn text(self, key: &str) -> Option<&'static str> {
        self.0
            .split_ascii_whitespace()
            .rev()
            .find_map(|word| word.strip_prefix("mayfly.")?.strip_prefix(key)?.strip_prefix('='))
    }

    /// A number, decimal or `0x` hexadecimal. Panics (and so ends the run
    /// with a message) when it is not a number.
    pub fn number(self, key: &str, default: u64) -> u64 {
        let Some(text) = self.text(key) else {
            return default;
        };
        let parsed = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        match parsed {
            Ok(value) => value,
            Err(_) => panic!("mayfly.{key}={text} is not a number"),
        }
    }

    /// A switch: `1` is on, `0` is off.
    pub fn switch(self, key: &str, default: bool) -> bool {
        self.number(key, default.into()) != 0
    }

    /// An IPv4 address.
    pub fn ipv4(self, key: &str) -> Option<[u8; 4]> {
        let mut bytes = [0; 4];
        let mut parts = self.text(key)?.split('.');
        for byte in &mut bytes {
            *byte = parts.next()?.parse().ok()?;
        }
        parts.next().is_none().then_some(bytes)
    }
}
