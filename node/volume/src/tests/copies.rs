//! Full copies: the log that is kept for them.

use super::*;

/// A primary on node 1 that keeps next to no log for anybody, beside a learner on node 2.
fn donor() -> Rig {
    let mut rig = Rig::block_copy();
    rig.volume.config.log_keep_bytes = 0;
    let mut register = register(1, 1, &[]);
    register.policy.placement.push(NodeId(2));
    rig.promote_by(register);
    rig.attach();
    rig
}

impl Rig {
    /// Writes a mebibyte, and says from where the log is kept then.
    fn overwrite(&mut self, seq: u64) -> u64 {
        let data = vec![1; 1 << 20];
        let entry = encode_unstamped(EntryKind::Write, SessionId(0), 0, 0, 0, &data);
        let write = ClientOp::Mutate {
            seq,
            expected: None,
            entry,
            more: Vec::new(),
        };
        let done = self.call(1, write);
        assert!(matches!(done, OpResult::Committed { .. }), "{done:?}");
        self.recycled.expect("there was a checkpoint")
    }

    fn begin_copy(&mut self) -> Lsn {
        let (at, _) = self.volume.copy_begins(NodeId(2)).expect("in memory");
        at.point.lsn
    }
}

/// The order of events: a copy is read and sent, and more than what is kept for anybody is written before its learner has caught up.
#[test]
fn the_log_of_a_full_copy_stays_until_its_learner_has_caught_up() {
    let mut rig = donor();
    assert!(rig.overwrite(1) > 1, "little is kept");
    let base = rig.begin_copy();
    rig.overwrite(2);
    assert_eq!(rig.overwrite(3), base.next().0, "while it is sent");
    rig.event(Event::CopySent {
        node: NodeId(2),
        base,
    });
    assert_eq!(rig.overwrite(4), base.next().0, "while the learner follows");
    rig.ack(2, base.0 + 1);
    assert_eq!(rig.overwrite(5), base.0 + 2);
    rig.ack(2, rig.volume.member().commit().0 - 1);
    assert!(rig.volume.pins.first().is_some());
    rig.ack(2, rig.volume.member().commit().0);
    assert_eq!(rig.volume.pins.first(), None, "as for everybody");
}

#[test]
fn no_log_is_kept_for_a_copy_that_broke_off_or_a_learner_that_stands_still() {
    let mut rig = donor();
    let base = rig.begin_copy();
    rig.overwrite(1);
    assert_eq!(rig.overwrite(2), base.next().0);
    rig.event(Event::CopyBroke { node: NodeId(2) });
    assert!(rig.overwrite(3) > base.next().0);

    let base = rig.begin_copy();
    rig.event(Event::CopySent {
        node: NodeId(2),
        base,
    });
    rig.pass(59_000_000_000);
    rig.overwrite(4);
    assert_eq!(rig.overwrite(5), base.next().0);
    rig.pass(2_000_000_000);
    assert!(rig.overwrite(6) > base.next().0);
}

#[test]
fn no_more_log_is_kept_for_a_copy_than_another_one_would_take() {
    let mut rig = donor();
    let base = rig.begin_copy();
    for seq in 1..=7 {
        assert!(rig.overwrite(seq) <= base.next().0, "{seq} of 8 MiB");
    }
    for seq in 8..=9 {
        rig.overwrite(seq);
    }
    assert!(rig.overwrite(10) > base.next().0);
}

/// The order of events: a member falls behind, and the others give up what it lacks; one of them is lost for good. The other could neither feed
/// it nor, alone, let it go.
#[test]
fn a_primary_gives_up_nothing_that_a_registered_member_lacks() {
    let mut rig = Rig::block_copy();
    rig.volume.config.log_keep_bytes = 0;
    rig.promote_with(1, &[2]);
    rig.attach();
    rig.ack(2, 1);
    for seq in 1..=4 {
        assert_eq!(rig.overwrite(seq), 2, "{seq}");
    }
    rig.ack(2, 3);
    assert_eq!(rig.overwrite(5), 4);
    // It should have left long before: a log that fills the disk helps nobody.
    rig.volume.config.member_keep_bytes = 0;
    for seq in 6..=16 {
        rig.overwrite(seq);
    }
    assert!(rig.overwrite(17) > 4);
}

#[test]
fn nor_does_a_replica_which_knows_from_its_primary() {
    let mut primary = Rig::block();
    primary.attach();
    for seq in 1..=4 {
        primary.overwrite(seq);
    }
    let mut replica = Rig::block_copy();
    replica.volume.config.log_keep_bytes = 0;
    let log = primary.log.clone();
    let commit = log.len() as u64;
    replica.append(98, &log[..4], 4);
    assert_eq!(replica.recycled, Some(0), "nothing is known");
    replica.lacked_from = 3;
    replica.append(98, &log[4..], commit);
    assert_eq!(replica.recycled, Some(3));
}
