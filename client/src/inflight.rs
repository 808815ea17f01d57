//! The mutations of one session without an answer, in the order of their numbers. Pure: no stream, no clock of its own.
//!
//! Invariants: numbers are contiguous from `front`; the first slot has no result; results leave in order.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_request::Body;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::room::Permit;
use crate::{Committed, Outcome, Refusal};

/// Results whose caller had gone that are kept for `outcome`.
const SETTLED_MAX: usize = 4096;

/// Records that wait together travel in requests of about so many bytes: the primary begins with the first meanwhile. Fewer than
/// 1024 records, as each counts 64 bytes at least.
const BATCH_BYTES: usize = 64 << 10;

/// A change of a volume.
#[derive(Debug, Clone)]
pub(crate) enum Mutation {
    Append {
        record: Bytes,
        expected: Option<u64>,
    },
    /// All or none.
    Batch {
        records: Vec<Bytes>,
        expected: Option<u64>,
    },
    TrimLog {
        first: u64,
    },
    RetainLog {
        age_ms: Option<u64>,
        bytes: Option<u64>,
    },
    Write {
        offset: u64,
        data: Bytes,
    },
    Trim {
        offset: u64,
        len: u64,
    },
    Zeroes {
        offset: u64,
        len: u64,
        keep: bool,
    },
}

impl Mutation {
    pub(crate) fn payload_bytes(&self) -> usize {
        match self {
            Self::Append { record, .. } => record.len(),
            Self::Batch { records, .. } => records.iter().map(Bytes::len).sum(),
            Self::Write { data, .. } => data.len(),
            Self::TrimLog { .. }
            | Self::RetainLog { .. }
            | Self::Trim { .. }
            | Self::Zeroes { .. } => 0,
        }
    }

    fn body(&self, seq: u64) -> Body {
        match self {
            Self::Append { record, expected } => Body::Append(pb::AppendRecord {
                seq,
                record: record.clone(),
                expected_lsn: *expected,
            }),
            Self::Batch { records, expected } => Body::AppendAtomic(pb::AppendAtomic {
                seq,
                records: records.clone(),
                expected_lsn: *expected,
            }),
            Self::TrimLog { first } => Body::TrimLog(pb::TrimLog {
                seq,
                first_lsn: *first,
            }),
            Self::RetainLog { age_ms, bytes } => Body::RetainLog(pb::RetainLog {
                seq,
                age_ms: *age_ms,
                bytes: *bytes,
            }),
            Self::Write { offset, data } => Body::Write(pb::Write {
                seq,
                offset: *offset,
                data: data.clone(),
            }),
            Self::Trim { offset, len } => Body::Trim(pb::Trim {
                seq,
                offset: *offset,
                len: *len,
            }),
            Self::Zeroes { offset, len, keep } => Body::Zeroes(pb::Zeroes {
                seq,
                offset: *offset,
                len: *len,
                keep_allocated: *keep,
            }),
        }
    }
}

/// How a mutation ended without being committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failed {
    /// No effect, ever.
    Refused(Refusal),
    /// It was sent, and the session ended.
    Unknown(Refusal),
}

pub(crate) type MutationResult = Result<Committed, Failed>;

#[derive(Debug)]
struct Slot {
    mutation: Mutation,
    reply: oneshot::Sender<MutationResult>,
    /// Callers of `outcome` that came meanwhile.
    waiters: Vec<oneshot::Sender<MutationResult>>,
    /// When its caller handed it over.
    queued: Instant,
    /// When it was last handed to a stream; `None`: never.
    sent: Option<Instant>,
    result: Option<MutationResult>,
    _permit: Permit,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Inflight {
    slots: VecDeque<Slot>,
    /// Number of the first slot, or of the next mutation if there is none.
    front: u64,
    /// From this number on, nothing was handed to the present stream.
    unsent: u64,
    settled: BTreeMap<u64, Outcome>,
}

/// What the queue knows of a number.
#[derive(Debug)]
pub(crate) enum Known {
    /// The waiter was taken in: it hears with the result.
    Waiting,
    /// Settled, and remembered.
    Settled(Outcome),
    /// Answered to its caller, or never given out.
    Unknown,
}

impl Inflight {
    pub(crate) fn new() -> Self {
        Self {
            slots: VecDeque::new(),
            front: 1,
            unsent: 1,
            settled: BTreeMap::new(),
        }
    }

    /// Takes in the next mutation; `seq` is the number that its caller was given.
    pub(crate) fn push(
        &mut self,
        seq: u64,
        mutation: Mutation,
        permit: Permit,
        reply: oneshot::Sender<MutationResult>,
    ) {
        assert_eq!(
            seq,
            self.next_seq(),
            "numbers are given out in the order of the queue"
        );
        self.slots.push_back(Slot {
            mutation,
            reply,
            waiters: Vec::new(),
            queued: Instant::now(),
            sent: None,
            result: None,
            _permit: permit,
        });
    }

    fn next_seq(&self) -> u64 {
        self.front + self.slots.len() as u64
    }

    pub(crate) fn first_unanswered(&self) -> u64 {
        self.front
    }

    pub(crate) fn unanswered(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| slot.result.is_none())
            .count()
    }

    pub(crate) fn any_sent(&self) -> bool {
        self.slots.iter().any(|slot| slot.sent.is_some())
    }

    /// When the oldest unanswered mutation was sent.
    pub(crate) fn oldest_sent(&self) -> Option<Instant> {
        self.slots.front().and_then(|slot| slot.sent)
    }

    /// When the oldest unanswered mutation was taken in.
    pub(crate) fn oldest_queued(&self) -> Option<Instant> {
        self.slots.front().map(|slot| slot.queued)
    }

    /// When anything unanswered was last sent.
    pub(crate) fn last_sent(&self) -> Option<Instant> {
        self.slots.iter().filter_map(|slot| slot.sent).max()
    }

    /// The requests for what was not sent on the present stream, in order, to be sent now.
    pub(crate) fn send_new(&mut self, now: Instant) -> Vec<pb::ClientRequest> {
        let first = self.unsent.max(self.front);
        self.unsent = self.next_seq();
        let at = usize::try_from(first - self.front).unwrap_or(usize::MAX);
        let new = (first..).zip(self.slots.iter_mut().skip(at));
        let mut requests = Requests::default();
        for (seq, slot) in new.filter(|(_, slot)| slot.result.is_none()) {
            slot.sent = Some(now);
            requests.push(seq, &slot.mutation);
        }
        requests.made
    }

    /// The requests for everything unanswered, in order, to be sent now on a new stream.
    pub(crate) fn send_all(&mut self, now: Instant) -> Vec<pb::ClientRequest> {
        self.unsent = self.front;
        self.send_new(now)
    }

    /// Notes the result of `seq`, and answers every caller whose turn has come. False if no such mutation waits.
    pub(crate) fn complete(&mut self, seq: u64, result: MutationResult) -> bool {
        let place = seq
            .checked_sub(self.front)
            .and_then(|at| usize::try_from(at).ok());
        let Some(slot) = place.and_then(|at| self.slots.get_mut(at)) else {
            return false;
        };
        if slot.result.is_some() || slot.sent.is_none() {
            return false;
        }
        slot.result = Some(result);
        while self.slots.front().is_some_and(|slot| slot.result.is_some()) {
            self.pop();
        }
        true
    }

    /// Answers the first slot, which has a result.
    fn pop(&mut self) {
        let Some(slot) = self.slots.pop_front() else {
            return;
        };
        let seq = self.front;
        self.front += 1;
        let Some(result) = slot.result else { return };
        for waiter in slot.waiters {
            let _gone = waiter.send(result.clone());
        }
        if let Err(result) = slot.reply.send(result)
            && let Some(outcome) = outcome_of(&result)
        {
            self.settled.insert(seq, outcome);
            if self.settled.len() > SETTLED_MAX {
                self.settled.pop_first();
            }
        }
    }

    /// Ends everything: what was sent is unknown, what was not is refused.
    pub(crate) fn end(&mut self, refusal: &Refusal) {
        for slot in &mut self.slots {
            if slot.result.is_none() {
                slot.result = Some(Err(match slot.sent {
                    Some(_) => Failed::Unknown(refusal.clone()),
                    None => Failed::Refused(refusal.clone()),
                }));
            }
        }
        while !self.slots.is_empty() {
            self.pop();
        }
    }

    /// Whether anything is known of `seq` without asking the cluster.
    pub(crate) fn outcome(&mut self, seq: u64, waiter: oneshot::Sender<MutationResult>) -> Known {
        if let Some(outcome) = self.settled.get(&seq) {
            return Known::Settled(*outcome);
        }
        let place = seq
            .checked_sub(self.front)
            .and_then(|at| usize::try_from(at).ok());
        match place.and_then(|at| self.slots.get_mut(at)) {
            Some(slot) => {
                slot.waiters.push(waiter);
                Known::Waiting
            }
            None => Known::Unknown,
        }
    }
}

fn outcome_of(result: &MutationResult) -> Option<Outcome> {
    match result {
        Ok(committed) => Some(Outcome::Committed(*committed)),
        Err(Failed::Refused(_)) => Some(Outcome::Never),
        Err(Failed::Unknown(Refusal::ResultForgotten)) => Some(Outcome::Forgotten),
        Err(Failed::Unknown(_)) => None,
    }
}

/// Requests being made: records in a row without a condition share one.
#[derive(Debug, Default)]
struct Requests {
    made: Vec<pb::ClientRequest>,
    /// Number that continues the last one of `made`, if that is a batch with room, and the bytes in it.
    open: Option<(u64, usize)>,
}

impl Requests {
    fn push(&mut self, seq: u64, mutation: &Mutation) {
        let Mutation::Append {
            record,
            expected: None,
        } = mutation
        else {
            self.open = None;
            return self.made.push(request(seq, mutation.body(seq)));
        };
        let joined = self
            .open
            .filter(|(next, _)| *next == seq)
            .map_or(0, |(_, bytes)| bytes);
        match self
            .made
            .last_mut()
            .and_then(|request| request.body.as_mut())
        {
            Some(Body::AppendBatch(batch)) if joined > 0 => batch.records.push(record.clone()),
            _ => {
                let batch = pb::AppendBatch {
                    first_seq: seq,
                    tag_step: tag_of(1) - tag_of(0),
                    records: vec![record.clone()],
                };
                self.made.push(request(seq, Body::AppendBatch(batch)));
            }
        }
        // Counted with what a record costs beside its bytes.
        let bytes = joined + record.len() + 64;
        self.open = (bytes < BATCH_BYTES).then_some((seq + 1, bytes));
    }
}

fn request(seq: u64, body: Body) -> pb::ClientRequest {
    pb::ClientRequest {
        tag: tag_of(seq),
        body: Some(body),
    }
}

/// Tags of mutations are odd, so that a reply finds its slot without a table.
fn tag_of(seq: u64) -> u64 {
    seq << 1 | 1
}

/// The number behind the tag of a mutation; `None` for other tags.
pub(crate) fn seq_of_tag(tag: u64) -> Option<u64> {
    (tag & 1 == 1).then_some(tag >> 1)
}

#[cfg(test)]
mod tests;
