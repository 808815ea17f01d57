//! What a log keeps by its policy: what the primary proposes, and what must not count.

use mainstay_storage::EntryKind;
use mainstay_storage::format::encode_unstamped;
use mainstay_types::{Lsn, SessionId};

use super::{Rig, append_of};
use crate::{ClientOp, OpResult, Refusal, RetentionChange};

const CONN: u64 = 1;

const SECOND: u64 = 1_000_000_000;

fn retain(seq: u64, expected: Option<u64>, change: RetentionChange) -> ClientOp {
    let payload = change.encode();
    ClientOp::Mutate {
        seq,
        expected: expected.map(Lsn),
        entry: encode_unstamped(EntryKind::RetainLog, SessionId(0), 0, seq, 0, &payload),
        more: Vec::new(),
    }
}

fn bytes(bytes: u64) -> RetentionChange {
    RetentionChange {
        age_ms: None,
        bytes: Some(bytes),
    }
}

/// Where the primary's own trims begin the log.
fn trims(rig: &Rig) -> Vec<u64> {
    let own = rig.log.iter().filter(|entry| {
        entry.header.kind == EntryKind::TrimLog && entry.header.session == SessionId(0)
    });
    own.map(|entry| entry.header.arg).collect()
}

/// The records that a reader is shown from where the log begins.
fn shown(rig: &mut Rig) -> Vec<(u64, String)> {
    let first = rig.volume.sessions().trim_point().max(Lsn(1));
    rig.read(first.0, usize::MAX).records
}

fn text(len: usize) -> String {
    "x".repeat(len)
}

/// The order of events: the log keeps 10,000 bytes, of which 12,000 are there; of a batch of 30,000 two thirds are committed, and its
/// primary dies. If the bytes of what is void counted, they would be all that the policy keeps.
#[test]
fn what_is_void_keeps_nothing_and_takes_nothing_away() {
    let (small, large) = (text(1000), text(10_000));
    let mut first = Rig::primary();
    first.open(CONN, 5);
    for seq in 1..=12 {
        first.call(CONN, append_of(seq, &[&small]));
    }
    first.call(CONN, retain(13, None, bytes(10_000)));
    first.call(CONN, append_of(14, &[&large, &large, &large]));
    let batch = first.log.iter().find(|entry| entry.header.seq == 14);
    let held = batch.expect("in the log").header.point.lsn.0 + 1;
    for commit in [held - 2, held] {
        let mut rig = Rig::new(2);
        let log = &first.log[..usize::try_from(held).expect("small")];
        rig.append(1, log, commit);
        rig.promote(2);
        for _ in 0..3 {
            rig.pass(SECOND);
        }
        let kept = shown(&mut rig).len();
        assert!((10..=12).contains(&kept), "{kept} of 10,000 bytes and more");
        // A batch that is whole counts, and what it makes superfluous goes.
        rig.open(CONN, 5);
        rig.call(CONN, append_of(14, &[&large]));
        rig.pass(SECOND);
        assert_eq!(shown(&mut rig).len(), 1);
    }
}

/// A primary that cannot commit, because too few copies are left, proposes a trim once and not every second.
#[test]
fn a_trim_that_is_on_its_way_is_not_proposed_again() {
    let mut rig = Rig::primary();
    rig.open(CONN, 5);
    // It is looked at once now, and again in a second.
    rig.call(CONN, retain(1, None, bytes(2000)));
    for seq in 2..=13 {
        rig.call(CONN, append_of(seq, &[&text(1000)]));
    }
    assert_eq!(trims(&rig), []);
    rig.hold = true;
    for _ in 0..5 {
        rig.pass(2 * SECOND);
    }
    let seen = trims(&rig);
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(shown(&mut rig).len(), 12, "nothing is committed");
    rig.store(10);
    assert_eq!(shown(&mut rig).len(), 2);
    rig.hold = false;
    for seq in 14..=20 {
        rig.call(CONN, append_of(seq, &[&text(1000)]));
    }
    rig.pass(2 * SECOND);
    assert_eq!(trims(&rig).len(), 2, "the next one is proposed");
}

/// Two operators who change one bound each at the same time do not undo one another; and a change that is refused holds up nothing.
#[test]
fn a_change_is_of_the_bounds_that_it_names() {
    let mut rig = Rig::primary();
    rig.open(CONN, 5);
    let age = RetentionChange {
        age_ms: Some(60_000),
        bytes: None,
    };
    rig.call(CONN, retain(1, None, age));
    rig.call(CONN, retain(2, None, bytes(3000)));
    let kept = rig.volume.sessions().retention();
    assert_eq!((kept.age_ms, kept.bytes), (60_000, 3000));
    for seq in 3..=12 {
        rig.call(CONN, append_of(seq, &[&text(1000)]));
    }
    let refused = rig.call(CONN, retain(13, Some(1), bytes(0)));
    let unexpected = matches!(
        refused,
        OpResult::Refused(Refusal::UnexpectedLsn {
            expected: Lsn(1),
            ..
        })
    );
    assert!(unexpected, "{refused:?}");
    rig.pass(2 * SECOND);
    let left = shown(&mut rig).len();
    assert!((3..9).contains(&left), "{left} of ten: the bound in force");
}

/// A clock that is set back by an hour makes nothing older, and one that is set right again goes on where it was.
#[test]
fn a_clock_that_is_set_back_trims_nothing() {
    let mut rig = Rig::primary();
    let hour = 3600 * SECOND;
    rig.wall_ns = 10 * hour;
    rig.open(CONN, 5);
    let age = RetentionChange {
        age_ms: Some(60_000),
        bytes: None,
    };
    rig.call(CONN, retain(1, None, age));
    rig.call(CONN, append_of(2, &["before"]));
    rig.wall_ns -= hour;
    rig.call(CONN, append_of(3, &["behind"]));
    for _ in 0..100 {
        rig.pass(SECOND);
    }
    assert_eq!(shown(&mut rig).len(), 2, "the clock has not caught up yet");
    rig.wall_ns += hour;
    rig.pass(SECOND);
    assert_eq!(shown(&mut rig), [], "both are as old as they say");
}
