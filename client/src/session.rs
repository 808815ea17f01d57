//! What log and block handles share: the way to the driver, the numbering of mutations, deadlines.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_reply::Body;
use mainstay_proto::v1::client_request;
use mainstay_types::{Epoch, Lineage, Lsn, SessionId};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::cluster::{Backoff, Cluster};
use crate::connect::{Opening, VolumeStream, connect, lineage_of};
use crate::driver::{Command, Driver, OutcomeAnswer, committed_at};
use crate::forwarding::Forwarding;
use crate::inflight::{Failed, Mutation, MutationResult};
use crate::room::{Permit, Room};
use crate::{
    AttachOptions, Committed, OpId, OpenError, Outcome, OutcomeError, ReadError, Refusal,
    UnknownCause, volume_name,
};

/// The generation with which a session is settled from outside. Its writer may live: it counts a generation for each attempt, also for
/// those that reach nobody, so that its next one may be above any that the server would choose. It never gets as far as this.
const SETTLING_GENERATION: u64 = 1 << 31;

/// One opened session. Its driver ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) volume: String,
    pub(crate) opened: pb::Opened,
    pub(crate) deadline: Duration,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) room: Room,
    silence: Option<Duration>,
    /// Why the session is over, once it is.
    ended: watch::Receiver<Option<Refusal>>,
    commands: mpsc::UnboundedSender<Command>,
    /// Next number; the lock is held while the command is queued, so that both orders are one.
    next_seq: Mutex<u64>,
}

/// A mutation on its way.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) op: OpId,
    pub(crate) result: oneshot::Receiver<MutationResult>,
    pub(crate) deadline: Instant,
    pub(crate) waited: Duration,
}

/// How waiting for a mutation ended.
pub(crate) enum Ended {
    Refused(Refusal),
    Unknown(UnknownCause),
}

impl Sent {
    /// Waits for the result, until the deadline.
    pub(crate) async fn wait(self) -> Result<Committed, Ended> {
        match tokio::time::timeout_at(self.deadline, self.result).await {
            Ok(Ok(Ok(committed))) => Ok(committed),
            Ok(Ok(Err(Failed::Refused(refusal)))) => Err(Ended::Refused(refusal)),
            Ok(Ok(Err(Failed::Unknown(Refusal::ResultForgotten)))) => {
                Err(Ended::Unknown(UnknownCause::Forgotten))
            }
            Ok(Ok(Err(Failed::Unknown(refusal)))) => {
                Err(Ended::Unknown(UnknownCause::SessionEnded(refusal)))
            }
            Ok(Err(_)) => Err(Ended::Unknown(UnknownCause::Closed)),
            Err(_) => Err(Ended::Unknown(UnknownCause::Deadline {
                waited: self.waited,
            })),
        }
    }
}

/// How a session shall be opened.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) volume: String,
    pub(crate) attachment: Option<AttachOptions>,
    pub(crate) read_only: bool,
    pub(crate) deadline: Duration,
    /// Of a handle that forwards.
    pub(crate) silence: Option<Duration>,
    /// Of the writer of a log; zero for none.
    pub(crate) token: u64,
}

impl Session {
    pub(crate) async fn open(cluster: Arc<Cluster>, wanted: Wanted) -> Result<Self, OpenError> {
        volume_name(&wanted.volume)?;
        let opening = if wanted.read_only {
            Opening::reader(wanted.volume.clone())
        } else {
            Opening {
                volume: wanted.volume.clone(),
                // Zero means "no session".
                session: SessionId(StdRng::from_os_rng().random_range(1..=u64::MAX)),
                generation: Some(0),
                attachment: wanted.attachment,
                read_only: false,
                first_unanswered: 1,
                create: true,
                epoch_floor: Epoch::ZERO,
                lineage: None,
                silence_ms: wanted.silence.map_or(0, silence_ms),
                token: wanted.token,
                any_copy: false,
                apart: false,
            }
        };
        let waited = cluster.config.open_deadline;
        let (opening, stream) = match open_within(&cluster, opening.clone(), waited).await {
            Ok(found) => found,
            Err(error) => {
                if matches!(error, OpenError::NoPrimary { .. }) && opening.attachment.is_some() {
                    // An attempt without an answer may have attached it, or do so yet.
                    tokio::spawn(let_go(cluster, opening, wanted.deadline));
                }
                return Err(error);
            }
        };
        // Not before: nobody looks at the clock during the search, and nothing can be held for anybody before there is a handle.
        let silence = wanted.silence.filter(|_| !wanted.read_only);
        let forwarding = silence.map(Forwarding::new);
        let (commands, received) = mpsc::unbounded_channel();
        let (over, ended) = watch::channel(None);
        let session = Self {
            id: opening.session,
            volume: wanted.volume,
            opened: stream.opened,
            deadline: wanted.deadline,
            room: Room::new(
                cluster.config.in_flight_requests_max,
                cluster.config.in_flight_bytes_max,
            ),
            cluster: Arc::clone(&cluster),
            silence,
            commands,
            ended,
            next_seq: Mutex::new(1),
        };
        let mut driver = Driver::new(cluster, opening, received, over);
        if let Some(forwarding) = forwarding {
            driver = driver.forwarding(forwarding, wanted.deadline);
        }
        tokio::spawn(driver.run(stream));
        Ok(session)
    }

    /// How long a caller waits for a mutation. The driver of a handle that forwards says itself when it gave up, so its callers wait
    /// for that.
    pub(crate) fn patience(&self) -> Duration {
        let silences = self
            .silence
            .map_or(Duration::ZERO, |silence| silence.saturating_mul(2));
        self.deadline.saturating_add(silences)
    }

    /// The history that this session is of, if its primary told.
    pub(crate) fn lineage(&self) -> Option<Lineage> {
        lineage_of(&self.opened)
    }

    /// Resolves when the volume turns out to have another history; never, if the session ends otherwise.
    pub(crate) async fn replaced(&self) -> Refusal {
        match self.ended().await {
            refusal @ Refusal::HistoryReplaced { .. } => refusal,
            _ => std::future::pending().await,
        }
    }

    pub(crate) async fn ended(&self) -> Refusal {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(refusal) => refusal.clone().unwrap_or(Refusal::Closed),
            // The driver has gone without a word, with the runtime.
            Err(_) => Refusal::Closed,
        }
    }

    /// Queues a mutation behind all queued before. It is on its way when this returns.
    pub(crate) fn submit(&self, mutation: Mutation, permit: Permit, deadline: Instant) -> Sent {
        let (reply, result) = oneshot::channel();
        let mut next = self.next_seq.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = *next;
        *next += 1;
        let command = Command::Mutate {
            seq,
            mutation,
            permit,
            reply,
        };
        // Without a driver the reply is dropped with the command, and the caller hears "unknown".
        let _queued = self.commands.send(command);
        drop(next);
        Sent {
            op: self.op(seq),
            result,
            deadline,
            waited: self.patience(),
        }
    }

    pub(crate) fn op(&self, seq: u64) -> OpId {
        OpId {
            session: self.id,
            seq,
        }
    }

    /// Asks something without effect; asked again on every new primary until the deadline.
    pub(crate) async fn query(&self, body: client_request::Body) -> Result<Body, ReadError> {
        let waited = self.deadline;
        let answer = async {
            let permit = self.room.acquire(0).await;
            let (reply, answer) = oneshot::channel();
            let command = Command::Query {
                body,
                permit: Some(permit),
                reply,
            };
            let _queued = self.commands.send(command);
            answer.await
        };
        match tokio::time::timeout(waited, answer).await {
            Ok(Ok(answer)) => answer.map_err(ReadError::Refused),
            Ok(Err(_)) => Err(ReadError::Refused(Refusal::Closed)),
            Err(_) => Err(ReadError::Deadline { waited }),
        }
    }

    pub(crate) async fn flush(&self) -> Result<Lsn, ReadError> {
        match self
            .query(client_request::Body::Flush(pb::Flush {}))
            .await?
        {
            Body::Flushed(flushed) => Ok(Lsn(flushed.commit)),
            _ => Err(ReadError::Misfit),
        }
    }

    pub(crate) async fn close(&self) -> Result<(), ReadError> {
        if self.id == SessionId(0) {
            // Opened for reading: there is no session to end, and a primary answers no request to end one.
            return Ok(());
        }
        let waited = self.deadline;
        let (reply, answer) = oneshot::channel();
        let _queued = self.commands.send(Command::Close { waited, reply });
        match tokio::time::timeout(waited, answer).await {
            Ok(Ok(Ok(Body::Closed(_))) | Err(_)) => Ok(()),
            Ok(Ok(Ok(_))) => Err(ReadError::Misfit),
            Ok(Ok(Err(refusal))) => Err(ReadError::Refused(refusal)),
            Err(_) => Err(ReadError::Deadline { waited }),
        }
    }

    pub(crate) fn abandon(&self) {
        let waited = self.deadline;
        let _queued = self.commands.send(Command::Abandon { waited });
    }

    pub(crate) async fn outcome(&self, op: OpId) -> Result<Outcome, OutcomeError> {
        if op.session != self.id {
            return Err(OutcomeError::OtherSession { op });
        }
        let waited = self.deadline;
        tokio::time::timeout(waited, self.settle(op.seq))
            .await
            .unwrap_or(Err(OutcomeError::Deadline { waited }))
    }

    async fn settle(&self, seq: u64) -> Result<Outcome, OutcomeError> {
        let (reply, answer) = oneshot::channel();
        let _queued = self.commands.send(Command::Outcome { seq, reply });
        match answer.await {
            Ok(OutcomeAnswer::Is(outcome)) => return Ok(outcome),
            Ok(OutcomeAnswer::Waiting(result)) => match result.await {
                Ok(Ok(committed)) => return Ok(Outcome::Committed(committed)),
                Ok(Err(Failed::Refused(_))) => return Ok(Outcome::Never),
                Ok(Err(Failed::Unknown(Refusal::ResultForgotten))) => {
                    return Ok(Outcome::Forgotten);
                }
                Ok(Err(Failed::Unknown(refusal))) => return Err(OutcomeError::Refused(refusal)),
                Err(_) => return Err(OutcomeError::Refused(Refusal::Closed)),
            },
            Ok(OutcomeAnswer::AskCluster) => {}
            Err(_) => return Err(OutcomeError::Refused(Refusal::Closed)),
        }
        let given_out = *self.next_seq.lock().unwrap_or_else(PoisonError::into_inner);
        if seq == 0 || seq >= given_out {
            return Ok(Outcome::Never);
        }
        let mut pause = Backoff::new(&self.cluster.config);
        loop {
            let request = client_request::Body::Outcome(pb::Outcome { seq });
            match self.query(request).await {
                Ok(Body::Outcome(is)) => match decided(is) {
                    Some(outcome) => return Ok(outcome),
                    None => pause.wait().await,
                },
                Ok(_) => return Err(OutcomeError::Refused(misfit())),
                Err(ReadError::Refused(refusal)) => return Err(OutcomeError::Refused(refusal)),
                Err(ReadError::Deadline { waited }) => {
                    return Err(OutcomeError::Deadline { waited });
                }
                Err(ReadError::Misfit) => return Err(OutcomeError::Refused(misfit())),
            }
        }
    }
}

/// Settles a mutation of a session without a handle; see [`crate::Client::outcome`].
pub(crate) async fn settle(
    cluster: Arc<Cluster>,
    volume: String,
    op: OpId,
    deadline: Duration,
) -> Result<Outcome, OutcomeError> {
    volume_name(&volume)?;
    let mut opening = Opening {
        session: op.session,
        // An attempt raises it first.
        generation: Some(SETTLING_GENERATION - 1),
        read_only: false,
        first_unanswered: op.seq.max(1),
        ..Opening::reader(volume)
    };
    let search = async {
        let mut pause = Backoff::new(&cluster.config);
        loop {
            match open_within(&cluster, opening.clone(), deadline).await {
                Ok((opened, mut stream)) => {
                    if let Some(outcome) = ask_outcome(&mut stream, op.seq).await? {
                        return Ok(outcome);
                    }
                    opening = opened;
                }
                // It was settled before.
                Err(OpenError::Refused(Refusal::Fenced { current })) => {
                    opening.generation = opening.generation.max(Some(current));
                }
                Err(error) => return Err(error.into()),
            }
            pause.wait().await;
        }
    };
    tokio::time::timeout(deadline, search)
        .await
        .unwrap_or(Err(OutcomeError::Deadline { waited: deadline }))
}

/// `None`: not settled, or the stream was lost.
async fn ask_outcome(stream: &mut VolumeStream, seq: u64) -> Result<Option<Outcome>, OutcomeError> {
    let request = pb::ClientRequest {
        tag: 2,
        body: Some(client_request::Body::Outcome(pb::Outcome { seq })),
    };
    let _ended = stream.requests.send(request);
    let Ok(Some(reply)) = stream.replies.message().await else {
        return Ok(None);
    };
    match reply.body {
        Some(Body::Outcome(is)) => Ok(decided(is)),
        Some(Body::Refused(refused)) => match crate::connect::refusal(refused) {
            crate::connect::Verdict::Refused(refusal)
            | crate::connect::Verdict::SessionOver(refusal) => Err(OutcomeError::Refused(refusal)),
            crate::connect::Verdict::GoElsewhere => Ok(None),
        },
        _ => Ok(None),
    }
}

/// The end of a wait; that of an endless one is far off.
pub(crate) fn deadline_after(waited: Duration) -> Instant {
    const FAR_OFF: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    let now = Instant::now();
    now.checked_add(waited.min(FAR_OFF)).unwrap_or(now)
}

fn silence_ms(silence: Duration) -> u32 {
    u32::try_from(silence.as_millis()).unwrap_or(u32::MAX)
}

/// Ends a session that has no handle, or none that does anything, so that it does not hold the volume for ever. Nothing else of it is
/// sent.
pub(crate) async fn let_go(cluster: Arc<Cluster>, mut opening: Opening, waited: Duration) {
    if let Some(attachment) = &mut opening.attachment {
        attachment.takeover = false;
    }
    let opening = Opening {
        create: false,
        // Above whatever the last search reached.
        generation: None,
        // A hold that outlived a forced promotion is to be let go, too.
        lineage: None,
        ..opening
    };
    let closing = async {
        loop {
            let Ok((_, mut stream)) = open_within(&cluster, opening.clone(), waited).await else {
                return;
            };
            let close = pb::ClientRequest {
                tag: 2,
                body: Some(client_request::Body::Close(pb::Close {})),
            };
            let _ended = stream.requests.send(close);
            while let Ok(Some(reply)) = stream.replies.message().await {
                if matches!(reply.body, Some(Body::Closed(_) | Body::Refused(_))) {
                    return;
                }
            }
        }
    };
    if tokio::time::timeout(waited, closing).await.is_err() {
        tracing::warn!(
            volume = opening.volume,
            "a session that is over still holds the volume"
        );
    }
}

async fn open_within(
    cluster: &Arc<Cluster>,
    opening: Opening,
    waited: Duration,
) -> Result<(Opening, VolumeStream), OpenError> {
    let last = Mutex::new("no node answered".to_owned());
    let note = |reason| *last.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    let found =
        tokio::time::timeout(waited, connect(Arc::clone(cluster), opening, None, note)).await;
    match found {
        Ok(opened) => opened.map_err(OpenError::Refused),
        Err(_) => Err(OpenError::NoPrimary {
            waited,
            last: last.into_inner().unwrap_or_else(PoisonError::into_inner),
        }),
    }
}

fn decided(is: pb::OutcomeIs) -> Option<Outcome> {
    use pb::outcome_is::Outcome as Is;
    match is.outcome? {
        Is::Committed(m) => Some(Outcome::Committed(committed_at(
            m.lsn,
            m.count,
            m.timestamp_us,
        ))),
        Is::Never(_) => Some(Outcome::Never),
        Is::Forgotten(_) => Some(Outcome::Forgotten),
        Is::Pending(_) => None,
    }
}

fn misfit() -> Refusal {
    Refusal::BadRequest {
        message: "the server's answer does not fit the question".to_owned(),
    }
}
