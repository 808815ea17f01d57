//! Requests in flight and the replies on their way to one peer.
//!
//! - Everything is polled by the task of the connection: no channel wakes, no locks. Futures of the device
//!   advance also while the peer takes nothing, so a slow reader never holds up what its writes hold up.
//! - Replies leave in the order in which requests finish, many of them in one vectored write.
//! - A reply keeps its [`Claim`] until its last byte is taken: replies that nobody takes stop the reading of
//!   requests, which bounds the memory of the connection.

mod form;
mod parts;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::budget::{Claim, ConnectionBudget};
use crate::codec::{ReplyTo, Request};
use crate::connection::ConnectionError;
use crate::export::{BlockError, Extent};
use crate::limits::Limits;
use crate::protocol::command;
use crate::requests::{Refusal, StatusQuery};
use crate::sparse::Fragments;
use form::{failure, read_reply, status_reply};
use parts::{Parts, Reply};

/// Replies of one vectored write. Linux takes 1024 slices; more than this no longer pays.
const BATCH_REPLIES: usize = 64;
/// Slices of one vectored write: head and body of so many simple replies.
const BATCH_SLICES: usize = 2 * BATCH_REPLIES;
/// How often a peer that takes too little is judged again while that costs nobody anything.
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
        fragments: Fragments,
        answer: BoxFuture<'static, Result<Bytes, BlockError>>,
    },
    /// A change, or anything else whose success has no payload.
    Change(BoxFuture<'static, Result<(), BlockError>>),
    Status {
        query: StatusQuery,
        /// The smallest block of the export.
        unit: u32,
        /// For each context, its extents as its bits.
        answer: BoxFuture<'static, Result<Vec<Vec<Extent<u32>>>, BlockError>>,
    },
    /// Never reached the device.
    Refused {
        /// Whether replies to this command have chunks where there are any.
        in_chunk: bool,
        refusal: Refusal,
    },
}

impl Work {
    /// Reads and block status are answered in chunks where there are any.
    pub(crate) fn refused(request: &Request, refusal: Refusal) -> Self {
        let in_chunk = matches!(request.command, command::READ | command::BLOCK_STATUS);
        Self::Refused { in_chunk, refusal }
    }
}

/// Drives the calls of one connection and writes their replies.
pub(crate) struct Replies<W> {
    /// `None`: nobody hears the replies, and they are dropped.
    writer: Option<W>,
    calls: UnboundedReceiver<Call>,
    all_calls_seen: bool,
    in_flight: FuturesUnordered<InFlight>,
    ready: VecDeque<Reply>,
    unflushed: bool,
    /// Bytes written since the beginning.
    taken: u64,
    /// Set once the peer did not take all that was ready, until it has.
    backlog: Option<Backlog>,
    patience: Patience,
    budget: Arc<ConnectionBudget>,
}

/// How little a peer may take of its replies in which time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) span: Duration,
    pub(crate) bytes_min: u64,
}

impl Patience {
    pub(crate) fn new(limits: &Limits) -> Self {
        let span = limits.transfer_timeout;
        let bytes_min = u128::from(limits.reply_rate_min) * span.as_millis() / 1000;
        Self {
            span,
            bytes_min: u64::try_from(bytes_min).unwrap_or(u64::MAX),
        }
    }
}

/// Replies that the peer has not taken yet, judged over one span after the other.
struct Backlog {
    judged: Pin<Box<Sleep>>,
    /// Bytes taken in this span.
    taken: u64,
}

impl<W: AsyncWrite + Unpin> Replies<W> {
    pub(crate) fn new(
        writer: W,
        calls: UnboundedReceiver<Call>,
        patience: Patience,
        budget: Arc<ConnectionBudget>,
    ) -> Self {
        Self {
            writer: Some(writer),
            calls,
            all_calls_seen: false,
            in_flight: FuturesUnordered::new(),
            ready: VecDeque::new(),
            unflushed: false,
            taken: 0,
            backlog: None,
            patience,
            budget,
        }
    }

    /// Runs until no call can come any more and every reply is written. May be cancelled and run again.
    pub(crate) async fn run(&mut self) -> Result<(), ConnectionError> {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// `None` if nobody hears the replies.
    pub(crate) fn into_writer(self) -> Option<W> {
        self.writer
    }

    /// Requests that the device has not answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Bytes of replies that the peer, or what is between, has taken.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Lets the peer go: replies are dropped from now on.
    pub(crate) fn mute(&mut self) {
        self.writer = None;
    }

    /// Waits for nothing more but changes whose payload the device has.
    pub(crate) fn forget_all_but_payloads(&mut self) {
        while let Ok(call) = self.calls.try_recv() {
            self.in_flight.push(InFlight { call: Some(call) });
        }
        let all = std::mem::take(&mut self.in_flight).into_iter();
        self.in_flight = all.filter(InFlight::holds_payload).collect();
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        loop {
            self.collect(cx);
            if self.writer.is_none() {
                self.ready.clear();
            }
            if self.ready.is_empty() {
                self.backlog = None;
                ready!(self.poll_flush(cx))?;
                let finished = self.all_calls_seen && self.in_flight.is_empty();
                return if finished {
                    Poll::Ready(Ok(()))
                } else {
                    Poll::Pending
                };
            }
            if self.poll_write(cx)?.is_pending() {
                ready!(self.poll_backlog(cx))?;
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
        let mut slices = [IoSlice::new(&[]); BATCH_SLICES];
        let mut count = 0;
        let parts = self.ready.iter().take(BATCH_REPLIES).flat_map(Reply::parts);
        for part in parts.filter(|part| !part.is_empty()).take(BATCH_SLICES) {
            slices[count] = IoSlice::new(part);
            count += 1;
        }
        let Some(writer) = &mut self.writer else {
            return Poll::Ready(Ok(()));
        };
        let mut written = ready!(Pin::new(writer).poll_write_vectored(cx, &slices[..count]))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.unflushed = true;
        self.taken += written as u64;
        if let Some(backlog) = &mut self.backlog {
            backlog.taken += written as u64;
        }
        while let Some(first) = self.ready.front_mut() {
            written -= first.advance(written);
            if !first.is_written() {
                break;
            }
            self.ready.pop_front();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed
            && let Some(writer) = &mut self.writer
        {
            ready!(Pin::new(writer).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Fails when the peer takes too little of what is ready *and* another connection waits for the memory it holds. What counts are
    /// bytes, not replies: a slow line may take minutes for a large one, and a peer that takes a small one now and then holds up
    /// others all the same.
    fn poll_backlog(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        let Patience { span, bytes_min } = self.patience;
        let backlog = self.backlog.get_or_insert_with(|| Backlog {
            judged: Box::pin(sleep_until(Instant::now() + span)),
            taken: 0,
        });
        while backlog.judged.as_mut().poll(cx).is_ready() {
            if backlog.taken >= bytes_min {
                backlog.taken = 0;
                backlog.judged.as_mut().reset(Instant::now() + span);
                continue;
            }
            let holds = self
                .ready
                .iter()
                .any(|reply| reply.claim.holds_server_bytes());
            if holds && self.budget.others_wait() {
                return Poll::Ready(Err(ConnectionError::Stalled));
            }
            backlog.judged.as_mut().reset(Instant::now() + RECHECK);
        }
        Poll::Pending
    }
}

/// A call that becomes a reply.
struct InFlight {
    /// Invariant: `Some` until the future has answered.
    call: Option<Call>,
}

impl InFlight {
    fn holds_payload(&self) -> bool {
        let holds = |call: &Call| matches!(call.work, Work::Change(_)) && call.claim.holds_bytes();
        self.call.as_ref().is_some_and(holds)
    }
}

impl Future for InFlight {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        let Some(call) = self.call.as_mut() else {
            return Poll::Pending;
        };
        let to = call.to;
        let parts = match &mut call.work {
            Work::Read {
                offset,
                len,
                fragments,
                answer,
            } => {
                let answer = ready!(answer.as_mut().poll(cx));
                read_reply(to, *offset, *len, *fragments, answer)
            }
            Work::Change(answer) => match ready!(answer.as_mut().poll(cx)) {
                Ok(()) => Parts::one(to.done(), Bytes::new()),
                Err(error) => failure(to, false, error.into()),
            },
            Work::Status {
                query,
                unit,
                answer,
            } => {
                let answer = ready!(answer.as_mut().poll(cx));
                status_reply(to, query, *unit, answer)
            }
            Work::Refused { in_chunk, refusal } => failure(to, *in_chunk, *refusal),
        };
        let Some(Call { mut claim, .. }) = self.call.take() else {
            return Poll::Pending;
        };
        if parts.are_heads_only() {
            claim.release_bytes();
        }
        Poll::Ready(Reply { parts, claim })
    }
}
