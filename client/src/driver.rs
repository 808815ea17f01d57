//! The background task of one opened volume: owns its stream, its unanswered requests, and the way to the next primary.
//!
//! One event at a time: a command of a handle, a reply, or the clock. Nothing is awaited while one is handled. Deadlines are
//! the callers' business: a request whose caller has gone stays queued, because its number must not be left open.

mod ending;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_reply::Body;
use mainstay_proto::v1::client_request;
use mainstay_types::Lsn;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::cluster::{Candidate, Cluster};
use crate::connect::{Opening, Verdict, VolumeStream, connect, redirect, refusal};
use crate::event::ClientEvent;
use crate::forwarding::Forwarding;
use crate::inflight::{Failed, Inflight, Known, Mutation, MutationResult, seq_of_tag};
use crate::room::Permit;
use crate::{Committed, Outcome, Refusal};

/// Commands taken in before replies are looked at again.
const COMMANDS_AT_ONCE: usize = 256;

/// What a handle asks of its driver.
#[derive(Debug)]
pub(crate) enum Command {
    Mutate {
        seq: u64,
        mutation: Mutation,
        permit: Permit,
        reply: oneshot::Sender<MutationResult>,
    },
    Query {
        body: client_request::Body,
        permit: Option<Permit>,
        reply: oneshot::Sender<Result<Body, Refusal>>,
    },
    /// What this session knows of a mutation; see `OutcomeAnswer`.
    Outcome {
        seq: u64,
        reply: oneshot::Sender<OutcomeAnswer>,
    },
    /// The session is given up; `waited` bounds its end if the handle is gone before.
    Close {
        waited: Duration,
        reply: oneshot::Sender<Result<Body, Refusal>>,
    },
    /// Nothing more is to be sent; `waited` bounds the end of the session.
    Abandon { waited: Duration },
}

/// What the driver says about one mutation.
#[derive(Debug)]
pub(crate) enum OutcomeAnswer {
    /// Settled.
    Is(Outcome),
    /// On its way: this receiver hears its result.
    Waiting(oneshot::Receiver<MutationResult>),
    /// Only the cluster can say.
    AskCluster,
}

/// A request without effect; sent again on every new stream until it is answered or its caller has gone.
#[derive(Debug)]
struct Query {
    body: client_request::Body,
    reply: oneshot::Sender<Result<Body, Refusal>>,
    sent: Option<Instant>,
    _permit: Option<Permit>,
}

/// Why a stream is left.
enum Exit {
    /// Look for the primary, there first.
    Lost {
        reason: String,
        hint: Option<Candidate>,
    },
    /// The session is over.
    Over(Refusal),
    /// No handle is left.
    Abandoned,
    /// The session was closed on request.
    Closed,
}

/// The state behind all handles of one opened volume.
#[derive(Debug)]
pub(crate) struct Driver {
    cluster: Arc<Cluster>,
    opening: Opening,
    commands: mpsc::UnboundedReceiver<Command>,
    inflight: Inflight,
    queries: BTreeMap<u64, Query>,
    next_query: u64,
    /// When something was last heard of a primary.
    last_reply: Instant,
    /// Callers of `close`. While there are any, the handle takes no more mutations; see `maybe_close`.
    closers: Vec<oneshot::Sender<Result<Body, Refusal>>>,
    close_tag: Option<u64>,
    /// Whether `close` was ever called, and how long that may take.
    close_within: Option<Duration>,
    /// Of a handle that forwards, with the age beyond which it sends no mutation.
    forwarding: Option<(Forwarding, Duration)>,
    /// Since when nothing more is sent, and how long the end of the session may take.
    abandoned: Option<(Instant, Duration)>,
    /// Why the session is over.
    over: watch::Sender<Option<Refusal>>,
}

impl Driver {
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        opening: Opening,
        commands: mpsc::UnboundedReceiver<Command>,
        over: watch::Sender<Option<Refusal>>,
    ) -> Self {
        Self {
            cluster,
            opening,
            commands,
            inflight: Inflight::new(),
            queries: BTreeMap::new(),
            next_query: 1,
            last_reply: Instant::now(),
            closers: Vec::new(),
            close_tag: None,
            close_within: None,
            forwarding: None,
            abandoned: None,
            over,
        }
    }

    /// For somebody who may send the same requests elsewhere.
    pub(crate) fn forwarding(mut self, forwarding: Forwarding, age_max: Duration) -> Self {
        self.forwarding = Some((forwarding, age_max));
        self
    }

    /// Serves until the last handle is gone, or the session is over and the last handle is gone.
    pub(crate) async fn run(mut self, mut stream: VolumeStream) {
        self.publish(|volume| ClientEvent::Opened {
            volume,
            node: stream.node,
            epoch: stream.epoch,
        });
        let over = loop {
            match self.serve(&mut stream).await {
                Exit::Abandoned => return self.let_go(),
                Exit::Closed => break Refusal::Closed,
                Exit::Over(refusal) => break refusal,
                Exit::Lost { .. } if self.abandoned.is_some() => break Refusal::Closed,
                Exit::Lost { reason, hint } => match self.reconnect(&stream, reason, hint).await {
                    Some(Ok(next)) => stream = next,
                    Some(Err(refusal)) => break refusal,
                    None => return self.let_go(),
                },
            }
        };
        drop(stream);
        let letting_go = self.abandoned.map(|(_, waited)| self.let_go_within(waited));
        self.give_up(&over).await;
        self.refuse_all(over, letting_go).await;
    }

    async fn serve(&mut self, stream: &mut VolumeStream) -> Exit {
        let cluster = Arc::clone(&self.cluster);
        let volume = self.opening.volume.clone();
        let epoch = stream.epoch;
        let stall = cluster.config.stall_check;
        let mut tick = tokio::time::interval(self.look_every());
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let search = cluster.newer_than(&volume, epoch, stall / 3);
        tokio::pin!(search);
        let mut stalled = false;
        loop {
            let exit = tokio::select! {
                reply = stream.replies.message() => match reply {
                    Ok(Some(reply)) => {
                        let exit = self.handle_reply(reply, stream);
                        self.maybe_close(stream);
                        exit.or_else(|| self.given_up())
                    }
                    Ok(None) => Some(lost("the server ended the stream")),
                    Err(status) => Some(lost(status.message())),
                },
                command = self.commands.recv() => match command {
                    Some(command) => self.handle_commands(command, stream),
                    None => Some(Exit::Abandoned),
                },
                _ = tick.tick() => {
                    stalled = self.oldest_sent().is_some_and(|sent| sent.elapsed() >= stall);
                    self.given_up().or_else(|| self.too_old()).or_else(|| self.silent())
                }
                newer = &mut search, if stalled => {
                    Some(Exit::Lost { reason: format!("epoch {} began", newer.epoch), hint: Some(newer) })
                }
            };
            if let Some(exit) = exit {
                return exit;
            }
        }
    }

    /// Finds the next primary while commands go on queueing, and sends it everything unanswered. `None`: no handle is left.
    async fn reconnect(
        &mut self,
        before: &VolumeStream,
        reason: String,
        hint: Option<Candidate>,
    ) -> Option<Result<VolumeStream, Refusal>> {
        let waiting = self.inflight.unanswered() + self.queries.len();
        let gap_from = self
            .oldest_sent()
            .map_or(self.last_reply, |sent| sent.max(self.last_reply));
        self.publish(|volume| ClientEvent::ConnectionLost {
            volume,
            node: before.node,
            reason,
            waiting,
        });
        if hint.is_none() {
            self.cluster.forget_channel(&before.address);
        }
        self.opening.first_unanswered = self.inflight.first_unanswered();
        self.opening.create = !self.opening.read_only && !self.inflight.any_sent();
        let search = connect(
            Arc::clone(&self.cluster),
            self.opening.clone(),
            hint,
            |reason| {
                tracing::debug!(reason, "no primary yet");
            },
        );
        tokio::pin!(search);
        let mut tick = tokio::time::interval(self.look_every());
        let found = loop {
            tokio::select! {
                found = &mut search => break found,
                _ = tick.tick() => {
                    if let Some(Exit::Over(refusal)) = self.too_old() {
                        return Some(Err(refusal));
                    }
                }
                command = self.commands.recv() => {
                    if let Some(Exit::Over(refusal)) = self.handle_command(command?, None) {
                        return Some(Err(refusal));
                    }
                }
            }
        };
        let found = found.map(|(opening, stream)| {
            self.opening = opening;
            stream
        });
        // Looked at once more: the search may be over because this process stood still.
        if let Some(Exit::Over(refusal)) = self.too_old() {
            return Some(Err(refusal));
        }
        Some(found.inspect(|stream| self.resume(before, stream, gap_from)))
    }

    fn resume(&mut self, before: &VolumeStream, stream: &VolumeStream, gap_from: Instant) {
        let now = Instant::now();
        let mut replayed = 0;
        for request in self.inflight.send_all(now) {
            replayed += 1;
            send(stream, request);
        }
        let close_tag = self.close_tag;
        self.queries
            .retain(|tag, query| Some(*tag) == close_tag || !query.reply.is_closed());
        for (tag, query) in &mut self.queries {
            query.sent = Some(now);
            send(stream, query_request(*tag, &query.body));
        }
        self.maybe_close(stream);
        self.last_reply = now;
        if before.node != stream.node {
            self.publish(|volume| ClientEvent::PrimaryChanged {
                volume,
                from: before.node,
                to: stream.node,
                epoch: stream.epoch,
            });
        }
        self.publish(|volume| ClientEvent::Resumed {
            volume,
            node: stream.node,
            epoch: stream.epoch,
            gap: now - gap_from,
            replayed,
        });
    }

    /// Takes in `first` and what was queued behind it meanwhile: what is sent together travels together.
    fn handle_commands(&mut self, first: Command, stream: &VolumeStream) -> Option<Exit> {
        if let Some(exit) = self.too_old() {
            // Taken in all the same: it is answered with the rest.
            let _never = self.handle_command(first, None);
            return Some(exit);
        }
        let mut exit = self.handle_command(first, Some(stream));
        for _ in 1..COMMANDS_AT_ONCE {
            if exit.is_some() {
                break;
            }
            let Ok(command) = self.commands.try_recv() else {
                break;
            };
            exit = self.handle_command(command, Some(stream));
        }
        self.send_mutations(stream);
        self.maybe_close(stream);
        exit
    }

    fn send_mutations(&mut self, stream: &VolumeStream) {
        if self.abandoned.is_some() {
            return;
        }
        for request in self.inflight.send_new(Instant::now()) {
            send(stream, request);
        }
    }

    /// Takes a command in. A question is sent if there is a stream, behind the mutations that came before it.
    fn handle_command(&mut self, command: Command, stream: Option<&VolumeStream>) -> Option<Exit> {
        match command {
            Command::Mutate {
                seq,
                mutation,
                permit,
                reply,
            } => {
                if self.closers.is_empty() && self.abandoned.is_none() {
                    // Sent by `send_mutations`, with what else is queued.
                    self.inflight.push(seq, mutation, permit, reply);
                } else {
                    let _gone = reply.send(Err(Failed::Refused(Refusal::Closed)));
                }
            }
            Command::Query {
                body,
                permit,
                reply,
            } => {
                self.query(body, permit, reply, stream);
            }
            Command::Outcome { seq, reply } => {
                let (waiter, result) = oneshot::channel();
                let answer = match self.inflight.outcome(seq, waiter) {
                    Known::Waiting => OutcomeAnswer::Waiting(result),
                    Known::Settled(outcome) => OutcomeAnswer::Is(outcome),
                    Known::Unknown => OutcomeAnswer::AskCluster,
                };
                let _gone = reply.send(answer);
            }
            Command::Close { waited, reply } => {
                self.close_within = Some(waited);
                self.closers.push(reply);
            }
            Command::Abandon { waited } => {
                self.abandoned
                    .get_or_insert_with(|| (Instant::now(), waited));
                // Without a stream there is nobody who would still answer.
                return match stream {
                    Some(_) => self.given_up(),
                    None => Some(Exit::Over(Refusal::Closed)),
                };
            }
        }
        None
    }

    /// Ends the session once every mutation has its answer. Not earlier: if the stream breaks behind a `Close` that was carried out, the
    /// session is gone, and with it the results that were not heard.
    fn maybe_close(&mut self, stream: &VolumeStream) {
        if self.closers.is_empty() || self.close_tag.is_some() || self.inflight.unanswered() > 0 {
            return;
        }
        let body = client_request::Body::Close(pb::Close {});
        let (reply, _told_by_answered) = oneshot::channel();
        self.close_tag = Some(self.query(body, None, reply, Some(stream)));
    }

    fn query(
        &mut self,
        body: client_request::Body,
        permit: Option<Permit>,
        reply: oneshot::Sender<Result<Body, Refusal>>,
        stream: Option<&VolumeStream>,
    ) -> u64 {
        let tag = self.next_query << 1;
        self.next_query += 1;
        if let Some(stream) = stream {
            self.send_mutations(stream);
        }
        let sent = stream.map(|stream| {
            send(stream, query_request(tag, &body));
            Instant::now()
        });
        let query = Query {
            body,
            reply,
            sent,
            _permit: permit,
        };
        self.queries.insert(tag, query);
        tag
    }

    fn handle_reply(&mut self, reply: pb::ClientReply, stream: &VolumeStream) -> Option<Exit> {
        self.last_reply = Instant::now();
        let Some(body) = reply.body else {
            return Some(lost("a reply of an unknown kind"));
        };
        match body {
            Body::NotPrimary(not) => Some(Exit::Lost {
                reason: "no longer the primary".to_owned(),
                hint: redirect(&not),
            }),
            Body::Ping(ping) => {
                let pong = pb::Pong {
                    number: ping.number,
                };
                send(stream, query_request(0, &client_request::Body::Pong(pong)));
                None
            }
            Body::CommittedBatch(batch) => {
                for result in batch.results {
                    let committed = committed_at(result.lsn, result.count, result.timestamp_us);
                    self.committed(result.tag, committed);
                }
                None
            }
            Body::Committed(result) => {
                let committed = committed_at(result.lsn, result.count, result.timestamp_us);
                self.committed(reply.tag, committed);
                None
            }
            Body::Refused(refused) => match refusal(refused) {
                // Its numbers have gone on without the queue: it takes no more mutations all the same.
                Verdict::Refused(refusal) if self.close_tag == Some(reply.tag) => {
                    Some(Exit::Over(refusal))
                }
                Verdict::Refused(refusal) => {
                    self.refused(reply.tag, refusal);
                    None
                }
                Verdict::SessionOver(refusal) => Some(Exit::Over(refusal)),
                Verdict::GoElsewhere => Some(lost("the node shuts down")),
            },
            other => self.answered(reply.tag, other),
        }
    }

    fn committed(&mut self, tag: u64, committed: Committed) {
        let known = seq_of_tag(tag).is_some_and(|seq| self.inflight.complete(seq, Ok(committed)));
        if !known {
            tracing::debug!(tag, "commit of a request that does not wait");
        }
    }

    fn refused(&mut self, tag: u64, refusal: Refusal) {
        if let Some(seq) = seq_of_tag(tag) {
            self.inflight.complete(
                seq,
                Err(match refusal {
                    // It may have been committed: that must not be told as a refusal.
                    Refusal::ResultForgotten => Failed::Unknown(refusal),
                    refusal => Failed::Refused(refusal),
                }),
            );
        } else if let Some(query) = self.queries.remove(&tag) {
            let _gone = query.reply.send(Err(refusal));
        }
    }

    fn answered(&mut self, tag: u64, body: Body) -> Option<Exit> {
        let closed = self.close_tag == Some(tag);
        if closed {
            for closer in self.closers.drain(..) {
                let _gone = closer.send(Ok(body.clone()));
            }
        }
        if let Some(query) = self.queries.remove(&tag) {
            let _gone = query.reply.send(Ok(body));
        }
        closed.then_some(Exit::Closed)
    }

    /// When the oldest request without an answer was sent.
    fn oldest_sent(&self) -> Option<Instant> {
        let mutation = self.inflight.oldest_sent();
        // Tags rise, so the first query is the oldest.
        let query = self
            .queries
            .first_key_value()
            .and_then(|(_, query)| query.sent);
        match (mutation, query) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// How often to look at the clock.
    fn look_every(&self) -> Duration {
        let stall = self.cluster.config.stall_check / 3;
        let every = match &self.forwarding {
            Some((forwarding, _)) => stall.min(forwarding.look_every()),
            None => stall,
        };
        every.max(Duration::from_millis(1))
    }

    fn publish(&self, event: impl FnOnce(String) -> ClientEvent) {
        self.cluster.publish(event(self.opening.volume.clone()));
    }
}

/// Where and when, as the wire says it: only batches count.
pub(crate) fn committed_at(lsn: u64, count: u32, timestamp_us: u64) -> Committed {
    Committed {
        lsn: Lsn(lsn),
        count: count.max(1),
        timestamp_us,
    }
}

fn lost(reason: &str) -> Exit {
    Exit::Lost {
        reason: reason.to_owned(),
        hint: None,
    }
}

fn query_request(tag: u64, body: &client_request::Body) -> pb::ClientRequest {
    pb::ClientRequest {
        tag,
        body: Some(body.clone()),
    }
}

/// A stream that takes no more requests reports its end as a reply: nothing is lost by ignoring it here.
fn send(stream: &VolumeStream, request: pb::ClientRequest) {
    let _ended = stream.requests.send(request);
}
