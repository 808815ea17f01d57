//! One witness alone, a volume with one copy that answers: what it does when primaries are lost, and when one is forced.

mod change;
mod choice;
mod external;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstay_types::{
    Epoch, Incarnation, Instance, Lineage, LogPoint, Lsn, Member, MemberKind, MonoTime, NodeId,
    Policy, PrimaryId, Register, RegisterId, VolumeId, VolumeKind, VolumeSpec,
};

use super::{
    ExternalFence, ForceRefused, ForceRequest, ForceResult, SetState, Witness, WitnessEvent,
    WitnessInput, WitnessOutput, WitnessRecord, WitnessStart,
};
use crate::config::LeaseConfig;
use crate::message::{Ballot, MemberEnvelope, MemberMessage, Message, SealAnswer, WitnessMessage};
use crate::witness_set::WitnessSet;

const WITNESS: NodeId = NodeId(9);
const COPY: PrimaryId = PrimaryId {
    node: NodeId(1),
    incarnation: Incarnation(7),
    instance: Instance(100),
};
const STEP: Duration = Duration::from_millis(5);

/// The witness and the copies that answer, every seal at once; none of them beats.
struct Stage {
    now: MonoTime,
    witness: Witness,
    volume: VolumeId,
    events: Vec<(MonoTime, WitnessEvent)>,
    forced: BTreeMap<u64, ForceResult>,
    /// Another witness bids against this one: the copy was sealed above whatever it is asked to seal.
    outbid: bool,
    /// When a seal was last refused.
    refused: MonoTime,
    /// Seals asked for.
    asked: BTreeSet<Epoch>,
    /// Copies that answer, with their processes.
    answering: BTreeMap<NodeId, PrimaryId>,
    /// External fences asked for.
    fences: Vec<ExternalFence>,
}

impl Stage {
    fn new() -> Self {
        Self::of(1, LeaseConfig::default())
    }

    /// Two copies, both needed; the other one never answers.
    fn with_silent_copy() -> Self {
        Self::of(2, LeaseConfig::default())
    }

    fn of(copies: u32, config: LeaseConfig) -> Self {
        let spec = VolumeSpec {
            name: "ledger".parse().expect("a good name"),
            kind: VolumeKind::Log,
        };
        let volume = spec.name.id();
        let register = Register {
            id: RegisterId(1),
            version: 1,
            lineage: Lineage(5),
            log_lineage: Lineage(5),
            epoch: Epoch(1),
            primary: COPY,
            members: (1..=copies)
                .map(|node| Member {
                    node: NodeId(node),
                    incarnation: Incarnation(6 + u64::from(node)),
                    kind: MemberKind::Full,
                })
                .collect(),
            // One of two: a promotion must hear both. Two of three: it must hear two.
            ack_quorum: copies.div_ceil(2),
            policy: Policy::for_placement((1..=copies).map(NodeId).collect()),
            cut: LogPoint::ZERO,
            spec,
            deleted: false,
        };
        let ballot = Ballot {
            counter: 1,
            proposer: Instance(3),
        };
        let record = WitnessRecord {
            promised: ballot,
            accepted: Some((ballot, Box::new(register))),
            fenced: Epoch::ZERO,
        };
        let start = WitnessStart {
            node: WITNESS,
            instance: Instance(4),
            state: SetState {
                set: WitnessSet::of(&[WITNESS]),
                ..SetState::default()
            },
            stored: true,
            records: BTreeMap::from([(volume, record)]),
            seed: 6,
        };
        let now = MonoTime::ZERO + Duration::from_secs(1);
        Self {
            now,
            witness: Witness::new(now, config, start),
            volume,
            events: Vec::new(),
            forced: BTreeMap::new(),
            outbid: false,
            refused: MonoTime::ZERO,
            asked: BTreeSet::new(),
            answering: BTreeMap::from([(COPY.node, COPY)]),
            fences: Vec::new(),
        }
    }

    fn epoch(&self) -> Epoch {
        self.witness
            .accepted(self.volume)
            .map_or(Epoch::ZERO, |register| register.epoch)
    }

    fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.now = self.now + STEP;
            self.witness.handle(self.now, WitnessInput::Tick);
            self.answer();
        }
    }

    fn answer(&mut self) {
        while let Some(output) = self.witness.poll_output() {
            match output {
                WitnessOutput::Persist { op, .. } | WitnessOutput::PersistSet { op, .. } => {
                    self.witness.handle(self.now, WitnessInput::Persisted(op));
                }
                WitnessOutput::Send {
                    message: Message::Member(envelope),
                    to,
                } if self.answering.contains_key(&to) => self.answer_member(to, &envelope),
                WitnessOutput::Send { .. }
                | WitnessOutput::Set(_)
                | WitnessOutput::Changed { .. } => {}
                WitnessOutput::Forced { id, result } => {
                    self.forced.insert(id, result);
                }
                WitnessOutput::ExternalFence(fence) => self.fences.push(fence),
                WitnessOutput::Event(event) => self.events.push((self.now, event)),
            }
        }
    }

    fn answer_member(&mut self, node: NodeId, asked: &MemberEnvelope) {
        let MemberMessage::Seal { epoch } = asked.body else {
            return;
        };
        // Two bids for one: the other attempt answers each of ours, and each is asked with a later epoch.
        let fresh = self.asked.insert(epoch);
        // And whoever pauses finds that others have bidden meanwhile.
        let late = self.now.since(self.refused) > Duration::from_millis(300);
        if self.outbid && (!fresh || late) {
            self.refused = self.now;
            let sealed = self.asked.last().map_or(epoch, |highest| highest.next());
            return self.reply(
                node,
                asked,
                MemberMessage::SealRefused {
                    asked: epoch,
                    sealed,
                },
            );
        }
        let answer = SealAnswer {
            epoch,
            last: LogPoint {
                epoch: Epoch(1),
                lsn: Lsn(3),
            },
            first: Lsn(1),
            damaged: false,
            rebuilding: false,
            doubt: None,
            reachable: Vec::new(),
        };
        self.reply(node, asked, MemberMessage::Sealed(answer));
    }

    fn reply(&mut self, from: NodeId, asked: &MemberEnvelope, body: MemberMessage) {
        let envelope = MemberEnvelope {
            from: self.answering[&from],
            body,
            ..asked.clone()
        };
        let message = Message::Member(Box::new(envelope));
        self.witness
            .handle(self.now, WitnessInput::Message { from, message });
    }

    fn request(&self, id: u64, off: &[NodeId]) -> ForceRequest {
        ForceRequest {
            id,
            volume: self.volume,
            target: COPY.node,
            declared_off: off.iter().copied().collect::<BTreeSet<_>>(),
            min_copies: Some(1),
        }
    }

    fn ask(&mut self, request: ForceRequest) {
        self.witness.handle(self.now, WitnessInput::Force(request));
    }

    fn force(&mut self, id: u64, off: &[NodeId]) {
        self.ask(self.request(id, off));
    }

    /// Times between promotions, in whole seconds.
    fn spaces(&self) -> Vec<u64> {
        let at: Vec<MonoTime> = self
            .events
            .iter()
            .filter(|(_, event)| matches!(event, WitnessEvent::Promoted(_)))
            .map(|(at, _)| *at)
            .collect();
        at.windows(2)
            .map(|pair| pair[1].since(pair[0]).as_secs())
            .collect()
    }

    fn held_down(&self) -> usize {
        let held = |event: &WitnessEvent| matches!(event, WitnessEvent::HeldDown { .. });
        self.events.iter().filter(|(_, event)| held(event)).count()
    }
}

#[test]
fn primaries_that_are_lost_again_and_again_are_replaced_ever_more_slowly() {
    let mut stage = Stage::new();
    stage.pass(Duration::from_secs(40));
    let spaces = stage.spaces();
    assert!(spaces[..2].iter().all(|space| *space <= 1), "{spaces:?}");
    for (space, least) in spaces[2..].iter().zip([1, 2, 4, 8]) {
        assert!(*space >= least, "{spaces:?}");
    }
    assert!(spaces.len() <= 7, "{spaces:?}");
    assert!(stage.held_down() >= 3, "each wait is told once");
    assert!(stage.held_down() <= spaces.len(), "and no more than once");
}

#[test]
fn a_primary_that_is_proved_to_have_stopped_is_replaced_at_once() {
    let mut stage = Stage::new();
    stage.pass(Duration::from_secs(12));
    let epoch = stage.epoch();
    stage.pass(Duration::from_secs(2));
    assert_eq!(stage.epoch(), epoch, "held down");
    let released = WitnessMessage::Release {
        volume: stage.volume,
        epoch,
        instance: COPY.instance,
        prefer: None,
    };
    let message = Message::Witness(released);
    let from = COPY.node;
    stage
        .witness
        .handle(stage.now, WitnessInput::Message { from, message });
    stage.pass(Duration::from_millis(60));
    assert!(stage.epoch() > epoch, "released, and still held down");
}

#[test]
fn without_sight_a_forced_promotion_needs_a_word_on_every_copy_and_starts_a_new_history() {
    let mut stage = Stage::with_silent_copy();
    stage.pass(Duration::from_secs(3));
    assert_eq!(
        stage.epoch(),
        Epoch(1),
        "blind: nobody is promoted by itself"
    );

    stage.force(1, &[]);
    stage.pass(Duration::from_secs(4));
    let Some(Err(ForceRefused::NotFenced(loss))) = stage.forced.remove(&1) else {
        panic!("{:?}", stage.forced);
    };
    assert_eq!(
        (loss.from, &loss.not_sealed[..]),
        (Lsn(4), &[NodeId(2)][..])
    );
    assert_eq!(stage.epoch(), Epoch(1));

    stage.force(2, &[NodeId(2)]);
    stage.pass(Duration::from_secs(4));
    let Some(Ok(certificate)) = stage.forced.remove(&2) else {
        panic!("{:?}", stage.forced);
    };
    assert_eq!(certificate.cut.lsn, Lsn(3));
    let register = stage.witness.accepted(stage.volume).expect("decided");
    assert!(register.epoch > Epoch(1));
    assert_ne!(register.lineage, Lineage(5));
    assert_eq!(register.log_lineage, Lineage(5), "entries stay readable");
    assert_eq!((register.members.len(), register.ack_quorum), (1, 1));
    assert_eq!(register.primary, COPY);
}

#[test]
fn attempts_that_outbid_each_other_slow_down_and_a_forced_one_still_ends() {
    let mut stage = Stage::with_silent_copy();
    stage.outbid = true;
    stage.pass(Duration::from_secs(20));
    let raised = stage.asked.len();
    assert!((5..40).contains(&raised), "{raised} epochs in 20 s");

    stage.force(1, &[NodeId(2)]);
    stage.pass(Duration::from_secs(10));
    let result = stage.forced.remove(&1);
    assert!(matches!(result, Some(Ok(_))), "{result:?}");
}

#[test]
fn nothing_is_forced_when_enough_copies_answer() {
    let mut stage = Stage::new();
    stage.force(1, &[]);
    // The quiet time after a start goes by first.
    stage.pass(Duration::from_millis(1200));
    let result = stage.forced.remove(&1);
    assert_eq!(result, Some(Err(ForceRefused::NotNeeded)));
    let register = stage.witness.accepted(stage.volume).expect("decided");
    assert_eq!(register.lineage, Lineage(5), "the same history goes on");
    assert!(
        register.epoch > Epoch(1),
        "by a promotion that loses nothing"
    );
}

#[test]
fn a_forced_promotion_of_what_is_not_there_is_refused_at_once() {
    let mut stage = Stage::new();
    let request = ForceRequest {
        volume: VolumeId(77),
        ..stage.request(1, &[])
    };
    stage.ask(request);
    let request = ForceRequest {
        target: NodeId(8),
        ..stage.request(2, &[])
    };
    stage.ask(request);
    stage.answer();
    let results: Vec<_> = stage.forced.values().collect();
    assert_eq!(
        results,
        [&Err(ForceRefused::NoVolume), &Err(ForceRefused::NotAMember)]
    );
}
