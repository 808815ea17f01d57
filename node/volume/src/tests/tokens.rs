//! Writers' tokens: the newest one fences all before it, in the order of the log.

use mainstay_types::Lsn;

use super::{Rig, append_of, opening_with};
use crate::{OpResult, Refusal};

const OLD: u64 = 1;
const NEW: u64 = 2;

fn fenced(current: u64) -> OpResult {
    OpResult::Refused(Refusal::FencedToken { current })
}

fn at(result: &OpResult) -> u64 {
    match result {
        OpResult::Committed { lsn, .. } => lsn.0,
        other => panic!("{other:?}"),
    }
}

fn texts(rig: &mut Rig) -> Vec<String> {
    rig.records().into_iter().map(|(_, text)| text).collect()
}

/// The old writer with token 1, and one record of it.
fn old_writer() -> Rig {
    let mut rig = Rig::primary();
    rig.call(OLD, opening_with(5, 1));
    assert_eq!(at(&rig.call(OLD, append_of(1, &["a"]))), 3);
    rig
}

#[test]
fn a_newer_writer_fences_the_older_one_and_those_without_a_token() {
    let mut rig = old_writer();
    rig.call(3, opening_with(7, 0));
    assert!(matches!(
        rig.call(NEW, opening_with(6, 2)),
        OpResult::Opened { .. }
    ));
    assert_eq!(rig.call(OLD, append_of(2, &["b"])), fenced(2));
    assert_eq!(
        rig.call(OLD, append_of(3, &["b", "c"])),
        fenced(2),
        "a batch, too"
    );
    assert_eq!(rig.call(3, append_of(1, &["b"])), fenced(2));
    rig.call(NEW, append_of(1, &["d"]));
    assert_eq!(texts(&mut rig), ["a", "d"]);
    // What was committed before is answered as ever.
    assert_eq!(at(&rig.call(OLD, append_of(1, &["a"]))), 3);
}

#[test]
fn a_new_session_with_an_older_token_is_refused_and_equal_ones_do_not_fence_each_other() {
    let mut rig = old_writer();
    rig.call(NEW, opening_with(6, 2));
    assert_eq!(rig.call(3, opening_with(7, 1)), fenced(2));
    assert!(matches!(
        rig.call(4, opening_with(8, 2)),
        OpResult::Opened { .. }
    ));
    assert!(at(&rig.call(NEW, append_of(1, &["b"]))) > 0);
    assert!(at(&rig.call(4, append_of(1, &["c"]))) > 0);
    // A session that is known opens again, to learn what became of what it sent.
    assert!(matches!(
        rig.call(OLD, opening_with(5, 1)),
        OpResult::Opened { .. }
    ));
    assert_eq!(rig.call(OLD, append_of(2, &["d"])), fenced(2));
}

#[test]
fn a_block_volume_has_no_tokens() {
    let mut rig = Rig::block();
    assert_eq!(
        rig.call(1, opening_with(5, 1)),
        OpResult::Refused(Refusal::WrongKind)
    );
}

/// The order of events: A has a record on its way, B opens with a newer token, A sends another record; the disk is slow, so that none of
/// this is committed. What A had in the log before B's entry stands; what came behind it is refused, but not before B's entry is
/// committed.
#[test]
fn what_is_queued_behind_the_newer_token_is_refused_in_the_order_of_the_log() {
    let mut rig = old_writer();
    rig.hold = true;
    rig.ask(OLD, 1, append_of(2, &["b"]));
    rig.ask(NEW, 2, opening_with(6, 2));
    rig.ask(OLD, 3, append_of(3, &["c"]));
    assert_eq!(rig.reply(OLD, 3), None, "the token is not raised yet");
    rig.store(1);
    assert_eq!(rig.reply(OLD, 1).as_ref().map(at), Some(4));
    assert_eq!(rig.reply(OLD, 3), None);
    rig.store(1);
    let opened = rig.reply(NEW, 2);
    assert!(matches!(
        opened,
        Some(OpResult::Opened { commit: Lsn(5), .. })
    ));
    assert_eq!(rig.reply(OLD, 3), Some(fenced(2)));
    assert_eq!(texts(&mut rig), ["a", "b"]);
}

/// The newer writer's entry is lost with its primary: the token was never raised, nobody was told of it, and the old writer goes on.
#[test]
fn a_token_that_a_failover_takes_away_fences_nobody() {
    let log = old_writer().log;
    let mut rig = Rig::new(2);
    rig.append(1, &log[..3], 3);
    rig.promote(2);
    rig.call(OLD, opening_with(5, 1));
    assert!(at(&rig.call(OLD, append_of(2, &["b"]))) > 3);

    let mut deposed = old_writer();
    deposed.hold = true;
    deposed.ask(NEW, 2, opening_with(6, 2));
    deposed.ask(OLD, 3, append_of(2, &["b"]));
    deposed.depose(2);
    assert_eq!(deposed.reply(OLD, 3), Some(OpResult::Interrupted));
}

/// The token is part of the state: it survives a failover, a checkpoint, and a restart behind one.
#[test]
fn a_token_survives_failover_checkpoint_and_restart() {
    let mut first = old_writer();
    first.call(NEW, opening_with(6, 9));
    first.call(NEW, append_of(1, &["b"]));
    let log = first.log.clone();

    let mut promoted = Rig::new(2);
    promoted.append(1, &log, 5);
    promoted.promote(2);

    let (end, blob) = first.checkpoint.clone().expect("asked for");
    assert_eq!(end.point.lsn, Lsn(5));
    let mut restarted = Rig::opened(1, end, &blob, &[]);
    restarted.promote(2);

    for rig in [&mut promoted, &mut restarted] {
        rig.call(OLD, opening_with(5, 1));
        assert_eq!(rig.call(OLD, append_of(2, &["c"])), fenced(9));
        rig.call(3, opening_with(7, 0));
        assert_eq!(rig.call(3, append_of(1, &["c"])), fenced(9));
        rig.call(NEW, opening_with(6, 9));
        assert!(at(&rig.call(NEW, append_of(2, &["d"]))) > 5);
    }
}
