//! Some witnesses that hear each other, and one that waits to be invited: changes of the set (R8, H10).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use mainstay_types::{
    Epoch, Incarnation, Instance, Lineage, LogPoint, Member, MemberKind, MonoTime, NodeId, Policy,
    PrimaryId, Register, RegisterId, VolumeId, VolumeKind, VolumeSpec,
};

use crate::beats::Beats;
use crate::config::LeaseConfig;
use crate::message::{
    Ballot, Beat, Claim, Granted, Message, RegisterMessage, SetStep, WitnessMessage,
};
use crate::witness::{
    ChangeRefused, ChangeRequest, SetState, Witness, WitnessInput, WitnessOutput, WitnessRecord,
    WitnessStart,
};
use crate::witness_set::{SetTag, WitnessSet};

const DATA: NodeId = NodeId(1);
const STEP: Duration = Duration::from_millis(5);
const W: [NodeId; 4] = [NodeId(11), NodeId(12), NodeId(13), NodeId(14)];

struct Cluster {
    now: MonoTime,
    volume: VolumeId,
    register: Register,
    witnesses: BTreeMap<NodeId, Witness>,
    down: BTreeSet<NodeId>,
    to_data: Vec<(NodeId, Message)>,
    results: BTreeMap<u64, Result<Arc<WitnessSet>, ChangeRefused>>,
    wiped: BTreeSet<NodeId>,
}

fn a_register() -> Register {
    let spec = VolumeSpec {
        name: "ledger".parse().expect("a good name"),
        kind: VolumeKind::Log,
    };
    let primary = PrimaryId {
        node: DATA,
        incarnation: Incarnation(7),
        instance: Instance(100),
    };
    let member = Member {
        node: DATA,
        incarnation: primary.incarnation,
        kind: MemberKind::Full,
    };
    Register {
        id: RegisterId(1),
        version: 1,
        lineage: Lineage(5),
        log_lineage: Lineage(5),
        epoch: Epoch(1),
        primary,
        members: vec![member],
        ack_quorum: 1,
        policy: Policy::for_placement(vec![DATA]),
        cut: LogPoint::ZERO,
        spec,
        deleted: false,
    }
}

impl Cluster {
    /// W1 to W3 vote, W4 waits. Only W1 and W2 hold the register, and W1 alone has fenced epoch 1 of another volume.
    fn new() -> Self {
        let register = a_register();
        let volume = register.spec.name.id();
        let ballot = Ballot {
            counter: 1,
            proposer: Instance(3),
        };
        let record = WitnessRecord {
            promised: ballot,
            accepted: Some((ballot, Box::new(register.clone()))),
            fenced: Epoch::ZERO,
        };
        let now = MonoTime::ZERO + Duration::from_secs(1);
        let mut cluster = Self {
            now,
            volume,
            register,
            witnesses: BTreeMap::new(),
            down: BTreeSet::new(),
            to_data: Vec::new(),
            results: BTreeMap::new(),
            wiped: BTreeSet::new(),
        };
        let set = WitnessSet::of(&W[..3]);
        for (i, node) in W.into_iter().enumerate() {
            let mut records = BTreeMap::new();
            if i < 2 {
                records.insert(volume, record.clone());
            }
            if i == 0 {
                let fenced = WitnessRecord {
                    fenced: Epoch(1),
                    ..WitnessRecord::default()
                };
                records.insert(VolumeId(77), fenced);
            }
            let set = if i < 3 {
                set.clone()
            } else {
                WitnessSet::default()
            };
            let state = SetState {
                set,
                ..SetState::default()
            };
            cluster.start(node, state, records);
        }
        cluster
    }

    fn start(&mut self, node: NodeId, state: SetState, records: BTreeMap<VolumeId, WitnessRecord>) {
        let start = WitnessStart {
            node,
            instance: Instance(u64::from(node.0)),
            state,
            stored: true,
            records,
            seed: u64::from(node.0),
        };
        let witness = Witness::new(self.now, LeaseConfig::default(), start);
        self.witnesses.insert(node, witness);
        self.settle(node);
    }

    fn input(&mut self, node: NodeId, input: WitnessInput) {
        if !self.down.contains(&node) {
            let witness = self.witnesses.get_mut(&node).expect("known");
            witness.handle(self.now, input);
            self.settle(node);
        }
    }

    /// Carries everything out that follows from what `first` says.
    fn settle(&mut self, first: NodeId) {
        let mut queue = VecDeque::from([first]);
        while let Some(node) = queue.pop_front() {
            let witness = self.witnesses.get_mut(&node).expect("known");
            let Some(output) = witness.poll_output() else {
                continue;
            };
            queue.push_back(node);
            match output {
                WitnessOutput::Persist { op, .. } => {
                    witness.handle(self.now, WitnessInput::Persisted(op));
                }
                WitnessOutput::PersistSet { op, wipe, .. } => {
                    if wipe {
                        self.wiped.insert(node);
                    }
                    witness.handle(self.now, WitnessInput::Persisted(op));
                }
                WitnessOutput::Send { to, message } if to == DATA => {
                    self.to_data.push((node, message));
                }
                WitnessOutput::Send { to, message } => {
                    if !self.down.contains(&to)
                        && let Some(witness) = self.witnesses.get_mut(&to)
                    {
                        let from = node;
                        witness.handle(self.now, WitnessInput::Message { from, message });
                        queue.push_back(to);
                    }
                }
                WitnessOutput::Changed { id, result } => {
                    self.results.insert(id, result);
                }
                _ => {}
            }
        }
    }

    fn change(&mut self, id: u64, add: Option<NodeId>, remove: Option<NodeId>) {
        let driver = *W
            .iter()
            .find(|w| !self.down.contains(w))
            .expect("one is up");
        let add = add.map(|node| (node, "there".to_owned()));
        self.input(
            driver,
            WitnessInput::Change(ChangeRequest { id, add, remove }),
        );
    }

    fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.now = self.now + STEP;
            for node in W {
                self.input(node, WitnessInput::Tick);
            }
        }
    }

    /// Until the set that `node` knows fits; the time it took.
    fn until(&mut self, node: NodeId, fits: impl Fn(&WitnessSet) -> bool) -> Duration {
        let began = self.now;
        while !fits(self.set(node)) {
            assert!(self.now < began + Duration::from_secs(60), "never");
            self.pass(STEP);
        }
        self.now.since(began)
    }

    fn set(&self, node: NodeId) -> &WitnessSet {
        self.witnesses[&node].witnesses()
    }

    fn beat(&mut self, to: NodeId, seq: u64, set: SetTag) {
        let beat = Beat {
            instance: Instance(100),
            seq,
            table: 1,
            claims: Some(vec![Claim {
                volume: self.volume,
                epoch: Epoch(1),
            }]),
            unwell: Vec::new(),
            orphans: Vec::new(),
            set,
            zone: None,
        };
        let message = Message::Witness(WitnessMessage::Beat(beat));
        self.input(
            to,
            WitnessInput::Message {
                from: DATA,
                message,
            },
        );
    }
}

#[test]
fn a_newcomer_holds_what_was_decided_and_fenced_before_the_set_is_replaced() {
    let mut cluster = Cluster::new();
    cluster.change(1, Some(W[3]), Some(W[2]));
    cluster.pass(Duration::from_secs(3));
    let set = cluster.results[&1].clone().expect("changed");
    assert_eq!((set.nodes(), set.tag.version), (vec![W[0], W[1], W[3]], 3));
    for node in W {
        assert_eq!(cluster.set(node), &*set, "{node} knows");
    }
    let newcomer = &cluster.witnesses[&W[3]];
    assert_eq!(newcomer.accepted(cluster.volume), Some(&cluster.register));
    assert_eq!(newcomer.records()[&VolumeId(77)].fenced, Epoch(1));
}

/// H10: W1 and W3 have just granted a lease. The fence of W2 and W4 must come after its end, so the new set does, too.
#[test]
fn the_last_lease_of_the_old_set_ends_before_the_new_set_alone_counts() {
    let mut cluster = Cluster::new();
    // As long as the joint set takes to be decided and taken up, a lease of the old set alone may be granted.
    cluster.change(1, Some(W[3]), Some(W[2]));
    let joint = cluster.until(W[1], |set| set.next.is_some());
    assert!(joint < Duration::from_millis(500), "{joint:?}");
    let took = cluster.until(W[1], |set| set.next.is_none());
    assert!(took >= LeaseConfig::default().lease, "{took:?}");
}

#[test]
fn a_beat_under_the_old_set_is_granted_no_more_and_answered_with_the_new_one() {
    let mut cluster = Cluster::new();
    let first = cluster.set(W[0]).tag;
    cluster.beat(W[0], 1, first);
    let granted = |(_, message): &(NodeId, Message)| {
        matches!(message, Message::Witness(WitnessMessage::Granted(_)))
    };
    assert!(cluster.to_data.iter().any(granted));
    cluster.change(1, Some(W[3]), Some(W[2]));
    cluster.until(W[0], |set| set.next.is_some());
    cluster.to_data.clear();
    cluster.beat(W[0], 2, first);
    assert!(!cluster.to_data.iter().any(granted));
    let told = |(_, message): &(NodeId, Message)| matches!(message, Message::Witness(WitnessMessage::Set(set)) if set.tag.version == 2);
    assert!(cluster.to_data.iter().any(told));
    // One that is ahead is asked what it knows.
    let ahead = SetTag { version: 9, id: 1 };
    cluster.to_data.clear();
    cluster.beat(W[1], 3, ahead);
    let wanted = Message::Witness(WitnessMessage::SetStep(SetStep::Wanted));
    assert_eq!(cluster.to_data, [(W[1], wanted)]);
}

#[test]
fn another_witness_carries_on_what_the_first_began() {
    let mut cluster = Cluster::new();
    cluster.change(1, Some(W[3]), Some(W[2]));
    cluster.until(W[3], |set| set.next.is_some());
    cluster.down.insert(W[0]);
    cluster.pass(Duration::from_secs(30));
    assert_eq!(cluster.set(W[1]).nodes(), [W[0], W[1], W[3]]);
    assert_eq!(cluster.set(W[1]).next, None);
    assert_eq!(cluster.set(W[3]), cluster.set(W[1]));
}

/// A witness that was away while it was removed has promises of another time: it comes back with none.
#[test]
fn a_witness_that_was_removed_comes_back_as_another_voter() {
    let mut cluster = Cluster::new();
    cluster.down.insert(W[1]);
    cluster.change(1, None, Some(W[1]));
    cluster.pass(Duration::from_secs(3));
    assert!(cluster.results[&1].is_ok(), "{:?}", cluster.results);
    cluster.down.clear();
    assert_eq!(cluster.set(W[1]).tag.version, 1, "it has heard nothing");
    cluster.change(2, Some(W[1]), None);
    cluster.pass(Duration::from_secs(3));
    let set = cluster.results[&2].clone().expect("changed");
    assert_eq!(set.nodes(), W[..3]);
    let voter = set.voters.iter().find(|voter| voter.node == W[1]);
    assert_ne!(voter.expect("it votes").store, 0);
    assert!(cluster.wiped.contains(&W[1]));
    // Its old store, put back, has no vote.
    let old = SetState {
        set: WitnessSet::of(&W[..3]),
        ..SetState::default()
    };
    cluster.start(W[1], old, BTreeMap::new());
    cluster.to_data.clear();
    let tag = set.tag;
    cluster.beat(W[1], 1, tag);
    cluster.pass(STEP);
    cluster.beat(W[1], 2, tag);
    let granted = |(_, message): &(NodeId, Message)| {
        matches!(message, Message::Witness(WitnessMessage::Granted(_)))
    };
    assert!(!cluster.to_data.iter().any(granted));
}

#[test]
fn a_change_that_makes_no_sense_is_refused() {
    let mut cluster = Cluster::new();
    cluster.change(1, Some(W[2]), None);
    cluster.change(2, None, Some(W[3]));
    cluster.change(3, None, None);
    let request = ChangeRequest {
        id: 4,
        add: None,
        remove: Some(W[0]),
    };
    cluster.input(W[3], WitnessInput::Change(request));
    cluster.down.insert(W[3]);
    cluster.change(5, Some(W[3]), None);
    cluster.change(6, None, Some(W[0]));
    cluster.pass(Duration::from_secs(10));
    let expected = [
        (1, ChangeRefused::Known(W[2])),
        (2, ChangeRefused::Unknown(W[3])),
        (3, ChangeRefused::Empty),
        (4, ChangeRefused::NoVote),
        (5, ChangeRefused::NoAnswer(W[3])),
        (6, ChangeRefused::Busy),
    ];
    for (id, refused) in expected {
        assert_eq!(cluster.results[&id], Err(refused), "request {id}");
    }
    assert_eq!(cluster.set(W[0]).tag.version, 1);
}

/// Its store is lost, and it waits with a blank one on the node of a first voter that was never removed: it is not that voter.
#[test]
fn a_blank_store_does_not_vote_for_a_first_voter() {
    let mut cluster = Cluster::new();
    cluster.start(W[0], SetState::default(), BTreeMap::new());
    let (tag, volume) = (cluster.set(W[1]).tag, cluster.volume);
    let prepare = |counter| WitnessInput::Message {
        from: DATA,
        message: Message::Register {
            volume,
            body: RegisterMessage::Prepare {
                ballot: Ballot {
                    counter,
                    proposer: Instance(1),
                },
                set: tag,
            },
        },
    };
    let promised = |(_, message): &(NodeId, Message)| {
        matches!(
            message,
            Message::Register {
                body: RegisterMessage::Promised { .. },
                ..
            }
        )
    };
    cluster.input(W[0], prepare(9));
    let told = WitnessMessage::Set(Arc::new(cluster.set(W[1]).clone()));
    let told = WitnessInput::Message {
        from: W[1],
        message: Message::Witness(told),
    };
    cluster.input(W[0], told);
    cluster.input(W[0], prepare(10));
    assert!(!cluster.to_data.iter().any(promised));
    cluster.input(W[1], prepare(11));
    assert!(cluster.to_data.iter().any(promised), "another one does");
}

#[test]
fn a_change_that_could_never_be_left_is_not_begun() {
    let mut cluster = Cluster::new();
    cluster.down.insert(W[1]);
    cluster.change(1, None, Some(W[2]));
    cluster.pass(Duration::from_secs(10));
    let refused = ChangeRefused::NoMajorityLeft(vec![W[1]]);
    assert_eq!(cluster.results[&1], Err(refused));
    assert_eq!(cluster.set(W[0]).tag.version, 1);
    // One that came back without its store is no better.
    cluster.down.clear();
    cluster.start(W[1], SetState::default(), BTreeMap::new());
    cluster.change(3, None, Some(W[2]));
    cluster.pass(Duration::from_secs(10));
    let refused = ChangeRefused::NoMajorityLeft(vec![W[1]]);
    assert_eq!(cluster.results[&3], Err(refused));
    // The dead one itself may go.
    cluster.change(2, None, Some(W[1]));
    cluster.pass(Duration::from_secs(10));
    assert!(cluster.results[&2].is_ok(), "{:?}", cluster.results);
}

#[test]
fn what_a_witness_begins_with_is_stored_before_it_answers() {
    let state = SetState {
        set: WitnessSet::of(&W[..3]),
        lease_longest: LeaseConfig::default().lease_longest,
        ..SetState::default()
    };
    let start = WitnessStart {
        node: W[0],
        instance: Instance(1),
        state,
        stored: false,
        records: BTreeMap::new(),
        seed: 1,
    };
    let mut witness = Witness::new(MonoTime::ZERO, LeaseConfig::default(), start);
    let first = witness.poll_output();
    assert!(
        matches!(first, Some(WitnessOutput::PersistSet { .. })),
        "{first:?}"
    );
}

#[test]
fn one_that_was_removed_hears_of_it() {
    let mut cluster = Cluster::new();
    cluster.change(1, Some(W[3]), Some(W[2]));
    cluster.until(W[0], |set| set.tag.version == 3);
    cluster.pass(STEP);
    assert_eq!(cluster.set(W[2]).tag.version, 3);
}

/// A witness went and came back with another store: an answer of the old one, eight seconds late, is no grant of the new one.
#[test]
fn a_late_grant_of_another_store_counts_for_nothing() {
    let set = |version, nodes: &[NodeId], store| {
        let mut set = WitnessSet::of(nodes);
        set.tag = SetTag {
            version,
            id: version,
        };
        if let Some(last) = set.voters.last_mut() {
            last.store = store;
        }
        Arc::new(set)
    };
    let first = set(1, &W[..3], 0);
    let mut beats = Beats::new(
        MonoTime(0),
        LeaseConfig::default(),
        Instance(5),
        first,
        &[DATA],
    );
    let (volume, epoch) = (VolumeId(7), Epoch(3));
    let claims = [Claim { volume, epoch }];
    beats.state(MonoTime(1_000), &claims, Vec::new(), Vec::new());
    let granted = |seq| Granted {
        seq,
        table: 2,
        exceptions: Vec::new(),
        hearing: Vec::new(),
        lease_ms: 800,
    };
    beats.set_witnesses(MonoTime(2_000_000), set(3, &W[..2], 0));
    beats.set_witnesses(MonoTime(9_000_000), set(5, &W[..3], 9));
    while let Some(sent) = beats.poll_output() {
        drop(sent);
    }
    beats.handle_granted(MonoTime(9_000_100), W[0], granted(3));
    beats.handle_granted(MonoTime(9_000_100), W[2], granted(1));
    assert_eq!(beats.lease(volume, epoch), MonoTime::ZERO);
    beats.handle_granted(MonoTime(9_000_200), W[1], granted(3));
    assert!(beats.lease(volume, epoch) > MonoTime(9_000_000));
}
