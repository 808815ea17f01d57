//! The server's end of client streams: requests to the volume's task, answers back. One task a stream.

mod open;
mod tail;
mod under_way;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use mainstay_client::{LocalNode, LocalReplies, LocalRequests};
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_reply::Body as Reply;
use mainstay_proto::v1::client_request::Body;
use mainstay_storage::EntryKind;
use mainstay_types::{Lsn, VolumeKind};
use mainstay_volume::{ClientOp, ConnId, Event, OpResult};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::client_ops::{mutation_op, payload, read_op, tree_op};
use super::committed_reads::{ReadHere, committed_read};
use super::handle::{ConnAnswer, ConnReply, ToVolume, VolumeHandle};
use super::silence::Silence;
use super::{Node, client_replies as replies, clock};
use tail::Tail;
use under_way::UnderWay;

/// Requests that have arrived together are handed on together, up to this many...
const REQUESTS_AT_ONCE: usize = 512;

/// ...and about this many bytes: the volume may begin with the first while more arrive.
const REQUEST_BYTES_AT_ONCE: u64 = 256 << 10;

/// Records of one `AppendBatch`.
const RECORDS_AT_ONCE_MAX: usize = 1024;

/// Extents of one answer.
const EXTENTS: usize = 4096;

/// Reads from this copy of one stream under way.
const READS_HERE_MAX: usize = 256;

/// Tails of one stream. A client that wants more opens another.
const TAILS_MAX: usize = 256;

/// Serves `Client.Volume`.
#[derive(Debug, Clone)]
pub struct ClientService(pub Arc<Node>);

type ReplyStream = ReceiverStream<Result<pb::ClientReply, Status>>;

#[tonic::async_trait]
impl pb::client_server::Client for ClientService {
    type VolumeStream = ReplyStream;

    async fn volume(
        &self,
        request: Request<Streaming<pb::ClientRequest>>,
    ) -> Result<Response<ReplyStream>, Status> {
        let replies = self.begin(Requests::Wire(Box::new(request.into_inner())));
        Ok(Response::new(ReceiverStream::new(replies)))
    }
}

impl LocalNode for ClientService {
    fn volume(&self, requests: LocalRequests) -> LocalReplies {
        self.begin(Requests::Local(requests))
    }
}

impl ClientService {
    /// Serves one stream, in a task that ends with it.
    fn begin(&self, requests: Requests) -> LocalReplies {
        let (sender, receiver) = mpsc::channel(16);
        let node = self.0.clone();
        tokio::spawn(async move {
            let mut stream = Stream {
                node,
                requests,
                out: sender.clone(),
            };
            if let Err(status) = stream.serve().await {
                let _gone = sender.send(Err(status)).await;
            }
        });
        receiver
    }
}

/// The client's end of a stream, wherever the client is.
enum Requests {
    Wire(Box<Streaming<pb::ClientRequest>>),
    Local(LocalRequests),
}

impl Requests {
    /// The next request; `None` at the end of the stream. Cancelling it loses none.
    async fn message(&mut self) -> Result<Option<pb::ClientRequest>, Status> {
        match self {
            Self::Wire(stream) => stream.message().await,
            Self::Local(requests) => Ok(requests.recv().await),
        }
    }
}

struct Stream {
    node: Arc<Node>,
    requests: Requests,
    out: mpsc::Sender<Result<pb::ClientReply, Status>>,
}

/// What an opened stream knows.
struct Opened {
    handle: VolumeHandle,
    conn: ConnId,
    answers: mpsc::UnboundedReceiver<Vec<ConnReply>>,
    /// Operations taken from the stream and not yet handed to the volume.
    taken: Vec<(u64, ClientOp)>,
    read_only: bool,
    tails: BTreeMap<u64, tokio::task::JoinHandle<()>>,
    /// Reads of what is committed here, until the copy knows enough. End with the stream.
    late: JoinSet<()>,
    under_way: UnderWay,
    /// Of a forwarder's stream.
    silence: Option<Silence>,
}

impl Opened {
    /// Nothing is taken from a forwarder that was silent for too long. It opens another stream, if it may still forward what it
    /// holds.
    fn check_silence(&self) -> Result<(), Status> {
        match &self.silence {
            Some(silence) if silence.is_over(clock::mono()) => Err(was_silent()),
            _ => Ok(()),
        }
    }

    /// Hands what was taken to the volume, as one message.
    fn hand_over(&mut self) {
        if !self.taken.is_empty() {
            let _stopped = self.handle.to.send(ToVolume::Client {
                conn: self.conn,
                ops: std::mem::take(&mut self.taken),
            });
        }
    }
}

fn gone() -> Status {
    Status::cancelled("the client has gone")
}

fn was_silent() -> Status {
    Status::aborted("nothing was heard on this stream for too long; open another")
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.handle.tell(Event::ConnClosed { conn: self.conn });
        for task in self.tails.values() {
            task.abort();
        }
    }
}

impl Stream {
    async fn serve(&mut self) -> Result<(), Status> {
        let Some(first) = self.requests.message().await? else {
            return Ok(());
        };
        let Some(Body::Open(open)) = first.body else {
            return Err(Status::invalid_argument(
                "the first request of a stream is Open",
            ));
        };
        let Some(mut opened) = self.open(first.tag, open).await? else {
            return Ok(());
        };
        let node = self.node.clone();
        let stopped = node.until_stopped();
        tokio::pin!(stopped);
        let every = opened
            .silence
            .as_ref()
            .map_or(Duration::MAX, Silence::ping_every);
        let mut tick = pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            let full = opened.under_way.is_full(node.settings.client_bytes_max);
            tokio::select! {
                biased;
                () = &mut tick, if opened.silence.is_some() => {
                    if !self.look(&mut opened, full).await? {
                        return Ok(());
                    }
                    self.ping(&mut opened).await?;
                    tick.as_mut().reset(Instant::now() + every);
                }
                replies = opened.answers.recv() => {
                    let Some(replies) = replies else {
                        return Err(Status::unavailable("the volume has stopped on this node"));
                    };
                    if !self.answer(&mut opened, replies).await? {
                        return Ok(());
                    }
                }
                request = self.requests.message(), if !full => {
                    let Some(request) = request? else { return Ok(()) };
                    if !self.take_and_hand_over(&mut opened, request).await? {
                        return Ok(());
                    }
                }
                () = &mut stopped => return Err(Status::unavailable("this node is stopping")),
            }
        }
    }

    /// Ends a stream on which a forwarder was silent. What was not read is no silence of its: this server may have been full, or held up
    /// by replies that leave slowly, with the answers to its pings in the stream all the time.
    ///
    /// This protects nobody, it only frees what such a stream holds: an old mutation is refused by `take_mutation`, which looks at the
    /// answers in front of it, whenever it is taken. So it may come late, and what is still in the stream is taken like anything else.
    async fn look(&mut self, opened: &mut Opened, full: bool) -> Result<bool, Status> {
        let Some(silence) = &mut opened.silence else {
            return Ok(true);
        };
        if full || !silence.is_over(clock::mono()) {
            silence.something_there();
            return Ok(true);
        }
        match self.requests.message().now_or_never() {
            None if silence.nothing_there() => Err(was_silent()),
            None => Ok(true),
            Some(request) => {
                silence.something_there();
                match request? {
                    Some(request) => self.take_and_hand_over(opened, request).await,
                    None => Ok(false),
                }
            }
        }
    }

    /// Asks a forwarder whether it is there.
    async fn ping(&self, opened: &mut Opened) -> Result<(), Status> {
        let Some(silence) = &mut opened.silence else {
            return Ok(());
        };
        let number = silence.ping(clock::mono());
        self.send(0, Reply::Ping(pb::Ping { number })).await
    }

    /// Takes `request` and what has arrived behind it, for the volume. False at the end of the stream.
    async fn take_and_hand_over(
        &mut self,
        opened: &mut Opened,
        request: pb::ClientRequest,
    ) -> Result<bool, Status> {
        let more = self.take_all(opened, request).await;
        opened.hand_over();
        more
    }

    /// Takes `request` and whatever has arrived behind it. False at the end of the stream.
    async fn take_all(
        &mut self,
        opened: &mut Opened,
        request: pb::ClientRequest,
    ) -> Result<bool, Status> {
        let bytes_max = self.node.settings.client_bytes_max;
        let bytes_before = opened.under_way.mutation_bytes();
        self.take(opened, request).await?;
        while opened.taken.len() < REQUESTS_AT_ONCE
            // Fewer than before if a tag is used twice.
            && opened.under_way.mutation_bytes().saturating_sub(bytes_before) < REQUEST_BYTES_AT_ONCE
            && !opened.under_way.is_full(bytes_max)
        {
            // Dropping the future loses nothing: what has arrived stays in the stream.
            match self.requests.message().now_or_never() {
                Some(Ok(Some(request))) => self.take(opened, request).await?,
                Some(Ok(None)) => return Ok(false),
                Some(Err(status)) => return Err(status),
                None => break,
            }
        }
        Ok(true)
    }

    async fn send(&self, tag: u64, body: Reply) -> Result<(), Status> {
        let reply = pb::ClientReply {
            tag,
            body: Some(body),
        };
        self.out.send(Ok(reply)).await.map_err(|_| gone())
    }

    /// Answers what is not for the volume. What was taken before it does not wait for a client that is slow to read: a mutation's age was
    /// looked at when it was taken, and the volume must have it then.
    async fn answer_here(&self, opened: &mut Opened, tag: u64, body: Reply) -> Result<(), Status> {
        let reply = pb::ClientReply {
            tag,
            body: Some(body),
        };
        match self.out.try_send(Ok(reply)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(reply)) => {
                opened.hand_over();
                self.out.send(reply).await.map_err(|_| gone())
            }
            Err(TrySendError::Closed(_)) => Err(gone()),
        }
    }

    async fn take(
        &mut self,
        opened: &mut Opened,
        request: pb::ClientRequest,
    ) -> Result<(), Status> {
        let tag = request.tag;
        let body = request
            .body
            .ok_or_else(|| Status::invalid_argument("a request without a body"))?;
        let op = match body {
            Body::Open(_) => return Err(Status::invalid_argument("a second Open")),
            Body::Tail(tail) => {
                return self.start_tail(opened, tag, Lsn(tail.from_lsn)).await;
            }
            Body::CancelTail(cancel) => {
                if let Some(task) = opened.tails.remove(&cancel.tail_tag) {
                    task.abort();
                }
                return Ok(());
            }
            Body::Flush(_) => {
                // Every write is answered when committed, so a flush only waits for the answers before it.
                opened.under_way.take_flush(tag);
                return self.answer_flushes(opened).await;
            }
            Body::Pong(pong) => {
                if let Some(silence) = &mut opened.silence {
                    silence.pong(pong.number);
                }
                return Ok(());
            }
            Body::Position(position) => match position.committed {
                None => ClientOp::Position,
                Some(known) => {
                    let read = ReadHere::Position;
                    return self.read_here(opened, tag, Lsn(known.at_least), read).await;
                }
            },
            Body::FindTime(find) => {
                let at_ns = find.timestamp_us.saturating_mul(1000);
                let stale_ok = find.committed.is_some();
                let op = ClientOp::Find { at_ns, stale_ok };
                match find.committed {
                    None => op,
                    Some(known) => {
                        let read = ReadHere::Log(op);
                        return self.read_here(opened, tag, Lsn(known.at_least), read).await;
                    }
                }
            }
            Body::Close(_) => ClientOp::Close,
            Body::Read(read) => return self.take_read(opened, tag, &read).await,
            Body::Allocation(range) => {
                if range.len == 0 {
                    let refused = replies::bad_request("a range without bytes");
                    return self.answer_here(opened, tag, refused).await;
                }
                ClientOp::ReadExtents {
                    offset: range.offset,
                    len: range.len,
                    extents_max: (range.max_extents as usize).clamp(1, EXTENTS),
                    // Of a point in another history nothing is known: everything counts as changed.
                    since: range
                        .changed_since
                        .filter(|point| point.lineage == opened.handle.lineage.0)
                        .map(|point| Lsn(point.lsn)),
                }
            }
            Body::ReadLog(read) => {
                let op = read_op(&read);
                match read.committed {
                    None => op,
                    Some(known) => {
                        let read = ReadHere::Log(op);
                        return self.read_here(opened, tag, Lsn(known.at_least), read).await;
                    }
                }
            }
            Body::ReadTree(read) => {
                let op = tree_op(&read);
                match read.committed {
                    None => op,
                    Some(known) => {
                        let read = ReadHere::Log(op);
                        return self.read_here(opened, tag, Lsn(known.at_least), read).await;
                    }
                }
            }
            Body::Outcome(outcome) => ClientOp::Outcome { seq: outcome.seq },
            Body::AppendBatch(batch) => return self.take_batch(opened, tag, batch).await,
            mutation => {
                let made = mutation_op(mutation);
                return self.take_mutation(opened, tag, made).await;
            }
        };
        opened.under_way.take();
        opened.taken.push((tag, op));
        Ok(())
    }

    /// A read is no longer than a write may be, and holds as much memory until it is answered.
    async fn take_read(
        &self,
        opened: &mut Opened,
        tag: u64,
        read: &pb::Read,
    ) -> Result<(), Status> {
        let limit = replies::PAYLOAD_BYTES_MAX;
        if read.len as usize > limit {
            let refused = replies::too_large(limit as u64);
            return self.answer_here(opened, tag, refused).await;
        }
        let (offset, len) = (read.offset, read.len);
        opened.under_way.take_read(tag, u64::from(len));
        opened
            .taken
            .push((tag, ClientOp::ReadBlock { offset, len }));
        Ok(())
    }

    async fn take_batch(
        &mut self,
        opened: &mut Opened,
        first_tag: u64,
        batch: pb::AppendBatch,
    ) -> Result<(), Status> {
        if batch.records.len() > RECORDS_AT_ONCE_MAX {
            return Err(Status::invalid_argument(format!(
                "a batch of {} records: at most {RECORDS_AT_ONCE_MAX}",
                batch.records.len()
            )));
        }
        for (at, record) in (0_u64..).zip(&batch.records) {
            let seq = batch.first_seq.wrapping_add(at);
            let tag = first_tag.wrapping_add(at.wrapping_mul(batch.tag_step));
            let made = payload(EntryKind::Record, seq, 0, None, record);
            self.take_mutation(opened, tag, made).await?;
        }
        Ok(())
    }

    async fn take_mutation(
        &mut self,
        opened: &mut Opened,
        tag: u64,
        made: Result<(ClientOp, u64), Reply>,
    ) -> Result<(), Status> {
        opened.check_silence()?;
        if opened.read_only {
            return self.answer_here(opened, tag, replies::read_only()).await;
        }
        match made {
            Ok((op, bytes)) => {
                opened.under_way.take_mutation(tag, bytes);
                opened.taken.push((tag, op));
                Ok(())
            }
            Err(reply) => self.answer_here(opened, tag, reply).await,
        }
    }

    /// Sends what has been answered; false if that ends the stream.
    async fn answer(
        &mut self,
        opened: &mut Opened,
        replies: Vec<ConnReply>,
    ) -> Result<bool, Status> {
        let mut committed = Vec::new();
        let block = matches!(opened.handle.spec.kind, VolumeKind::Block { .. });
        for ConnReply { token, answer } in replies {
            opened.under_way.answered(token);
            let body = match answer {
                ConnAnswer::Result(OpResult::Committed { lsn, count, arg }) => {
                    let timestamp_us = if block { 0 } else { arg / 1000 };
                    committed.push(pb::CommittedTag {
                        tag: token,
                        lsn: lsn.0,
                        timestamp_us,
                        count: replies::batch_count(count),
                    });
                    continue;
                }
                ConnAnswer::Result(result) => {
                    replies::of_result(&self.node, &opened.handle, result)
                }
                ConnAnswer::Block(result) => replies::of_block(result),
                ConnAnswer::Extents(result) => replies::of_extents(result),
                answer => replies::of_log_read(&self.node, &opened.handle, answer),
            };
            self.send_committed(&mut committed).await?;
            let ends = replies::ends_stream(&body);
            self.send(token, body).await?;
            if ends {
                return Ok(false);
            }
        }
        self.send_committed(&mut committed).await?;
        self.answer_flushes(opened).await?;
        Ok(true)
    }

    async fn answer_flushes(&self, opened: &mut Opened) -> Result<(), Status> {
        while let Some(tag) = opened.under_way.next_flushed() {
            let commit = opened.handle.commit.borrow().0;
            let flushed = Reply::Flushed(pb::Flushed { commit });
            self.answer_here(opened, tag, flushed).await?;
        }
        Ok(())
    }

    async fn send_committed(&self, committed: &mut Vec<pb::CommittedTag>) -> Result<(), Status> {
        match committed.len() {
            0 => Ok(()),
            1 => {
                let one = committed.remove(0);
                let body = pb::Committed {
                    lsn: one.lsn,
                    timestamp_us: one.timestamp_us,
                    count: one.count,
                };
                self.send(one.tag, Reply::Committed(body)).await
            }
            _ => {
                let results = std::mem::take(committed);
                self.send(0, Reply::CommittedBatch(pb::CommittedBatch { results }))
                    .await
            }
        }
    }

    /// Reads from this copy, once it knows the log to be committed up to `at_least`.
    async fn read_here(
        &self,
        opened: &mut Opened,
        tag: u64,
        at_least: Lsn,
        read: ReadHere,
    ) -> Result<(), Status> {
        while opened.late.try_join_next().is_some() {}
        if opened.late.len() >= READS_HERE_MAX {
            let refused = replies::refused(&mainstay_volume::Refusal::Overloaded);
            return self.answer_here(opened, tag, refused).await;
        }
        let (node, handle) = (self.node.clone(), opened.handle.clone());
        let out = self.out.clone();
        opened.late.spawn(async move {
            let body = Some(committed_read(&node, &handle, at_least, read).await);
            let _gone = out.send(Ok(pb::ClientReply { tag, body })).await;
        });
        Ok(())
    }

    async fn start_tail(&self, opened: &mut Opened, tag: u64, from: Lsn) -> Result<(), Status> {
        opened.tails.retain(|_, task| !task.is_finished());
        if opened.tails.contains_key(&tag) {
            return Err(Status::invalid_argument("a second Tail with one tag"));
        }
        if opened.tails.len() >= TAILS_MAX {
            let refused = replies::refused(&mainstay_volume::Refusal::Overloaded);
            return self.answer_here(opened, tag, refused).await;
        }
        let tail = Tail {
            conn: self.node.new_conn(),
            handle: opened.handle.clone(),
            commit: opened.handle.commit.clone(),
            out: self.out.clone(),
            tag,
        };
        opened
            .tails
            .insert(tag, tokio::spawn(tail.run(from.max(Lsn(1)))));
        Ok(())
    }
}
