//! Conditional appends: of records that may have one position only.

use super::*;
use crate::Refusal;

fn append_at(seq: u64, at: u64, text: &str) -> ClientOp {
    ClientOp::Mutate {
        seq,
        expected: Some(Lsn(at)),
        entry: record(text),
        more: Vec::new(),
    }
}

/// Two sessions, and a record of the second one on its way to the disk, at position 4.
fn record_under_way() -> Rig {
    let mut rig = Rig::primary();
    rig.open(1, 5);
    rig.open(2, 6);
    rig.hold = true;
    rig.ask(2, 1, append_of(1, &["b"]));
    rig
}

fn unexpected(expected: u64, next: u64) -> OpResult {
    OpResult::Refused(Refusal::UnexpectedLsn {
        expected: Lsn(expected),
        next: Lsn(next),
    })
}

#[test]
fn a_position_that_is_taken_or_not_reached_is_refused() {
    let mut rig = Rig::primary();
    rig.open(1, 5);
    assert_eq!(rig.call(1, append_at(1, 2, "a")), unexpected(2, 3));
    assert_eq!(rig.call(1, append_at(2, 4, "a")), unexpected(4, 3));
    let committed = rig.call(1, append_at(3, 3, "a"));
    assert!(
        matches!(committed, OpResult::Committed { lsn: Lsn(3), .. }),
        "{committed:?}"
    );
}

/// The answer says how far the log is: nobody is told of a record that a failover may still take away.
#[test]
fn a_refusal_waits_for_the_record_that_has_the_position() {
    let mut rig = record_under_way();
    rig.ask(1, 2, append_at(1, 4, "a"));
    rig.ask(1, 3, append_at(2, 9, "a"));
    assert_eq!((rig.reply(1, 2), rig.reply(1, 3)), (None, None));
    rig.store(10);
    assert!(matches!(
        rig.reply(2, 1),
        Some(OpResult::Committed { lsn: Lsn(4), .. })
    ));
    assert_eq!(rig.reply(1, 2), Some(unexpected(4, 5)));
    assert_eq!(rig.reply(1, 3), Some(unexpected(9, 5)));
}

#[test]
fn a_failover_that_takes_the_record_away_leaves_the_append_open() {
    let mut rig = record_under_way();
    rig.ask(1, 2, append_at(1, 4, "a"));
    rig.depose(2);
    assert_eq!(rig.reply(1, 2), Some(OpResult::Interrupted));
}
