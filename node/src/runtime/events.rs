//! What happened in the cluster, as this node saw it: a bounded list, kept across restarts, each event also in the log.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;

use mainstay_proto::v1 as pb;
use mainstay_replication::message::SuspectReason;
use mainstay_replication::{Certificate, Loss, Role, Voter, WitnessEvent, WitnessSet};
use mainstay_types::{Epoch, Lsn, NodeId, Register, VolumeName};
use tokio::sync::watch;

use super::event_file::EventFile;
use super::{Node, clock};

/// Events kept.
const EVENTS_KEPT: usize = 4096;

/// How much an operator should care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth a line.
    Info,
    /// Worth a look.
    Warning,
    /// Worth waking somebody.
    Alarm,
}

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A volume was created.
    VolumeCreated,
    /// A volume was deleted.
    VolumeDeleted,
    /// A witness saw a primary's lease go.
    PrimaryLost,
    /// The register names a new primary.
    Promoted,
    /// Primaries of a volume are lost again and again.
    Flapping,
    /// The external fence failed.
    ExternalFenceFailed,
    /// A hook failed.
    HookFailed,
    /// There are other witnesses.
    WitnessesChanged,
    /// Requests of clients ended in an error because nobody served their volume in time.
    RequestsOverdue,
    /// The files of NBD's TLS changed, and are used or not.
    CertificatesChanged,
    /// A primary on this node stopped serving.
    SteppedDown,
    /// A copy became a member.
    MemberAdded,
    /// A member was dropped.
    MemberRemoved,
    /// A copy does not open, or is damaged.
    DamageFound,
    /// Damage was made good from another copy.
    Repaired,
    /// This process began.
    NodeStarted,
    /// This process ends cleanly.
    NodeStopped,
}

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    /// What kind.
    pub kind: EventKind,
    /// How much to care.
    pub severity: Severity,
    /// Which volume, if one.
    pub volume: Option<VolumeName>,
    /// In which epoch, if in one.
    pub epoch: Epoch,
    /// Where in the log, if anywhere.
    pub lsn: Lsn,
    /// In words.
    pub message: String,
    /// The record of a promotion that this node drove.
    pub certificate: Option<Box<Certificate>>,
}

/// The list.
#[derive(Debug)]
pub struct EventLog {
    node: NodeId,
    events: Mutex<VecDeque<pb::Event>>,
    newest: watch::Sender<u64>,
    /// None if it does not open: events are then lost with the process.
    file: Option<EventFile>,
}

impl EventLog {
    /// The list that a node kept in `dir`.
    #[must_use]
    pub fn open(node: NodeId, dir: &Path) -> Self {
        let (file, mut events) = match EventFile::open(dir) {
            Ok((file, events)) => (Some(file), events),
            Err(error) => {
                let dir = dir.display();
                tracing::warn!(%dir, %error, "events are not kept across restarts");
                (None, Vec::new())
            }
        };
        let newest = events.last().map_or(0, |event| event.number);
        events.drain(..events.len().saturating_sub(EVENTS_KEPT));
        Self {
            node,
            events: Mutex::new(events.into()),
            newest: watch::channel(newest).0,
            file,
        }
    }

    /// Events after number `since`, oldest first. A number that was never given means a list that was lost: all of them.
    #[must_use]
    pub fn since(&self, since: u64) -> Vec<pb::Event> {
        let lost = since > *self.newest.borrow();
        let events = self.events.lock().expect("no panic while the lock is held");
        events
            .iter()
            .filter(|event| lost || event.number > since)
            .cloned()
            .collect()
    }

    /// Number of the newest event, as it moves.
    #[must_use]
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Adds one.
    pub fn add(&self, event: Event) {
        let mut events = self.events.lock().expect("no panic while the lock is held");
        let number = *self.newest.borrow() + 1;
        let volume = event.volume.as_ref().map_or("-", VolumeName::as_str);
        match event.severity {
            Severity::Info => tracing::info!(volume, "{}", event.message),
            Severity::Warning | Severity::Alarm => tracing::warn!(volume, "{}", event.message),
        }
        let event = encode(self.node, number, event);
        if let Some(file) = &self.file {
            file.keep(&event);
        }
        events.push_back(event);
        if events.len() > EVENTS_KEPT {
            events.pop_front();
        }
        // Under the lock: two events that happen at once must not get one number, or a follower misses the second.
        self.newest.send_replace(number);
        drop(events);
    }

    /// What a witness reports.
    pub(super) fn witness(&self, node: &Node, event: WitnessEvent) {
        let name = |volume| node.register(volume).map(|register| register.spec.name);
        match event {
            WitnessEvent::PromotionStarted {
                volume,
                epoch,
                reason,
            } => {
                let message = format!("the primary of epoch {epoch} is to be replaced: {reason:?}");
                self.add(Event {
                    volume: name(volume),
                    epoch,
                    ..warning(EventKind::PrimaryLost, message)
                });
            }
            WitnessEvent::PromotionWaits {
                volume,
                epoch,
                answers,
                needed,
                missing,
            } => {
                let message = format!(
                    "promotion to epoch {epoch} waits: {answers} of {needed} answers needed to see everything \
                     committed; any of these members could complete it: {missing:?}"
                );
                let event = warning(EventKind::PrimaryLost, message);
                self.add(Event {
                    volume: name(volume),
                    epoch,
                    severity: Severity::Alarm,
                    ..event
                });
            }
            WitnessEvent::HeldDown {
                volume,
                epoch,
                promotions,
                until,
            } => {
                let wait = until.since(clock::mono());
                let message = format!(
                    "{promotions} primaries were lost within a minute: the one of epoch {epoch} is replaced on suspicion \
                     in {:.1} s at the earliest; look for a flapping link or a sick disk",
                    wait.as_secs_f64()
                );
                let event = warning(EventKind::Flapping, message);
                node.held_down(volume, until);
                self.add(Event {
                    volume: name(volume),
                    epoch,
                    severity: Severity::Alarm,
                    ..event
                });
            }
            WitnessEvent::ExternalFenceFailed {
                volume,
                epoch,
                node: struck,
                output,
                again,
            } => {
                let again = match again {
                    Some(at) => format!(
                        "it is tried again in {:.1} s",
                        at.since(clock::mono()).as_secs_f64()
                    ),
                    None => "the forced promotion was refused".to_owned(),
                };
                let message = format!(
                    "nobody is promoted after epoch {epoch}, as the external fence of node {struck} failed: {output}; {again}"
                );
                self.add(Event {
                    volume: name(volume),
                    epoch,
                    severity: Severity::Alarm,
                    ..warning(EventKind::ExternalFenceFailed, message)
                });
            }
            WitnessEvent::OtherWitnesses { node: other } => node.say_other_witnesses(other),
            WitnessEvent::Promoted(certificate) => {
                let c = &certificate;
                let event = match &c.forced {
                    None => info(EventKind::Promoted, promoted(c)),
                    Some(loss) => Event {
                        severity: Severity::Alarm,
                        ..warning(EventKind::Promoted, forced(c, loss))
                    },
                };
                let (volume, epoch, lsn) = (Some(c.name.clone()), c.epoch, c.cut.lsn);
                self.add(Event {
                    volume,
                    epoch,
                    lsn,
                    certificate: Some(certificate),
                    ..event
                });
            }
        }
    }

    /// A register value became known here.
    pub(super) fn learned(&self, _node: &Node, before: Option<&Register>, now: &Register) {
        let event = |kind, message| Event {
            volume: Some(now.spec.name.clone()),
            epoch: now.epoch,
            ..info(kind, message)
        };
        let Some(before) = before.filter(|before| before.lineage == now.lineage) else {
            return;
        };
        if now.deleted && !before.deleted {
            self.add(event(
                EventKind::VolumeDeleted,
                "the volume was deleted".to_owned(),
            ));
        }
        for member in now
            .members
            .iter()
            .filter(|member| !before.members.contains(member))
        {
            let message = format!(
                "node {} is a member again; {} copies",
                member.node,
                now.members.len()
            );
            self.add(event(EventKind::MemberAdded, message));
        }
        for member in before
            .members
            .iter()
            .filter(|member| !now.members.contains(member))
        {
            let message = format!(
                "node {} was dropped; {} copies are left",
                member.node,
                now.members.len()
            );
            let event = event(EventKind::MemberRemoved, message);
            self.add(Event {
                severity: Severity::Warning,
                ..event
            });
        }
    }

    /// A volume on this node changed its role.
    pub(super) fn role(&self, _node: &Node, volume: &VolumeName, role: Role) {
        match role {
            Role::Primary { epoch } => {
                let message = format!("serves as primary of epoch {epoch}");
                self.add(Event {
                    volume: Some(volume.clone()),
                    epoch,
                    ..info(EventKind::Promoted, message)
                });
            }
            Role::Failed => {
                let message =
                    "this copy steps aside: its disk failed or its log is damaged".to_owned();
                let event = warning(EventKind::DamageFound, message);
                self.add(Event {
                    volume: Some(volume.clone()),
                    severity: Severity::Alarm,
                    ..event
                });
            }
            other => tracing::debug!(%volume, role = ?other, "role"),
        }
    }

    /// There are other witnesses.
    pub(super) fn witnesses(&self, set: &WitnessSet) {
        let of = |voters: &[Voter]| {
            let nodes = voters.iter().map(|voter| voter.node.to_string());
            nodes.collect::<Vec<_>>().join(", ")
        };
        let message = match &set.next {
            Some(next) => format!(
                "the witnesses change from {} to {}: until that is done a majority of both decides",
                of(&set.voters),
                of(next)
            ),
            None => format!("the witnesses are {}", of(&set.voters)),
        };
        self.add(info(EventKind::WitnessesChanged, message));
    }

    /// A hook did not succeed.
    pub(super) fn hook_failed(&self, volume: &VolumeName, epoch: Epoch, hook: &str, said: &str) {
        let goes_on = match hook {
            "promoted" => "the volume is served all the same",
            _ => "the volume goes on without this primary",
        };
        let message = format!("the hook `{hook}` of epoch {epoch} failed: {said}; {goes_on}");
        self.add(Event {
            volume: Some(volume.clone()),
            epoch,
            ..warning(EventKind::HookFailed, message)
        });
    }

    /// A copy of an ended history was put aside.
    pub(super) fn set_aside(&self, volume: &VolumeName, register: &Register, path: &Path) {
        let message = format!(
            "the copy here is of the history that a forced promotion ended in epoch {}: it is kept whole in {}, and a new \
             copy is made; remove it when nobody needs what it holds",
            register.epoch,
            path.display()
        );
        self.add(Event {
            volume: Some(volume.clone()),
            epoch: register.epoch,
            ..warning(EventKind::DamageFound, message)
        });
    }

    /// A copy does not open for now.
    pub(super) fn copy_waits(&self, path: &Path, error: &str) {
        let message = format!(
            "the copy in {} does not open for now, and is tried again until it does: {error}",
            path.display()
        );
        self.add(warning(EventKind::DamageFound, message));
    }

    /// A copy does not open.
    pub(super) fn copy_failed(&self, _node: &Node, path: &Path, error: &str) {
        let message = format!(
            "the copy in {} does not open and is left as it is: {error}",
            path.display()
        );
        self.add(Event {
            severity: Severity::Alarm,
            ..warning(EventKind::DamageFound, message)
        });
    }
}

/// As it is kept and shown.
fn encode(node: NodeId, number: u64, event: Event) -> pb::Event {
    let mut out = pb::Event {
        number,
        unix_ms: clock::unix_ms(),
        node: node.0,
        volume: event.volume.map(String::from).unwrap_or_default(),
        epoch: event.epoch.0,
        lsn: event.lsn.0,
        message: event.message,
        certificate: event
            .certificate
            .map(|certificate| encode_certificate(node, &certificate)),
        ..pb::Event::default()
    };
    out.set_kind(match event.kind {
        EventKind::VolumeCreated => pb::EventKind::VolumeCreated,
        EventKind::VolumeDeleted => pb::EventKind::VolumeDeleted,
        EventKind::PrimaryLost => pb::EventKind::PrimaryLost,
        EventKind::Promoted => pb::EventKind::Promoted,
        EventKind::Flapping => pb::EventKind::Flapping,
        EventKind::ExternalFenceFailed => pb::EventKind::ExternalFenceFailed,
        EventKind::HookFailed => pb::EventKind::HookFailed,
        EventKind::WitnessesChanged => pb::EventKind::WitnessesChanged,
        EventKind::RequestsOverdue => pb::EventKind::RequestsOverdue,
        EventKind::CertificatesChanged => pb::EventKind::CertificatesChanged,
        EventKind::SteppedDown => pb::EventKind::SteppedDown,
        EventKind::MemberAdded => pb::EventKind::MemberAdded,
        EventKind::MemberRemoved => pb::EventKind::MemberRemoved,
        EventKind::DamageFound => pb::EventKind::DamageFound,
        EventKind::Repaired => pb::EventKind::Repaired,
        EventKind::NodeStarted => pb::EventKind::NodeStarted,
        EventKind::NodeStopped => pb::EventKind::NodeStopped,
    });
    out.set_severity(match event.severity {
        Severity::Info => pb::Severity::Info,
        Severity::Warning => pb::Severity::Warning,
        Severity::Alarm => pb::Severity::Alarm,
    });
    out
}

/// The record of a promotion that the witness on `node` drove.
#[must_use]
pub fn encode_certificate(node: NodeId, certificate: &Certificate) -> pb::Certificate {
    let point = |point: mainstay_types::LogPoint| pb::LogPoint {
        epoch: point.epoch.0,
        lsn: point.lsn.0,
    };
    let answered = certificate
        .answers
        .iter()
        .map(|(member, last)| pb::SealReport {
            node: member.0,
            answer: "sealed".to_owned(),
            last: Some(point(*last)),
            ..pb::SealReport::default()
        });
    let without = |member: &NodeId| {
        if certificate.external.contains_key(member) {
            "fenced from outside"
        } else if certificate.forced.is_some() {
            "declared off"
        } else {
            "silent"
        }
    };
    let silent = certificate.silent.iter().map(|member| pb::SealReport {
        node: member.0,
        answer: without(member).to_owned(),
        ..pb::SealReport::default()
    });
    pb::Certificate {
        epoch_before: certificate.from_epoch.0,
        epoch_after: certificate.epoch.0,
        lineage: certificate.lineage.0,
        reason: reason(certificate.reason).to_owned(),
        primary_before: certificate.from.node.0,
        primary_after: Some(pb::ProcessId {
            node: certificate.primary.node.0,
            incarnation: certificate.primary.incarnation.0,
            instance: certificate.primary.instance.0,
        }),
        fences: certificate
            .fenced
            .iter()
            .map(|witness| pb::FenceAnswer {
                witness: witness.0,
                fenced: true,
                ..pb::FenceAnswer::default()
            })
            .collect(),
        sight_needed: u32::try_from(certificate.sight_needed).unwrap_or(u32::MAX),
        took_ms: u64::try_from(certificate.took.as_millis()).unwrap_or(u64::MAX),
        members_after: certificate.members.iter().map(|node| node.0).collect(),
        ack_quorum_after: certificate.ack_quorum,
        driven_by: node.0,
        seals: answered.chain(silent).collect(),
        cut: Some(point(certificate.cut)),
        external_fence: external_fence(certificate),
        nothing_lost: certificate.forced.is_none(),
        forced: certificate.forced.is_some(),
        doubt_from: certificate.forced.as_ref().map_or(0, |loss| loss.from.0),
        doubt_to: certificate
            .forced
            .as_ref()
            .filter(|loss| loss.unknown.is_empty())
            .map(|loss| loss.known_to.0),
        ..pb::Certificate::default()
    }
}

fn external_fence(certificate: &Certificate) -> String {
    let said = certificate.external.iter();
    let said = said.map(|(node, said)| format!("node {node}: {said}"));
    said.collect::<Vec<_>>().join("; ")
}

fn reason(reason: SuspectReason) -> &'static str {
    match reason {
        SuspectReason::LeaseGone => "the primary's lease ended or was released",
        SuspectReason::Fenced => "its epoch was fenced by a promotion that did not end",
        SuspectReason::SealedAbove => {
            "a member was sealed above its epoch by a promotion that did not end"
        }
        SuspectReason::Operator => "an operator forced it",
    }
}

fn promoted(c: &Certificate) -> String {
    format!(
        "node {} is primary of epoch {} after node {} in epoch {}; no acknowledged write was lost: the chosen log ends at \
         {}, seen by {:?}",
        c.primary.node, c.epoch, c.from.node, c.from_epoch, c.cut, c.answers
    )
}

fn forced(c: &Certificate, loss: &Loss) -> String {
    let range = if loss.unknown.is_empty() {
        format!("entries {} to {} are given up", loss.from, loss.known_to)
    } else {
        format!(
            "every entry from {} on is given up, and how many there are nobody knows: copies on nodes {:?} did not say what \
             they hold; the furthest that is known of is {}",
            loss.from, loss.unknown, loss.known_to
        )
    };
    let fenced: Vec<&NodeId> = c.external.keys().collect();
    let off = loss.not_sealed.iter();
    let off: Vec<&NodeId> = off.filter(|node| !c.external.contains_key(node)).collect();
    format!(
        "an operator forced node {} to be primary of epoch {} after node {} in epoch {}: {range}; not sealed, but stated to be \
         off: {off:?}, or fenced from outside: {fenced:?}; a new history begins",
        c.primary.node, c.epoch, c.from.node, c.from_epoch
    )
}

/// An event that needs nobody.
#[must_use]
pub fn info(kind: EventKind, message: String) -> Event {
    Event {
        kind,
        severity: Severity::Info,
        volume: None,
        epoch: Epoch::ZERO,
        lsn: Lsn::ZERO,
        message,
        certificate: None,
    }
}

/// An event that somebody should look at.
#[must_use]
pub fn warning(kind: EventKind, message: String) -> Event {
    Event {
        severity: Severity::Warning,
        ..info(kind, message)
    }
}
