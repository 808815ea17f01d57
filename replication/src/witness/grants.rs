//! Beats, leases, releases and fences from the witness's side: rules R6.2, R7.1 and R7.3.
//!
//! A grant is counted from the moment it is answered. A fence waits for the end of *every* running grant of the
//! volume, of whatever epoch (H8), and for the quiet time after a start (M2).

use std::collections::{BTreeMap, BTreeSet};

use mainstay_types::{Epoch, Instance, MonoTime, NodeId, VolumeId, Zone};

use super::Witness;
use super::holddown::HoldDown;
use crate::message::{Beat, Claim, ClaimHealth, Granted, Message, SuspectReason, WitnessMessage};
use crate::mistakes::Mistake;
use crate::witness_set::SetTag;

/// Grants of one volume, and what is known of its present primary.
#[derive(Debug, Default)]
pub(super) struct Grants {
    /// Running grants by epoch and instance, and when each ends.
    running: BTreeMap<(Epoch, Instance), MonoTime>,
    /// Released for good.
    released: BTreeSet<(Epoch, Instance)>,
    /// A fence that waits for running grants to end, and who waits for it.
    fencing: Option<(Epoch, BTreeSet<NodeId>)>,
    /// The register's epoch, who acts in it, and when this witness first saw it.
    pub(super) epoch: Epoch,
    holder: Option<Instance>,
    pub(super) epoch_since: MonoTime,
    /// Whom the last primary, or an operator, wants next.
    pub(super) prefer: Option<NodeId>,
    /// Whether the present epoch was ever granted here.
    pub(super) granted: bool,
    /// How its primaries were lost lately.
    pub(super) hold_down: HoldDown,
}

/// What this witness knows of one data node.
#[derive(Debug)]
pub(super) struct NodeSeen {
    pub(super) instance: Instance,
    pub(super) last_beat: MonoTime,
    table: u64,
    claims: Vec<Claim>,
    pub(super) unwell: Vec<ClaimHealth>,
    /// Where it stands, as its beats say.
    pub(super) zone: Option<Zone>,
    pub(super) orphans: BTreeMap<VolumeId, Epoch>,
}

impl Grants {
    /// Forgets fences that were not answered: they were asked for under another witness set, and will be again.
    pub(super) fn forget_fences(&mut self) {
        self.fencing = None;
    }

    fn runs(&self, now: MonoTime) -> bool {
        self.running.values().any(|ends| now < *ends)
    }

    /// Whether that process gave that epoch up itself.
    pub(super) fn has_released(&self, epoch: Epoch, instance: Instance) -> bool {
        self.released.contains(&(epoch, instance))
    }
}

impl Witness {
    pub(super) fn handle_beat(&mut self, now: MonoTime, from: NodeId, beat: Beat) {
        if self.dead.contains(&beat.instance) || self.dead_nodes.contains(&from) {
            return;
        }
        if !self.admits(from, beat.set) {
            return;
        }
        let seen = self.nodes.entry(from).or_insert_with(|| NodeSeen {
            instance: beat.instance,
            last_beat: now,
            table: 0,
            claims: Vec::new(),
            unwell: Vec::new(),
            zone: None,
            orphans: BTreeMap::new(),
        });
        if seen.instance != beat.instance {
            (seen.instance, seen.table) = (beat.instance, 0);
        }
        seen.last_beat = now;
        if let Some(claims) = beat.claims {
            (seen.table, seen.claims) = (beat.table, claims);
        }
        seen.unwell = beat.unwell;
        seen.zone = beat.zone;
        seen.orphans = beat
            .orphans
            .iter()
            .map(|orphan| (orphan.volume, orphan.sealed))
            .collect();
        let known = seen.table == beat.table;
        let claims = if known {
            seen.claims.clone()
        } else {
            Vec::new()
        };
        let mut exceptions = Vec::new();
        for claim in claims {
            if !self.grant(now, from, beat.instance, claim) {
                exceptions.push(claim.volume);
            }
        }
        let hearing = self.hearing(now);
        let table = if known { beat.table } else { 0 };
        let lease_ms = u32::try_from(self.config.lease.as_millis()).unwrap_or(0);
        let granted = Granted {
            seq: beat.seq,
            table,
            exceptions,
            hearing,
            lease_ms,
        };
        self.send(from, Message::Witness(WitnessMessage::Granted(granted)));
    }

    /// Grants one claim, if the register copy here names it and nothing forbids it.
    fn grant(&mut self, now: MonoTime, node: NodeId, instance: Instance, claim: Claim) -> bool {
        let Some(record) = self.records.get(&claim.volume) else {
            return false;
        };
        let Some((_, register)) = &record.accepted else {
            return false;
        };
        let unnamed = self.config.mistakes.has(Mistake::GrantsWithoutNames);
        let named = register.primary.node == node
            && (unnamed
                || (register.primary.instance == instance && register.epoch == claim.epoch));
        let epoch = if unnamed { register.epoch } else { claim.epoch };
        let well = self.is_well(now, node, register);
        let fenced = record.fenced >= epoch;
        let deleted = register.deleted;
        let grants = self.grants.entry(claim.volume).or_default();
        let fencing = grants
            .fencing
            .as_ref()
            .is_some_and(|(fence, _)| *fence >= epoch);
        let released = grants.released.contains(&(epoch, instance));
        if !named || fenced || fencing || released || deleted || !well {
            return false;
        }
        grants
            .running
            .insert((epoch, instance), now + self.config.lease);
        grants.granted = true;
        true
    }

    pub(super) fn hears(&self, now: MonoTime, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|seen| {
            now < seen.last_beat + self.config.lease && !self.dead.contains(&seen.instance)
        })
    }

    fn hearing(&self, now: MonoTime) -> Vec<NodeId> {
        self.nodes
            .keys()
            .copied()
            .filter(|node| self.hears(now, *node))
            .collect()
    }

    pub(super) fn handle_release(
        &mut self,
        _now: MonoTime,
        volume: VolumeId,
        epoch: Epoch,
        instance: Instance,
        prefer: Option<NodeId>,
    ) {
        let grants = self.grants.entry(volume).or_default();
        grants.running.remove(&(epoch, instance));
        grants.released.insert((epoch, instance));
        if grants.epoch == epoch {
            grants.prefer = prefer;
        }
    }

    pub(super) fn handle_release_instance(&mut self, node: NodeId, instance: Instance) {
        if self.config.mistakes.has(Mistake::ReleaseByNode) {
            let holders: Vec<Instance> = self
                .nodes
                .get(&node)
                .map(|seen| seen.instance)
                .into_iter()
                .collect();
            for grants in self.grants.values_mut() {
                grants
                    .running
                    .retain(|(_, holder), _| !holders.contains(holder));
                let epoch = grants.epoch;
                grants
                    .released
                    .extend(holders.iter().map(|holder| (epoch, *holder)));
            }
        }
        self.dead.insert(instance);
        for grants in self.grants.values_mut() {
            grants.running.retain(|(_, holder), _| *holder != instance);
        }
    }

    /// Whether this witness, too, sees reason to replace the primary of `epoch`.
    pub(super) fn handle_suspect(
        &mut self,
        now: MonoTime,
        from: NodeId,
        volume: VolumeId,
        epoch: Epoch,
        reason: SuspectReason,
    ) {
        let known = self
            .accepted(volume)
            .map_or(Epoch::ZERO, |register| register.epoch);
        let agree = known <= epoch
            && match reason {
                // Both are facts that another witness or a member has written down: the primary is refused for ever
                // by somebody, whatever this witness hears.
                SuspectReason::Fenced | SuspectReason::SealedAbove => true,
                SuspectReason::LeaseGone | SuspectReason::Operator => {
                    known < epoch
                        || (self.lease_gone(now, volume)
                            && now >= self.held_down_until(now, volume))
                }
            };
        self.send(
            from,
            Message::Witness(WitnessMessage::Suspected {
                volume,
                epoch,
                agree,
            }),
        );
    }

    /// Whether no grant for the register's epoch runs here, and none is to be expected.
    pub(super) fn lease_gone(&self, now: MonoTime, volume: VolumeId) -> bool {
        let Some(register) = self.accepted(volume) else {
            return false;
        };
        let Some(grants) = self.grants.get(&volume) else {
            return false;
        };
        let holder = (register.epoch, register.primary.instance);
        if self.has_stopped(grants, holder) {
            return true;
        }
        if grants.running.get(&holder).is_some_and(|ends| now < *ends) {
            return false;
        }
        now >= self.lease_due(now, grants)
    }

    /// Whether the holder of an epoch said itself, or its supervisor, that it serves no more.
    fn has_stopped(&self, grants: &Grants, holder: (Epoch, Instance)) -> bool {
        grants.released.contains(&holder) || self.dead.contains(&holder.1)
    }

    /// Before this time the primary is not replaced on suspicion.
    pub(super) fn held_down_until(&self, now: MonoTime, volume: VolumeId) -> MonoTime {
        let (Some(register), Some(grants)) = (self.accepted(volume), self.grants.get(&volume))
        else {
            return MonoTime::ZERO;
        };
        if self.has_stopped(grants, (register.epoch, register.primary.instance)) {
            return MonoTime::ZERO;
        }
        grants.hold_down.until(now, &self.config.hold_down)
    }

    /// When a lease that never came counts as gone: a lease after the epoch was first seen, and after a start here.
    fn lease_due(&self, now: MonoTime, grants: &Grants) -> MonoTime {
        // A witness that does not wait before it fences does not wait before it suspects, either.
        let hasty = self.config.mistakes.has(Mistake::NoQuietTime) && now < self.quiet_until;
        if grants.granted || hasty {
            MonoTime::ZERO
        } else {
            self.quiet_until.max(grants.epoch_since + self.config.lease)
        }
    }

    pub(super) fn handle_fence(
        &mut self,
        from: NodeId,
        volume: VolumeId,
        epoch: Epoch,
        set: SetTag,
    ) {
        if !self.admits(from, set) {
            return;
        }
        let grants = self.grants.entry(volume).or_default();
        let (fence, waiting) = grants
            .fencing
            .get_or_insert_with(|| (epoch, BTreeSet::new()));
        if *fence < epoch {
            *fence = epoch;
            waiting.clear();
        }
        if *fence == epoch {
            waiting.insert(from);
        }
    }

    /// Answers fences whose grants have ended, and sets the deadlines of the rest.
    pub(super) fn close_grants(&mut self, now: MonoTime) {
        let quiet = if self.config.mistakes.has(Mistake::NoQuietTime) {
            MonoTime::ZERO
        } else {
            self.quiet_until
        };
        let same_epoch_only = self.config.mistakes.has(Mistake::GrantsWithoutNames);
        let volumes: Vec<VolumeId> = self.grants.keys().copied().collect();
        for volume in volumes {
            let grants = self.grants.get_mut(&volume).expect("listed above");
            grants.running.retain(|_, ends| now < *ends);
            let Some((epoch, _)) = grants.fencing else {
                continue;
            };
            let blocked = if same_epoch_only {
                grants.running.keys().any(|(e, _)| *e == epoch)
            } else {
                grants.runs(now)
            };
            if blocked || now < quiet {
                let ends = grants
                    .running
                    .values()
                    .max()
                    .copied()
                    .unwrap_or(now)
                    .max(quiet);
                self.wake_at(ends);
                continue;
            }
            let (epoch, waiting) = grants.fencing.take().expect("seen above");
            let record = self.records.entry(volume).or_default();
            let mut written = record.fenced >= epoch;
            record.fenced = record.fenced.max(epoch);
            for to in waiting {
                let message = Message::Witness(WitnessMessage::Fenced { volume, epoch });
                // Fences are asked for again and again. Writing each down again would keep a slow store so busy that
                // the votes queue up behind.
                if written {
                    self.after_persisted(to, message);
                } else {
                    self.persist_then(volume, to, message);
                    written = true;
                }
            }
        }
    }

    /// Notes that a register value was accepted here.
    pub(super) fn note_register(&mut self, now: MonoTime, volume: VolumeId) {
        let Some(register) = self.accepted(volume) else {
            return;
        };
        let (epoch, holder) = (register.epoch, register.primary.instance);
        let before = self.grants.get(&volume);
        let stopped = before.is_some_and(|grants| {
            grants
                .holder
                .is_some_and(|holder| self.has_stopped(grants, (grants.epoch, holder)))
        });
        let grants = self.grants.entry(volume).or_default();
        if epoch != grants.epoch || grants.epoch_since == MonoTime::ZERO {
            match grants.holder.replace(holder) {
                Some(_) if stopped => grants.hold_down.released(),
                Some(_) => grants.hold_down.suspected(now, &self.config.hold_down),
                None => {}
            }
            grants.epoch = epoch;
            grants.epoch_since = now;
            grants.granted = false;
            grants.prefer = None;
            grants.released.retain(|(released, _)| *released >= epoch);
        }
    }

    /// Why the primary of a volume should be replaced, if it should.
    pub(super) fn reason(&self, now: MonoTime, volume: VolumeId) -> Option<SuspectReason> {
        let register = self.accepted(volume)?;
        if register.deleted {
            return None;
        }
        if !self.config.mistakes.has(Mistake::OrphansIgnored) {
            if self
                .records
                .get(&volume)
                .is_some_and(|record| record.fenced >= register.epoch)
            {
                return Some(SuspectReason::Fenced);
            }
            if self.greatest_seal(volume, register) > register.epoch {
                return Some(SuspectReason::SealedAbove);
            }
        }
        self.lease_gone(now, volume)
            .then_some(SuspectReason::LeaseGone)
    }

    /// When `reason` could change by the passing of time alone.
    pub(super) fn reason_due(&self, now: MonoTime, volume: VolumeId) -> MonoTime {
        let Some(grants) = self.grants.get(&volume) else {
            return MonoTime::MAX;
        };
        let ends = grants.running.values().max().copied();
        ends.unwrap_or_else(|| self.lease_due(now, grants)).max(now)
    }
}
