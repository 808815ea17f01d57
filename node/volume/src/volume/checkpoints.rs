//! Checkpoints, and the log that is recycled behind them.

use std::time::Duration;

use mainstay_storage::LogEnd;
use mainstay_types::{Lsn, MonoTime, VolumeKind};

use super::Volume;
use crate::event::{Action, Now};

/// A checkpoint that is to put repaired blocks into the files and failed is tried again after this pause: nothing may be written meanwhile
/// that would ask for one.
const REPAIRS_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// One that is to let a log give back what was trimmed, after this pause: a disk that is full would refuse each at once.
const RELEASE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Whether repaired blocks wait for a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    /// They do, and none that would include them is under way.
    pub(super) due: bool,
    /// The one that is under way includes some.
    under_way: bool,
    /// None is begun because of them before.
    not_before: MonoTime,
}

impl Volume {
    /// Changes how much is held in memory, or written to the log, between two checkpoints.
    pub fn set_checkpoint_bytes(&mut self, bytes: u64) {
        self.config.checkpoint_bytes = bytes;
    }

    /// Tells how much memory changes take that are not in the state's files yet, those of a checkpoint under way among them: `bytes`, with
    /// everything up to `applied`.
    pub fn set_held(&mut self, bytes: u64, applied: Lsn) {
        self.memory.set(bytes, applied);
    }

    /// Whether log writes and mutations wait: for a checkpoint that cannot keep up with them, or for ranges to be applied that will hold
    /// much.
    pub(crate) fn memory_is_full(&self) -> bool {
        let runs = self.checkpoint_runs || self.memory.is_ahead();
        runs && self.memory.is_full(self.config.checkpoint_bytes)
    }

    pub(super) fn maybe_checkpoint(&mut self, now: Now) {
        let share = self.config.checkpoint_bytes;
        let grown = self.since_checkpoint >= share || self.memory.is_due(share);
        let repaired = self.repairs.due && now.mono >= self.repairs.not_before;
        self.release_again = self.release_again.filter(|at| now.mono < *at);
        let released = self.release_due && self.release_again.is_none();
        let due = (grown || released || repaired) && !self.checkpoint_runs;
        // The image must not know entries that this copy's own log could still lose.
        if due && self.applied <= self.member.durable() {
            self.begin_checkpoint();
        }
    }

    /// Asks for a checkpoint now, if there is anything new: for a clean stop.
    pub fn begin_checkpoint(&mut self) {
        if self.checkpoint_runs
            || (self.applied == self.checkpointed && !self.repairs.due)
            || self.applied > self.member.durable()
        {
            return;
        }
        let Some(at) = self.tail.end_at(self.applied) else {
            return;
        };
        self.checkpoint_runs = true;
        self.repairs.under_way = std::mem::take(&mut self.repairs.due);
        self.since_checkpoint = 0;
        self.out.push_back(Action::Checkpoint {
            blob: self.sessions.encode(),
            at,
        });
    }

    pub(super) fn handle_checkpoint_failed(&mut self, now: Now, mended: bool) {
        self.checkpoint_runs = false;
        self.release_again = (self.release_due && !mended).then(|| now.mono + RELEASE_AGAIN_AFTER);
        self.memory.checkpoint_failed(self.config.checkpoint_bytes);
        self.repairs.due |= std::mem::take(&mut self.repairs.under_way) || mended;
        self.repairs.not_before = if mended {
            now.mono
        } else {
            now.mono + REPAIRS_AGAIN_AFTER
        };
    }

    pub(super) fn handle_checkpointed(&mut self, at: LogEnd) {
        self.checkpoint_runs = false;
        self.repairs.under_way = false;
        self.repairs.not_before = MonoTime::ZERO;
        self.release_again = None;
        self.memory.checkpointed();
        self.checkpointed = self.checkpointed.max(at.point.lsn);
        if matches!(self.spec.kind, VolumeKind::Log) {
            // The log is the data: only what was trimmed goes.
            return self.recycle_log();
        }
        let kept = self.kept_from();
        // As far back as somebody needs it, but no further than the bound.
        let below = self.member.needed_from().max(kept);
        // The order of events otherwise: a member falls behind, and all others give up what it lacks; one of them is lost for good; the other
        // becomes primary and can neither feed it nor, before somebody holds what is committed beside it, let it leave the register (H5).
        let lacked = self.member.lacked_from().max(self.kept_for_members());
        let below = below.min(lacked).min(self.checkpointed.next());
        let below = below.min(self.pins.first().unwrap_or(below));
        self.out.push_back(Action::Recycle { below });
    }

    /// How far back the log reaches that is kept for registered members. It is kept until they have left the register, but without a majority of
    /// witnesses nobody leaves, and the log would fill the disk.
    fn kept_for_members(&self) -> Lsn {
        self.logged
            .reaching_back(self.copy_bytes().max(self.config.member_keep_bytes))
    }

    /// How far back `log_keep_bytes` reaches.
    pub(crate) fn kept_from(&mut self) -> Lsn {
        let kept = self.logged.reaching_back(self.config.log_keep_bytes);
        let measured = kept.min(self.kept_for_members());
        let measured = self
            .pins
            .first()
            .map_or(measured, |first| measured.min(first));
        self.logged.forget_below(measured);
        kept
    }
}
