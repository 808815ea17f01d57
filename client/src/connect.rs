//! From a volume's name to an open stream to its primary.
//!
//! Every attempt to open raises the generation, whether or not an answer came: an attempt whose answer was lost may have
//! raised it at the primary.

use std::sync::Arc;
use std::time::Duration;

use mainstay_proto::MESSAGE_BYTES_MAX;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_client::ClientClient;
use mainstay_proto::v1::client_reply::Body;
use mainstay_proto::v1::client_request;
use mainstay_types::{Epoch, Lineage, Lsn, NodeId, SessionId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::cluster::{Backoff, Candidate, Cluster, Located};
use crate::local::Replies;
use crate::{AttachOptions, Refusal};

/// How long one node may take to open a volume while no newer primary is in sight. It may have to commit its `EpochStart`.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Told to the server, which answers before the client gives up.
const PATIENCE_MS: u32 = 1500;
/// Searches in which every node denies the volume before that is believed: a new volume's register travels for a while. A volume that
/// was open is not given up for that: after as many searches, a node has to ask the witnesses.
const DENIALS_MAX: usize = 8;

/// What to open.
#[derive(Debug, Clone)]
pub(crate) struct Opening {
    pub(crate) volume: String,
    pub(crate) session: SessionId,
    /// Of the last attempt; `None` lets the server choose.
    pub(crate) generation: Option<u64>,
    pub(crate) attachment: Option<AttachOptions>,
    pub(crate) read_only: bool,
    pub(crate) first_unanswered: u64,
    pub(crate) create: bool,
    /// No older epoch is ever followed.
    pub(crate) epoch_floor: Epoch,
    /// The history that the handle began in; `None` before its first stream. No other one is ever followed.
    pub(crate) lineage: Option<Lineage>,
    /// Zero unless the handle forwards.
    pub(crate) silence_ms: u32,
    /// Of the writer of a log; zero for none.
    pub(crate) token: u64,
    /// For reading what is committed, at whatever node.
    pub(crate) any_copy: bool,
    /// On a connection of its own, because nobody knows when its replies are read; see `Cluster::own_channel`.
    pub(crate) apart: bool,
}

impl Opening {
    /// A stream without a session, for reading.
    pub(crate) fn reader(volume: String) -> Self {
        Self {
            volume,
            session: SessionId(0),
            generation: None,
            attachment: None,
            read_only: true,
            first_unanswered: 1,
            create: false,
            epoch_floor: Epoch::ZERO,
            lineage: None,
            silence_ms: 0,
            token: 0,
            any_copy: false,
            apart: false,
        }
    }

    /// A stream whose replies are read when the application comes to it.
    pub(crate) fn tail(volume: String) -> Self {
        Self {
            apart: true,
            ..Self::reader(volume)
        }
    }

    /// A stream for reading what is committed, to whatever node holds a copy.
    pub(crate) fn any_copy(volume: String) -> Self {
        Self {
            any_copy: true,
            ..Self::reader(volume)
        }
    }

    fn request(&self) -> pb::ClientRequest {
        let open = pb::Open {
            volume: self.volume.clone(),
            session: self.session.0,
            generation: self.generation.unwrap_or(0),
            attachment: self.attachment.as_ref().map(|attach| pb::Attachment {
                name: attach.name.clone(),
                takeover: attach.takeover,
            }),
            read_only: self.read_only,
            first_unanswered: self.first_unanswered,
            patience_ms: PATIENCE_MS,
            create: self.create,
            silence_ms: self.silence_ms,
            token: self.token,
            any_copy: self.any_copy,
            lineage: self.lineage.map_or(0, |lineage| lineage.0),
        };
        pb::ClientRequest {
            tag: 0,
            body: Some(client_request::Body::Open(open)),
        }
    }
}

/// An open stream.
#[derive(Debug)]
pub(crate) struct VolumeStream {
    pub(crate) address: String,
    pub(crate) node: NodeId,
    pub(crate) epoch: Epoch,
    pub(crate) opened: pb::Opened,
    pub(crate) requests: mpsc::UnboundedSender<pb::ClientRequest>,
    pub(crate) replies: Replies,
}

/// The history of the copy that opened the volume, if it tells.
pub(crate) fn lineage_of(opened: &pb::Opened) -> Option<Lineage> {
    (opened.lineage != 0).then_some(Lineage(opened.lineage))
}

/// Why one node did not open the volume.
pub(crate) enum Failure {
    Refused(Refusal),
    Elsewhere(Option<Candidate>),
    Lost(String),
}

/// Looks for the primary until it opened the volume or refuses it. `hint` is tried first. Has no deadline of its own; dropping
/// it abandons the search. `last` receives how the latest attempt ended.
pub(crate) async fn connect(
    cluster: Arc<Cluster>,
    mut opening: Opening,
    mut hint: Option<Candidate>,
    last: impl Fn(String),
) -> Result<(Opening, VolumeStream), Refusal> {
    let mut pause = Backoff::new(&cluster.config);
    let mut denials = 0;
    loop {
        let found = match hint.take() {
            Some(candidate) => Located::At(candidate),
            None => cluster.locate(&opening.volume, opening.epoch_floor).await,
        };
        match found {
            Located::At(candidate) => match attempt(&cluster, &mut opening, &candidate).await {
                Ok(stream) => return Ok((opening, stream)),
                Err(Failure::Refused(refusal)) => return Err(refusal),
                Err(Failure::Elsewhere(Some(next))) if next.epoch > candidate.epoch => {
                    last(format!(
                        "{} was primary before {}",
                        candidate.address, next.address
                    ));
                    pause.reset();
                    hint = Some(next);
                    continue;
                }
                // A redirect within one epoch is followed too, but after a pause: two nodes may point at each other.
                Err(Failure::Elsewhere(next)) => {
                    last(format!("{} is not the primary", candidate.address));
                    hint = next.filter(|next| next.address != candidate.address);
                }
                Err(Failure::Lost(reason)) => last(format!("{}: {reason}", candidate.address)),
            },
            Located::Nowhere => last("no node names a primary".to_owned()),
            Located::NoSuchVolume => {
                denials += 1;
                if denials % DENIALS_MAX == 0
                    && (opening.epoch_floor == Epoch::ZERO
                        || is_deleted(&cluster, &opening.volume, denials / DENIALS_MAX).await)
                {
                    return Err(Refusal::NoSuchVolume);
                }
                last("no node knows the volume".to_owned());
            }
        }
        pause.wait().await;
    }
}

/// Whether the witnesses know of no such volume. A node that holds no copy asks them before it refuses to open one; each time another
/// node is asked.
async fn is_deleted(cluster: &Cluster, volume: &str, asked_before: usize) -> bool {
    let opening = Opening::any_copy(volume.to_owned());
    let addresses = cluster.addresses();
    let address = &addresses[asked_before % addresses.len()];
    let opened = open_at(cluster, address, &opening);
    matches!(
        tokio::time::timeout(OPEN_TIMEOUT, opened).await,
        Ok(Err(Failure::Refused(Refusal::NoSuchVolume)))
    )
}

/// Tries one node, and leaves it if a newer primary shows up meanwhile.
async fn attempt(
    cluster: &Cluster,
    opening: &mut Opening,
    candidate: &Candidate,
) -> Result<VolumeStream, Failure> {
    opening.generation = opening
        .generation
        .map(|generation| generation.saturating_add(1));
    let floor = opening.epoch_floor.max(candidate.epoch);
    let newer = async {
        tokio::time::sleep(cluster.config.stall_check).await;
        let every = cluster.config.stall_check / 3;
        cluster.newer_than(&opening.volume, floor, every).await
    };
    let outcome = tokio::select! {
        outcome = tokio::time::timeout(OPEN_TIMEOUT, open_at(cluster, &candidate.address, opening)) => {
            outcome.unwrap_or_else(|_| Err(Failure::Lost("no answer".to_owned())))
        }
        next = newer => Err(Failure::Elsewhere(Some(next))),
    };
    match outcome {
        Ok(stream) if stream.epoch < opening.epoch_floor => {
            Err(Failure::Lost(format!("still in epoch {}", stream.epoch)))
        }
        Ok(stream) => {
            opening.epoch_floor = stream.epoch;
            opening.lineage = opening.lineage.or_else(|| lineage_of(&stream.opened));
            opening.generation = opening
                .generation
                .map(|generation| generation.max(stream.opened.generation));
            // A takeover happens once; afterwards the session holds the attachment, or somebody took it over.
            if let Some(attachment) = &mut opening.attachment {
                attachment.takeover = false;
            }
            Ok(stream)
        }
        Err(failure) => {
            if matches!(failure, Failure::Lost(_)) {
                cluster.forget_channel(&candidate.address);
            }
            Err(failure)
        }
    }
}

pub(crate) async fn open_at(
    cluster: &Cluster,
    address: &str,
    opening: &Opening,
) -> Result<VolumeStream, Failure> {
    let (requests, outgoing) = mpsc::unbounded_channel();
    requests
        .send(opening.request())
        .map_err(|_| Failure::Lost("stream closed".to_owned()))?;
    let mut replies = match cluster.local(address) {
        Some(node) => Replies::Local(node.volume(outgoing)),
        None => dial(cluster, address, opening.apart, outgoing).await?,
    };
    let first = replies.message().await.map_err(lost_stream)?;
    match first.and_then(|reply| reply.body) {
        // Of a copy alone: a primary refuses by itself.
        Some(Body::Opened(opened)) if is_other(opening.lineage, lineage_of(&opened)) => {
            let lineage = Lineage(opened.lineage);
            Err(Failure::Refused(Refusal::HistoryReplaced { lineage }))
        }
        Some(Body::Opened(opened)) => Ok(VolumeStream {
            address: address.to_owned(),
            node: NodeId(opened.node),
            epoch: Epoch(opened.epoch.min(u64::MAX >> 1)),
            opened,
            requests,
            replies,
        }),
        Some(Body::NotPrimary(not)) => Err(Failure::Elsewhere(redirect(&not))),
        Some(Body::Refused(refused)) => match refusal(refused) {
            Verdict::Refused(Refusal::Overloaded) => Err(Failure::Lost("overloaded".to_owned())),
            Verdict::Refused(refusal) | Verdict::SessionOver(refusal) => {
                Err(Failure::Refused(refusal))
            }
            Verdict::GoElsewhere => Err(Failure::Lost("shutting down".to_owned())),
        },
        Some(_) | None => Err(Failure::Lost("an answer that is none".to_owned())),
    }
}

fn is_other(known: Option<Lineage>, told: Option<Lineage>) -> bool {
    matches!((known, told), (Some(known), Some(told)) if known != told)
}

async fn dial(
    cluster: &Cluster,
    address: &str,
    apart: bool,
    outgoing: mpsc::UnboundedReceiver<pb::ClientRequest>,
) -> Result<Replies, Failure> {
    let channel = if apart {
        Cluster::own_channel(address)
    } else {
        cluster.channel(address)
    };
    let channel = channel.ok_or_else(|| Failure::Lost("not an address".to_owned()))?;
    let mut client = ClientClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let reply = client.volume(UnboundedReceiverStream::new(outgoing)).await;
    let replies = reply.map_err(lost_stream)?.into_inner();
    Ok(Replies::Wire(Box::new(replies)))
}

fn lost_stream(status: tonic::Status) -> Failure {
    Failure::Lost(status.message().to_owned())
}

/// Where a node that is not the primary points.
pub(crate) fn redirect(not: &pb::NotPrimary) -> Option<Candidate> {
    (!not.address.is_empty()).then(|| Candidate {
        address: not.address.clone(),
        epoch: Epoch(not.epoch.min(u64::MAX >> 1)),
        serving: false,
    })
}

/// What a refusal means for the request and for its stream.
pub(crate) enum Verdict {
    /// The request is refused for good.
    Refused(Refusal),
    /// The session is over; what became of its requests cannot be told here.
    SessionOver(Refusal),
    /// The stream is over; the request may be sent again on another.
    GoElsewhere,
}

pub(crate) fn refusal(refused: pb::Refused) -> Verdict {
    use pb::refused::Reason;
    let Some(reason) = refused.reason else {
        let message = refused.message;
        return Verdict::Refused(Refusal::BadRequest { message });
    };
    Verdict::Refused(match reason {
        Reason::ShuttingDown(_) => return Verdict::GoElsewhere,
        Reason::FencedGeneration(m) => {
            return Verdict::SessionOver(Refusal::Fenced { current: m.current });
        }
        Reason::UnknownSession(_) => return Verdict::SessionOver(Refusal::UnknownSession),
        Reason::AttachmentEnded(_) => return Verdict::SessionOver(Refusal::AttachmentEnded),
        Reason::AttachedElsewhere(m) => {
            return Verdict::SessionOver(Refusal::AttachedElsewhere {
                name: m.name,
                session: SessionId(m.session),
            });
        }
        Reason::NoSuchVolume(_) => return Verdict::SessionOver(Refusal::NoSuchVolume),
        Reason::HistoryReplaced(m) => {
            return Verdict::SessionOver(Refusal::HistoryReplaced {
                lineage: Lineage(m.lineage),
            });
        }
        Reason::WrongKind(_) => Refusal::WrongKind,
        Reason::NotAttached(_) => Refusal::NotAttached,
        Reason::ReadOnly(_) => Refusal::ReadOnly,
        Reason::OutOfRange(m) => Refusal::OutOfRange {
            size_bytes: m.size_bytes,
        },
        Reason::TooLarge(m) => Refusal::TooLarge {
            bytes_max: m.bytes_max,
        },
        Reason::CopyBehind(m) => Refusal::Behind {
            commit: Lsn(m.commit),
        },
        Reason::TreeUnavailable(_) => Refusal::TreeUnavailable {
            message: refused.message,
        },
        Reason::FencedToken(m) => Refusal::FencedToken { current: m.current },
        Reason::TooManyRecords(m) => Refusal::TooManyRecords {
            records_max: m.records_max,
        },
        Reason::NoSpace(_) => Refusal::NoSpace,
        Reason::Trimmed(m) => Refusal::Trimmed {
            first: Lsn(m.first_lsn),
        },
        Reason::Overloaded(_) => Refusal::Overloaded,
        Reason::UnexpectedPosition(m) => Refusal::UnexpectedPosition {
            next: Lsn(m.next_lsn),
        },
        Reason::RefusedBefore(_) => Refusal::RefusedBefore,
        Reason::ResultForgotten(_) => Refusal::ResultForgotten,
        Reason::Unreadable(_) => Refusal::Unreadable,
        Reason::Unsupported(_) => Refusal::Unsupported,
        Reason::SequenceGap(_) | Reason::BadRequest(_) => Refusal::BadRequest {
            message: refused.message,
        },
    })
}
