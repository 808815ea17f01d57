//! Who may hold a lease and who is chosen: three copies that beat and hold the same.

use mainstay_types::Zone;

use super::super::choose::{Answers, Choice, Wishes, choose};
use super::*;
use crate::message::{Beat, Claim, ClaimHealth, CopyId};
use crate::mistakes::Mistakes;

const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

fn process(node: NodeId) -> PrimaryId {
    PrimaryId {
        node,
        incarnation: Incarnation(6 + u64::from(node.0)),
        instance: Instance(99 + u64::from(node.0)),
    }
}

/// The stage, on which the copies beat as well.
struct Cluster {
    stage: Stage,
    beating: Vec<NodeId>,
    unwell: BTreeMap<NodeId, ClaimHealth>,
    zones: BTreeMap<NodeId, Zone>,
    seq: u64,
}

impl Cluster {
    fn new() -> Self {
        let mut stage = Stage::of(3, LeaseConfig::default());
        stage.answering = NODES.map(|node| (node, process(node))).into();
        Self {
            stage,
            beating: NODES.to_vec(),
            unwell: BTreeMap::new(),
            zones: BTreeMap::new(),
            seq: 0,
        }
    }

    fn says(&mut self, node: u32, sync_age_ms: u32, syncs_due: u32, unreachable: &[u32]) {
        let health = ClaimHealth {
            volume: self.stage.volume,
            sync_age_ms,
            uncommitted_age_ms: 0,
            unreachable: unreachable.iter().copied().map(NodeId).collect(),
            syncs_due,
        };
        self.unwell.insert(NodeId(node), health);
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 50 {
            for node in self.beating.clone() {
                self.beat(node);
            }
            self.stage.pass(Duration::from_millis(50));
        }
    }

    fn beat(&mut self, node: NodeId) {
        self.seq += 1;
        let register = self.stage.witness.accepted(self.stage.volume);
        let register = register.expect("accepted").clone();
        let claim = Claim {
            volume: self.stage.volume,
            epoch: register.epoch,
        };
        let claims = (register.primary == process(node)).then_some(claim);
        let beat = Beat {
            instance: process(node).instance,
            seq: self.seq,
            table: self.seq,
            claims: Some(claims.into_iter().collect()),
            unwell: self.unwell.get(&node).cloned().into_iter().collect(),
            orphans: Vec::new(),
            set: crate::WitnessSet::of(&[super::WITNESS]).tag,
            zone: self.zones.get(&node).cloned(),
        };
        let message = Message::Witness(WitnessMessage::Beat(beat));
        let input = WitnessInput::Message {
            from: node,
            message,
        };
        self.stage.witness.handle(self.stage.now, input);
        self.stage.answer();
    }

    /// The primary's supervisor says that it has ended; it does not come back.
    fn primary_dies(&mut self) {
        let node = self.primary();
        let instance = process(node).instance;
        self.beating.retain(|beating| *beating != node);
        self.stage.answering.remove(&node);
        let message = Message::Witness(WitnessMessage::ReleaseInstance { node, instance });
        let input = WitnessInput::Message {
            from: node,
            message,
        };
        self.stage.witness.handle(self.stage.now, input);
        self.stage.answer();
    }

    fn primary(&self) -> NodeId {
        let register = self.stage.witness.accepted(self.stage.volume);
        register.expect("accepted").primary.node
    }
}

/// A's disk hangs in every other sync: it lost its lease to B for that and has nothing under way now. B dies.
#[test]
fn a_copy_that_has_not_proved_itself_since_it_was_overdue_is_not_chosen() {
    for (due, chosen) in [(3, NodeId(3)), (0, NodeId(1))] {
        let mut cluster = Cluster::new();
        cluster.pass(1_500);
        assert_eq!(cluster.primary(), NodeId(1), "all is well");
        cluster.says(1, 1_200, 5, &[]);
        cluster.pass(2_000);
        assert_eq!(cluster.primary(), NodeId(2), "A was overdue");
        cluster.says(1, 0, due, &[]);
        cluster.pass(100);
        cluster.primary_dies();
        cluster.pass(1_000);
        assert_eq!(cluster.primary(), chosen, "A owes {due} syncs");
    }
}

#[test]
fn a_primary_that_owes_syncs_loses_its_lease_only_to_others_who_are_well() {
    let mut cluster = Cluster::new();
    cluster.pass(1_500);
    cluster.says(1, 0, 2, &[]);
    cluster.says(2, 0, 5, &[]);
    cluster.pass(3_000);
    assert_eq!(cluster.stage.epoch(), Epoch(1), "one other is too few");
    cluster.unwell.remove(&NodeId(2));
    cluster.pass(2_000);
    assert!(cluster.primary() != NodeId(1));
}

/// One copy is away for good, and the disks of the other two have just begun to work again.
#[test]
fn where_every_copy_owes_syncs_the_primary_stays_and_is_replaced_all_the_same() {
    let mut cluster = Cluster::new();
    cluster.stage.answering.remove(&NodeId(3));
    cluster.beating = vec![NodeId(1), NodeId(2)];
    cluster.pass(1_500);
    cluster.says(1, 1_500, 5, &[]);
    cluster.says(2, 0, 5, &[]);
    cluster.pass(3_000);
    assert_eq!(cluster.stage.epoch(), Epoch(1), "nobody could do better");
    cluster.says(3, 0, 1, &[]);
    cluster
        .stage
        .answering
        .insert(NodeId(3), process(NodeId(3)));
    cluster.beating.push(NodeId(3));
    cluster.primary_dies();
    cluster.pass(1_000);
    let epoch = cluster.stage.epoch();
    assert!(epoch > Epoch(1), "one of the others serves");
    cluster.pass(3_000);
    assert_eq!(cluster.stage.epoch(), epoch, "and keeps its lease");
}

/// H3 without traffic: A reaches all witnesses, B and C see each other and the witnesses, A sees neither.
#[test]
fn an_idle_primary_that_its_members_do_not_reach_loses_its_lease() {
    let check = |reports: &[(u32, u32, &[u32])], deposed: bool| {
        let mut cluster = Cluster::new();
        cluster.pass(1_500);
        for (node, due, missing) in reports {
            cluster.says(*node, 0, *due, missing);
        }
        cluster.pass(2_500);
        assert_eq!(cluster.stage.epoch() > Epoch(1), deposed, "{reports:?}");
        if deposed {
            assert!(cluster.primary() != NodeId(1), "{reports:?}");
        }
    };
    check(&[(2, 0, &[1]), (3, 0, &[1])], true);
    // Only one says so: the other one suffices to commit.
    check(&[(2, 0, &[1])], false);
    // They do not reach each other, either: none of them could do better.
    check(&[(2, 0, &[1, 3]), (3, 0, &[1, 2])], false);
    // One has not proved its own health.
    check(&[(2, 4, &[1]), (3, 0, &[1])], false);
}

/// A is back in a new process, and its answer and B's would suffice; the preferred copy answers a moment later.
#[test]
fn a_preferred_copy_that_beats_is_waited_for_a_moment() {
    for (beats, chosen) in [(true, NodeId(3)), (false, NodeId(1))] {
        let mut cluster = Cluster::new();
        prefer(&mut cluster.stage, &[NodeId(3)]);
        cluster.pass(1_500);
        if !beats {
            cluster.beating = vec![NodeId(1), NodeId(2)];
            cluster.pass(1_000);
        }
        let late = cluster.stage.answering.remove(&NodeId(3));
        cluster.primary_dies();
        let again = PrimaryId {
            instance: Instance(200),
            ..process(NodeId(1))
        };
        cluster.stage.answering.insert(NodeId(1), again);
        // Well within the time that an attempt allows for answers that it could do without.
        cluster.stage.pass(Duration::from_millis(10));
        cluster
            .stage
            .answering
            .insert(NodeId(3), late.expect("answered before"));
        cluster.stage.pass(Duration::from_millis(100));
        assert_eq!(cluster.primary(), chosen, "it beats: {beats}");
    }
}

fn prefer(stage: &mut Stage, nodes: &[NodeId]) {
    let record = stage.witness.records.get_mut(&stage.volume).expect("kept");
    let (_, register) = record.accepted.as_mut().expect("accepted");
    register.policy.prefer = nodes.to_vec();
}

/// B stops serving on its own account and names nobody: it answers like any other copy, but does not want the role.
#[test]
fn a_primary_that_gave_its_epoch_up_is_not_preferred_for_having_been_it() {
    let mut cluster = Cluster::new();
    cluster.pass(1_500);
    cluster.primary_dies();
    cluster.pass(500);
    assert_eq!(cluster.primary(), NodeId(2));
    let again = PrimaryId {
        instance: Instance(200),
        ..process(NodeId(1))
    };
    cluster.stage.answering.insert(NodeId(1), again);
    let released = WitnessMessage::Release {
        volume: cluster.stage.volume,
        epoch: cluster.stage.epoch(),
        instance: process(NodeId(2)).instance,
        prefer: None,
    };
    let message = Message::Witness(released);
    let from = NodeId(2);
    let input = WitnessInput::Message { from, message };
    cluster.stage.witness.handle(cluster.stage.now, input);
    cluster.stage.pass(Duration::from_millis(200));
    assert_eq!(cluster.primary(), NodeId(1));
}

#[test]
fn the_zone_of_the_last_primary_is_known_after_it_has_gone() {
    let mut cluster = Cluster::new();
    let zone = |name: &str| name.parse::<Zone>().expect("a good name");
    cluster.zones = BTreeMap::from([
        (NodeId(1), zone("east")),
        (NodeId(2), zone("west")),
        (NodeId(3), zone("east")),
    ]);
    cluster.pass(1_500);
    cluster.primary_dies();
    cluster.pass(500);
    assert_eq!(cluster.primary(), NodeId(3));
}

/// R6.5: each rule decides only where those before it do not.
#[test]
fn equal_copies_are_told_apart_in_the_order_of_the_rules() {
    let stage = Stage::of(3, LeaseConfig::default());
    let mut register = stage
        .witness
        .accepted(stage.volume)
        .expect("accepted")
        .clone();
    let mut wishes = Wishes::default();
    let mut links: BTreeMap<NodeId, Vec<NodeId>> = NODES
        .map(|node| (node, vec![NodeId(1), NodeId(2), NodeId(3)]))
        .into();
    let chosen = |register: &Register, wishes: &Wishes, links: &BTreeMap<NodeId, Vec<NodeId>>| {
        let answers: Answers = NODES
            .iter()
            .map(|node| {
                let id = process(*node);
                let (node, incarnation) = (id.node, id.incarnation);
                let answer = SealAnswer {
                    epoch: Epoch(2),
                    last: LogPoint {
                        epoch: Epoch(1),
                        lsn: Lsn(3),
                    },
                    first: Lsn(1),
                    damaged: false,
                    rebuilding: false,
                    doubt: None,
                    reachable: links[&node].clone(),
                };
                (CopyId { node, incarnation }, (id, answer))
            })
            .collect();
        match choose(register, &answers, wishes, Mistakes::NONE) {
            Choice::Chosen { primary, .. } => primary.node.0,
            Choice::Blind { .. } => 0,
        }
    };
    assert_eq!(chosen(&register, &wishes, &links), 1, "placement");
    links.insert(NodeId(3), vec![NodeId(1), NodeId(2), NodeId(3), NodeId(8)]);
    assert_eq!(chosen(&register, &wishes, &links), 3, "more links");
    wishes.last = Some(NodeId(2));
    assert_eq!(chosen(&register, &wishes, &links), 2, "last primary");
    wishes.near = BTreeSet::from([NodeId(1), NodeId(3)]);
    assert_eq!(chosen(&register, &wishes, &links), 3, "zone");
    register.policy.prefer = vec![NodeId(8), NodeId(2), NodeId(3)];
    assert_eq!(chosen(&register, &wishes, &links), 2, "policy");
    // Its own link and one to a node that is no member commit nothing.
    links.insert(NodeId(2), vec![NodeId(2), NodeId(8)]);
    assert_eq!(chosen(&register, &wishes, &links), 3, "who can commit");
    wishes.named = Some(NodeId(1));
    assert_eq!(chosen(&register, &wishes, &links), 1, "by name");
    wishes.avoid = BTreeSet::from([NodeId(1)]);
    assert_eq!(chosen(&register, &wishes, &links), 3, "unfit");
}
