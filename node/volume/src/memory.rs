//! Memory for changes that are not in the files of a copy's state yet: when it asks for a checkpoint, and when it keeps clients waiting.
//!
//! The log between two checkpoints says little about it: an entry of a hundred bytes sets 64 MiB to zeroes, and one of 512 bytes
//! changes a block of 4 KiB. Whoever carries out the actions knows what is held, and tells ([`Volume::set_held`](crate::Volume::set_held)).

use std::collections::VecDeque;

use mainstay_types::Lsn;

use crate::event::{WalJob, WalWrite};
use crate::volume::Volume;

/// What is held, and what is to be done about it.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    held: u64,
    /// After a checkpoint that failed: the next one is not tried before this much is held.
    put_off: u64,
    /// Ranges that this primary has ordered and that are not applied yet, with what each is going to hold: thousands of them can be
    /// committed before the first one is applied.
    ahead: VecDeque<(Lsn, u64)>,
    ahead_bytes: u64,
}

impl Memory {
    /// So much is held, with everything up to `applied`.
    pub(crate) fn set(&mut self, held: u64, applied: Lsn) {
        self.held = held;
        while let Some((_, bytes)) = self.ahead.pop_front_if(|(lsn, _)| *lsn <= applied) {
            self.ahead_bytes -= bytes;
        }
    }

    /// An entry was ordered that is going to hold so much.
    pub(crate) fn order(&mut self, lsn: Lsn, bytes: u64) {
        self.ahead.push_back((lsn, bytes));
        self.ahead_bytes += bytes;
    }

    /// What was ordered is another primary's now.
    pub(crate) fn forget_ordered(&mut self) {
        self.ahead.clear();
        self.ahead_bytes = 0;
    }

    /// Whether there is something that will be held before long.
    pub(crate) fn is_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Whether it is time for a checkpoint, of which there is to be one for each `share` bytes.
    pub(crate) fn is_due(&self, share: u64) -> bool {
        self.held >= share.max(self.put_off)
    }

    /// Whether a checkpoint under way is behind: half of the next one's share is there or on its way, and as much of its own is not
    /// written.
    pub(crate) fn is_full(&self, share: u64) -> bool {
        self.held.saturating_add(self.ahead_bytes) >= share.saturating_add(share / 2)
    }

    pub(crate) fn checkpointed(&mut self) {
        self.put_off = 0;
    }

    /// A disk that is full stays so for a while: trying again at once would only keep it busy.
    pub(crate) fn checkpoint_failed(&mut self, share: u64) {
        self.put_off = self.held.saturating_add(share / 4);
    }
}

/// A copy's log writes on their way to its disk.
///
/// A replica whose checkpoints cannot keep up is one with a slow disk: its appends wait here, and its primary sends it no more than it
/// has in flight. What a copy promises, or takes back, is not kept waiting, nor is what lies in front of that; a primary's appends are
/// not, since its clients are.
#[derive(Debug, Default)]
pub struct WriteGate {
    waiting: VecDeque<WalJob>,
}

impl WriteGate {
    /// Takes a write, behind those before.
    pub fn take(&mut self, job: WalJob) {
        self.waiting.push_back(job);
    }

    /// The next write that is to be carried out now.
    pub fn next(&mut self, volume: &Volume) -> Option<WalJob> {
        let urgent = |job: &WalJob| !matches!(job.write, WalWrite::Append { .. });
        let closed = volume.memory_is_full() && volume.member().acting_epoch().is_none();
        if closed && !self.waiting.iter().any(urgent) {
            return None;
        }
        self.waiting.pop_front()
    }
}
