//! Trims: what readers are shown no more, what copies give back, and a log that is copied whole.

use std::time::Duration;

use mainstay_storage::EntryKind;
use mainstay_storage::format::encode_unstamped;
use mainstay_types::{Lsn, SessionId};

use super::{Rig, append_of};
use crate::trims::release_of;
use crate::{ClientOp, Direction, Event, OpResult, PageLimits, Refusal};

const CONN: u64 = 1;

fn trim(seq: u64, first: u64) -> ClientOp {
    let entry = encode_unstamped(EntryKind::TrimLog, SessionId(0), 0, seq, first, &[0; 8]);
    ClientOp::Mutate {
        seq,
        expected: None,
        entry,
        more: Vec::new(),
    }
}

/// Records at LSNs 3 to 7; more members are registered, and have answered nothing yet.
fn log_beside(others: &[u32]) -> Rig {
    let mut rig = Rig::new(1);
    rig.promote_with(1, others);
    rig.open(CONN, 5);
    for (seq, text) in (1..).zip(["a", "b", "c", "d", "e"]) {
        rig.call(CONN, append_of(seq, &[text]));
    }
    rig
}

fn lsns(rig: &mut Rig, from: u64) -> Vec<u64> {
    let shown = rig.read(from, usize::MAX);
    shown.records.iter().map(|(lsn, _)| *lsn).collect()
}

fn trimmed(first: u64) -> OpResult {
    OpResult::Refused(Refusal::Trimmed { first: Lsn(first) })
}

fn read_at(from: u64) -> ClientOp {
    ClientOp::ReadLog {
        from: Lsn(from),
        direction: Direction::Forwards,
        limits: PageLimits {
            bytes_max: usize::MAX,
            records_max: usize::MAX,
        },
        stale_ok: true,
    }
}

/// The releases that the log's trims carry.
fn releases(rig: &Rig) -> Vec<(u64, u64)> {
    let trims = rig
        .log
        .iter()
        .filter(|e| e.header.kind == EntryKind::TrimLog);
    let release = |payload: &[u8]| release_of(payload).expect("a release").0;
    trims
        .map(|e| (e.header.arg, release(&e.payload())))
        .collect()
}

#[test]
fn nobody_is_shown_what_was_trimmed_and_the_trim_point_never_falls() {
    let mut rig = log_beside(&[]);
    let answer = rig.call(CONN, trim(6, 5));
    assert!(
        matches!(
            answer,
            OpResult::Committed {
                lsn: Lsn(8),
                arg: 0,
                ..
            }
        ),
        "{answer:?}"
    );
    assert_eq!(rig.call(9, read_at(4)), trimmed(5));
    assert_eq!(lsns(&mut rig, 5), [5, 6, 7]);
    let limits = PageLimits {
        bytes_max: usize::MAX,
        records_max: 10,
    };
    let back = rig.read_page(u64::MAX, Direction::Backwards, limits);
    let back: Vec<u64> = back.records.iter().map(|(lsn, _)| *lsn).collect();
    assert_eq!(back, [7, 6, 5]);
    let found = rig.call(
        9,
        ClientOp::Find {
            at_ns: 0,
            stale_ok: true,
        },
    );
    assert!(
        matches!(found, OpResult::Found(Some((Lsn(5), _)))),
        "{found:?}"
    );
    rig.call(CONN, trim(7, 4));
    assert_eq!(
        rig.call(9, read_at(4)),
        trimmed(5),
        "a lower trim changes nothing"
    );
    // Sent again, it is answered as the first time.
    assert!(matches!(
        rig.call(CONN, trim(6, 5)),
        OpResult::Committed { lsn: Lsn(8), .. }
    ));
}

#[test]
fn what_is_not_there_cannot_be_trimmed() {
    let mut rig = log_beside(&[]);
    let refused = Refusal::TrimBeyondEnd {
        first: Lsn(9),
        next: Lsn(8),
    };
    assert_eq!(rig.call(CONN, trim(6, 9)), OpResult::Refused(refused));
    assert!(matches!(
        rig.call(CONN, trim(7, 8)),
        OpResult::Committed { .. }
    ));
    assert_eq!(lsns(&mut rig, 8), []);
    rig.call(CONN, append_of(8, &["f"]));
    assert_eq!(lsns(&mut rig, 8), [9]);
}

/// The order of events: a log is trimmed, and the checkpoint behind which its segments go finds a full disk. The next one was asked for at
/// once, and refused as fast, for as long as the disk was full.
#[test]
fn a_checkpoint_for_a_trim_that_failed_is_tried_again_after_a_while() {
    let mut rig = log_beside(&[]);
    rig.slow_checkpoints = true;
    rig.checkpoint = None;
    rig.call(CONN, trim(6, 5));
    for _ in 0..2 {
        assert!(rig.checkpoint.take().is_some(), "begun");
        rig.event(Event::CheckpointFailed { mended: false });
        assert_eq!(rig.checkpoint, None, "not at once");
        let again = rig.volume.next_deadline();
        assert!(again <= rig.now().mono + Duration::from_secs(1));
        rig.pass(500_000_000);
        assert_eq!(rig.checkpoint, None, "nor whenever something happens");
        rig.pass(500_000_000);
    }
    let (at, _) = rig.checkpoint.take().expect("begun");
    rig.event(Event::Checkpointed { at });
    rig.pass(10_000_000_000);
    assert_eq!(rig.checkpoint, None, "it is in the file");
}

/// A trim is no append: a writer's token fences no operator.
#[test]
fn a_trim_needs_no_token() {
    let mut rig = log_beside(&[]);
    rig.call(2, super::opening_with(6, 3));
    assert!(matches!(
        rig.call(CONN, trim(6, 5)),
        OpResult::Committed { .. }
    ));
}

#[test]
fn a_trim_survives_failover_and_a_checkpoint() {
    let mut first = log_beside(&[]);
    first.call(CONN, trim(6, 5));
    let mut promoted = Rig::new(2);
    promoted.append(1, &first.log, 8);
    promoted.promote(2);
    let (end, blob) = first.checkpoint.clone().expect("asked for");
    let mut restarted = Rig::opened(1, end, &blob, &[]);
    restarted.promote(2);
    for rig in [&mut promoted, &mut restarted] {
        assert!(matches!(
            rig.call(9, read_at(4)),
            OpResult::Refused(Refusal::Trimmed { .. })
        ));
    }
    assert_eq!(promoted.call(9, read_at(4)), trimmed(5));
}

/// The order of events of H5: a registered member lags, the log is trimmed above it, another copy gives everything back, and the primary
/// dies: nobody could close the member's gap. Nothing is released above what the member holds, until it has passed the trim point.
#[test]
fn nothing_is_released_that_a_registered_member_may_lack() {
    let mut rig = log_beside(&[2, 3]);
    rig.ack(2, 7);
    rig.ack(3, 3);
    rig.call(CONN, trim(6, 6));
    assert_eq!(releases(&rig), [(6, 4)]);
    assert_eq!(rig.recycled, Some(4), "and nothing is given back above it");
    assert_eq!(
        rig.call(9, read_at(5)),
        trimmed(6),
        "readers are shown nothing all the same"
    );
    rig.ack(3, 4);
    assert_eq!(releases(&rig), [(6, 4)]);
    rig.ack(3, 5);
    assert_eq!(
        releases(&rig),
        [(6, 4), (6, 6)],
        "the primary releases the rest by itself"
    );
    assert_eq!(rig.recycled, Some(6));
}

#[test]
fn a_member_that_has_not_answered_in_this_epoch_may_lack_everything() {
    let mut rig = log_beside(&[2]);
    rig.call(CONN, trim(6, 6));
    assert_eq!(releases(&rig), [(6, 1)]);
    assert_eq!(rig.recycled, None);
}

/// A copy of a log begins at the first entry that its donor holds, with a state that is ahead of it. It shows nothing until it has
/// caught up with that state, and has the same one then, batches and sessions included.
#[test]
fn a_log_that_is_copied_whole_catches_up_with_the_state_it_was_given() {
    let mut donor = log_beside(&[]);
    donor.call(CONN, trim(6, 5));
    assert_eq!(donor.recycled, Some(5));
    donor.call(CONN, append_of(7, &["f", "g"]));
    let held = &donor.log[4..];
    let base = donor.log[3].header.end();
    let (applied, blob) = donor.volume.log_copy_begins(mainstay_types::NodeId(2));
    assert_eq!(applied, Lsn(10));

    let mut copy = Rig::opened(2, base, &blob, &[]);
    assert!(!copy.volume.copy_is_whole());
    copy.append(1, &held[..3], 7);
    assert!(!copy.volume.copy_is_whole());
    assert_eq!(
        (copy.volume.applied(), copy.volume.visible()),
        (Lsn(7), Lsn::ZERO)
    );
    assert_eq!(lsns(&mut copy, 5), []);
    copy.append(1, &held[3..], 10);
    assert!(copy.volume.copy_is_whole());
    assert_eq!(copy.volume.sessions(), donor.volume.sessions());
    assert_eq!(lsns(&mut copy, 5), [5, 6, 7, 9, 10]);

    // Its own checkpoints on the way are as good.
    let mut slow = Rig::opened(2, base, &blob, &[]);
    slow.append(1, &held[..3], 7);
    let (end, blob) = slow.checkpoint.clone().expect("asked for");
    let mut restarted = Rig::opened(2, end, &blob, &[]);
    restarted.append(1, &held[3..], 10);
    assert_eq!(restarted.volume.sessions(), donor.volume.sessions());
}
