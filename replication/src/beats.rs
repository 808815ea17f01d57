//! A data node's leases: rules R7.1 and R7.2 from the holder's side. One stream of beats to each witness, whatever
//! the number of volumes.
//!
//! A lease is counted from the moment the beat was *sent*, shortened by the clock-rate bound; it is held while a
//! majority of the witnesses granted that very claim, by volume, epoch and instance (H8).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mainstay_types::{Epoch, Instance, MonoTime, NodeId, VolumeId, Zone};

use crate::config::LeaseConfig;
use crate::message::{Beat, Claim, ClaimHealth, Granted, Orphan, WitnessMessage};
use crate::mistakes::Mistake;
use crate::witness_set::{Voter, WitnessSet};

/// Answers to this many of the newest beats are still counted.
const BEATS_REMEMBERED: usize = 64;

/// What the driver must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BeatOutput {
    /// Send to a witness; safe right now.
    Send {
        /// The witness.
        to: NodeId,
        /// The message.
        message: WitnessMessage,
    },
    /// Tell the volume's member.
    Lease {
        /// The volume.
        volume: VolumeId,
        /// The epoch granted.
        epoch: Epoch,
        /// When the lease ends.
        until: MonoTime,
        /// Data nodes that a majority of the witnesses do not hear.
        silent: Vec<NodeId>,
    },
}

#[derive(Debug)]
struct Link {
    witness: NodeId,
    seq: u64,
    sent: VecDeque<(u64, MonoTime)>,
    next_beat: MonoTime,
    /// The last table that the witness named.
    table_known: u64,
    grants: BTreeMap<VolumeId, (Epoch, MonoTime)>,
    hearing: BTreeSet<NodeId>,
    heard_at: Option<MonoTime>,
}

/// The holder's side of all leases of one data node.
#[derive(Debug)]
pub struct Beats {
    config: LeaseConfig,
    instance: Instance,
    witnesses: Arc<WitnessSet>,
    links: Vec<Link>,
    /// Numbers of beats up to here were used on links that are gone.
    seq_used: u64,
    table: u64,
    claims: BTreeMap<VolumeId, Epoch>,
    /// Tables that answers may still name, newest last.
    tables: VecDeque<(u64, BTreeMap<VolumeId, Epoch>)>,
    unwell: Vec<ClaimHealth>,
    orphans: Vec<Orphan>,
    zone: Option<Zone>,
    nodes: BTreeSet<NodeId>,
    /// What the members were told last.
    told: BTreeMap<VolumeId, (Epoch, MonoTime, Vec<NodeId>)>,
    out: VecDeque<BeatOutput>,
}

impl Link {
    fn new(now: MonoTime, witness: NodeId) -> Self {
        Self {
            witness,
            seq: 0,
            sent: VecDeque::new(),
            next_beat: now,
            table_known: 0,
            grants: BTreeMap::new(),
            hearing: BTreeSet::new(),
            heard_at: None,
        }
    }
}

/// A link to each witness; those from `before` go on if they led to the same store. A grant of another store binds nobody.
fn links(
    now: MonoTime,
    witnesses: &WitnessSet,
    mut before: Vec<Link>,
    known: &WitnessSet,
) -> Vec<Link> {
    let link = |voter: &Voter| {
        let at = before.iter().position(|link| link.witness == voter.node);
        match at.filter(|_| known.names(voter.node, voter.store)) {
            Some(at) => before.swap_remove(at),
            None => Link::new(now, voter.node),
        }
    };
    witnesses.all().map(link).collect()
}

impl Beats {
    /// For the process `instance`, beating to `witnesses`. `nodes` are the data nodes of the cluster.
    #[must_use]
    pub fn new(
        now: MonoTime,
        config: LeaseConfig,
        instance: Instance,
        witnesses: Arc<WitnessSet>,
        nodes: &[NodeId],
    ) -> Self {
        Self {
            config,
            instance,
            links: links(now, &witnesses, Vec::new(), &WitnessSet::default()),
            witnesses,
            seq_used: 0,
            table: 1,
            claims: BTreeMap::new(),
            tables: VecDeque::from([(1, BTreeMap::new())]),
            unwell: Vec::new(),
            orphans: Vec::new(),
            zone: None,
            nodes: nodes.iter().copied().collect(),
            told: BTreeMap::new(),
            out: VecDeque::new(),
        }
    }

    /// The witnesses are others now. Grants that run go on: each is its witness's word not to fence before it ends,
    /// whatever the set.
    pub fn set_witnesses(&mut self, now: MonoTime, witnesses: Arc<WitnessSet>) {
        if witnesses.tag.version <= self.witnesses.tag.version {
            return;
        }
        let before = std::mem::take(&mut self.links);
        // A beat's number is never used again, so that a late answer to another one is not taken for its own.
        let used = before.iter().map(|link| link.seq).max().unwrap_or(0);
        self.seq_used = self.seq_used.max(used);
        self.links = links(now, &witnesses, before, &self.witnesses);
        for link in &mut self.links {
            link.seq = link.seq.max(self.seq_used);
        }
        self.witnesses = witnesses;
        for link in &mut self.links {
            link.next_beat = now;
        }
        self.tick(now);
    }

    /// With the place where the node stands.
    #[must_use]
    pub fn in_zone(self, zone: Option<Zone>) -> Self {
        Self { zone, ..self }
    }

    /// States what this node is primary of, how its commit paths are, and which seals nobody has taken up. Beats at
    /// once if the claims or the seals changed.
    pub fn state(
        &mut self,
        now: MonoTime,
        claims: &[Claim],
        unwell: Vec<ClaimHealth>,
        orphans: Vec<Orphan>,
    ) {
        let claims: BTreeMap<_, _> = claims
            .iter()
            .map(|claim| (claim.volume, claim.epoch))
            .collect();
        let urgent = claims != self.claims || orphans != self.orphans;
        if claims != self.claims {
            self.table += 1;
            self.claims.clone_from(&claims);
            self.told
                .retain(|volume, (epoch, ..)| claims.get(volume) == Some(epoch));
            self.tables.push_back((self.table, claims));
            if self.tables.len() > BEATS_REMEMBERED {
                self.tables.pop_front();
            }
        }
        self.unwell = unwell;
        self.orphans = orphans;
        if urgent {
            for link in &mut self.links {
                link.next_beat = now;
            }
        }
        self.tick(now);
    }

    /// Gives up a lease, after the member has stopped serving.
    pub fn release(
        &mut self,
        now: MonoTime,
        volume: VolumeId,
        epoch: Epoch,
        prefer: Option<NodeId>,
    ) {
        for link in &self.links {
            let message = WitnessMessage::Release {
                volume,
                epoch,
                instance: self.instance,
                prefer,
            };
            self.out.push_back(BeatOutput::Send {
                to: link.witness,
                message,
            });
        }
        let kept = self.claims.iter().filter(|(v, _)| **v != volume);
        let claims: Vec<_> = kept
            .map(|(volume, epoch)| Claim {
                volume: *volume,
                epoch: *epoch,
            })
            .collect();
        let (unwell, orphans) = (
            std::mem::take(&mut self.unwell),
            std::mem::take(&mut self.orphans),
        );
        self.state(now, &claims, unwell, orphans);
    }

    /// Sends the beats that are due.
    pub fn tick(&mut self, now: MonoTime) {
        for link in self.links.iter_mut().filter(|link| now >= link.next_beat) {
            link.seq += 1;
            // On the grid, so that the beats to all witnesses leave together, and with the appends of idle volumes.
            link.next_beat = (now + self.config.beat).on_grid(self.config.beat);
            link.sent.push_back((link.seq, now));
            if link.sent.len() > BEATS_REMEMBERED {
                link.sent.pop_front();
            }
            let claims = (link.table_known != self.table).then(|| {
                self.claims
                    .iter()
                    .map(|(volume, epoch)| Claim {
                        volume: *volume,
                        epoch: *epoch,
                    })
                    .collect()
            });
            let beat = Beat {
                instance: self.instance,
                seq: link.seq,
                table: self.table,
                claims,
                unwell: self.unwell.clone(),
                orphans: self.orphans.clone(),
                set: self.witnesses.tag,
                zone: self.zone.clone(),
            };
            self.out.push_back(BeatOutput::Send {
                to: link.witness,
                message: WitnessMessage::Beat(beat),
            });
        }
    }

    /// Takes a witness's answer.
    pub fn handle_granted(&mut self, now: MonoTime, from: NodeId, granted: Granted) {
        let granted_for = Duration::from_millis(u64::from(granted.lease_ms));
        let held = self.config.held(granted_for);
        let from_receipt = self.config.mistakes.has(Mistake::LeaseFromReceipt);
        let unnamed = self.config.mistakes.has(Mistake::GrantsWithoutNames);
        let tables = &self.tables;
        let Some(link) = self.links.iter_mut().find(|link| link.witness == from) else {
            return;
        };
        let Some((_, sent)) = link
            .sent
            .iter()
            .find(|(seq, _)| *seq == granted.seq)
            .copied()
        else {
            return;
        };
        link.table_known = granted.table;
        link.heard_at = Some(now);
        link.hearing = granted.hearing.into_iter().collect();
        let table = tables
            .iter()
            .find(|(number, _)| *number == granted.table)
            .map(|(_, claims)| claims);
        let Some(claims) = (if unnamed { Some(&self.claims) } else { table }) else {
            return;
        };
        let until = if from_receipt {
            now + granted_for
        } else {
            sent + held
        };
        let mut changed = Vec::new();
        for (volume, epoch) in claims
            .iter()
            .filter(|(volume, _)| !granted.exceptions.contains(volume))
        {
            let grant = link.grants.entry(*volume).or_insert((*epoch, until));
            *grant = if grant.0 == *epoch {
                (*epoch, grant.1.max(until))
            } else {
                (*epoch, until)
            };
            changed.push((*volume, *epoch));
        }
        self.tell_leases(changed, self.silent(now));
    }

    /// Tells the members what is news to them. Of the answers to one beat only the one that makes the majority moves a
    /// lease: each of the others would wake every volume for nothing.
    fn tell_leases(&mut self, granted: Vec<(VolumeId, Epoch)>, silent: Vec<NodeId>) {
        for (volume, epoch) in granted {
            let until = self.lease(volume, epoch);
            let news = (epoch, until, silent.clone());
            if self.told.get(&volume) == Some(&news) {
                continue;
            }
            self.told.insert(volume, news);
            self.out.push_back(BeatOutput::Lease {
                volume,
                epoch,
                until,
                silent: silent.clone(),
            });
        }
    }

    /// When the lease of (volume, epoch) ends: the time until which a majority of the witnesses granted it.
    #[must_use]
    pub fn lease(&self, volume: VolumeId, epoch: Epoch) -> MonoTime {
        self.witnesses.quorum_end(|witness| {
            let link = self.links.iter().find(|link| link.witness == witness);
            let grant = link.and_then(|link| link.grants.get(&volume));
            grant
                .filter(|(granted, _)| *granted == epoch)
                .map_or(MonoTime::ZERO, |(_, until)| *until)
        })
    }

    /// Data nodes that a majority of the witnesses say they do not hear.
    fn silent(&self, now: MonoTime) -> Vec<NodeId> {
        let fresh = |link: &Link| link.heard_at.is_some_and(|at| now < at + self.config.lease);
        let unheard = |node: &NodeId| {
            self.witnesses.is_quorum(|witness| {
                let link = self.links.iter().find(|link| link.witness == witness);
                link.is_some_and(|link| fresh(link) && !link.hearing.contains(node))
            })
        };
        self.nodes.iter().copied().filter(unheard).collect()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<BeatOutput> {
        self.out.pop_front()
    }

    /// When to call [`Beats::tick`], at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> MonoTime {
        self.links
            .iter()
            .map(|link| link.next_beat)
            .min()
            .unwrap_or(MonoTime::MAX)
    }

    /// How long ago each witness answered last; none if it never did.
    #[must_use]
    pub fn heard(&self, now: MonoTime) -> Vec<(NodeId, Option<Duration>)> {
        self.links
            .iter()
            .map(|link| (link.witness, link.heard_at.map(|at| now.since(at))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: VolumeId = VolumeId(7);

    fn beats() -> Beats {
        let witnesses = [NodeId(11), NodeId(12), NodeId(13)];
        let mut beats = Beats::new(
            MonoTime(0),
            LeaseConfig::default(),
            Instance(5),
            Arc::new(WitnessSet::of(&witnesses)),
            &[NodeId(1)],
        );
        beats.state(
            MonoTime(1_000),
            &[Claim {
                volume: V,
                epoch: Epoch(3),
            }],
            Vec::new(),
            Vec::new(),
        );
        beats
    }

    fn granted(seq: u64, table: u64) -> Granted {
        Granted {
            seq,
            table,
            exceptions: Vec::new(),
            hearing: vec![NodeId(1)],
            lease_ms: 800,
        }
    }

    #[test]
    fn a_lease_needs_a_majority_and_runs_from_the_send_time() {
        let mut b = beats();
        b.handle_granted(MonoTime(900_000), NodeId(11), granted(1, 2));
        assert_eq!(b.lease(V, Epoch(3)), MonoTime::ZERO);
        b.handle_granted(MonoTime(950_000), NodeId(12), granted(1, 2));
        assert_eq!(
            b.lease(V, Epoch(3)),
            MonoTime(1_000) + LeaseConfig::default().held(LeaseConfig::default().lease)
        );
        assert_eq!(b.lease(V, Epoch(4)), MonoTime::ZERO);
    }

    #[test]
    fn members_are_told_when_a_lease_moves_and_not_for_every_grant() {
        let mut b = beats();
        while b.poll_output().is_some() {}
        let mut told = Vec::new();
        for witness in [11, 12, 13] {
            b.handle_granted(MonoTime(900_000), NodeId(witness), granted(1, 2));
            while let Some(output) = b.poll_output() {
                let BeatOutput::Lease { until, .. } = output else {
                    panic!("{output:?}")
                };
                told.push((witness, until));
            }
        }
        let lease = b.lease(V, Epoch(3));
        assert_eq!(told, [(11, MonoTime::ZERO), (12, lease)]);
    }

    #[test]
    fn members_are_told_of_nodes_that_the_witnesses_hear_no_more() {
        let mut b = beats();
        for witness in [11, 12, 13] {
            b.handle_granted(MonoTime(900_000), NodeId(witness), granted(1, 2));
        }
        while b.poll_output().is_some() {}
        let deaf = Granted {
            hearing: Vec::new(),
            ..granted(1, 2)
        };
        for witness in [11, 12] {
            b.handle_granted(MonoTime(950_000), NodeId(witness), deaf.clone());
        }
        let Some(BeatOutput::Lease { silent, .. }) = b.poll_output() else {
            panic!("silence is news")
        };
        assert_eq!(silent, [NodeId(1)]);
        assert_eq!(b.poll_output(), None);
    }

    #[test]
    fn beats_leave_together_on_the_grid() {
        let mut b = beats();
        let beat = LeaseConfig::default().beat;
        let next = b.next_deadline();
        assert_eq!(next, next.on_grid(beat));
        while b.poll_output().is_some() {}
        b.tick(next);
        assert_eq!(b.next_deadline(), next + beat);
        assert_eq!(std::iter::from_fn(|| b.poll_output()).count(), 3);
    }

    #[test]
    fn a_grant_for_an_older_table_says_nothing_of_a_newer_claim() {
        let mut b = beats();
        b.state(
            MonoTime(2_000),
            &[Claim {
                volume: V,
                epoch: Epoch(4),
            }],
            Vec::new(),
            Vec::new(),
        );
        for witness in [11, 12, 13] {
            b.handle_granted(MonoTime(900_000), NodeId(witness), granted(1, 2));
        }
        assert_eq!(b.lease(V, Epoch(4)), MonoTime::ZERO);
    }

    #[test]
    fn the_holder_counts_less_than_the_witness() {
        let config = LeaseConfig::default();
        assert!(config.held(config.lease) < config.lease);
        // A holder whose clock is slow by r and a witness whose clock is fast by r end together at worst.
        let (slow, fast) = (0.99, 1.01);
        assert!(
            config.held(config.lease).as_secs_f64() / slow
                <= config.lease.as_secs_f64() / fast + 1e-9
        );
    }
}
