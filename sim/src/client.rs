//! Simulated clients: sessions with pipelined mutations, retries across failovers under a higher generation, reads,
//! questions for an outcome. They know what a real client knows, and report what they were told to the oracle.

use std::collections::BTreeMap;

use bytes::BytesMut;
use mainstay_replication::Rng;
use mainstay_storage::EntryKind;
use mainstay_storage::format::{encode_range, encode_unstamped};
use mainstay_types::{Lsn, NodeId, SessionId, VolumeId};
use mainstay_volume::{
    Attachment, ClientOp, Direction, Outcome, PageLimits, Refusal, RetentionChange,
};

use crate::properties::linearizable::{BLOCK, SECTOR};

/// A request on its way; can be sent twice.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Begin or resume the session.
    Open {
        /// Whose.
        session: SessionId,
        /// Rises.
        generation: u32,
        /// Make it if it is not known.
        create: bool,
        /// Name and takeover.
        attachment: Option<(String, bool)>,
        /// Of the writer of a log.
        token: u64,
    },
    /// One mutation.
    Mutate {
        /// Its number.
        seq: u64,
        /// What.
        op: Mutation,
    },
    /// Bytes.
    ReadBlock {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Records.
    ReadLog {
        /// First LSN.
        from: Lsn,
        /// About this much.
        bytes_max: usize,
        /// Any committed prefix will do.
        stale_ok: bool,
    },
    /// Settle an operation.
    Outcome {
        /// Which.
        seq: u64,
    },
    /// Where the log ends.
    Position,
}

/// An age in milliseconds that nothing reaches: a policy whose first word is this and more keeps as many bytes as that is more.
pub const BY_BYTES: u64 = 1_000_000_000_000;

/// What a log shall keep: its first word, which is all that the properties see of an entry, says all of it.
fn policy(tag: u64) -> RetentionChange {
    RetentionChange {
        age_ms: Some(tag),
        bytes: Some(tag.saturating_sub(BY_BYTES)),
    }
}

/// A change of a volume.
#[derive(Debug, Clone, Copy)]
pub struct Mutation {
    /// Of which kind.
    pub kind: EntryKind,
    /// Offset.
    pub offset: u64,
    /// Bytes of payload, or of the range.
    pub len: u64,
    /// What fills the payload; each further record of a batch has two more.
    pub tag: u64,
    /// Records of an atomic batch; else one.
    pub records: u32,
    /// Only if it gets this position.
    pub expected: Option<Lsn>,
}

impl Mutation {
    /// The first entry but for its place, and the others of a batch.
    #[must_use]
    pub fn entries(&self) -> (BytesMut, Vec<BytesMut>) {
        let record = |index: u32| Self {
            tag: self.tag.wrapping_add(2 * u64::from(index)),
            ..*self
        };
        let more = (1..self.records).map(|index| record(index).entry());
        (self.entry(), more.collect())
    }

    fn entry(&self) -> BytesMut {
        let none = SessionId(0);
        match self.kind {
            EntryKind::Trim | EntryKind::Zeroes => {
                encode_unstamped(self.kind, none, 0, 0, self.offset, &encode_range(self.len))
            }
            EntryKind::TrimLog => encode_unstamped(self.kind, none, 0, 0, self.offset, &[0; 8]),
            EntryKind::RetainLog => {
                encode_unstamped(self.kind, none, 0, 0, 0, &policy(self.tag).encode())
            }
            _ => {
                let len = usize::try_from(self.len).expect("small");
                let mut payload = self.tag.to_le_bytes().repeat(len.div_ceil(8));
                payload.truncate(len);
                encode_unstamped(self.kind, none, 0, 0, self.offset, &payload)
            }
        }
    }

    /// First eight bytes of its payload.
    #[must_use]
    pub fn first_word(&self) -> u64 {
        match self.kind {
            EntryKind::Trim | EntryKind::Zeroes => self.len,
            _ => self.tag,
        }
    }
}

impl Ask {
    /// As the volume takes it.
    #[must_use]
    pub fn op(self) -> ClientOp {
        match self {
            Self::Open {
                session,
                generation,
                create,
                attachment,
                token,
            } => ClientOp::Open {
                session,
                generation,
                create,
                answered: 0,
                attachment: attachment.map(|(name, takeover)| Attachment { name, takeover }),
                token,
            },
            Self::Mutate { seq, op } => {
                let (entry, more) = op.entries();
                ClientOp::Mutate {
                    seq,
                    expected: op.expected,
                    entry,
                    more,
                }
            }
            Self::ReadBlock { offset, len } => ClientOp::ReadBlock { offset, len },
            Self::ReadLog {
                from,
                bytes_max,
                stale_ok,
            } => ClientOp::ReadLog {
                from,
                direction: Direction::Forwards,
                limits: PageLimits {
                    bytes_max,
                    records_max: usize::MAX,
                },
                stale_ok,
            },
            Self::Outcome { seq } => ClientOp::Outcome { seq },
            Self::Position => ClientOp::Position,
        }
    }
}

/// What waits for an answer on the present connection.
#[derive(Debug, Clone)]
pub enum Waiting {
    /// The session.
    Open,
    /// A mutation.
    Mutate(u64),
    /// A block read.
    ReadBlock {
        /// First byte.
        offset: u64,
        /// Answered before the call.
        floor: Lsn,
    },
    /// A log read.
    ReadLog {
        /// First LSN.
        from: Lsn,
        /// Answered before the call; zero if stale will do.
        floor: Lsn,
        /// The answer moves the client's tail on.
        tail: bool,
    },
    /// An outcome.
    Outcome(u64),
    /// A position.
    Position {
        /// Answered before the call.
        floor: Lsn,
    },
}

/// How far a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Connects at this time.
    Idle,
    /// Has asked for its session.
    Opening,
    /// Works.
    Open,
    /// Has what it wants.
    Stopped,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    /// As the network knows it.
    pub id: NodeId,
    /// Its volume.
    pub volume: VolumeId,
    /// Nodes that may serve it.
    pub nodes: Vec<NodeId>,
    /// Whom it talks to.
    pub node: NodeId,
    /// Its session.
    pub session: SessionId,
    /// Of its connection.
    pub generation: u32,
    /// The session was opened at least once.
    pub known: bool,
    /// Names the connection.
    pub conn: u64,
    /// How far it is.
    pub phase: Phase,
    /// Mutations without an answer, by number.
    pub open_ops: BTreeMap<u64, Mutation>,
    /// Next number.
    pub next_seq: u64,
    /// Requests on this connection, and when each was sent.
    pub waiting: BTreeMap<u64, (u64, Waiting)>,
    /// Names the next request.
    pub next_token: u64,
    /// The next time it acts.
    pub act_at: u64,
    /// Mutations in flight at most.
    pub window: usize,
    /// Mean time between two operations.
    pub pace_ns: u64,
    /// No answer for so long: connect anew.
    pub patience_ns: u64,
    /// Fenced by a takeover, or taking over.
    pub attach: Option<String>,
    /// Takes the volume over when it is refused.
    pub takeover: bool,
    /// Bytes of a block volume.
    pub size_bytes: Option<u64>,
    /// As the writer of a log; zero for none.
    pub token: u64,
    /// Takes a log over now and then, although nobody fenced it.
    pub rivals: bool,
    /// Trims the log now and then.
    pub trims: bool,
    /// Its token is too old: it begins anew once it knows what became of everything.
    pub fenced_by: Option<u64>,
    /// Follows a log from here.
    pub tail: Lsn,
    /// Newest position that it knows of.
    pub seen: Lsn,
    /// Its choices.
    pub rng: Rng,
    /// Its choices that only logs have: what block volumes see does not depend on them.
    pub log_rng: Rng,
    /// Mutations answered.
    pub answered: u64,
    /// When the last one was.
    pub answered_at: u64,
    /// No new mutations.
    pub finishing: bool,
}

impl Client {
    /// A change that this client makes next.
    pub fn mutation(&mut self) -> Mutation {
        let tag = self.rng.id() | 1;
        let Some(size) = self.size_bytes else {
            let len = 8 + 8 * self.rng.below(40);
            let records = match self.log_rng.below(4) {
                0 => 2 + u32::try_from(self.log_rng.below(7)).expect("small"),
                _ => 1,
            };
            if self.trims && self.log_rng.below(32) == 0 {
                let bound = 200 + self.log_rng.below(4000);
                let by_bytes = self.log_rng.below(2) == 0;
                return Mutation {
                    kind: EntryKind::RetainLog,
                    offset: 0,
                    len: 0,
                    tag: bound + if by_bytes { BY_BYTES } else { 0 },
                    records: 1,
                    expected: None,
                };
            }
            if self.trims && self.log_rng.below(16) == 0 {
                return Mutation {
                    kind: EntryKind::TrimLog,
                    offset: 1 + self.log_rng.below(self.seen.0 + 1),
                    len: 0,
                    tag,
                    records: 1,
                    expected: None,
                };
            }
            let next = Lsn(self.seen.0 + 1 + self.log_rng.below(2));
            return Mutation {
                kind: EntryKind::Record,
                offset: 0,
                len,
                tag,
                records,
                expected: (self.log_rng.below(8) == 0).then_some(next),
            };
        };
        let (kind, unit, most) = match self.rng.below(10) {
            0 => (EntryKind::Trim, BLOCK, 3),
            1 => (EntryKind::Zeroes, SECTOR, 9),
            2..=5 => (EntryKind::Write, SECTOR, 5),
            _ => (EntryKind::Write, BLOCK, 2),
        };
        let len = unit * (1 + self.rng.below(most));
        let offset = unit * self.rng.below((size - len) / unit + 1);
        Mutation {
            kind,
            offset,
            len,
            tag,
            records: 1,
            expected: None,
        }
    }

    /// Gives its connection up; connects again after `pause`.
    pub fn reconnect(&mut self, now: u64, node: Option<NodeId>, pause: u64) {
        if self.phase == Phase::Stopped {
            return;
        }
        let any = self.rng.below(self.nodes.len() as u64);
        self.node = node
            .filter(|node| self.nodes.contains(node))
            .unwrap_or_else(|| self.nodes[usize::try_from(any).expect("small")]);
        self.phase = Phase::Idle;
        self.waiting.clear();
        self.act_at = now + 1 + pause / 2 + self.rng.below(pause / 2 + 1);
    }

    /// What had no answer stays unknown, and is never sent again.
    pub fn begin_session(&mut self) {
        self.session = SessionId(self.rng.id());
        self.generation = 0;
        self.known = false;
        self.next_seq = 1;
        self.open_ops.clear();
    }

    /// Acts on a refusal. True if the connection is of no use any more.
    pub fn refused(&mut self, now: u64, refusal: &Refusal) {
        match refusal {
            Refusal::NotPrimary { primary, .. } => self.reconnect(now, *primary, 40_000_000),
            Refusal::Superseded { present, .. } => {
                self.generation = self.generation.max(*present);
                self.known = true;
                let node = self.node;
                self.reconnect(now, Some(node), 5_000_000);
            }
            Refusal::UnknownSession => {
                self.reconnect(now, None, 40_000_000);
            }
            Refusal::AttachmentEnded => {
                self.begin_session();
                let node = self.node;
                self.reconnect(now, Some(node), 40_000_000);
            }
            Refusal::FencedToken { current } => {
                // A new session was refused: nothing of it is anywhere.
                self.token = current + self.log_rng.below(2);
                let node = self.node;
                self.reconnect(now, Some(node), 300_000_000);
            }
            Refusal::Attached { .. } => {
                let node = self.node;
                self.reconnect(now, Some(node), 400_000_000);
            }
            _ => {
                let node = self.node;
                self.reconnect(now, Some(node), 20_000_000);
            }
        }
    }

    /// What an outcome means for the next try.
    pub fn settled(&mut self, seq: u64, outcome: Outcome) {
        if outcome == Outcome::Never {
            self.open_ops.remove(&seq);
        }
    }
}
