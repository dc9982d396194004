//! A connection to a backend: whole messages in both directions, answers in the order of their questions.
//!
//! Nothing here waits but [`Connection::wait`]. A backend that breaks a rule is [`Broken`], and its connection is of no use any more.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;
use zerocopy::{FromBytes, IntoBytes};

use super::message::{Header, MAX_BODY_LEN, Request};
use crate::sys::fd_stream::{FdStream, Readiness};

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The backend closed it.
    #[error("it closed the connection")]
    Closed,
    /// The backend takes too long.
    #[error("it did not answer within {0} ms")]
    Silent(u128),
    /// The backend does not read what it is sent.
    #[error("it does not read what it is sent")]
    Deaf,
    /// Nobody wants to know any more.
    #[error("the machine ends")]
    Unwanted,
    /// What it says is not the protocol.
    #[error("it broke the protocol: {0}")]
    Nonsense(String),
    /// It cannot do what is needed.
    #[error("{0}")]
    Unfit(String),
    /// The host's.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Broken {
    pub(super) fn nonsense(what: impl std::fmt::Display) -> Self {
        Self::Nonsense(what.to_string())
    }
}

/// What a backend answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) request: Request,
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Answer {
    /// The body, which is one number.
    pub(super) fn number(&self) -> Result<u64, Broken> {
        let bytes = self.body.as_slice().try_into().map_err(|_| self.misshapen())?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The body, which begins with this; and the rest of it.
    pub(super) fn shaped<T: FromBytes>(&self) -> Result<(T, &[u8]), Broken> {
        T::read_from_prefix(&self.body).map_err(|_| self.misshapen())
    }

    pub(super) fn misshapen(&self) -> Broken {
        Broken::nonsense(format!("an answer to {:?} of {} bytes", self.request, self.body.len()))
    }
}

/// A message that is arriving.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    header: [u8; Header::LEN],
    body: Vec<u8>,
    filled: usize,
    fds: Vec<OwnedFd>,
}

/// A message that has arrived.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Inbox {
    /// The next message, if all of it is there. Reads no byte of the one after it, so that descriptors stay with their message.
    pub(super) fn next(&mut self, stream: &FdStream) -> Result<Option<Incoming>, Broken> {
        loop {
            let in_body = self.filled.checked_sub(Header::LEN);
            let rest = match in_body {
                None => self.header.get_mut(self.filled..),
                Some(at) => self.body.get_mut(at..),
            };
            let rest = rest.unwrap_or_default();
            if !rest.is_empty() {
                match stream.receive(rest, &mut self.fds) {
                    Ok(0) => return Err(Broken::Closed),
                    Ok(count) => self.filled = self.filled.saturating_add(count),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(Broken::Closed),
                    Err(error) => return Err(error.into()),
                }
            }
            if self.filled < Header::LEN {
                continue;
            }
            let header = Header::read_from_bytes(&self.header).unwrap_or_default();
            if !header.is_ours() {
                return Err(Broken::nonsense(format!("a message with flags {:#x}", header.flags)));
            }
            let len = header.body_len();
            if len > MAX_BODY_LEN {
                return Err(Broken::nonsense(format!("a message of {len} bytes")));
            }
            if self.filled == Header::LEN && self.body.len() != len {
                self.body = vec![0; len];
            }
            if self.filled == Header::LEN.saturating_add(len) {
                let Self { body, fds, .. } = std::mem::take(self);
                return Ok(Some(Incoming { header, body, fds }));
            }
        }
    }
}

/// Sends one message whole, or finds the connection broken: a peer that reads at all has room for it.
pub(super) fn send(stream: &FdStream, header: Header, body: &[u8], fds: &[RawFd]) -> Result<(), Broken> {
    let message = [header.as_bytes(), body].concat();
    match stream.send(&message, fds) {
        Ok(sent) if sent == message.len() => Ok(()),
        Ok(_) => Err(Broken::Deaf),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Broken::Deaf),
        Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            Err(Broken::Closed)
        }
        Err(error) => Err(error.into()),
    }
}

/// A connection to a backend.
#[derive(Debug)]
pub(super) struct Connection {
    stream: FdStream,
    inbox: Inbox,
    /// Questions without an answer yet.
    open: VecDeque<Request>,
    /// Since when the first of them waits.
    since: Instant,
    /// The backend acknowledges what it is asked to.
    pub(super) acknowledges: bool,
}

impl Connection {
    /// Connects, without waiting.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::over(FdStream::connect(path)?))
    }

    pub(super) fn over(stream: FdStream) -> Self {
        Self { stream, inbox: Inbox::default(), open: VecDeque::new(), since: Instant::now(), acknowledges: false }
    }

    /// The same connection once more, which has no question open. Only one of the two may be used from now on.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { acknowledges: self.acknowledges, ..Self::over(self.stream.try_clone()?) })
    }

    /// Asks for something that has an answer.
    pub(super) fn ask(&mut self, request: Request, body: &[u8]) -> Result<(), Broken> {
        self.post(request, false, body, &[])?;
        self.expect(request);
        Ok(())
    }

    /// Says something that has none.
    pub(super) fn tell(&mut self, request: Request, body: &[u8], fds: &[RawFd]) -> Result<(), Broken> {
        self.post(request, false, body, fds)
    }

    /// Says something of which it matters whether the backend could do it. One that does not acknowledge is believed.
    pub(super) fn tell_and_hear(&mut self, request: Request, body: &[u8], fds: &[RawFd]) -> Result<(), Broken> {
        self.post(request, self.acknowledges, body, fds)?;
        if self.acknowledges {
            self.expect(request);
        }
        Ok(())
    }

    fn post(&mut self, request: Request, need_reply: bool, body: &[u8], fds: &[RawFd]) -> Result<(), Broken> {
        send(&self.stream, Header::of(request as u32, false, need_reply, body.len()), body, fds)
    }

    fn expect(&mut self, request: Request) {
        if self.open.is_empty() {
            self.since = Instant::now();
        }
        self.open.push_back(request);
    }

    /// The next answer, if it is there.
    pub(super) fn next_answer(&mut self) -> Result<Option<Answer>, Broken> {
        let Some(Incoming { header, body, fds }) = self.inbox.next(&self.stream)? else { return Ok(None) };
        let code = header.request.get();
        let request = self.open.pop_front().filter(|request| *request as u32 == code && header.is_reply());
        let request = request.ok_or_else(|| Broken::nonsense(format!("message {code}, which nobody asked for")))?;
        self.since = Instant::now();
        Ok(Some(Answer { request, body, fds }))
    }

    /// Whether an answer is missing.
    pub(super) fn awaits(&self) -> bool {
        !self.open.is_empty()
    }

    /// The backend had so long to answer.
    pub(super) fn judge_silence(&self, limit: Duration) -> Result<(), Broken> {
        match self.awaits() && self.since.elapsed() >= limit {
            true => Err(Broken::Silent(limit.as_millis())),
            false => Ok(()),
        }
    }

    /// The next answer, for which this waits until `deadline`, `limit` after the first question, or until `end` is rung.
    pub(super) fn wait(&mut self, deadline: Instant, limit: Duration, end: Option<&EventFd>) -> Result<Answer, Broken> {
        loop {
            if let Some(answer) = self.next_answer()? {
                return Ok(answer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: what is left may be less than poll's unit.
            let left = if left.is_zero() { left } else { left.saturating_add(Duration::from_millis(1)) };
            match self.stream.wait(left, end)? {
                Readiness::Readable => {}
                Readiness::Ended => return Err(Broken::Unwanted),
                Readiness::TimeOver => return Err(Broken::Silent(limit.as_millis())),
            }
        }
    }

    /// Whether something arrives in that time.
    pub(super) fn wait_for_anything(&self, limit: Duration, end: &EventFd) -> Result<bool, Broken> {
        match self.stream.wait(limit, Some(end))? {
            Readiness::Readable => Ok(true),
            Readiness::TimeOver => Ok(false),
            Readiness::Ended => Err(Broken::Unwanted),
        }
    }

    /// Whether the backend has not ended it.
    pub(super) fn is_open(&self) -> bool {
        self.stream.is_open()
    }

    /// Ends the connection, for whoever holds it, too.
    pub(super) fn end(&self) {
        self.stream.shut_down();
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes messages out of whatever arrives in these pieces, until nothing does or one is none.
    fn messages(pieces: &[&[u8]]) -> (Vec<(u32, Vec<u8>)>, Option<String>) {
        let (ours, theirs) = FdStream::pair().unwrap();
        let theirs = FdStream::from(theirs);
        let (mut inbox, mut found) = (Inbox::default(), Vec::new());
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            assert_eq!(ours.send(piece, &[]).unwrap(), piece.len());
            loop {
                match inbox.next(&theirs) {
                    Ok(Some(message)) => found.push((message.header.request.get(), message.body)),
                    Ok(None) => break,
                    Err(broken) => return (found, Some(broken.to_string())),
                }
            }
        }
        (found, None)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// However they arrive, messages are what was sent.
        #[test]
        fn messages_may_come_in_pieces(
            sent in proptest::collection::vec((any::<u32>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..6),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let whole: Vec<u8> = sent
                .iter()
                .flat_map(|(code, body)| [Header::of(*code, true, false, body.len()).as_bytes(), body].concat())
                .collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).chain([0, whole.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &whole[pair[0]..pair[1]]).collect();
            prop_assert_eq!(messages(&pieces), (sent, None));
        }

        /// What is no message is an error, or is waited for; no body is longer than what came, or than the longest.
        #[test]
        fn nonsense_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let (found, _) = messages(&[&bytes]);
            let bodies: usize = found.iter().map(|(_, body)| Header::LEN + body.len()).sum();
            prop_assert!(bodies <= bytes.len());
        }
    }
}
