//! A simulated witness: the real `Witness` over a record store whose writes take time and die with a crash.

use std::collections::{BTreeMap, VecDeque};

use mainstay_replication::{OpId, Rng, Witness, WitnessRecord};
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
    pub durable: BTreeMap<VolumeId, WitnessRecord>,
    /// Writes under way, in order.
    pub pending: VecDeque<(OpId, VolumeId, WitnessRecord)>,
    /// The process, if it runs.
    pub process: Option<WitnessProcess>,
    /// It may not run before then.
    pub down_until: u64,
    /// When the store is free again.
    pub store_busy_until: u64,
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
    /// The process ends: of the writes under way a prefix may have reached the disk.
    pub fn crash(&mut self, rng: &mut Rng) {
        let kept = rng.below(self.pending.len() as u64 + 1);
        for _ in 0..kept {
            if let Some((_, volume, record)) = self.pending.pop_front() {
                self.durable.insert(volume, record);
            }
        }
        self.pending.clear();
        self.process = None;
    }
}
