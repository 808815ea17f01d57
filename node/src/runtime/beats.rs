//! The node's heartbeats: one task that runs the holder's side of all leases.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstay_replication::message::{Claim, ClaimHealth, Granted, Message, Orphan};
use mainstay_replication::{BeatOutput, Beats, WitnessSet};
use mainstay_types::{Epoch, NodeId, VolumeId};
use mainstay_volume::Event;
use tokio::sync::mpsc;

use super::handle::VolumeHandle;
use super::report::VolumeReport;
use super::{Node, clock};

/// A commit path that is overdue by less is not worth a word.
const UNWELL_FROM: Duration = Duration::from_millis(200);

#[derive(Debug)]
enum ToBeats {
    Claim {
        volume: VolumeId,
        epoch: Option<Epoch>,
    },
    Release {
        volume: VolumeId,
        epoch: Epoch,
        prefer: Option<NodeId>,
    },
    Granted {
        from: NodeId,
        granted: Granted,
    },
    Witnesses(Arc<WitnessSet>),
}

/// The rest of the node's end.
#[derive(Debug, Clone)]
pub struct BeatsHandle(mpsc::UnboundedSender<ToBeats>);

/// The task's end.
#[derive(Debug)]
pub struct BeatsQueue(mpsc::UnboundedReceiver<ToBeats>);

/// Both ends.
#[must_use]
pub fn channel() -> (BeatsHandle, BeatsQueue) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (BeatsHandle(sender), BeatsQueue(receiver))
}

impl BeatsHandle {
    /// This node acts as primary of `volume` in `epoch`, or no longer, or its seal changed.
    pub fn claim(&self, volume: VolumeId, epoch: Option<Epoch>) {
        let _stopping = self.0.send(ToBeats::Claim { volume, epoch });
    }

    /// The volume's member stopped serving `epoch`.
    pub fn release(&self, volume: VolumeId, epoch: Epoch, prefer: Option<NodeId>) {
        let _stopping = self.0.send(ToBeats::Release {
            volume,
            epoch,
            prefer,
        });
    }

    /// There are other witnesses.
    pub fn witnesses(&self, set: Arc<WitnessSet>) {
        let _stopping = self.0.send(ToBeats::Witnesses(set));
    }

    /// A witness answered.
    pub fn granted(&self, from: NodeId, granted: Granted) {
        let _stopping = self.0.send(ToBeats::Granted { from, granted });
    }
}

/// Beats until the node has stopped.
pub async fn run(node: Arc<Node>, mut queue: BeatsQueue) {
    let witnesses = node.witnesses();
    let data: Vec<NodeId> = node.settings.data_nodes();
    let config = node.settings.lease.clone();
    let mut beats = Beats::new(clock::mono(), config, node.instance, witnesses, &data)
        .in_zone(node.settings.zone.clone());
    let mut claims: BTreeMap<VolumeId, Epoch> = BTreeMap::new();
    let stopped = node.until_stopped();
    tokio::pin!(stopped);
    loop {
        let wait = clock::until(beats.next_deadline(), Duration::from_secs(1));
        let event = tokio::select! {
            event = queue.0.recv() => event,
            () = tokio::time::sleep(wait) => None,
            () = &mut stopped => return,
        };
        let now = clock::mono();
        match event {
            Some(ToBeats::Claim { volume, epoch }) => {
                match epoch {
                    Some(epoch) => claims.insert(volume, epoch),
                    None => claims.remove(&volume),
                };
                state(&node, &mut beats, &claims);
            }
            Some(ToBeats::Release {
                volume,
                epoch,
                prefer,
            }) => {
                claims.remove(&volume);
                beats.release(now, volume, epoch, prefer);
            }
            Some(ToBeats::Granted { from, granted }) => beats.handle_granted(now, from, granted),
            Some(ToBeats::Witnesses(set)) => beats.set_witnesses(now, set),
            None => state(&node, &mut beats, &claims),
        }
        while let Some(output) = beats.poll_output() {
            match output {
                BeatOutput::Send { to, message } => {
                    node.send(to, Message::Witness(message), Bytes::new())
                }
                BeatOutput::Lease {
                    volume,
                    epoch,
                    until,
                    silent,
                } => {
                    if let Some(handle) = node.volume(volume) {
                        handle.tell(Event::Lease {
                            epoch,
                            until,
                            silent,
                        });
                    }
                }
            }
        }
        node.witnesses_heard(beats.heard(now));
    }
}

/// States claims, overdue commit paths and orphaned seals, as the volumes reported them last.
fn state(node: &Node, beats: &mut Beats, claims: &BTreeMap<VolumeId, Epoch>) {
    let now = clock::mono();
    let claims: Vec<Claim> = claims
        .iter()
        .map(|(volume, epoch)| Claim {
            volume: *volume,
            epoch: *epoch,
        })
        .collect();
    let (mut unwell, mut orphans) = (Vec::new(), Vec::new());
    for handle in node.volumes() {
        let report = handle.report();
        let volume = handle.spec.name.id();
        unwell.extend(health(&handle, &report));
        orphans.extend(report.orphaned.map(|sealed| Orphan { volume, sealed }));
    }
    beats.state(now, &claims, unwell, orphans);
}

/// What is overdue in one volume; a thread that does not look up is as bad as a disk that does not answer.
fn health(handle: &VolumeHandle, report: &VolumeReport) -> Option<ClaimHealth> {
    let stale = clock::mono().since(report.at.min(handle.disk_awake.get()));
    let sync_age = report.sync_age.max(stale.saturating_sub(UNWELL_FROM));
    let uncommitted = report.acting.map_or(Duration::ZERO, |(_, age)| age);
    let overdue = sync_age >= UNWELL_FROM || uncommitted >= UNWELL_FROM;
    let silent = report.acting.is_none() && !report.unreachable.is_empty();
    if !overdue && !silent && report.syncs_due == 0 {
        return None;
    }
    let ms = |age: Duration| u32::try_from(age.as_millis()).unwrap_or(u32::MAX);
    Some(ClaimHealth {
        volume: handle.spec.name.id(),
        sync_age_ms: ms(sync_age),
        uncommitted_age_ms: ms(uncommitted),
        unreachable: report.unreachable.clone(),
        syncs_due: report.syncs_due,
    })
}
