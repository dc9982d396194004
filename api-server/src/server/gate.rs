//! What stands between a client's stream and hyper: it reads ahead to the end of each head, lets [`head`] judge it, follows the body by
//! its length, and sets a deadline on every request.
//!
//! The deadline runs from the first byte of a request to the last byte of its body. A connection that is idle between requests has none.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::head::{self, Head};

/// A request must have arrived whole after this time.
pub(super) const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes asked from the stream at once.
const CHUNK: usize = 4096;

/// The reading side of a connection, made safe for hyper.
pub(super) struct Gate<S> {
    stream: S,
    payload_limit: usize,
    /// Bytes read from the stream and not judged yet.
    raw: Vec<u8>,
    /// How far the search for the end of the head in `raw` has come.
    line_start: usize,
    /// A judged head on its way to hyper, and how much of it is there already.
    out: Vec<u8>,
    out_at: usize,
    /// Bytes of body still to come.
    body_left: u64,
    /// Nothing more is read.
    closed: bool,
    deadline: Pin<Box<Sleep>>,
    armed: bool,
}

impl<S> Gate<S> {
    pub(super) fn new(stream: S, payload_limit: usize) -> Self {
        Self {
            stream,
            payload_limit,
            raw: Vec::new(),
            line_start: 0,
            out: Vec::new(),
            out_at: 0,
            body_left: 0,
            closed: false,
            deadline: Box::pin(sleep(REQUEST_DEADLINE)),
            armed: false,
        }
    }

    fn arm(&mut self) {
        if !self.armed {
            self.deadline.as_mut().reset(Instant::now() + REQUEST_DEADLINE);
            self.armed = true;
        }
    }

    /// Judges the head at the start of `raw`, if it is complete.
    fn judge(&mut self) {
        let verdict = match head::end(&self.raw, &mut self.line_start) {
            Ok(None) => return,
            Ok(Some(len)) => {
                let verdict = head::judge(self.raw.get(..len).unwrap_or_default(), self.payload_limit);
                self.raw.drain(..len);
                verdict
            }
            Err(why) => Head::Refuse(why),
        };
        self.line_start = 0;
        self.out_at = 0;
        match verdict {
            Head::Pass { bytes, body_len } => {
                self.out = bytes;
                self.body_left = body_len;
                self.armed = body_len > 0;
            }
            Head::Refuse(why) => {
                // Whatever follows cannot be told apart from the rest of this request.
                self.out = head::refusal(&why);
                self.closed = true;
                self.armed = false;
            }
        }
    }

    /// Hands over what is ready: the rest of a head, or body bytes read earlier. `false` if there is nothing.
    fn hand_over(&mut self, to: &mut ReadBuf<'_>) -> bool {
        let ready = self.out.get(self.out_at..).unwrap_or_default();
        if !ready.is_empty() {
            let len = ready.len().min(to.remaining());
            to.put_slice(ready.get(..len).unwrap_or_default());
            self.out_at += len;
            return true;
        }
        let len = self.raw.len().min(to.remaining()).min(usize::try_from(self.body_left).unwrap_or(usize::MAX));
        if len == 0 {
            return false;
        }
        to.put_slice(self.raw.get(..len).unwrap_or_default());
        self.raw.drain(..len);
        self.body_left -= len as u64;
        self.armed = self.body_left > 0;
        true
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if to.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.hand_over(to) || this.closed {
                return Poll::Ready(Ok(()));
            }
            if this.body_left == 0 && !this.raw.is_empty() {
                this.arm();
                this.judge();
                if this.out_at < this.out.len() {
                    continue;
                }
            }
            let mut chunk = [0; CHUNK];
            let mut buffer = ReadBuf::new(&mut chunk);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(result) => {
                    result?;
                    // At the end of the stream hyper notices by itself whether a request is incomplete.
                    this.closed = buffer.filled().is_empty();
                    this.raw.extend_from_slice(buffer.filled());
                }
                Poll::Pending if this.armed => {
                    ready!(this.deadline.as_mut().poll(cx));
                    this.closed = true;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;
