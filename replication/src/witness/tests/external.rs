//! The external fence: three copies, of which the registered primary is node 1; and who is promoted after what.

use super::*;
use crate::witness::ExternalFenceResult;

const TIMEOUT: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);

fn copy(node: u32, instance: u64) -> PrimaryId {
    PrimaryId {
        node: NodeId(node),
        incarnation: Incarnation(6 + u64::from(node)),
        instance: Instance(instance),
    }
}

/// Nodes 2 and 3 answer; node 1 does if `old` says as which process.
fn stage(old: Option<PrimaryId>) -> Stage {
    let config = LeaseConfig {
        external_fence: Some(TIMEOUT),
        ..LeaseConfig::default()
    };
    let mut stage = Stage::of(3, config);
    let copies = [copy(2, 200), copy(3, 300)].into_iter().chain(old);
    stage.answering = copies.map(|copy| (copy.node, copy)).collect();
    stage
}

impl Stage {
    fn fenced(&mut self, id: u64, result: ExternalFenceResult) {
        self.witness
            .handle(self.now, WitnessInput::ExternallyFenced { id, result });
        self.answer();
    }

    /// The newest command asked for, and how many there were.
    fn asked_for(&self) -> (Option<&ExternalFence>, usize) {
        (self.fences.last(), self.fences.len())
    }

    fn primary(&self) -> PrimaryId {
        let register = self.witness.accepted(self.volume);
        register.expect("a register").primary
    }

    fn failures(&self) -> Vec<&str> {
        let outputs = self.events.iter().filter_map(|(_, event)| match event {
            WitnessEvent::ExternalFenceFailed { output, .. } => Some(output.as_str()),
            _ => None,
        });
        outputs.collect()
    }

    fn said_of_fences(&self) -> Vec<BTreeMap<NodeId, String>> {
        let certificates = self.events.iter().filter_map(|(_, event)| match event {
            WitnessEvent::Promoted(certificate) => Some(certificate.external.clone()),
            _ => None,
        });
        certificates.collect()
    }

    /// The register as another witness would have changed it: node 3 is primary of `epoch`.
    fn decide_elsewhere(&mut self, epoch: Epoch) {
        let register = self.witness.accepted(self.volume).expect("a register");
        let value = Box::new(Register {
            id: RegisterId(77),
            version: register.version + 1,
            epoch,
            primary: copy(3, 300),
            ..register.clone()
        });
        let ballot = Ballot {
            counter: 1 << 40,
            proposer: Instance(55),
        };
        let body = crate::message::RegisterMessage::Accept {
            ballot,
            set: crate::WitnessSet::of(&[super::WITNESS]).tag,
            value,
        };
        let message = Message::Register {
            volume: self.volume,
            body,
        };
        let from = NodeId(8);
        self.witness
            .handle(self.now, WitnessInput::Message { from, message });
        self.answer();
    }

    fn release(&mut self) {
        let released = WitnessMessage::Release {
            volume: self.volume,
            epoch: Epoch(1),
            instance: COPY.instance,
            prefer: Some(NodeId(2)),
        };
        let (from, message) = (COPY.node, Message::Witness(released));
        self.witness
            .handle(self.now, WitnessInput::Message { from, message });
    }
}

#[test]
fn nobody_is_promoted_before_the_old_primary_is_fenced_from_outside() {
    let mut stage = stage(None);
    // Longer than an attempt may take, and shorter than a command may.
    stage.pass(3 * SECOND);
    let (asked, times) = stage.asked_for();
    let asked = asked.expect("a command").clone();
    assert_eq!(times, 1);
    let expected = ExternalFence {
        id: asked.id,
        volume: stage.volume,
        name: "ledger".parse().expect("a good name"),
        epoch: Epoch(1),
        node: COPY.node,
        instance: Some(COPY.instance),
    };
    assert_eq!(asked, expected);
    assert_eq!(stage.epoch(), Epoch(1), "no swap before the answer");

    stage.fenced(asked.id, Ok("off".to_owned()));
    stage.pass(SECOND / 2);
    assert!(stage.epoch() > Epoch(1));
    assert_eq!(stage.primary(), copy(2, 200));
    let said = stage.said_of_fences();
    assert_eq!(said, [BTreeMap::from([(COPY.node, "off".to_owned())])]);
}

#[test]
fn the_command_never_strikes_the_node_that_was_chosen() {
    // The old primary itself is back, and its node is the first of the placement.
    let mut present = stage(Some(COPY));
    present.pass(2 * SECOND);
    assert_eq!(present.primary(), COPY);
    assert_eq!(present.asked_for().1, 0);

    // A later process of its machine, which holds its data directory.
    let mut again = stage(Some(copy(1, 101)));
    again.pass(2 * SECOND);
    assert_eq!(again.primary(), copy(1, 101));
    assert_eq!(again.asked_for().1, 0);
    assert_eq!(again.said_of_fences()[0], BTreeMap::new());
}

#[test]
fn a_machine_that_answers_is_chosen_again_rather_than_struck() {
    let mut stage = stage(Some(copy(1, 101)));
    // By the order of placement it would be the last.
    let record = stage.witness.records.get_mut(&stage.volume);
    let (_, register) = record.and_then(|r| r.accepted.as_mut()).expect("a value");
    register.policy.placement.reverse();
    stage.pass(2 * SECOND);
    assert_eq!(stage.primary(), copy(1, 101));
    assert_eq!(stage.asked_for().1, 0);
}

#[test]
fn a_primary_that_handed_over_is_not_fenced_from_outside() {
    let mut stage = stage(Some(COPY));
    stage.pass(SECOND / 2);
    stage.release();
    // Shorter than the lease of the next one, who never takes it here.
    stage.pass(SECOND / 2);
    assert_eq!(stage.said_of_fences()[0], BTreeMap::new());
    assert_eq!(stage.primary(), copy(2, 200));
    assert_eq!(stage.asked_for().1, 0);
}

#[test]
fn a_command_that_fails_is_told_and_run_again_after_a_pause_that_grows() {
    let mut stage = stage(None);
    let mut began = Vec::new();
    for _ in 0..4 {
        let before = stage.fences.len();
        while stage.fences.len() == before {
            stage.pass(STEP);
        }
        began.push(stage.now);
        let id = stage.fences[before].id;
        stage.fenced(id, Err(format!("no answer from the switch, {before}")));
    }
    assert_eq!(stage.epoch(), Epoch(1), "never a swap");
    assert_eq!(stage.failures().len(), 4);
    assert!(stage.failures()[3].ends_with(", 3"));
    let pauses: Vec<u64> = began
        .windows(2)
        .map(|pair| pair[1].since(pair[0]).as_secs())
        .collect();
    assert!(pauses[0] >= 3, "{pauses:?}");
    assert!(pauses[1] >= 2 * pauses[0] - 1, "{pauses:?}");
    assert!(pauses[2] >= 2 * pauses[1] - 1, "{pauses:?}");

    // At last it works.
    while stage.fences.len() == 4 {
        stage.pass(STEP);
    }
    stage.fenced(stage.fences[4].id, Ok(String::new()));
    stage.pass(SECOND / 2);
    assert_eq!(stage.primary(), copy(2, 200));
}

#[test]
fn a_late_answer_is_ignored() {
    let mut stage = stage(None);
    stage.pass(SECOND * 3);
    let id = stage.fences[0].id;
    // The driver has lost it: it counts as failed.
    stage.pass(TIMEOUT + SECOND);
    assert_eq!(stage.failures(), ["it did not end in time"]);
    stage.fenced(id, Ok("off".to_owned()));
    stage.pass(SECOND);
    assert_eq!(stage.epoch(), Epoch(1));
    stage.pass(3 * SECOND);
    assert_eq!(stage.asked_for().1, 2, "it is asked for anew");
}

#[test]
fn an_answer_for_an_attempt_that_is_over_changes_nothing() {
    let mut stage = stage(None);
    stage.pass(SECOND * 3);
    let id = stage.fences[0].id;
    stage.decide_elsewhere(Epoch(40));
    stage.fenced(id, Ok("off".to_owned()));
    stage.pass(SECOND / 4);
    assert_eq!(stage.epoch(), Epoch(40));
    assert_eq!(stage.primary(), copy(3, 300));
}

#[test]
fn a_success_is_remembered_for_the_process_that_is_gone() {
    let mut stage = stage(None);
    stage.pass(SECOND * 3);
    // Only node 2 is left when the answer comes: too little to see everything committed.
    stage.answering.remove(&NodeId(3));
    stage.fenced(stage.fences[0].id, Ok("off".to_owned()));
    stage.pass(10 * SECOND);
    assert_eq!(stage.epoch(), Epoch(1), "blind");
    stage.answering.insert(NodeId(3), copy(3, 300));
    stage.pass(3 * SECOND);
    assert_eq!(stage.primary(), copy(2, 200));
    assert_eq!(stage.said_of_fences()[0].len(), 1, "the record says it");
    assert_eq!(stage.asked_for().1, 1, "no second blow");
}

#[test]
fn a_forced_promotion_takes_a_fence_from_outside_for_proof() {
    let mut stage = stage(None);
    stage.answering = BTreeMap::from([(NodeId(2), copy(2, 200))]);
    let request = |id, off: &[u32]| ForceRequest {
        id,
        volume: VolumeId(0),
        target: NodeId(2),
        declared_off: off.iter().copied().map(NodeId).collect(),
        min_copies: Some(1),
    };
    let volume = stage.volume;
    let ask = |stage: &mut Stage, id, off: &[u32]| {
        let request = ForceRequest {
            volume,
            ..request(id, off)
        };
        stage.ask(request);
        stage.pass(4 * SECOND);
    };

    // Both are silent, and neither is stated to be off: both are struck.
    ask(&mut stage, 1, &[]);
    let struck = |fence: &ExternalFence| (fence.node, fence.instance);
    let targets: Vec<_> = stage.fences.iter().map(struck).collect();
    let primary = (NodeId(1), Some(COPY.instance));
    assert_eq!(targets, [primary, (NodeId(3), None)]);
    stage.fenced(stage.fences[0].id, Ok("off".to_owned()));
    stage.pass(SECOND / 2);
    assert_eq!(stage.epoch(), Epoch(1), "one of two");
    stage.fenced(stage.fences[1].id, Err("no such outlet".to_owned()));
    stage.pass(SECOND / 2);
    let failed = ForceRefused::ExternalFenceFailed {
        node: NodeId(3),
        output: "no such outlet".to_owned(),
    };
    assert_eq!(stage.forced.remove(&1), Some(Err(failed)));

    // The first process is gone for good; of the other machine the operator gives his word.
    ask(&mut stage, 2, &[3]);
    let Some(Ok(certificate)) = stage.forced.remove(&2) else {
        panic!("{:?}", stage.forced);
    };
    assert_eq!(stage.asked_for().1, 2, "nothing was run again");
    assert_eq!(
        certificate.external.keys().collect::<Vec<_>>(),
        [&NodeId(1)]
    );
    assert_eq!(stage.primary(), copy(2, 200));
}
