//! Trims of a log: what readers are shown no more, and what copies may give back.
//!
//! A `TrimLog` entry says two things. Its `arg` is the *trim point*: nobody is shown anything below it, from that entry on, whoever is
//! primary. Its payload is the *release*: copies may give back what lies below it. Both are part of the replicated state and never fall.
//!
//! **Invariant** (H5): no copy gives up an entry that a registered member may lack. The order of events that would break it: A and C hold
//! 1 to 10,000, B lags at 100; the log is trimmed to 5,000, and C gives 1 to 4,999 back; A dies; B and C answer the promotion, B can close
//! its gap from nobody, and a volume that lost one node of three can be promoted no more. So the primary writes the release when it
//! orders the entry: no higher than the least position that every registered member holds durably. If somebody lags, the rest is
//! released by another entry, which the primary proposes once they have passed the trim point.

use mainstay_replication::Mistake;
use mainstay_storage::EntryKind;
use mainstay_storage::format::encode_unstamped;
use mainstay_types::{Lsn, SessionId, VolumeKind};

use crate::event::{Action, Refusal};
use crate::mutations::Mutation;
use crate::volume::Volume;

/// The release that a `TrimLog` entry carries; none if it is not one that this program writes.
pub(crate) fn release_of(payload: &[u8]) -> Option<Lsn> {
    payload.try_into().ok().map(|b| Lsn(u64::from_le_bytes(b)))
}

impl Volume {
    /// Completes a client's trim: what may be released is known here alone.
    pub(crate) fn complete_trim(&self, first: Lsn, mutation: &mut Mutation) -> Result<(), Refusal> {
        let next = self.visible().next();
        if first > next {
            return Err(Refusal::TrimBeyondEnd { first, next });
        }
        let release = self.releasable(first).0.to_le_bytes();
        mutation.entry =
            encode_unstamped(EntryKind::TrimLog, SessionId(0), 0, 0, first.0, &release);
        Ok(())
    }

    /// What may be released of everything below `first`.
    pub(crate) fn releasable(&self, first: Lsn) -> Lsn {
        if self.config.member.mistakes.has(Mistake::ReleaseUnheld) {
            return first;
        }
        first.min(self.member.lacked_from())
    }

    /// Releases what could not be released when it was trimmed, once every registered member has passed it.
    pub(crate) fn maybe_release(&mut self) {
        let trim_point = self.sessions.trim_point;
        let under_way = self.clients.releasing.max(self.sessions.release);
        if self.spec.kind != VolumeKind::Log
            || trim_point <= under_way
            || !self.member.accepts()
            || self.releasable(trim_point) < trim_point
        {
            return;
        }
        let release = trim_point.0.to_le_bytes();
        let session = SessionId(0);
        let entry = encode_unstamped(EntryKind::TrimLog, session, 0, 0, trim_point.0, &release);
        self.clients.releasing = trim_point;
        self.clients.stage(entry);
    }

    /// Gives back what is released: only behind a checkpoint, from which a start goes on.
    pub(crate) fn recycle_log(&mut self) {
        self.release_due = self.sessions.release > self.checkpointed.next();
        let first = self.member.log().base().lsn.next();
        let mut below = self.sessions.release.min(self.checkpointed.next());
        if self.member.acting_epoch().is_some() && !self.member.peers().is_empty() {
            // A copy that is not registered yet is fed from here as far back as is kept for such.
            below = below.min(self.member.needed_from().max(self.kept_from()));
        }
        let below = below.min(self.pins.first().unwrap_or(below));
        if below > first {
            self.out.push_back(Action::Recycle { below });
        }
    }
}
