//! Atomic batches: all or none, side by side, under one number.

use mainstay_storage::LogEnd;
use mainstay_storage::format::EntryRef;
use mainstay_types::Lsn;

use super::{Rig, append_of, epoch_start, record};
use crate::{BATCH_RECORDS_MAX, ClientOp, OpResult, Outcome, Refusal};

const CONN: u64 = 1;

fn committed(lsn: u64, count: u32) -> OpResult {
    OpResult::Committed {
        lsn: Lsn(lsn),
        count,
        arg: 1_000,
    }
}

fn texts(records: &[(u64, &str)]) -> Vec<(u64, String)> {
    let own = |(lsn, text): &(u64, &str)| (*lsn, (*text).to_owned());
    records.iter().map(own).collect()
}

/// A primary with one record, one batch of three behind it, and another record: LSNs 3, 4 to 6, 7.
fn with_a_batch() -> Rig {
    let mut rig = Rig::primary();
    rig.open(CONN, 5);
    rig.call(CONN, append_of(1, &["a"]));
    assert_eq!(
        rig.call(CONN, append_of(2, &["b", "c", "d"])),
        committed(4, 3)
    );
    rig.call(CONN, append_of(3, &["e"]));
    rig
}

#[test]
fn a_batch_is_answered_once_with_its_first_position_and_its_count() {
    let mut rig = with_a_batch();
    let all = texts(&[(3, "a"), (4, "b"), (5, "c"), (6, "d"), (7, "e")]);
    assert_eq!(rig.records(), all);
    assert_eq!(
        rig.call(CONN, append_of(2, &["b", "c", "d"])),
        committed(4, 3)
    );
    let outcome = rig.call(CONN, ClientOp::Outcome { seq: 2 });
    let (lsn, count, arg) = (Lsn(4), 3, 1_000);
    assert_eq!(
        outcome,
        OpResult::Outcome(Outcome::Committed { lsn, count, arg })
    );
    assert_eq!(rig.records(), all, "a retry appends nothing");
    let stamps = rig.log.iter().map(|entry| entry.header.arg);
    assert_eq!(stamps.skip(3).take(3).collect::<Vec<_>>(), [1_000; 3]);
}

#[test]
fn a_batch_has_one_condition_and_it_is_that_of_its_first_record() {
    let mut rig = with_a_batch();
    let at = |expected: u64, seq| ClientOp::Mutate {
        seq,
        expected: Some(Lsn(expected)),
        entry: record("f"),
        more: vec![record("g")],
    };
    let refused = OpResult::Refused(Refusal::UnexpectedLsn {
        expected: Lsn(9),
        next: Lsn(8),
    });
    assert_eq!(rig.call(CONN, at(9, 4)), refused);
    assert_eq!(rig.call(CONN, at(8, 5)), committed(8, 2));
}

#[test]
fn too_much_for_one_batch_is_refused_whole() {
    let mut rig = with_a_batch();
    let before = rig.log.len();
    let many = vec!["x"; BATCH_RECORDS_MAX + 1];
    let refused = OpResult::Refused(Refusal::TooManyRecords {
        records: BATCH_RECORDS_MAX + 1,
        limit: BATCH_RECORDS_MAX,
    });
    assert_eq!(rig.call(CONN, append_of(4, &many)), refused);
    let half = "y".repeat(600 << 10);
    let refused = OpResult::Refused(Refusal::TooLarge {
        bytes: 2 * (600 << 10),
        limit: 1 << 20,
    });
    assert_eq!(rig.call(CONN, append_of(5, &[&half, &half])), refused);
    assert_eq!(rig.log.len(), before, "nothing of either is in the log");
    assert_eq!(rig.call(CONN, append_of(6, &many[1..])), committed(8, 1024));
}

/// What a copy shows when it holds `log` and knows it committed up to `commit`.
fn shown_at(log: &[EntryRef], commit: u64) -> Rig {
    let mut rig = Rig::new(2);
    rig.append(1, log, commit);
    rig
}

/// The commit point may fall anywhere into a batch; nothing of it is visible before all of it is committed.
#[test]
fn nothing_of_a_batch_is_shown_before_all_of_it_is_committed() {
    let log = with_a_batch().log;
    let all = texts(&[(3, "a"), (4, "b"), (5, "c"), (6, "d"), (7, "e")]);
    for commit in 0..=7 {
        let visible = if (4..6).contains(&commit) { 3 } else { commit };
        let expected: Vec<_> = all
            .iter()
            .filter(|(lsn, _)| *lsn <= visible)
            .cloned()
            .collect();
        let mut rig = shown_at(&log, commit);
        assert_eq!(rig.volume.applied(), Lsn(commit));
        assert_eq!(rig.volume.visible(), Lsn(visible));
        for from in 1..=8 {
            let shown = rig.read(from, usize::MAX);
            let behind: Vec<_> = expected
                .iter()
                .filter(|(lsn, _)| *lsn >= from)
                .cloned()
                .collect();
            assert_eq!(shown.records, behind, "from {from}, committed {commit}");
            assert_eq!(shown.through, visible);
        }
    }
}

#[test]
fn reads_that_begin_or_end_within_a_batch_show_what_lies_in_their_range() {
    let mut rig = with_a_batch();
    let some = texts(&[(5, "c"), (6, "d"), (7, "e")]);
    assert_eq!(rig.read(5, usize::MAX).records, some);
    // Room for two entries.
    assert_eq!(rig.read(4, 2 * 72).records, texts(&[(4, "b"), (5, "c")]));
    assert_eq!(rig.read(6, 2 * 72).records, texts(&[(6, "d"), (7, "e")]));
}

/// The order of events: the primary orders a batch of three, one or two of its records reach the copy that is promoted next, and
/// the primary dies. The batch is void for ever; its number is free, and the retry appends it anew.
#[test]
fn a_batch_that_a_failover_cuts_short_never_was() {
    let log = with_a_batch().log;
    for held in 4..=5 {
        // As committed before the failover, and as inherited by the new primary.
        for commit in [3, held] {
            let mut rig = shown_at(&log[..usize::try_from(held).expect("small")], commit);
            rig.promote(2);
            assert_eq!(rig.volume.visible(), Lsn(held + 1), "the EpochStart");
            assert_eq!(rig.records(), texts(&[(3, "a")]));
            for from in 4..=held + 1 {
                assert_eq!(rig.read(from, usize::MAX).records, []);
            }
            let opened = rig.open(CONN, 5);
            let OpResult::Opened { next_seq, .. } = opened else {
                panic!("{opened:?}")
            };
            assert_eq!(next_seq, 2, "the batch's number was not taken");
            let outcome = rig.call(CONN, ClientOp::Outcome { seq: 2 });
            assert_eq!(outcome, OpResult::Outcome(Outcome::Never));
            let anew = held + 3;
            assert_eq!(
                rig.call(CONN, append_of(2, &["b", "c", "d"])),
                committed(anew, 3)
            );
            let all = texts(&[(3, "a"), (anew, "b"), (anew + 1, "c"), (anew + 2, "d")]);
            assert_eq!(rig.records(), all);
        }
    }
}

/// A whole batch that the new primary inherited takes effect with its first entry, and a retry gets the first result.
#[test]
fn a_batch_that_was_inherited_whole_is_kept() {
    let log = with_a_batch().log;
    let mut rig = shown_at(&log[..6], 4);
    rig.promote(2);
    let all = texts(&[(3, "a"), (4, "b"), (5, "c"), (6, "d")]);
    assert_eq!(rig.records(), all);
    rig.open(CONN, 5);
    assert_eq!(
        rig.call(CONN, append_of(2, &["b", "c", "d"])),
        committed(4, 3)
    );
    assert_eq!(rig.records(), all);
}

/// A retry while the batch is in the log and not committed waits for it.
#[test]
fn a_retry_of_an_uncommitted_batch_waits_for_its_last_record() {
    let mut rig = Rig::primary();
    rig.open(CONN, 5);
    rig.hold = true;
    rig.ask(CONN, 1, append_of(1, &["b", "c"]));
    assert_eq!(rig.reply(CONN, 1), None);
    rig.open_later(CONN + 1, 5);
    rig.store(1);
    assert_eq!(rig.reply(CONN, 1), Some(committed(3, 2)));
    rig.store(1);
    assert_eq!(
        rig.call(CONN + 1, append_of(1, &["b", "c"])),
        committed(3, 2)
    );
}

/// A checkpoint may fall into a batch. What follows from it is what follows from the whole log, wherever the batch ends or is cut
/// short.
#[test]
fn a_checkpoint_within_a_batch_carries_what_is_open() {
    let whole = with_a_batch().log;
    let mut cut = whole[..5].to_vec();
    let end: LogEnd = cut[4].header.end();
    cut.push(epoch_start(2, end));
    for log in [whole, cut] {
        let from_start = shown_at(&log, log.len() as u64);
        for at in 1..log.len() {
            let before = shown_at(&log[..at], at as u64);
            let (end, blob) = before.checkpoint.expect("one entry is enough for one");
            assert_eq!(end.point.lsn, Lsn(at as u64));
            let mut rig = Rig::opened(2, end, &blob, &log[at..]);
            rig.append(1, &log[at..], log.len() as u64);
            assert_eq!(rig.volume.applied(), Lsn(log.len() as u64));
            assert_eq!(
                rig.volume.sessions(),
                from_start.volume.sessions(),
                "behind a checkpoint at {at}"
            );
            assert_eq!(rig.volume.visible(), from_start.volume.visible());
        }
    }
}
