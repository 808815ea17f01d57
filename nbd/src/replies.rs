//! Requests in flight and the replies on their way to one peer.
//!
//! - Everything is polled by the task of the connection: no channel wakes, no locks. Futures of the device
//!   advance also while the peer takes nothing, so a slow reader never holds up what its writes hold up.
//! - Replies leave in the order in which requests finish, many of them in one vectored write.
//! - A reply keeps its [`Claim`] until its last byte is taken: replies that nobody takes stop the reading of
//!   requests, which bounds the memory of the connection.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::budget::{Claim, ConnectionBudget};
use crate::codec::{Last, ReplyHead, ReplyStyle, ReplyTo};
use crate::connection::ConnectionError;
use crate::export::BlockError;
use crate::requests::Refusal;

/// Replies of one vectored write. Linux takes 1024 slices; more than this no longer pays.
const BATCH_REPLIES: usize = 64;
/// How often a stalled peer is judged again once its time is over.
const RECHECK: Duration = Duration::from_secs(1);

/// A request that was read, in whatever state it is.
pub(crate) struct Call {
    pub(crate) to: ReplyTo,
    pub(crate) work: Work,
    pub(crate) claim: Claim,
}

/// What is still to be waited for.
pub(crate) enum Work {
    Read {
        offset: u64,
        len: u32,
        answer: BoxFuture<'static, Result<Bytes, BlockError>>,
    },
    Change(BoxFuture<'static, Result<(), BlockError>>),
    /// Never reached the device.
    Refused {
        /// Whether replies to this command have chunks where there are any.
        in_chunk: bool,
        refusal: Refusal,
    },
}

/// Drives the calls of one connection and writes their replies.
pub(crate) struct Replies<W> {
    writer: W,
    calls: UnboundedReceiver<Call>,
    all_calls_seen: bool,
    in_flight: FuturesUnordered<InFlight>,
    ready: VecDeque<Reply>,
    unflushed: bool,
    /// Set while the peer takes nothing of the first ready reply.
    stalled: Option<Pin<Box<Sleep>>>,
    transfer_timeout: Duration,
    budget: Arc<ConnectionBudget>,
}

impl<W: AsyncWrite + Unpin> Replies<W> {
    pub(crate) fn new(
        writer: W,
        calls: UnboundedReceiver<Call>,
        transfer_timeout: Duration,
        budget: Arc<ConnectionBudget>,
    ) -> Self {
        Self {
            writer,
            calls,
            all_calls_seen: false,
            in_flight: FuturesUnordered::new(),
            ready: VecDeque::new(),
            unflushed: false,
            stalled: None,
            transfer_timeout,
            budget,
        }
    }

    /// Runs until no call can come any more and every reply is written. May be cancelled and run again.
    pub(crate) async fn run(&mut self) -> Result<(), ConnectionError> {
        poll_fn(|cx| self.poll(cx)).await
    }

    pub(crate) fn into_writer(self) -> W {
        self.writer
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        loop {
            self.collect(cx);
            if self.ready.is_empty() {
                ready!(self.poll_flush(cx))?;
                let finished = self.all_calls_seen && self.in_flight.is_empty();
                return if finished {
                    Poll::Ready(Ok(()))
                } else {
                    Poll::Pending
                };
            }
            if self.poll_write(cx)?.is_pending() {
                ready!(self.poll_stalled(cx))?;
            }
        }
    }

    /// Takes in what has arrived and what has finished.
    fn collect(&mut self, cx: &mut Context<'_>) {
        while !self.all_calls_seen {
            match self.calls.poll_recv(cx) {
                Poll::Ready(Some(call)) => self.in_flight.push(InFlight { call: Some(call) }),
                Poll::Ready(None) => self.all_calls_seen = true,
                Poll::Pending => break,
            }
        }
        while let Poll::Ready(Some(reply)) = self.in_flight.poll_next_unpin(cx) {
            self.ready.push_back(reply);
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut slices = [IoSlice::new(&[]); 2 * BATCH_REPLIES];
        let mut count = 0;
        for part in self.ready.iter().take(BATCH_REPLIES).flat_map(Reply::parts) {
            if !part.is_empty() {
                slices[count] = IoSlice::new(part);
                count += 1;
            }
        }
        let mut written =
            ready!(Pin::new(&mut self.writer).poll_write_vectored(cx, &slices[..count]))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unflushed = true;
        while let Some(first) = self.ready.front_mut() {
            written -= first.advance(written);
            if !first.is_written() {
                break;
            }
            self.ready.pop_front();
            self.stalled = None;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(Pin::new(&mut self.writer).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Fails when the peer has left the first reply for too long *and* another connection waits for the memory it holds.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let patience = self.transfer_timeout;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + patience)));
        while stalled.as_mut().poll(cx).is_ready() {
            let holds = self
                .ready
                .iter()
                .any(|reply| reply.claim.holds_server_bytes());
            if holds && self.budget.others_wait() {
                return Poll::Ready(Err(ConnectionError::Stalled));
            }
            stalled.as_mut().reset(Instant::now() + RECHECK);
        }
        Poll::Pending
    }
}

/// A call that becomes a reply.
struct InFlight {
    /// Invariant: `Some` until the future has answered.
    call: Option<Call>,
}

impl Future for InFlight {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        let Some(call) = self.call.as_mut() else {
            return Poll::Pending;
        };
        let to = call.to;
        let (head, body) = match &mut call.work {
            Work::Read {
                offset,
                len,
                answer,
            } => {
                let answer = ready!(answer.as_mut().poll(cx));
                read_reply(to, *offset, *len, answer)
            }
            Work::Change(answer) => match ready!(answer.as_mut().poll(cx)) {
                Ok(()) => (to.done(), Bytes::new()),
                Err(error) => failure(to, false, error.into()),
            },
            Work::Refused { in_chunk, refusal } => failure(to, *in_chunk, *refusal),
        };
        let Some(Call { mut claim, .. }) = self.call.take() else {
            return Poll::Pending;
        };
        if body.is_empty() {
            claim.release_bytes();
        }
        Poll::Ready(Reply {
            head,
            head_written: 0,
            body,
            claim,
        })
    }
}

fn read_reply(
    to: ReplyTo,
    offset: u64,
    len: u32,
    answer: Result<Bytes, BlockError>,
) -> (ReplyHead, Bytes) {
    match answer {
        Err(error) => failure(to, true, error.into()),
        Ok(data) if data.len() != len as usize => {
            let found = data.len();
            tracing::error!(offset, len, found, "a device read another length");
            failure(to, true, BlockError::Io.into())
        }
        Ok(data) if to.style == ReplyStyle::Simple => (to.done(), data),
        Ok(data) if is_zero(&data) => (to.hole(Last::Yes, offset, len), Bytes::new()),
        Ok(data) => (to.data(Last::Yes, offset, len), data),
    }
}

/// An error, with text where the style has chunks. Where simple replies are allowed beside them, only commands
/// whose replies have chunks get one.
fn failure(to: ReplyTo, in_chunk: bool, refusal: Refusal) -> (ReplyHead, Bytes) {
    let Refusal { errno, message } = refusal;
    match to.style {
        ReplyStyle::Simple => (to.failed(errno), Bytes::new()),
        ReplyStyle::Structured if !in_chunk => (to.failed(errno), Bytes::new()),
        ReplyStyle::Structured | ReplyStyle::Extended => match u16::try_from(message.len()) {
            Ok(bytes) => (
                to.error(errno, bytes),
                Bytes::from_static(message.as_bytes()),
            ),
            Err(_) => (to.error(errno, 0), Bytes::new()),
        },
    }
}

/// Stops at the first part that is not zero, so that data costs next to nothing.
fn is_zero(data: &[u8]) -> bool {
    data.chunks(512)
        .all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

/// A finished reply and how much of it the peer has taken.
struct Reply {
    head: ReplyHead,
    head_written: usize,
    body: Bytes,
    claim: Claim,
}

impl Reply {
    fn parts(&self) -> [&[u8]; 2] {
        let head = self.head.as_bytes();
        [head.get(self.head_written..).unwrap_or(&[]), &self.body]
    }

    /// Notes that up to `written` more bytes were taken, and says how many of them belong to this reply.
    fn advance(&mut self, written: usize) -> usize {
        let of_head = written.min(self.head.as_bytes().len() - self.head_written);
        self.head_written += of_head;
        let of_body = (written - of_head).min(self.body.len());
        self.body.advance(of_body);
        of_head + of_body
    }

    fn is_written(&self) -> bool {
        self.head_written == self.head.as_bytes().len() && self.body.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Errno;

    #[test]
    fn zeroes_are_found_at_any_length() {
        for len in [1, 511, 512, 513, 4096] {
            let mut data = vec![0; len];
            assert!(is_zero(&data), "{len}");
            for place in [0, len / 2, len - 1] {
                data[place] = 1;
                assert!(!is_zero(&data), "{place} of {len}");
                data[place] = 0;
            }
        }
    }

    #[test]
    fn a_read_of_another_length_is_an_io_error() {
        let to = ReplyTo {
            style: ReplyStyle::Simple,
            cookie: 1,
            offset: 0,
        };
        let (head, body) = read_reply(to, 0, 4, Ok(Bytes::from_static(b"abc")));
        assert_eq!(head, to.failed(Errno::Io));
        assert!(body.is_empty());
    }
}
