//! One witness alone, a volume with one copy: what it does when primaries are lost.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay_types::{
    Epoch, Incarnation, Instance, Lineage, LogPoint, Lsn, Member, MemberKind, MonoTime, NodeId,
    Policy, PrimaryId, Register, RegisterId, VolumeId, VolumeKind, VolumeSpec,
};

use super::{Witness, WitnessEvent, WitnessInput, WitnessOutput, WitnessRecord, WitnessStart};
use crate::config::LeaseConfig;
use crate::message::{Ballot, MemberEnvelope, MemberMessage, Message, SealAnswer, WitnessMessage};

const WITNESS: NodeId = NodeId(9);
const COPY: PrimaryId = PrimaryId {
    node: NodeId(1),
    incarnation: Incarnation(7),
    instance: Instance(100),
};
const STEP: Duration = Duration::from_millis(5);

/// The witness and the only copy, which answers every seal at once and never beats.
struct Stage {
    now: MonoTime,
    witness: Witness,
    volume: VolumeId,
    events: Vec<(MonoTime, WitnessEvent)>,
}

impl Stage {
    fn new() -> Self {
        let spec = VolumeSpec {
            name: "ledger".parse().expect("a good name"),
            kind: VolumeKind::Log,
        };
        let volume = spec.name.id();
        let register = Register {
            id: RegisterId(1),
            version: 1,
            lineage: Lineage(5),
            epoch: Epoch(1),
            primary: COPY,
            members: vec![Member {
                node: COPY.node,
                incarnation: COPY.incarnation,
                kind: MemberKind::Full,
            }],
            ack_quorum: 1,
            policy: Policy::for_placement(vec![COPY.node]),
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
            witnesses: vec![WITNESS],
            records: BTreeMap::from([(volume, record)]),
            seed: 6,
        };
        let now = MonoTime::ZERO + Duration::from_secs(1);
        Self {
            now,
            witness: Witness::new(now, LeaseConfig::default(), start),
            volume,
            events: Vec::new(),
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
                WitnessOutput::Persist { op, .. } => {
                    self.witness.handle(self.now, WitnessInput::Persisted(op));
                }
                WitnessOutput::Send {
                    message: Message::Member(envelope),
                    ..
                } => self.answer_member(&envelope),
                WitnessOutput::Send { .. } => {}
                WitnessOutput::Event(event) => self.events.push((self.now, event)),
            }
        }
    }

    fn answer_member(&mut self, asked: &MemberEnvelope) {
        let MemberMessage::Seal { epoch } = asked.body else {
            return;
        };
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
        let envelope = MemberEnvelope {
            from: COPY,
            body: MemberMessage::Sealed(answer),
            ..asked.clone()
        };
        let message = Message::Member(Box::new(envelope));
        let from = COPY.node;
        self.witness
            .handle(self.now, WitnessInput::Message { from, message });
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
