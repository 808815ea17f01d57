//! Every committed record from a position on, across failovers.
//!
//! A tail has a stream of its own, so that HTTP/2 flow control holds back the server when the reader is slow; and a connection of its
//! own, so that what it leaves unread holds back nothing else. A background task reopens it at the position after the last record handed
//! over: neither gap nor repeat.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_reply::Body;
use mainstay_proto::v1::client_request;
use mainstay_types::{Lineage, Lsn};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::{Stream, StreamExt};

use crate::cluster::{Candidate, Cluster};
use crate::connect::{Opening, Verdict, VolumeStream, connect, redirect, refusal};
use crate::log::{LogRecord, page};
use crate::replicas::{Replicas, Seen};
use crate::{ReadError, ReadLimits, Refusal};

/// Pages read ahead of the reader.
const PAGES_AHEAD: usize = 4;
/// Silence after which other nodes are asked for a newer primary, and how often while it lasts: most tails are idle most of the time.
const SILENCE: Duration = Duration::from_secs(1);
/// How long all copies are asked for what the primary's does not read back.
const UNREADABLE_MAX: Duration = Duration::from_secs(10);

/// A stream of records. Its background task ends when it is dropped.
#[derive(Debug)]
pub struct Tail {
    pages: mpsc::Receiver<Result<Vec<LogRecord>, ReadError>>,
    ready: std::vec::IntoIter<LogRecord>,
    /// Of the handle that it was made from: later reads of that include what was read here.
    seen: Arc<Seen>,
}

impl Tail {
    pub(crate) fn start(
        cluster: Arc<Cluster>,
        volume: String,
        lineage: Option<Lineage>,
        seen: Arc<Seen>,
        from: Lsn,
    ) -> Self {
        let (pages_out, pages) = mpsc::channel(PAGES_AHEAD);
        let follower = Follower {
            cluster,
            opening: Opening {
                lineage,
                ..Opening::tail(volume)
            },
            next: from.max(Lsn(1)),
            pages: pages_out,
        };
        tokio::spawn(follower.run());
        Self {
            pages,
            ready: Vec::new().into_iter(),
            seen,
        }
    }

    /// The next record; waits for as long as it takes to be committed. `None` after an error. Cancelling loses nothing.
    ///
    /// # Errors
    /// The position was trimmed, the volume is gone or has another history, or no copy that answered within ten seconds reads back what
    /// comes next; the tail has ended.
    ///
    /// # Example
    /// ```
    /// # mainstay_testing::run(async |cluster| {
    /// # cluster.create_log("ledger").await?;
    /// # let client = cluster.client().await?;
    /// # let log = client.log("ledger").open().await?;
    /// use mainstay_types::Lsn;
    ///
    /// let mut tail = log.tail(Lsn(1));
    /// log.append("a record").await?;
    /// while let Some(record) = tail.next().await {
    ///     assert_eq!(&record?.data[..], b"a record");
    ///     break; // a tail goes on for ever
    /// }
    /// # Ok(()) });
    /// ```
    pub async fn next(&mut self) -> Option<Result<LogRecord, ReadError>> {
        StreamExt::next(self).await
    }
}

impl Stream for Tail {
    type Item = Result<LogRecord, ReadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(record) = self.ready.next() {
                return Poll::Ready(Some(Ok(record)));
            }
            match std::task::ready!(self.pages.poll_recv(cx)) {
                Some(Ok(records)) => {
                    self.seen
                        .note(records.last().map_or(Lsn::ZERO, |record| record.lsn));
                    self.ready = records.into_iter();
                }
                Some(Err(error)) => {
                    if let ReadError::Refused(Refusal::Trimmed { first }) = &error {
                        self.seen.note_first(*first);
                    }
                    return Poll::Ready(Some(Err(error)));
                }
                None => return Poll::Ready(None),
            }
        }
    }
}

struct Follower {
    cluster: Arc<Cluster>,
    opening: Opening,
    /// Position of the next record to hand over.
    next: Lsn,
    pages: mpsc::Sender<Result<Vec<LogRecord>, ReadError>>,
}

/// Why a stream is left.
enum Left {
    /// Go on elsewhere, there first.
    Lost(Option<Candidate>),
    /// The primary's copy does not read back what comes next.
    Unreadable,
    Refused(Refusal),
    ReaderGone,
}

impl Follower {
    async fn run(mut self) {
        let mut hint = None;
        loop {
            let search = connect(
                Arc::clone(&self.cluster),
                self.opening.clone(),
                hint.take(),
                |_| (),
            );
            let found = tokio::select! {
                found = search => found,
                () = self.pages.closed() => return,
            };
            let mut left = match found {
                Ok((opening, stream)) => {
                    self.opening = opening;
                    self.follow(stream).await
                }
                Err(refusal) => Left::Refused(refusal),
            };
            if matches!(left, Left::Unreadable) {
                left = self.read_elsewhere().await;
            }
            match left {
                Left::Lost(next) => hint = next,
                Left::Unreadable => {
                    self.end(Refusal::Unreadable).await;
                    return;
                }
                Left::Refused(refusal) => {
                    self.end(refusal).await;
                    return;
                }
                Left::ReaderGone => return,
            }
            // A server that drops the stream at once must not be asked in a tight loop.
            tokio::time::sleep(self.cluster.config.retry_first).await;
        }
    }

    async fn follow(&mut self, mut stream: VolumeStream) -> Left {
        let cluster = Arc::clone(&self.cluster);
        let volume = self.opening.volume.clone();
        let tail = pb::Tail {
            from_lsn: self.next.0,
        };
        let request = pb::ClientRequest {
            tag: 2,
            body: Some(client_request::Body::Tail(tail)),
        };
        let _ended = stream.requests.send(request);
        let newer = cluster.newer_than(&volume, stream.epoch, SILENCE);
        tokio::pin!(newer);
        let mut heard = Instant::now();
        let mut tick = tokio::time::interval(SILENCE / 2);
        loop {
            let reply = tokio::select! {
                reply = stream.replies.message() => reply,
                () = self.pages.closed() => return Left::ReaderGone,
                _ = tick.tick() => continue,
                candidate = &mut newer, if heard.elapsed() >= SILENCE => return Left::Lost(Some(candidate)),
            };
            heard = Instant::now();
            let Ok(Some(reply)) = reply else {
                cluster.forget_channel(&stream.address);
                return Left::Lost(None);
            };
            if let Some(left) = self.handle(reply).await {
                return left;
            }
        }
    }

    async fn handle(&mut self, reply: pb::ClientReply) -> Option<Left> {
        match reply.body {
            Some(Body::Records(records)) => self.hand_over(records).await,
            Some(Body::NotPrimary(not)) => Some(Left::Lost(redirect(&not))),
            Some(Body::Refused(refused)) => match refusal(refused) {
                Verdict::Refused(Refusal::Overloaded) | Verdict::GoElsewhere => {
                    Some(Left::Lost(None))
                }
                Verdict::Refused(Refusal::Unreadable) => Some(Left::Unreadable),
                Verdict::Refused(refusal) | Verdict::SessionOver(refusal) => {
                    Some(Left::Refused(refusal))
                }
            },
            _ => Some(Left::Lost(None)),
        }
    }

    async fn hand_over(&mut self, records: pb::Records) -> Option<Left> {
        let mut page = page(records);
        // What was handed over before is not handed over again, whatever the server sends.
        page.records.retain(|record| {
            let new = record.lsn >= self.next;
            if new {
                self.next = Lsn(record.lsn.0.saturating_add(1));
            }
            new
        });
        self.next = self.next.max(page.next);
        if page.records.is_empty() {
            return None;
        }
        let handed_over = self.pages.send(Ok(page.records)).await;
        handed_over.is_err().then_some(Left::ReaderGone)
    }

    /// Gets past what one copy does not read back with a page from another. What the primary tried to read is committed.
    async fn read_elsewhere(&mut self) -> Left {
        let volume = self.opening.volume.clone();
        let lineage = self.opening.lineage;
        let copies = Replicas::new(Arc::clone(&self.cluster), volume, lineage, 0);
        copies.seen.note(self.next);
        let limits = ReadLimits::default();
        let request = client_request::Body::ReadLog(pb::ReadLog {
            from_lsn: self.next.0,
            max_records: limits.records_max,
            max_bytes: limits.bytes_max,
            backwards: false,
            committed: Some(copies.at_least()),
        });
        let answer = tokio::select! {
            answer = copies.query(request, UNREADABLE_MAX) => answer,
            () = self.pages.closed() => return Left::ReaderGone,
        };
        match answer {
            Ok(Body::Records(records)) => {
                let left = self.hand_over(records).await;
                left.unwrap_or(Left::Lost(None))
            }
            Ok(_) => Left::Lost(None),
            Err(ReadError::Refused(refusal)) => Left::Refused(refusal),
            Err(_) => Left::Unreadable,
        }
    }

    async fn end(&self, refusal: Refusal) {
        let _gone = self.pages.send(Err(ReadError::Refused(refusal))).await;
    }
}
