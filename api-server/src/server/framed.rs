//! The stream between the socket and hyper.
//!
//! Follows the framing of what a client sends: each head is read by [`super::head`] and replaced, bodies pass through by their
//! declared length. Heads that cannot be read, and bodies over the limit, become a substitute request that the porch answers, so
//! answers stay in order. Also here: the deadline by which a request must have arrived once it has begun; between requests a
//! connection may stay idle for ever.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::connections::Connection;
use super::head::{self, Framing, Head};

/// What is read from the socket at once, in bytes.
const CHUNK: usize = 8 << 10;
/// A refused body up to this size is read and dropped so that the connection can go on; a larger one ends it.
const MAX_DROPPED_BODY: u32 = 16 << 20;
/// How long a client that was answered in the middle of its request is listened to before the connection is closed, so that it can read the answer before it is told
/// that nobody reads the rest of its request.
const LINGER: Duration = Duration::from_secs(1);

/// What a client may send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Largest body, in bytes.
    pub(crate) payload: usize,
    /// Time from a request's first byte to its last.
    pub(crate) deadline: Duration,
}

/// Where we are in what the client sends.
#[derive(Debug)]
enum State {
    /// In or before a head.
    Head,
    /// Giving hyper a head.
    Feed { bytes: Vec<u8>, fed: usize, then: Then },
    /// In a body; so many bytes are still to come.
    Body(u32),
    /// In a refused body.
    Drop(u32),
    /// After a chunked head: hyper reads the rest.
    Through,
    /// Nothing more is read.
    End,
}

#[derive(Debug, Clone, Copy)]
enum Then {
    Body(u32),
    Drop(u32),
    Through,
    End,
}

/// A client's stream as hyper sees it.
#[derive(Debug)]
pub(crate) struct Framed<S> {
    stream: S,
    limits: Limits,
    connection: Arc<Connection>,
    state: State,
    /// Bytes that were read from the socket and not used yet.
    input: Vec<u8>,
    /// How much of `input` was searched for the end of a head.
    scanned: usize,
    /// Running while a request is arriving and has made us wait.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Whether a request is arriving.
    arriving: bool,
    /// Running while a client is listened to that was answered in the middle of its request.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Framed<S> {
    pub(crate) fn new(stream: S, limits: Limits, connection: Arc<Connection>) -> Self {
        Self {
            stream,
            limits,
            connection,
            state: State::Head,
            input: Vec::new(),
            scanned: 0,
            deadline: None,
            arriving: false,
            linger: None,
        }
    }

    /// Reads once from the socket into `input`. `Ok(0)` is the end of the stream.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut chunk = [0; CHUNK];
        let mut buffer = ReadBuf::new(&mut chunk);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer)? {
            Poll::Ready(()) => {
                self.input.extend_from_slice(buffer.filled());
                Poll::Ready(Ok(buffer.filled().len()))
            }
            Poll::Pending => {
                if self.arriving {
                    let limit = self.limits.deadline;
                    let sleep = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                    ready!(sleep.as_mut().poll(cx));
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Pending
            }
        }
    }

    /// Removes up to `limit` bytes from `input` and gives them to hyper.
    fn give(&mut self, limit: usize, to: &mut ReadBuf<'_>) -> usize {
        let count = limit.min(self.input.len()).min(to.remaining());
        to.put_slice(self.input.get(..count).unwrap_or_default());
        self.input.drain(..count);
        count
    }

    fn begin(&mut self) {
        if !self.arriving {
            self.arriving = true;
            self.connection.receiving();
        }
    }

    fn finish(&mut self) {
        self.arriving = false;
        self.deadline = None;
        self.connection.received();
        self.state = State::Head;
        self.scanned = 0;
        if self.input.is_empty() && self.input.capacity() > CHUNK {
            self.input = Vec::new();
        }
    }

    fn refuse(&mut self, reason: &str, then: Then) {
        let closes = matches!(then, Then::End);
        self.state = State::Feed { bytes: head::render_refusal(reason, closes), fed: 0, then };
    }

    /// Looks for a whole head in `input` and decides what hyper is given. False if more input is needed.
    fn take_head(&mut self) -> bool {
        // An empty line before a request is not a request (RFC 9112 §2.2).
        while self.scanned == 0 && self.input.starts_with(b"\r\n") {
            self.input.drain(..2);
        }
        if self.input.is_empty() || self.input == b"\r" {
            return false;
        }
        self.begin();
        let end = match head::find_end(&self.input, &mut self.scanned) {
            Ok(Some(end)) => end,
            Ok(None) => return false,
            Err(bad) => {
                self.refuse(&bad.to_string(), Then::End);
                return true;
            }
        };
        let head = Head::parse(self.input.get(..end).unwrap_or_default());
        self.input.drain(..end);
        match head {
            Err(bad) => self.refuse(&bad.to_string(), Then::End),
            Ok(Head { framing: Framing::Length(length), expects_continue, .. })
                if length as usize > self.limits.payload =>
            {
                let reason = format!(
                    "Request payload with size {length} is larger than the limit of {} allowed by server.",
                    self.limits.payload
                );
                // A client that waits for "100 Continue" will not send its body after this answer.
                let stays = !expects_continue && length <= MAX_DROPPED_BODY;
                self.refuse(&reason, if stays { Then::Drop(length) } else { Then::End });
            }
            Ok(head) => {
                let then = match head.framing {
                    Framing::Length(length) => Then::Body(length),
                    Framing::Chunked => Then::Through,
                };
                self.state = State::Feed { bytes: head.render(), fed: 0, then };
            }
        }
        true
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Framed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                State::Head => {
                    if this.take_head() {
                        continue;
                    }
                    match ready!(this.fill(cx)) {
                        Ok(0) => return Poll::Ready(Ok(())),
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                            this.refuse("Invalid request. It did not arrive in time.", Then::End);
                        }
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
                State::Feed { bytes, fed, then } => {
                    let rest = bytes.get(*fed..).unwrap_or_default();
                    let count = rest.len().min(to.remaining());
                    to.put_slice(rest.get(..count).unwrap_or_default());
                    *fed += count;
                    if *fed == bytes.len() {
                        match *then {
                            Then::Body(0) | Then::Drop(0) => this.finish(),
                            Then::Body(length) => this.state = State::Body(length),
                            Then::Drop(length) => this.state = State::Drop(length),
                            Then::Through => this.state = State::Through,
                            Then::End => this.state = State::End,
                        }
                    }
                    return Poll::Ready(Ok(()));
                }
                State::Body(left) => {
                    let left = *left;
                    if this.input.is_empty() && ready!(this.fill(cx))? == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    let given = this.give(left as usize, to);
                    match left - u32::try_from(given).unwrap_or(left) {
                        0 => this.finish(),
                        left => this.state = State::Body(left),
                    }
                    return Poll::Ready(Ok(()));
                }
                State::Drop(left) => {
                    let left = *left;
                    if this.input.is_empty() && ready!(this.fill(cx))? == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    let count = this.input.len().min(left as usize);
                    this.input.drain(..count);
                    match left - u32::try_from(count).unwrap_or(left) {
                        0 => this.finish(),
                        left => this.state = State::Drop(left),
                    }
                }
                State::Through => {
                    if this.input.is_empty() && ready!(this.fill(cx))? == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    this.give(usize::MAX, to);
                    return Poll::Ready(Ok(()));
                }
                State::End => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Framed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        if matches!(this.state, State::Head) {
            return Poll::Ready(Ok(()));
        }
        // Closing a Unix socket with unread bytes in it resets the peer, which may not have read its answer yet.
        this.arriving = false;
        let mut dropped = 0;
        loop {
            this.input.clear();
            match this.fill(cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(count)) => {
                    dropped += count;
                    if dropped > 1 << 20 {
                        // Enough for one turn of the event loop; others want to be served.
                        cx.waker().wake_by_ref();
                        return self.linger(cx);
                    }
                }
                Poll::Pending => return self.linger(cx),
            }
        }
    }
}

impl<S> Framed<S> {
    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER))).as_mut().poll(cx).map(Ok)
    }
}
