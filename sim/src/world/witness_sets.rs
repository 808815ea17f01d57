//! Operators who change the witnesses, and how everybody hears of it.

use std::sync::Arc;

use bytes::Bytes;
use mainstay_replication::message::{Message, WitnessMessage};
use mainstay_replication::{ChangeRequest, Voter, WitnessInput, WitnessSet};
use mainstay_types::{MonoTime, NodeId, VolumeId};
use mainstay_volume::Event as VolumeEvent;

use super::{Packet, WITNESS_BASE, World};
use crate::scenario::MS;
use crate::witness::Stored;

/// No set grows beyond so many.
const WITNESSES_MAX: usize = 5;

impl World {
    /// The set that the cluster begins with.
    pub(super) fn first_witnesses(&self) -> Arc<WitnessSet> {
        let nodes: Vec<NodeId> = (0..self.scenario.witnesses)
            .map(|number| NodeId(WITNESS_BASE + number))
            .collect();
        Arc::new(WitnessSet::of(&nodes))
    }

    /// Asks the first witness from `a` on that runs and has a vote.
    pub(super) fn change_witnesses(&mut self, a: u32, choice: u32) {
        let count = self.witnesses.len();
        let asked = (0..count)
            .map(|step| (a as usize + step) % count)
            .find_map(|w| {
                let process = self.witnesses[w].process.as_ref()?;
                let set = process.witness.witnesses();
                let asks = process.paused_until.is_none() && set.contains(self.witnesses[w].id);
                asks.then(|| (w, Arc::clone(set)))
            });
        let Some((w, set)) = asked else { return };
        let outside: Vec<NodeId> = self.witness_ids();
        let outside: Vec<NodeId> = outside
            .into_iter()
            .filter(|node| !set.contains(*node))
            .collect();
        let inside = set.nodes();
        let pick = |from: &[NodeId]| from.get((choice / 3) as usize % from.len().max(1)).copied();
        let (grow, shrink) = (inside.len() < WITNESSES_MAX, inside.len() > 1);
        let (add, remove) = match choice % 3 {
            0 if grow => (pick(&outside), None),
            1 if shrink => (None, pick(&inside)),
            _ => (pick(&outside), pick(&inside)),
        };
        let request = ChangeRequest {
            id: u64::from(choice),
            add: add.map(|node| (node, String::new())),
            remove,
        };
        self.count("change of witnesses asked for");
        self.witness_input(w, WitnessInput::Change(request));
    }

    /// One at a time: as long as the witnesses name a voter whose store is gone, the others must all keep theirs.
    pub(super) fn lose_witness_store(&mut self, a: u32) {
        let w = self.witness_index(a);
        let id = self.witnesses[w].id;
        let known = self.witnesses.iter().map(|w| &w.durable.state.set);
        let Some(set) = known.max_by_key(|set| set.tag.version).cloned() else {
            return;
        };
        let named = |voter: &Voter| set.names(voter.node, voter.store);
        let voter = set.voters.iter().find(|voter| voter.node == id).cloned();
        let one_is_lost = self.lost_voter.as_ref().is_some_and(named);
        if one_is_lost || set.next.is_some() || set.voters.len() < 3 || voter.is_none() {
            return;
        }
        self.count("witness store lost");
        self.lost_voter = voter;
        self.witness_crash(w, 50 * MS);
        self.witnesses[w].durable = Stored::default();
    }

    pub(super) fn count_set(&mut self, set: &WitnessSet) {
        if set.next.is_none() && set.tag.version > self.newest_set {
            self.newest_set = set.tag.version;
            self.count("witness set replaced");
        }
    }

    /// A data node is told who the witnesses are.
    pub(super) fn data_learns_set(&mut self, i: usize, from: NodeId, set: Arc<WitnessSet>) {
        let known = Arc::clone(&self.nodes[i].witnesses);
        if set.tag.version < known.tag.version {
            let id = self.nodes[i].id;
            let message = Message::Witness(WitnessMessage::Set(known));
            return self.send(id, from, Packet::Core(message, Bytes::new()));
        }
        if set.tag.version == known.tag.version {
            return;
        }
        self.nodes[i].witnesses = Arc::clone(&set);
        let local = self.nodes[i].clock.read(self.now());
        if let Some(process) = &mut self.nodes[i].process {
            process.beats.set_witnesses(local, Arc::clone(&set));
        }
        for volume in self.volumes.keys().copied().collect::<Vec<VolumeId>>() {
            self.volume_event(i, volume, VolumeEvent::Witnesses(Arc::clone(&set)));
        }
    }

    pub(super) fn operator_learns_set(&mut self, set: Arc<WitnessSet>) {
        if set.tag.version <= self.operator_witnesses.tag.version {
            return;
        }
        let now = MonoTime(self.now());
        self.operator_witnesses = Arc::clone(&set);
        for volume in self.volumes.keys().copied().collect::<Vec<VolumeId>>() {
            let creation = self.volumes.get_mut(&volume);
            if let Some(round) = creation.and_then(|world| world.creation.as_mut()) {
                round.set_witnesses(now, &set);
                self.drive_creation(volume);
            }
        }
    }
}
