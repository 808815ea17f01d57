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
use std::vec;

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::budget::{Claim, ConnectionBudget};
use crate::codec::{Last, ReplyHead, ReplyStyle, ReplyTo, Request};
use crate::connection::ConnectionError;
use crate::export::{BlockError, Extent};
use crate::extents;
use crate::protocol::command;
use crate::requests::{Refusal, StatusQuery};
use crate::sparse::{self, Fragments, Piece};

/// Replies of one vectored write. Linux takes 1024 slices; more than this no longer pays.
const BATCH_REPLIES: usize = 64;
/// Slices of one vectored write: head and body of so many simple replies.
const BATCH_SLICES: usize = 2 * BATCH_REPLIES;
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
        fragments: Fragments,
        answer: BoxFuture<'static, Result<Bytes, BlockError>>,
    },
    /// A change, or anything else whose success has no payload.
    Change(BoxFuture<'static, Result<(), BlockError>>),
    Status {
        query: StatusQuery,
        /// The smallest block of the export.
        unit: u32,
        answer: BoxFuture<'static, Result<Vec<Extent>, BlockError>>,
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
        let mut slices = [IoSlice::new(&[]); BATCH_SLICES];
        let mut count = 0;
        let parts = self.ready.iter().take(BATCH_REPLIES).flat_map(Reply::parts);
        for part in parts.filter(|part| !part.is_empty()).take(BATCH_SLICES) {
            slices[count] = IoSlice::new(part);
            count += 1;
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

fn read_reply(
    to: ReplyTo,
    offset: u64,
    len: u32,
    fragments: Fragments,
    answer: Result<Bytes, BlockError>,
) -> Parts {
    match answer {
        Err(error) => failure(to, true, error.into()),
        Ok(data) if data.len() != len as usize => {
            let found = data.len();
            tracing::error!(offset, len, found, "a device read another length");
            failure(to, true, BlockError::Io.into())
        }
        Ok(data) if to.style == ReplyStyle::Simple => Parts::one(to.done(), data),
        Ok(data) => sparse_reply(to, offset, sparse::pieces(offset, data, fragments)),
    }
}

fn sparse_reply(to: ReplyTo, mut offset: u64, pieces: Vec<Piece>) -> Parts {
    let count = pieces.len();
    let chunks = (1..).zip(pieces).map(|(number, piece)| {
        let last = if number == count { Last::Yes } else { Last::No };
        let (head, body, len) = match piece {
            // No piece is longer than the read, whose length has 32 bits.
            Piece::Hole(len) => {
                let length = u32::try_from(len).unwrap_or(u32::MAX);
                (to.hole(last, offset, length), Bytes::new(), len)
            }
            Piece::Data(data) => {
                let (len, length) = (data.len(), u32::try_from(data.len()).unwrap_or(u32::MAX));
                (to.data(last, offset, length), data, len)
            }
        };
        offset += len as u64;
        Part::new(head, body)
    });
    Parts::of(chunks.collect(), to)
}

/// One chunk for each context. All that there are tell of the allocation.
fn status_reply(
    to: ReplyTo,
    query: &StatusQuery,
    unit: u32,
    answer: Result<Vec<Extent>, BlockError>,
) -> Parts {
    let most = query.extents_max as usize;
    let extents = answer.and_then(|told| extents::shaped(told, query.len, unit, most));
    let extents = match extents {
        Ok(extents) => extents,
        Err(error) => return failure(to, true, error.into()),
    };
    let count = query.contexts.len();
    let chunks = (1..).zip(&query.contexts).map(|(number, context)| {
        let last = if number == count { Last::Yes } else { Last::No };
        let extents_told = u32::try_from(extents.len()).unwrap_or(u32::MAX);
        Part::new(
            to.status(last, context.id(), extents_told),
            extents::descriptors(to.style, &extents),
        )
    });
    Parts::of(chunks.collect(), to)
}

/// An error, with text where the style has chunks. Where simple replies are allowed beside them, only commands
/// whose replies have chunks get one.
fn failure(to: ReplyTo, in_chunk: bool, refusal: Refusal) -> Parts {
    let Refusal { errno, message } = refusal;
    match (to.style, u16::try_from(message.len())) {
        (ReplyStyle::Simple, _) => Parts::one(to.failed(errno), Bytes::new()),
        (ReplyStyle::Structured, _) if !in_chunk => Parts::one(to.failed(errno), Bytes::new()),
        (ReplyStyle::Structured | ReplyStyle::Extended, Ok(bytes)) => {
            let text = Bytes::from_static(message.as_bytes());
            Parts::one(to.error(errno, bytes), text)
        }
        (ReplyStyle::Structured | ReplyStyle::Extended, Err(_)) => {
            Parts::one(to.error(errno, 0), Bytes::new())
        }
    }
}

/// A finished reply and how much of it the peer has taken.
struct Reply {
    parts: Parts,
    claim: Claim,
}

impl Reply {
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().flat_map(Part::slices)
    }

    /// Notes that up to `written` more bytes were taken, and says how many of them belong to this reply.
    fn advance(&mut self, written: usize) -> usize {
        let mut taken = self.parts.first.advance(written);
        while self.parts.first.is_written()
            && let Some(next) = self.parts.more.next()
        {
            self.parts.first = next;
            taken += self.parts.first.advance(written - taken);
        }
        taken
    }

    fn is_written(&self) -> bool {
        self.parts.first.is_written() && self.parts.more.as_slice().is_empty()
    }
}

/// One part or more, in their order. One takes no memory of its own.
struct Parts {
    first: Part,
    more: vec::IntoIter<Part>,
}

impl Parts {
    fn one(head: ReplyHead, body: Bytes) -> Self {
        Self {
            first: Part::new(head, body),
            more: Vec::new().into_iter(),
        }
    }

    /// Nothing at all is success.
    fn of(parts: Vec<Part>, to: ReplyTo) -> Self {
        let mut more = parts.into_iter();
        match more.next() {
            Some(first) => Self { first, more },
            None => Self::one(to.done(), Bytes::new()),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.first).chain(self.more.as_slice())
    }

    /// Whether no payload of a request is held any more.
    fn are_heads_only(&self) -> bool {
        self.iter().all(|part| part.body.is_empty())
    }
}

/// A head, its body, and how much of both the peer has taken.
struct Part {
    head: ReplyHead,
    head_written: usize,
    body: Bytes,
}

impl Part {
    fn new(head: ReplyHead, body: Bytes) -> Self {
        Self {
            head,
            head_written: 0,
            body,
        }
    }

    fn slices(&self) -> [&[u8]; 2] {
        let head = self.head.as_bytes();
        [head.get(self.head_written..).unwrap_or(&[]), &self.body]
    }

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
    use futures_util::FutureExt;

    use super::*;
    use crate::budget::ServerBudget;
    use crate::limits::Limits;
    use crate::protocol::Errno;

    #[test]
    fn a_read_of_another_length_is_an_io_error() {
        let to = ReplyTo {
            style: ReplyStyle::Simple,
            cookie: 1,
            offset: 0,
        };
        let short = Ok(Bytes::from_static(b"abc"));
        let parts = read_reply(to, 0, 4, Fragments::Any, short);
        assert_eq!(parts.first.head, to.failed(Errno::Io));
        assert!(parts.are_heads_only() && parts.more.as_slice().is_empty());
    }

    #[test]
    fn parts_are_taken_in_order_at_any_pace() {
        let to = ReplyTo {
            style: ReplyStyle::Extended,
            cookie: 1,
            offset: 0,
        };
        let mut data = vec![0; 100_000];
        data[0] = 1;
        data[99_999] = 2;
        for pace in [1, 7, 1000, 1 << 20] {
            let limits = Limits::default();
            let server = Arc::new(ServerBudget::new(&limits));
            let budget = ConnectionBudget::new(&limits, server);
            let claim = budget.request().now_or_never().expect("a place");
            let answer = Ok(Bytes::from(data.clone()));
            let parts = read_reply(to, 0, 100_000, Fragments::Any, answer);
            let whole: Vec<u8> = parts
                .iter()
                .flat_map(Part::slices)
                .flatten()
                .copied()
                .collect();
            let mut reply = Reply { parts, claim };
            let mut taken = Vec::new();
            while !reply.is_written() {
                let next: Vec<u8> = reply.parts().flatten().copied().take(pace).collect();
                assert_eq!(reply.advance(next.len()), next.len());
                taken.extend(next);
            }
            assert!(taken == whole, "pace {pace}");
            assert_eq!(reply.advance(5), 0);
        }
    }
}
