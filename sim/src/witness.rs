//! A simulated witness: the real `Witness` over a record store whose writes take time and die with a crash.

use std::collections::{BTreeMap, VecDeque};

use mainstay_replication::{OpId, Rng, SetState, Witness, WitnessRecord};
use mainstay_types::{NodeId, VolumeId};

use crate::clock::Clock;
use crate::executor::ProcId;

/// One machine with a witness.
#[derive(Debug)]
pub struct WitnessNode {
    /// Which.
    pub id: NodeId,
    /// Its clock.
    pub clock: Clock,
    /// What a restart finds.
    pub durable: Stored,
    /// Writes under way, in order.
    pub pending: VecDeque<(OpId, Write)>,
    /// The process, if it runs.
    pub process: Option<WitnessProcess>,
    /// It may not run before then.
    pub down_until: u64,
    /// When the store is free again.
    pub store_busy_until: u64,
}

/// What its store holds.
#[derive(Debug, Default)]
pub struct Stored {
    /// Of each volume.
    pub records: BTreeMap<VolumeId, WitnessRecord>,
    /// Of the witnesses.
    pub state: SetState,
}

/// One write of a witness's store.
#[derive(Debug)]
pub enum Write {
    /// Of one volume.
    Record(VolumeId, WitnessRecord),
    /// Of the witnesses; every record goes first if the flag is set.
    Set(Box<SetState>, bool),
}

/// One process of a witness.
#[derive(Debug)]
pub struct WitnessProcess {
    /// Tells lives apart.
    pub pid: ProcId,
    /// The code under test.
    pub witness: Witness,
    /// Stopped until then.
    pub paused_until: Option<u64>,
    /// The next tick that is on its way.
    pub tick_at: u64,
}

impl WitnessNode {
    /// The process ends: of the writes under way a prefix may have reached the disk. These.
    pub fn crash(&mut self, rng: &mut Rng) -> Vec<Write> {
        let kept = rng.below(self.pending.len() as u64 + 1);
        let kept = usize::try_from(kept).unwrap_or(usize::MAX);
        let writes = self.pending.drain(..).take(kept);
        let writes = writes.map(|(_, write)| write).collect();
        self.process = None;
        writes
    }
}
