//! The queue alone.

use mainstay_types::Lsn;
use tokio::sync::oneshot::error::TryRecvError;

use super::*;
use crate::room::Room;

type Results = Vec<oneshot::Receiver<MutationResult>>;

/// `count` appends, taken in and sent.
fn queue(count: u64) -> (Inflight, Results) {
    let room = Room::new(100, 1000);
    let mut inflight = Inflight::new();
    let mut results = Vec::new();
    for seq in 1..=count {
        let (reply, result) = oneshot::channel();
        let mutation = Mutation::Append {
            record: Bytes::from_static(b"r"),
            expected: None,
        };
        inflight.push(seq, mutation, room.try_acquire(1).expect("room"), reply);
        assert!(inflight.send_last(Instant::now()).is_some());
        results.push(result);
    }
    (inflight, results)
}

fn at(lsn: u64) -> MutationResult {
    Ok(Committed {
        lsn: Lsn(lsn),
        timestamp_us: 0,
    })
}

#[test]
fn results_leave_in_order_whatever_the_order_of_replies() {
    let (mut inflight, mut results) = queue(3);
    assert!(inflight.complete(3, at(13)));
    assert!(inflight.complete(2, at(12)));
    assert_eq!(results[1].try_recv(), Err(TryRecvError::Empty));
    assert!(inflight.complete(1, at(11)));
    for (result, lsn) in results.iter_mut().zip(11..) {
        assert_eq!(result.try_recv(), Ok(at(lsn)));
    }
    assert_eq!(inflight.first_unanswered(), 4);
}

#[test]
fn only_what_has_no_result_is_sent_again_under_its_old_number() {
    let (mut inflight, _results) = queue(3);
    inflight.complete(2, at(12));
    let tags: Vec<u64> = inflight
        .send_all(Instant::now())
        .map(|request| request.tag)
        .collect();
    let seqs: Vec<_> = tags.into_iter().map(seq_of_tag).collect();
    assert_eq!(seqs, [Some(1), Some(3)]);
}

#[test]
fn replies_that_nobody_waits_for_change_nothing() {
    let (mut inflight, _results) = queue(1);
    assert!(!inflight.complete(0, at(1)));
    assert!(!inflight.complete(2, at(1)));
    assert!(!inflight.complete(u64::MAX, at(1)));
    assert!(inflight.complete(1, at(1)));
    assert!(!inflight.complete(1, at(2)));
}

#[test]
fn the_end_of_a_session_leaves_what_was_sent_unknown_and_refuses_the_rest() {
    let (mut inflight, mut results) = queue(1);
    let (reply, result) = oneshot::channel();
    let permit = Room::new(1, 1).try_acquire(0).expect("room");
    inflight.push(2, Mutation::TrimLog { first: 1 }, permit, reply);
    results.push(result);
    inflight.end(&Refusal::UnknownSession);
    assert_eq!(
        results[0].try_recv(),
        Ok(Err(Failed::Unknown(Refusal::UnknownSession)))
    );
    assert_eq!(
        results[1].try_recv(),
        Ok(Err(Failed::Refused(Refusal::UnknownSession)))
    );
}

#[test]
fn a_result_whose_caller_left_is_kept_for_outcome() {
    let (mut inflight, results) = queue(1);
    drop(results);
    inflight.complete(1, at(7));
    let (waiter, _result) = oneshot::channel();
    assert!(
        matches!(inflight.outcome(1, waiter), Known::Settled(Outcome::Committed(c)) if c.lsn == Lsn(7)),
        "kept"
    );
}
