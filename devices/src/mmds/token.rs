//! Session tokens of version 2.
//!
//! Nothing is kept for a token: it carries its own end and a tag that only we can make, so a guest that asks for tokens in a loop costs no
//! memory, and none of its processes can push out the tokens of another. The tag is SipHash-2-4, a keyed function made to authenticate
//! short inputs (Aumasson and Bernstein 2012), under two independent keys, which makes 128 bits. The keys are random and never leave the
//! process; with new ones, as after a snapshot was restored, all earlier tokens are void.

use std::fmt::Write;
use std::hash::Hasher;
use std::time::Instant;

/// Bytes of the secret behind session tokens.
pub const SECRET_LEN: usize = 32;
/// Shortest and longest life of a token in seconds.
pub const TTL_SECONDS: std::ops::RangeInclusive<u32> = 1..=21_600;

/// End, number and two tags, eight bytes each.
const WORDS: usize = 4;
/// Hexadecimal digits of a word.
const DIGITS: usize = 16;

/// Gives out tokens and knows them again.
pub struct Tokens {
    keys: [[u64; 2]; 2],
    /// What the ends of tokens count from.
    born: Instant,
    issued: u64,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("issued", &self.issued).finish_non_exhaustive()
    }
}

impl Tokens {
    /// Tokens under a secret nobody else knows.
    pub fn new(secret: [u8; SECRET_LEN], now: Instant) -> Self {
        let mut words = secret.chunks_exact(8).map(|chunk| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(chunk);
            u64::from_le_bytes(bytes)
        });
        let mut word = || words.next().unwrap_or_default();
        Self { keys: [[word(), word()], [word(), word()]], born: now, issued: 0 }
    }

    /// A new token for so many seconds; `None` if they are out of [`TTL_SECONDS`].
    pub(super) fn issue(&mut self, ttl_seconds: u32, now: Instant) -> Option<String> {
        if !TTL_SECONDS.contains(&ttl_seconds) {
            return None;
        }
        let end = self.age_ms(now).saturating_add(u64::from(ttl_seconds).saturating_mul(1000));
        self.issued = self.issued.wrapping_add(1);
        let [one, other] = self.tags(end, self.issued);
        let mut token = String::with_capacity(WORDS.saturating_mul(DIGITS));
        for word in [end, self.issued, one, other] {
            // Writing to a string cannot fail.
            let _ = write!(token, "{word:016x}");
        }
        Some(token)
    }

    /// Whether `token` was given out here and still lives.
    pub(super) fn admits(&self, token: &str, now: Instant) -> bool {
        let Some([end, number, one, other]) = words(token) else { return false };
        let [my_one, my_other] = self.tags(end, number);
        // Both are always compared, so that the time it takes tells nothing about either.
        (one ^ my_one) | (other ^ my_other) == 0 && self.age_ms(now) < end
    }

    fn age_ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX)
    }

    fn tags(&self, end: u64, number: u64) -> [u64; 2] {
        self.keys.map(|key| siphash(key, &[end.to_le_bytes(), number.to_le_bytes()].concat()))
    }
}

fn words(token: &str) -> Option<[u64; WORDS]> {
    let lower = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    if token.len() != WORDS.saturating_mul(DIGITS) || !token.as_bytes().iter().all(lower) {
        return None;
    }
    let mut words = [0; WORDS];
    for (word, digits) in words.iter_mut().zip(token.as_bytes().chunks_exact(DIGITS)) {
        *word = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(words)
}

#[expect(
    deprecated,
    reason = "std advises against it for hash tables, because theirs may change; this one never does and takes a key"
)]
fn siphash([k0, k1]: [u64; 2], message: &[u8]) -> u64 {
    let mut hasher = std::hash::SipHasher::new_with_keys(k0, k1);
    hasher.write(message);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const SECRET: [u8; SECRET_LEN] = [7; SECRET_LEN];

    #[test]
    fn std_has_siphash_2_4() {
        // The example in appendix A of the paper: key 00..0f, message 00..0e.
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let message: Vec<u8> = (0..15).collect();
        assert_eq!(siphash(key, &message), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn a_token_lives_as_long_as_asked_for() {
        let born = Instant::now();
        let mut tokens = Tokens::new(SECRET, born);
        let after = |seconds: u64, ms: u64| born + Duration::from_millis(seconds * 1000 + ms);
        for (ttl, at) in [(1, 0), (60, 5), (21_600, 100_000)] {
            let token = tokens.issue(ttl, after(at, 0)).unwrap();
            assert!(tokens.admits(&token, after(at, 0)));
            assert!(tokens.admits(&token, after(at + u64::from(ttl) - 1, 999)), "{ttl}");
            assert!(!tokens.admits(&token, after(at + u64::from(ttl), 0)), "{ttl}");
        }
        for ttl in [0, 21_601, u32::MAX] {
            assert_eq!(tokens.issue(ttl, born), None);
        }
    }

    #[test]
    fn tokens_differ_and_belong_to_one_secret() {
        let now = Instant::now();
        let mut tokens = Tokens::new(SECRET, now);
        let (one, other) = (tokens.issue(60, now).unwrap(), tokens.issue(60, now).unwrap());
        assert_ne!(one, other);
        assert!(tokens.admits(&one, now) && tokens.admits(&other, now));
        for byte in 0..SECRET_LEN {
            let mut secret = SECRET;
            secret[byte] ^= 1;
            assert!(!Tokens::new(secret, now).admits(&one, now), "the secret's byte {byte} does not matter");
        }
    }

    #[test]
    fn nothing_else_is_a_token() {
        let now = Instant::now();
        let mut tokens = Tokens::new(SECRET, now);
        let token = tokens.issue(60, now).unwrap();
        assert_eq!(token.len(), 64);
        for (place, _) in token.char_indices() {
            for new in ["0", "1", "f", "F", " ", "g"] {
                let mut forged = token.clone();
                forged.replace_range(place..=place, new);
                assert!(forged == token || !tokens.admits(&forged, now), "{forged} instead of {token}");
            }
        }
        for forged in ["", "foo", &token[1..], &format!("{token}0"), &format!(" {token}"), &"+".repeat(64)] {
            assert!(!tokens.admits(forged, now), "{forged}");
        }
    }

    proptest! {
        #[test]
        fn guesses_fail(guess in prop_oneof!["[0-9a-f]{64}", "\\PC{0,80}"]) {
            let now = Instant::now();
            prop_assert!(!Tokens::new(SECRET, now).admits(&guess, now));
        }
    }
}
